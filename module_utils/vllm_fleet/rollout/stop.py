# SPDX-License-Identifier: Apache-2.0
"""What speaks against stopping servers for maintenance (playbooks/stop.yml). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import messages
from .replicas import min_available, replicas_of

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
    for pool in dict.fromkeys(one.pool for one in replicas if going.intersection(one.hosts)):
        members = [one for one in replicas if one.pool == pool and one.serves]
        stay = [one.label for one in members if not going.intersection(one.hosts)]
        keep = min_available(hostvars, replicas, pool)
        if len(stay) < min(keep, len(members)):
            problems.append(messages.too_few_to_stop(pool, stay, keep))
    return problems
