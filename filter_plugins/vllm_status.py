# SPDX-License-Identifier: Apache-2.0
"""Filters for the table of playbooks/status.yml; the logic is in fleet_report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from fleet_report import status  # noqa: E402  found only with the line above


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {"vllm_status_rows": status.rows, "vllm_status_table": lambda rows: "\n".join(status.lines(rows))}
