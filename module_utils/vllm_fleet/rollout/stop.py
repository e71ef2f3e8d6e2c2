# SPDX-License-Identifier: Apache-2.0
"""What speaks against stopping servers for maintenance (playbooks/stop.yml). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..vllm.host_variables import KEEP
from . import messages
from .replicas import Replica, min_available, replicas_of

#: What a fleet is stopped with that no --limit cuts.
NO_LIMIT = (
    "--limit names no node: name those that go to maintenance, as in --limit node3. All servers of a fleet are taken "
    "away by playbooks/teardown.yml."
)


def against(
    hostvars: Mapping[str, Any], fleet: Iterable[str], hosts: Iterable[str], gateways: Iterable[str], *, limited: bool
) -> list[str]:
    """Return why the servers of ``hosts`` are not stopped, as sentences; empty where they may be.

    ``limited``: the user has named them. What vllm_server found on them is known; others count as serving unless a
    gateway knows better.
    """
    if not limited:
        return [NO_LIMIT]
    going = set(hosts)
    replicas = replicas_of(hostvars, fleet, going, gateways)
    problems = [
        messages.half_a_replica(one.hosts, [host for host in one.hosts if host in going])
        for one in replicas
        if going.intersection(one.hosts) and not going.issuperset(one.hosts)
    ]
    for pool, members in _pools(replicas, going).items():
        serving = [one for one in members if one.serves]
        stay = [one.label for one in serving if not going.intersection(one.hosts)]
        # A rollout replaces a model's only server, as there is no other way, and brings it back. Here it stays away.
        keep = min_available(hostvars, replicas, pool, sole=KEEP)
        if len(stay) < min(keep, len(serving)):
            only = members[0].label if len(members) == 1 else ""
            problems.append(messages.too_few_to_stop(pool, stay, keep, only=only))
    return problems


def emptied(
    hostvars: Mapping[str, Any], fleet: Iterable[str], hosts: Iterable[str], gateways: Iterable[str]
) -> list[str]:
    """Return the models that no server serves any more while ``hosts`` are in maintenance."""
    going = set(hosts)
    pools = _pools(replicas_of(hostvars, fleet, going, gateways), going)
    return [
        pool
        for pool, members in pools.items()
        if not any(one.serves and not going.intersection(one.hosts) for one in members)
    ]


def _pools(replicas: Iterable[Replica], going: set[str]) -> dict[str, list[Replica]]:
    """Return the replicas of each model that loses some of them."""
    pools: dict[str, list[Replica]] = {}
    for one in replicas:
        pools.setdefault(one.pool, []).append(one)
    return {pool: members for pool, members in pools.items() if any(going.intersection(one.hosts) for one in members)}
