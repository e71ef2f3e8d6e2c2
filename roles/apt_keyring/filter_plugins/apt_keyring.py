# SPDX-License-Identifier: Apache-2.0
"""Filters of the role apt_keyring, see host/repository_key of module_utils/vllm_fleet."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.host import repository_key


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "apt_keyring_only_expected": repository_key.only_expected_keys,
            "apt_keyring_primary": repository_key.primary_keys,
        }
