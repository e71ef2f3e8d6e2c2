# SPDX-License-Identifier: Apache-2.0
"""Which hosts a run leaves out: nodes that do not answer, where the user goes on without them, and maintenance. Pure.

A host that is left out is neither staged nor replaced, and it serves only where a gateway says so. Servers of a node
that does not answer are left out together, and so are always the hosts of a server over several nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..common import maintenance
from ..vllm import host_variables

#: The variable by which the inventory has a server in maintenance.
PLANNED = "rollout_maintenance"
#: Values of rollout_unreachable.
STOP, SKIP = "stop", "skip"

#: {host: {why, with, lost}}: the reason; of a host that is well the one that it is left out with; whether it is left
#: out because a node does not answer, which the run ends with as a failure.
LeftOut = dict[str, dict[str, Any]]


def of(hostvars: Mapping[str, Any], hosts: Iterable[str] = ()) -> LeftOut:
    """Return the hosts that this run leaves out, as far as it knows.

    Of ``hosts`` also those that the inventory has in maintenance (rollout_maintenance), which no run asks anything.
    """
    try:
        here = hostvars["localhost"]
    except KeyError:
        here = {}
    hosts = list(hosts)
    there = [host for host in hosts if host in hostvars and host_variables.truth(hostvars[host].get(PLANNED))]
    planned: LeftOut = {}
    if there:
        groups = host_variables.replicas(hostvars, [host for host in hosts if host in hostvars]).values()
        planned = _with_others(dict.fromkeys(there, f", says {PLANNED} of the inventory"), groups, lost=False)
    found = (here.get("deploy_steps") or {}).get("left_out") or {}
    return {**planned, **found, **(here.get("rollout_left_out") or {})}


def may_skip(variables: Mapping[str, Any]) -> bool:
    """Return whether a run may go on without a host that does not answer."""
    return str(variables.get("rollout_unreachable") or STOP) == SKIP


def find(
    hostvars: Mapping[str, Any], hosts: Iterable[str], lost: Mapping[str, str], resting: Mapping[str, str] | None = None
) -> LeftOut:
    """Return which of ``hosts`` are left out: those ``resting`` in maintenance, and the ``lost``; both with a reason.

    None for being lost where one of them is not to be skipped, or where nobody would be left: the run ends then.
    """
    hosts = list(hosts)
    replicas = list(host_variables.replicas(hostvars, hosts).values())
    rest = _with_others(dict(resting or {}), replicas, lost=False)
    if not lost or not all(may_skip(hostvars[host]) for host in lost):
        return rest
    nodes = list(host_variables.by_node(hostvars, hosts).values())
    found = {**rest, **_with_others(dict(lost), [*replicas, *nodes], lost=True)}
    return found if set(hosts) - found.keys() else rest


def _with_others(reasons: Mapping[str, str], groups: Iterable[list[str]], *, lost: bool) -> LeftOut:
    found: LeftOut = {host: {"why": why, "with": "", "lost": lost} for host, why in reasons.items()}
    groups = [members for members in groups if len(members) > 1]
    grown = bool(found)
    while grown:
        grown = False
        for members in groups:
            first = next((host for host in members if host in found), "")
            for host in members if first else ():
                if host not in found:
                    found[host] = {"why": "", "with": found[first]["with"] or first, "lost": lost}
                    grown = True
    return found


def resting(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, str]:
    """Return the hosts whose nodes have a note that the server is in maintenance, and what it says.

    The note is in the result of whichever module looked there in this run. A run that ends it (`maintenance_ends`)
    does not heed it.
    """
    found = {}
    for host in hosts:
        variables = hostvars[host]
        if host_variables.truth(variables.get("maintenance_ends")):
            continue
        looks = (variables.get(name) or {} for name in ("preflight_result", "vllm_server_result", "__rollback_known"))
        said = next((one["maintenance"] for one in looks if one.get("maintenance")), "")
        if said:
            found[host] = maintenance.shown(said)
    return found


def of_refusals(
    hostvars: Mapping[str, Any], hosts: Iterable[str], refusals: Mapping[str, Mapping[str, Any]]
) -> LeftOut:
    """Return find() after preflight: what it saw in maintenance, and what it could not look at and has no other fault.

    Where something else is refused as well the run ends, and no node is left out for being lost.
    """
    hosts = list(hosts)
    lost = {host: str(one.get("why") or "") for host, one in refusals.items() if one.get("unseen")}
    return find(hostvars, hosts, lost if len(lost) == len(refusals) else {}, resting(hostvars, hosts))


def of_looks(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> LeftOut:
    """Return what is left out after a look at each of ``hosts``, with what was known before.

    `rollout_reached` is the result of a look that says whether a node is out of reach.
    """
    looks = {host: hostvars[host].get("rollout_reached") or {} for host in hosts}
    lost = {host: str(one.get("msg") or "no answer") for host, one in looks.items() if one.get("unreachable")}
    return {**of(hostvars), **find(hostvars, looks, lost, resting(hostvars, looks))}


def present(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return the hosts that are not left out."""
    hosts = list(hosts)
    absent = of(hostvars, hosts)
    return [host for host in hosts if host not in absent]


def lock_nodes(hostvars: Mapping[str, Any], hosts: Iterable[str], number: int) -> list[str]:
    """Return the first host of each of the first ``number`` machines, without those that do not answer.

    None takes their place: another run, to which they do answer, asks these machines. Nor are those asked that may be
    off by the inventory. Where none is left all are asked, so that the run ends with their words.
    """
    first, absent = host_variables.first_of_nodes(hostvars, hosts, number), of(hostvars)
    return [
        host
        for host in first
        if not absent.get(host, {}).get("lost") and not host_variables.truth(hostvars[host].get(PLANNED))
    ] or first


def failures(hostvars: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a run ends with for the nodes that did not answer: {host: {msg, unseen}}, as of preflight_report."""
    absent = of(hostvars)
    found = {}
    for host, one in absent.items():
        if not one["lost"] or one["with"]:
            continue
        others = [name for name, other in absent.items() if other["with"] == host]
        along = f", and {', '.join(others)} with it" if others else ""
        ending = f"It was left out{along} (rollout_unreachable is {SKIP}): the next run takes it up."
        why = one["why"].rstrip(".")
        address = str(hostvars[host].get("ansible_host") or "")
        told = {"sentences": [why], "ending": ending, "further": "", "address": address}
        found[host] = {"msg": f"{host}: {why}. {ending}", "unseen": True, **told}
    return found
