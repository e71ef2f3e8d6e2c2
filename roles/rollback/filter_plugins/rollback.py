# SPDX-License-Identifier: Apache-2.0
"""Filters of the role rollback, see module_utils/vllm_fleet/rollout/rollback.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.filter.core import to_json

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.rollout import rollback
from ansible.module_utils.vllm_fleet.vllm import host_variables


def _known(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return what vllm_release_info returned on each host."""
    return {host: hostvars[host]["__rollback_known"] for host in hosts}


def _replicas(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, str]:
    return {host: host_variables.replica_name(hostvars[host]) for host in hosts}


def rollback_gone_back(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> list[str]:
    """Return those of the run's ``hosts`` whose release came back, with their partners."""
    return rollback.gone_back(_known(hostvars, hosts), _replicas(hostvars, hosts))


def rollback_split(hostvars: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, list[str]]:
    """Return which of the run's ``hosts`` are `behind` and which are `ahead` of them."""
    return rollback.behind_and_ahead(_known(hostvars, hosts), _replicas(hostvars, hosts))


def rollback_stays(hostvars: Mapping[str, Any], host: str, hosts: Sequence[str]) -> bool:
    """Return whether a host's part of its replica is older than what this rollback of ``hosts`` takes back."""
    known, name = _known(hostvars, hosts), host_variables.group_name(hostvars, host)
    partners = host_variables.replicas(hostvars, hosts)[name]
    return rollback.stays([known[one] for one in partners], known[host])


def rollback_overridden(wanted: Mapping[str, Any], current: Sequence[Any]) -> list[str]:
    """Return which variables do not have the values ``wanted``; ``current`` are their values, in the same order."""
    return rollback.overridden(wanted, current, to_json)


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "rollback_gone_back": rollback_gone_back,
            "rollback_overridden": rollback_overridden,
            "rollback_problems": rollback.problems,
            "rollback_split": rollback_split,
            "rollback_stays": rollback_stays,
            "rollback_variables": rollback.variables,
        }
