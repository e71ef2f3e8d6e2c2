# SPDX-License-Identifier: Apache-2.0
"""Filters of the role vllm_server, see module_utils/vllm_fleet/server/verification.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.server import verification
from ansible.module_utils.vllm_fleet.vllm import chat_options
from ansible.module_utils.vllm_fleet.weights import layout


def vllm_in_home(path: str, facts: Mapping[str, Any]) -> str:
    """Return a path of a node with the user's home, where the node's ``facts`` have it, in the place of `~`."""
    return layout.in_home(path, facts.get("user_dir", "~"))


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "vllm_answers": chat_options.build_lines,
            "vllm_in_home": vllm_in_home,
            "vllm_repair": verification.repair,
            "vllm_restored": verification.after_wrong_answers,
            "vllm_will_change": verification.will_change,
        }
