# SPDX-License-Identifier: Apache-2.0
"""Filters of the role docker_engine, see container/ and host/ of module_utils/vllm_fleet."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.container import daemon_json, engine_lack


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "docker_engine_described": daemon_json.described,
            "docker_engine_lack": engine_lack.lack,
            "docker_engine_why_not_root": engine_lack.why_not_root,
        }
