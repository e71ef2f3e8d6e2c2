# SPDX-License-Identifier: Apache-2.0
"""Filters of the role rollback, see module_utils/vllm_fleet/rollout/rollback.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.rollout import rollback


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"rollback_behind": rollback.behind_and_ahead, "rollback_problems": rollback.problems}
