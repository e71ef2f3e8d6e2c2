# SPDX-License-Identifier: Apache-2.0
"""Filters: flags of `vllm serve`, however each of them is spelt: laid over a model's preset, and the served names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.models import presets
from ansible.module_utils.vllm_fleet.vllm import cli


def vllm_args(preset: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the flags ``wanted`` laid over those of ``preset``; null takes a preset's flag away."""
    return presets.lay_over(preset or {}, wanted or {})


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"vllm_args": vllm_args, "vllm_served_names": cli.served_names}
