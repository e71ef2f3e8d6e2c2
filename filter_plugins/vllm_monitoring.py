# SPDX-License-Identifier: Apache-2.0
"""Filters: what the monitoring is told of the inventory, see module_utils/vllm_fleet/monitoring/fleet.py."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.monitoring import fleet


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have what an inventory lacks fail the task with its sentence."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ValueError as exc:
            raise AnsibleFilterError(f"{exc}. Nothing was touched.") from None

    return call


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "monitoring_authorities": fleet.authorities,
            "monitoring_board": fleet.board,
            "monitoring_machines": fleet.machines,
            "monitoring_refusal": fleet.refusal,
            "monitoring_settings": fleet.settings,
            "monitoring_slo_rules": _told(fleet.slo_rules),
            "monitoring_targets": fleet.targets,
        }
