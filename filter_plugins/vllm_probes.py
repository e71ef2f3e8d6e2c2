# SPDX-License-Identifier: Apache-2.0
"""Filters for what preflight asks a node in one call: the server's options in, results out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import probes
from ansible.module_utils.vllm_fleet.server import options


def probed(facts: Mapping[str, Any] | None, module: str, key: str, default: Any = None) -> Any:
    """Return one value of what preflight's probe of a node found for ``module``; ``default`` where it has none."""
    return (probes.probed(facts, module).get("result") or {}).get(key, default)


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"vllm_server_call": options.call, "vllm_fleet_probed": probed}
