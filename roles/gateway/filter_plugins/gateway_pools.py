# SPDX-License-Identifier: Apache-2.0
"""Filters of the role gateway, see module_utils/vllm_fleet/gateway."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.gateway import pools, servers
from ansible.module_utils.vllm_fleet.vllm import host_variables


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "gateway_kept_out": servers.kept_out,
            "gateway_local_url": pools.local_url,
            "gateway_losses": servers.losses,
            "gateway_moved": servers.moved,
            "gateway_own_url": host_variables.own_url,
            "gateway_place": pools.place,
            "gateway_pools": pools.pools_behind,
            "gateway_verification_urls": servers.verification_urls,
        }
