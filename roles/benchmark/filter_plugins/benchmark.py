# SPDX-License-Identifier: Apache-2.0
"""Filters of the role benchmark, see module_utils/vllm_fleet/vllm/bench.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.vllm import bench


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "benchmark_context": bench.context,
            "benchmark_failure": bench.failure,
            "benchmark_figures": bench.figures,
            "benchmark_words": bench.words,
        }
