# SPDX-License-Identifier: Apache-2.0
"""Servers over several nodes: the entries of their nodes become one entry, as one server has one line. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleet_report.words import count

#: The worst first: what a replica is called when its nodes ended differently.
WORST = (
    "unreachable",
    "failed",
    "refused",
    "restored",
    "taken_back",
    "removed",
    "deployed",
    "replaced",
    "rolled_back",
    "restarted",
    "started",
    "updated",
    "stopped",
)
#: Difference of a node that has none of its own and was replaced with its partners.
WITH_PARTNERS = "replica"
#: What of a node is repeated among the members of its replica.
_OF_A_MEMBER = ("name", "outcome", "release", "differences", "actions", "notes", "failure")


def label(name: str, hosts: Sequence[str]) -> str:
    """Give what a replica is called: ``pair (node1+node2)``."""
    return f"{name} ({'+'.join(hosts)})"


def groups(
    described: Sequence[tuple[str, Mapping[str, Any] | None]],
) -> list[tuple[Mapping[str, Any] | None, list[int]]]:
    """Group the entries of nodes, (host, its replica or None), in the order given: (replica, places)."""
    found: dict[str, tuple[Mapping[str, Any] | None, list[int]]] = {}
    for place, (host, replica) in enumerate(described):
        several = replica if replica and len(replica.get("hosts") or ()) > 1 else None
        key = f"replica {several['name']}" if several else f"host {host}"
        found.setdefault(key, (several, []))[1].append(place)
    return list(found.values())


def merged(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the nodes of a replica together: times and answers are its head's, the outcome is the worst."""
    out = []
    for replica, places in groups([(node["name"], node.get("replica")) for node in nodes]):
        members = [nodes[place] for place in places]
        out.append(dict(members[0]) if replica is None else _one(replica, members))
    return out


def _one(replica: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    order = {host: place for place, host in enumerate(replica["hosts"])}
    members = sorted(members, key=lambda node: order.get(node["name"], len(order)))
    head = next((node for node in members if node["name"] == replica["head"]), members[0])
    outcomes = [node["outcome"] for node in members]
    return {
        **head,
        "name": label(str(replica["name"]), [node["name"] for node in members]),
        "members": [{name: node[name] for name in _OF_A_MEMBER} for node in members],
        "outcome": next((word for word in WORST if word in outcomes), head["outcome"]),
        "started": any(node["started"] for node in members),
        "changed": any(node["changed"] for node in members),
        "differences": _differences(head, members),
        "notes": list(dict.fromkeys(note for node in members for note in node["notes"])),
        "failure": _failure(head, members),
    }


def _differences(head: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The head's, and the others' of which it has none by that name, with the node's name before them."""
    found = [dict(one) for one in head["differences"]]
    known = {one["name"] for one in found}
    for node in members:
        for one in node["differences"]:
            if node is not head and one["name"] not in known and not _of_a_rank(str(one["name"])):
                found.append({**one, "name": f"{node['name']}: {one['name']}"})
    own = [one for one in found if one["name"] != WITH_PARTNERS]
    return own or found


def _of_a_rank(name: str) -> bool:
    """Whether a difference is one of place alone, which workers have and their head has not."""
    return name in ("args.headless", WITH_PARTNERS)


def _failure(head: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The failure of the node that is its cause."""
    failed = [node for node in members if node["failure"]]
    blamed = [node for node in failed if node["failure"].get("host") == node["name"]]
    first: Mapping[str, Any] = next(iter(blamed or [n for n in failed if n is head] or failed), {"failure": None})
    failure: Mapping[str, Any] | None = first["failure"]
    if failure is None:
        return None
    host, cause = str(failure.get("host") or first["name"]), str(failure["cause"])
    return {**failure, "host": host, "cause": cause if host in cause else f"{host}: {cause}"}


def number(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Say how many there are: ``4 nodes``, or ``2 servers on 3 nodes`` where some are over several, or share one."""
    if not any(node.get("members") or node.get("on") for node in nodes):
        return count(len(nodes), "node")
    machines = {str(one.get("on") or one["name"]) for node in nodes for one in node.get("members") or [node]}
    return f"{count(len(nodes), 'server')} on {count(len(machines), 'node')}"
