# SPDX-License-Identifier: Apache-2.0
"""Servers of one node that is rebooted or repaired: they are replaced together, and one of them boots it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..vllm import host_variables
from . import messages
from .replicas import Replica

#: Replicas that are replaced together; nearly all are alone.
Unit = list[Replica]


def _node(hostvars: Mapping[str, Any], replica: Replica) -> str:
    return host_variables.node_of(hostvars[replica.head], replica.head)


def _going(hostvars: Mapping[str, Any], replicas: Iterable[Replica]) -> set[str]:
    """Return the nodes that are rebooted or repaired."""
    return {
        host_variables.node_of(hostvars[host], host)
        for replica in replicas
        for host in (*replica.reboots, *replica.sick)
    }


def take_part(hostvars: Mapping[str, Any], replicas: Iterable[Replica]) -> None:
    """Have all servers of a node that is rebooted or repaired take part in that."""
    replicas = list(replicas)
    here: dict[str, list[Replica]] = {node: [] for node in _going(hostvars, replicas)}
    for one in replicas if here else ():
        here.get(_node(hostvars, one), []).append(one)
    for members in here.values():
        reboots = next((why for one in members for why in one.reboots.values()), "")
        sick = next((why for one in members for why in one.sick.values()), "")
        for one in members if len(members) > 1 else ():
            one.change = True
            one.reboots |= {one.head: reboots} if reboots else {}
            one.sick |= {one.head: sick} if sick else {}


def units(hostvars: Mapping[str, Any], change: Sequence[Replica]) -> list[Unit]:
    """Return the replicas of ``change`` in their order, those of a node that is rebooted or repaired as one."""
    going = _going(hostvars, change)
    found: dict[str, Unit] = {}
    for replica in change:
        node = _node(hostvars, replica) if going else ""
        found.setdefault(f"node {node}" if node in going else replica.name, []).append(replica)
    return list(found.values())


def boots(found: Iterable[Unit], fleet: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for each host of several on one node `by`, the host that boots or repairs it, and `hosts`, all of them.

    The first of the ``fleet`` does it: the next run takes up what it noted.
    """
    made: dict[str, dict[str, Any]] = {}
    for unit in found:
        if len(unit) > 1:
            hosts = sorted((one.head for one in unit), key=fleet.index)
            made |= {host: {"by": hosts[0], "hosts": hosts} for host in hosts}
    return made


def left_out(hostvars: Mapping[str, Any], replicas: Iterable[Replica], play: Iterable[str]) -> list[str]:
    """Return which nodes cannot be rebooted or repaired because servers of them are not in the run, as sentences."""
    replicas, play = list(replicas), set(play)
    outside: dict[str, list[str]] = {}
    going = _going(hostvars, replicas)
    for replica in replicas if going else ():
        node = _node(hostvars, replica)
        if node in going and replica.head not in play:
            outside.setdefault(node, []).append(replica.head)
    return [messages.half_a_node(node, hosts) for node, hosts in outside.items()]


def canary(plan: Mapping[str, Any], host: str) -> bool:
    """Return whether a host is in the first wave of a plan that reboots nodes."""
    hosts = list(plan.get("hosts") or [])
    for size in plan.get("serial") or []:
        wave, hosts = hosts[:size], hosts[size:]
        if set(wave) & set(plan.get("reboot") or []):
            return host in wave
    return False
