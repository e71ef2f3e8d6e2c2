# SPDX-License-Identifier: Apache-2.0
"""Whether the next wave may begin, and what the run says at its end. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..gateway.servers import UP
from ..vllm import host_variables
from . import messages, undo
from .replicas import Replica, gateway_states, labels, min_available, outcome, replicas_of


def failed_hosts(hostvars: Mapping[str, Any], plan: Mapping[str, Any], batch: Iterable[str] = ()) -> list[str]:
    """Return the hosts of earlier waves that failed, or were lost before they came to an end."""
    batch = set(batch)
    return [
        host
        for host in [*undo.on_trial(hostvars, plan), *(plan.get("hosts") or [])]
        if host not in batch and outcome(hostvars[host]).get("state", "replaced") != "replaced"
    ]


def closed(
    hostvars: Mapping[str, Any],
    plan: Mapping[str, Any],
    batch: list[str],
    fleet: list[str],
    *,
    gateways: list[str],
    max_failures: int,
) -> str:
    """Return why the wave ``batch`` must not begin, as a sentence; empty when it may."""
    failed = failed_hosts(hostvars, plan, batch)
    if len(host_variables.replicas(hostvars, failed)) > max_failures:
        return messages.too_many_failed(labels(hostvars, failed), max_failures)
    return shortage(hostvars, plan, batch, fleet, gateways=gateways)


def shortage(
    hostvars: Mapping[str, Any], plan: Mapping[str, Any], batch: list[str], fleet: list[str], *, gateways: list[str]
) -> str:
    """Return how many replicas would stay during the wave ``batch``, where these are too few; empty otherwise."""
    replicas = replicas_of(hostvars, fleet, plan.get("play") or [], gateways)
    for replica in replicas:
        replica.serves = replica.serves and not set(plan.get("wrong") or []).intersection(replica.hosts)
    for pool in sorted({replica.pool for replica in replicas if set(batch).intersection(replica.hosts)}):
        members = [replica for replica in replicas if replica.pool == pool]
        going = [replica for replica in members if set(batch).intersection(replica.hosts)]
        stay = [
            replica.label for replica in members if replica not in going and _serves_now(hostvars, replica, gateways)
        ]
        keep = min_available(hostvars, replicas, pool)
        if any(replica.serves for replica in going) and len(stay) < keep:
            return messages.too_few_stay(pool, stay, keep)
    return ""


def _serves_now(hostvars: Mapping[str, Any], replica: Replica, gateways: Iterable[str]) -> bool:
    """Return whether a replica serves after the waves so far, by its head's outcome and the gateways."""
    end = outcome(hostvars[replica.head])
    state = end.get("state")
    if state is None or (state == "failed" and "serving" not in end):  # the waves have not touched it
        return replica.serves
    states = gateway_states(hostvars, gateways, replica.head)
    if states and UP not in states:
        return False
    return state == "replaced" or bool(end.get("serving"))


def verdict(hostvars: Mapping[str, Any], plan: Mapping[str, Any], host: str, *, max_failures: int) -> str:
    """Return what a host failed with, and how far the run came."""
    if undo.begun(hostvars):
        return undo.verdict(hostvars, host, max_failures)
    replicas = host_variables.replicas(hostvars, plan.get("hosts") or [])
    name = host_variables.group_name(hostvars, host)
    head = replicas.get(name, [host])[0]
    if host != head and outcome(hostvars[head]).get("state") == "failed":
        return messages.part_of_a_replica(host, name, head)
    states = {
        host_variables.label(one, hosts): {outcome(hostvars[member]).get("state", "") for member in hosts}
        for one, hosts in replicas.items()
    }
    cause = str(outcome(hostvars[host]).get("msg") or "It was lost on the way.").strip().removeprefix(f"{host}: ")
    return messages.verdict(
        host,
        cause,
        [one for one, found in states.items() if found == {"replaced"}],
        [one for one, found in states.items() if found == {""}],
        max_failures,
    )
