# SPDX-License-Identifier: Apache-2.0
"""Hosts that share a machine: whether they say so, and whether they are in each other's way there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.finding import Finding
from ..container.spec import overlap

#: No vllm_server_gpus.
_NONE: tuple[Any, ...] = (None, "", [])
_OWN = "a container and a port of its own for each host"


def machines(places: Mapping[str, Mapping[str, Any]]) -> dict[str, Finding]:
    """Judge hosts against each other: which share a machine, and whether they are in each other's way there.

    ``places`` has of each host ``machine`` (empty where it is not known), ``name`` of its container, ``bind``, ``port``
    (0 without one), ``replica``, the name of the server over several nodes that it belongs to, ``node``, its vllm_node
    (empty without one), and of a server of a node with several ``agent``, the port of its watchdog. ``address`` and
    ``ssh_port`` are its ansible_host and ansible_port, where it has them. Gives a refusal for each host that is in
    another's way.
    """
    by_machine: dict[str, list[str]] = {}
    machines_of: dict[str, set[str]] = {}
    for host, place in places.items():
        by_machine.setdefault(str(place["machine"]), []).append(host)
        if place["node"]:
            machines_of.setdefault(place["node"], set()).add(str(place["machine"]))
    by_machine.pop("", None)
    found = {}
    for together in by_machine.values():
        for host in together if len(together) > 1 else ():
            one = _unnamed(host, together, places) or _same_name(host, together, places)
            one = one or _same_port(host, together, places)
            if one:
                found[host] = one
    for host, place in places.items():
        if host not in found and len(machines_of.get(place["node"], set()) - {""}) > 1:
            found[host] = _torn(place["node"], places)
    return found


def _unnamed(host: str, together: Sequence[str], places: Mapping[str, Mapping[str, Any]]) -> Finding | None:
    """Refuse hosts of one machine that do not say so."""
    mine = places[host]
    # Of one replica each host has ranks of its own.
    others = [
        one for one in together if not mine["replica"] or places[one]["replica"] != mine["replica"] or one == host
    ]
    if len({places[one]["node"] or f"host {one}" for one in others}) == 1:
        return None
    if copied := _copied(host, others, places):
        return copied
    got = f"{_names(others)} are the same machine"
    remedy = (
        "give all of them the same vllm_node where the machine has several servers (docs/servers-per-node.md), or take "
        "all but one out of the inventory"
    )
    return Finding("refused", "one machine", "one vllm_node for all servers of a machine", got, remedy)


def _copied(host: str, others: Sequence[str], places: Mapping[str, Mapping[str, Any]]) -> Finding | None:
    """Refuse hosts of one address: mostly the line was copied for the next host and not changed."""

    def way(one: str) -> tuple[str, str]:
        return str(places[one].get("address") or ""), str(places[one].get("ssh_port") or "")

    same = [one for one in others if way(one) == way(host)]
    if len(same) < 2 or not way(host)[0]:
        return None
    got = f"{_names(same)} have the same one, {way(host)[0]}: it was probably copied"
    remedy = (
        f"correct the ansible_host of {same[-1] if len(same) == 2 else 'all but one'}; where one machine is meant to"
        " have several servers, give all of them the same vllm_node (docs/servers-per-node.md)"
    )
    return Finding("refused", "ansible_host", "an address of its own for each host", got, remedy)


def _same_name(host: str, together: Sequence[str], places: Mapping[str, Mapping[str, Any]]) -> Finding | None:
    mine = places[host]
    same = [one for one in together if places[one]["name"] == mine["name"]]
    if len(same) < 2:
        return None
    got = f"{_names(same)} are the same machine, with one vllm_server_name ({mine['name']})"
    remedy = (
        "take all but one of them out of the inventory, or give each a vllm_server_name and a "
        "vllm_server_port of its own"
    )
    return Finding("refused", "one machine", _OWN, got, remedy)


def _same_port(host: str, together: Sequence[str], places: Mapping[str, Mapping[str, Any]]) -> Finding | None:
    mine = places[host]
    same = [one for one in together if one == host or _one_port(mine, places[one])]
    if len(same) > 1:
        got = f"{_names(same)} are the same machine, with one vllm_server_port ({mine['port']})"
        return Finding("refused", "one machine", _OWN, got, "give each a vllm_server_port of its own")
    agent = mine.get("agent") or 0
    same = [
        one for one in together if one != host and agent and agent in (places[one]["port"], places[one].get("agent"))
    ]
    if same:
        got = f"the watchdog of {host} has port {agent}, which {_names(same)} has, too"
        return Finding("refused", "one machine", _OWN, got, "leave out vllm_watchdog_port, or give each its own")
    return None


def _torn(node: str, places: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Refuse hosts of one vllm_node that are several machines."""
    firsts: dict[str, str] = {}
    for host, place in places.items():
        if place["node"] == node and place["machine"]:
            firsts.setdefault(str(place["machine"]), host)
    got = f"{_names(list(firsts.values()))} are different machines, with one vllm_node ({node})"
    remedy = "correct vllm_node or ansible_host: servers of one node share its engine, its GPUs and its boots"
    return Finding("refused", "one machine", "one machine for each vllm_node", got, remedy)


def sharing(hosts: Mapping[str, Mapping[str, Any]]) -> dict[str, Finding]:
    """Judge the servers of nodes that have several, by the inventory alone.

    ``hosts`` has of each ``node``, ``replica``, ``rocm`` (whether it is for AMD GPUs), ``gpus``, its vllm_server_gpus
    (empty without one), ``by_hand``, the option by which its GPUs are chosen instead (empty without one), and
    ``state_dir`` (empty where it is not known). Gives a refusal for each host that cannot share its node.
    """
    by_node: dict[str, list[str]] = {}
    for host, said in hosts.items():
        by_node.setdefault(str(said["node"]), []).append(host)
    found = {}
    for node, together in by_node.items():
        # Of GPUs that were chosen by hand the project knows nothing, so it must not choose any beside them.
        none_placed = all(hosts[one]["gpus"] in _NONE for one in together)
        for host in together if len(together) > 1 else ():
            others, by_hand = _names([one for one in together if one != host]), hosts[host]["by_hand"]
            if hosts[host]["replica"]:
                got = f"{host} is a part of {hosts[host]['replica']}, and {node} has {others}, too"
                remedy = "leave out vllm_server_replica, or the other servers of the node"
                found[host] = Finding("refused", "vllm_server_replica", "a node for itself", got, remedy)
            elif unlike := _other_folder(host, together, hosts):
                got = f"{hosts[host]['state_dir']} for {host}, and {hosts[unlike]['state_dir']} for {unlike}"
                remedy = "set it for the node (group_vars, or the node's variables): servers see there what is taken"
                expected = "one folder for all servers of a node"
                found[host] = Finding("refused", "vllm_server_state_dir", expected, got, remedy)
            elif hosts[host]["rocm"] and hosts[host]["gpus"] in _NONE and not (by_hand and none_placed):
                got = f"none for {host}, and {node} has {others}, too"
                remedy = "say how many GPUs it gets, or which: vllm_server_gpus: 1 (gpus in vllm_servers)"
                remedy += f", and take {by_hand} away" if by_hand else ""
                found[host] = Finding("refused", "vllm_server_gpus", "a part of the node for each server", got, remedy)
    return found


def _other_folder(host: str, together: Sequence[str], hosts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the first host whose records are in another folder than those of ``host``; empty without one."""
    mine = hosts[host]["state_dir"]
    return next((one for one in together if mine and hosts[one]["state_dir"] not in ("", mine)), "")


def _one_port(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two servers of a machine would listen on one port; of one replica the head alone has a port."""
    if one["replica"] and one["replica"] == other["replica"]:
        return False
    return bool(one["port"]) and one["port"] == other["port"] and overlap(str(one["bind"]), str(other["bind"]))


def _names(hosts: Sequence[str]) -> str:
    few = list(hosts) if len(hosts) < 7 else [*hosts[:5], f"{len(hosts) - 5} more"]
    return f"{', '.join(few[:-1])} and {few[-1]}" if len(few) > 1 else few[0]
