# SPDX-License-Identifier: Apache-2.0
"""The hosts of each play of a rollout. Pure.

Headers of plays are templated before the run, when ``hostvars`` may hold no host and no fact yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .replicas import outcome

#: A pattern that matches no host, without Ansible's warning.
NOBODY = ["all:!all"]


def _fact(hostvars: Mapping[str, Any], host: str, name: str) -> Any:
    """Return a fact of a host; None where there is no such host yet, or no such fact."""
    try:
        return hostvars[host].get(name)
    except KeyError:
        return None


def _plan(hostvars: Mapping[str, Any]) -> Mapping[str, Any]:
    return _fact(hostvars, "localhost", "rollout_plan") or {}


def gateways_of(hostvars: Mapping[str, Any], gateways: Iterable[str], part: str) -> list[str]:
    """Return the gateways of this run that may change now.

    For `prepare` all nodes must have come through, for `rollout` their plan. A run without nodes has neither.
    """
    stage, plan = _fact(hostvars, "localhost", "deploy_stage"), _plan(hostvars)
    accepted = stage == "prepared" and (part == "prepare" or plan.get("problems") == [])
    return [
        gateway
        for gateway in gateways
        if _fact(hostvars, gateway, "gateway_takes_part") and (accepted or stage is None)
    ] or NOBODY


def _ready(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> bool:
    """Return whether every gateway of this run knows its servers; Ansible goes on when one is lost over it."""
    return not any(
        _fact(hostvars, gateway, "gateway_takes_part") and not _fact(hostvars, gateway, "gateway_ready")
        for gateway in gateways
    )


def leftovers(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> list[str]:
    """Return the hosts of the run, where servers that are not replaced may have been left drained."""
    plan = _plan(hostvars)
    wanted = plan.get("problems") == [] and (plan.get("admit") or plan.get("unchanged")) and _ready(hostvars, gateways)
    return list(plan["play"]) if wanted else NOBODY


def waves(hostvars: Mapping[str, Any], gateways: Iterable[str] = ()) -> list[str]:
    """Return the hosts in the order of the waves."""
    return list(_plan(hostvars).get("hosts") or NOBODY) if _ready(hostvars, gateways) else NOBODY


def serial(hostvars: Mapping[str, Any]) -> list[int]:
    """Return how many hosts each wave has."""
    return list(_plan(hostvars).get("serial") or [1])


def failed(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts whose failure is reported at the end."""
    hosts = _plan(hostvars).get("hosts") or []
    return [host for host in hosts if outcome(hostvars[host]).get("state") == "failed"] or NOBODY
