# SPDX-License-Identifier: Apache-2.0
"""Filters: the place of a host in a server over several nodes, see module_utils/vllm_fleet/replica/place.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.replica import place
from ansible.module_utils.vllm_fleet.vllm.ranks import ReplicaError


def vllm_replica(
    hostvars: Mapping[str, Any], host: str, hosts: Sequence[str], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return place.options(); an inventory that describes no replica fails the task."""
    try:
        return place.options(hostvars, host, hosts, settings)
    except ReplicaError as exc:
        raise AnsibleFilterError(str(exc)) from None


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "vllm_replica": vllm_replica,
            "vllm_replica_findings": place.findings,
            "vllm_replica_offers": place.offers,
            "vllm_replica_partners": place.partners,
            "vllm_replica_seen": place.checked,
        }
