# SPDX-License-Identifier: Apache-2.0
"""Filters of the role burnin, see module_utils/vllm_fleet/preflight/burnin.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.preflight import burnin


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "burnin_candidates": burnin.candidates,
            "burnin_commands": burnin.commands,
            "burnin_gpu_count": burnin.gpu_count,
            "burnin_gpu_name": burnin.gpu_name,
            "burnin_refusal": burnin.refusal,
        }
