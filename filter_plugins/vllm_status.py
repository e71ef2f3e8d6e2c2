# SPDX-License-Identifier: Apache-2.0
"""Filters for the tables of playbooks/status.yml and usage.yml; the logic is in fleet_report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from fleet_report import gateways, status, usage  # noqa: E402  found only with the line above


def vllm_status_rows(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the table's rows from what vllm_server returned on each host; one without a result was not asked."""
    return status.rows({host: hostvars[host].get("vllm_server_result") for host in hosts})


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {
            "vllm_gateways_table": lambda found: "\n".join(gateways.lines(found)),
            "vllm_gateways_usage": lambda found, since, until: "\n".join(usage.lines(found, since, until)),
            "vllm_gateways_usage_csv": lambda found: usage.csv_text(usage.rows_of(found)),
            "vllm_status_rows": vllm_status_rows,
            "vllm_status_table": lambda rows: "\n".join(status.lines(rows)),
        }
