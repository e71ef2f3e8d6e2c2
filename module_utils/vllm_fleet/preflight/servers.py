# SPDX-License-Identifier: Apache-2.0
"""A host with ``vllm_servers`` as the hosts of its servers: names, ports, variables, and what is wrong with it. Pure.

Values in, values out; runs on the controller while the inventory is read. A value that is a template stays one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..vllm import host_variables

#: What one entry may say of its servers beside variables.
KEYS = ("replicas", "gpus", "cpus")
#: The variables of a host that the servers are made of.
READ = ("vllm_servers", "vllm_server_port", "vllm_server_model", "vllm_server_replica", "vllm_node", "ansible_host")
#: Ports from one entry to the next.
STEP = 100
#: A number and a list become these, under which a server has its part of the node.
_PARTS = {"gpus": "vllm_server_gpus", "cpus": "vllm_server_cpus"}
#: Beginnings of the variables that an entry may set: those of a server. What belongs to the node is the node's.
_PREFIXES = (
    *("vllm_server_", "vllm_image_", "vllm_watchdog_", "hf_cache_", "rollout_", "preflight_"),
    "benchmark_",
)
_ALSO = ("hf_token",)
#: Options of the role gateway that are read on the serving hosts. All others are read on the gateways.
OF_SERVERS = (
    "gateway_server_address",
    "gateway_drain_timeout",
    "gateway_admit_timeout",
    "gateway_land_request",
    "gateway_land_timeout",
    "gateway_require_server",
    "gateway_admit_wait",
)
#: Variables that the names of node and entry make, that speak against a node of its own, or that are the node's.
_MADE = ("vllm_server_name", "vllm_node", "vllm_server_replica", "vllm_server_state_dir")
#: Part of the names of hosts, containers and of the servers of a gateway. A dot would look like `.previous`.
_ENTRY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
#: Characters of a container's longest name, which is also that of a folder.
_LONGEST = 60
#: In a node's name Ansible would read these as a part of a pattern: plays and --limit would not find its servers.
_OF_PATTERNS = re.compile(r"[,:&!\[\]*?~\s]")


@dataclass(frozen=True)
class Server:
    """One server of a node: the name of its host, its groups by entry and by model, and its own variables."""

    host: str
    node: str
    groups: tuple[str, ...]
    variables: Mapping[str, Any]


@dataclass
class Plan:
    """The servers of all nodes in their order, and sentences on what is wrong; with one of them nothing is right."""

    servers: list[Server] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plan(nodes: Mapping[str, Mapping[str, Any]], hosts: Collection[str], groups: Mapping[str, Collection[str]]) -> Plan:
    """Return the servers of ``nodes``: hosts that have `vllm_servers`, with those of their variables that READ names.

    ``hosts`` are all names of the inventory, ``groups`` the direct groups of each node and, under ``""``, all groups.
    """
    made = Plan()
    entries: dict[str, str] = {}
    for host, variables in nodes.items():
        against = _against(host, variables, groups)
        made.problems += [against] if against else []
        if not against:
            _expand(made, host, variables, entries)
    _clashes(made, [name for name in hosts if name not in nodes], groups.get("", ()))
    made.problems = _together(made.problems)
    return made


def _together(problems: Iterable[str]) -> list[str]:
    """Return sentences that say the same of several nodes as one: nodes mostly have the same block."""
    nodes: dict[str, list[str]] = {}
    for problem in problems:
        node = re.split("[,:] ", problem, maxsplit=1)[0]
        nodes.setdefault(problem.replace(node, "NODE"), []).append(problem)
    return [
        told[0] if len(told) == 1 else f"{told[0]} (And so of {len(told) - 1} more node{'s' if len(told) > 2 else ''}.)"
        for told in nodes.values()
    ]


def _against(host: str, variables: Mapping[str, Any], groups: Mapping[str, Collection[str]]) -> str:
    """Return why a host can have no servers of its own at all, as a sentence."""
    block, told = variables.get("vllm_servers"), ""
    if not isinstance(block, Mapping):
        kind = "a template" if _template(block) else f"{type(block).__name__} {block!r}"
        told = f"{host}: vllm_servers is {kind}, expected entries by name: write chat: {{gpus: 1}}."
    elif host in ("localhost", "127.0.0.1", "::1"):
        told = (
            f"{host}: it cannot have vllm_servers, for plays of the controller have its name: call the node otherwise."
        )
    elif odd := _OF_PATTERNS.search(host):
        told = (
            f"{host}: its name has {odd[0]!r}, which Ansible's patterns read as their own, so no play would find its "
            "servers: give the node another name, and its address as ansible_host."
        )
    elif host in groups.get("", ()):
        told = f"{host}: there is a group {host}, too, and the node's name becomes a group: rename one of them."
    elif "gateway" in groups.get(host, ()):
        told = (
            f"{host}: it is a gateway, too, and there is one gateway and not one for each server: give the gateway "
            "a host of its own, with another name and the same ansible_host."
        )
    elif variables.get("vllm_server_replica"):
        told = (
            f"{host}: vllm_server_replica is {variables['vllm_server_replica']!r}, and a server over several nodes has "
            "its nodes for itself: leave out one of vllm_servers and vllm_server_replica."
        )
    elif variables.get("vllm_node"):
        told = f"{host}: it has vllm_node, which vllm_servers gives to each server: leave out one of the two."
    return told


def _expand(made: Plan, host: str, variables: Mapping[str, Any], entries: dict[str, str]) -> None:
    """Add the servers of one node. ``entries`` are those of all nodes, by the names of their groups."""
    base = _port(variables.get("vllm_server_port", host_variables.PORT))
    if base is None:
        given = variables["vllm_server_port"]
        wanted = "a number that is known before the run" if _template(given) else "1 to 65535"
        made.problems.append(
            f"{host}: vllm_server_port is {given!r}, expected {wanted}: the servers' ports are counted from it."
        )
        return
    for number, (name, given) in enumerate(variables["vllm_servers"].items()):
        entry = {} if given is None else given
        problems = _odd(host, str(name), entry)
        other = entries.setdefault(_group_of(str(name)), str(name))
        if other != str(name):
            problems.append(
                f"{host}, entry {name}: its group would be {_group_of(other)}, as of the entry {other}: rename one of "
                "the two."
            )
        made.problems += problems
        if not problems:
            made.servers += _servers(host, str(name), entry, variables, base + number * STEP)


def _odd(host: str, name: str, entry: Any) -> list[str]:
    """Return what is wrong with one entry, as sentences."""
    where = f"{host}, entry {name}"
    if not isinstance(entry, Mapping):
        return [f"{where}: it is {entry!r}, expected keys: write {name}: {{gpus: 1, vllm_server_model: ...}}."]
    found = []
    if not _ENTRY.fullmatch(name) or len(name) > _LONGEST:
        found.append(
            f"{where}: its name is part of the names of hosts and containers: use letters, digits, - and _, at most "
            f"{_LONGEST}, a letter or a digit at both ends."
        )
    found += [f"{where}: {told}" for key, value in entry.items() if (told := _odd_key(str(key), value))]
    replicas = entry.get("replicas", 1)
    if isinstance(replicas, int) and replicas > 1:
        for key in _PARTS:
            if _is_list(entry.get(key)):
                found.append(
                    f"{where}: {key} is a list, and {replicas} replicas would have the same ones: write a number, or "
                    "an entry for each list."
                )
    found += [
        f"{where}: it has {key} and {variable}, which are the same: leave out one of them."
        for key, variable in _PARTS.items()
        if key in entry and variable in entry
    ]
    return found


def _odd_key(key: str, value: Any) -> str:
    """Return what is wrong with one key of an entry, as a sentence without its place; empty where nothing is."""
    if key == "replicas":
        number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value < STEP
        return "" if number else f"replicas is {value!r}, expected a number from 1 to {STEP - 1}."
    if key in _PARTS:
        return _odd_part(key, value)
    if key in _MADE:
        return {
            "vllm_server_name": "vllm_server_name is made of the entry's name: rename the entry.",
            "vllm_node": "vllm_node is the name of the host that has vllm_servers: leave it out.",
            "vllm_server_state_dir": "vllm_server_state_dir is one for all servers of a node, which see there what is "
            "taken: set it for the node.",
        }.get(key, f"{key} is for a server over several nodes, which has its nodes for itself: leave it out.")
    if key == "vllm_server_port" and _port(value) is None:
        return f"vllm_server_port is {value!r}, expected a number from 1 to 65535 that is known before the run."
    if key.startswith(_PREFIXES) or key in (*_ALSO, *_PARTS.values(), *OF_SERVERS):
        return ""
    return _unknown_key(key)


def _unknown_key(key: str) -> str:
    if key.startswith("gateway_"):
        return f"{key} is the gateways', and changes nothing for a server: move it to group_vars/gateway/main.yml."
    near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
    meant = (
        f"write {near[0]}" if near else f"write one of {', '.join(KEYS)}, or a variable of the server (vllm_server_...)"
    )
    return f"{key} is no key of an entry: {meant}."


def _odd_part(key: str, value: Any) -> str:
    """Judge `gpus` or `cpus`: a number, a list, or text that the node's side reads."""
    if isinstance(value, bool) or value is None or (isinstance(value, int) and value < 1):
        return f"{key} is {value!r}, expected a number from 1, or a list such as [0, 1]."
    if isinstance(value, str) and not (_template(value) or re.fullmatch(r"[0-9][0-9,\s-]*", value)):
        return f"{key} is {value!r}, expected a number from 1, or a list such as [0, 1]."
    if isinstance(value, (list, tuple)):
        if not value or not all(_template(one) or _index(one) for one in value):
            return f"{key} is {list(value)!r}, expected a list of indices such as [0, 1]."
        if len(set(map(str, value))) < len(value):
            return f"{key} is {list(value)!r}, which names one twice."
    elif not isinstance(value, (int, str)):
        return f"{key} is {value!r}, expected a number from 1, or a list such as [0, 1]."
    return ""


def _is_list(value: Any) -> bool:
    """Return whether certain ones are named, and not how many."""
    return isinstance(value, (list, tuple)) or (isinstance(value, str) and bool(re.search(r"[0-9]\s*[,-]", value)))


def _index(value: Any) -> bool:
    return not isinstance(value, bool) and re.fullmatch(r"[0-9]+", str(value)) is not None


def _template(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


def _port(value: Any) -> int | None:
    """Return a port as a number; None where it is none, or not known yet."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,5}", str(value)) or not 0 < int(str(value)) < 65536:
        return None
    return int(str(value))


def _servers(
    host: str, name: str, entry: Mapping[str, Any], variables: Mapping[str, Any], base: int
) -> Iterable[Server]:
    """Return the servers of one entry whose first port is ``base``, unless it has a port of its own."""
    base = _port(entry.get("vllm_server_port")) or base
    model = str(entry.get("vllm_server_model") or variables.get("vllm_server_model") or "")
    groups = [_group_of(name)]
    groups += [f"model_{_identifier(model)}"] if model and not _template(model) else []
    own = {_PARTS.get(key, key): value for key, value in entry.items() if key != "replicas"}
    for number in range(1, entry["replicas"] + 1) if "replicas" in entry else (0,):
        called = f"{name}-{number}" if number else name
        derived: dict[str, Any] = {
            "vllm_node": host,
            "vllm_server_name": f"vllm-{called}",
            "vllm_server_port": base + number,
        }
        # By its own name nobody finds it.
        derived |= {} if variables.get("ansible_host") else {"ansible_host": host}
        yield Server(f"{host}-{called}", host, tuple(groups), {**own, **derived})


def _group_of(entry: str) -> str:
    """Return the name of the group of an entry's servers."""
    return f"entry_{_identifier(entry)}"


def _identifier(text: str) -> str:
    """Return a text as a part of a group's name, which Ansible wants to be like a variable's."""
    return re.sub(r"\W", "_", text, flags=re.ASCII)


def _clashes(made: Plan, hosts: Iterable[str], groups: Collection[str]) -> None:
    """Add what two servers of a node, or two hosts of the inventory, cannot both have."""
    named = dict.fromkeys(hosts, "a host of the inventory") | dict.fromkeys(groups, "a group")
    # Its name becomes a group.
    named |= dict.fromkeys({server.node for server in made.servers}, "a node with vllm_servers")
    ports: dict[tuple[str, int], str] = {}
    lists: dict[tuple[str, str, str], str] = {}
    for server in made.servers:
        host, node = server.host, server.node
        if host in named:
            made.problems.append(
                f"{node}: its server {host} has the name of {named[host]}: rename the entry, or that one."
            )
        named[host] = f"a server of {node}"
        port = int(server.variables["vllm_server_port"])
        if port > 65535:
            made.problems.append(
                f"{node}: {host} would have port {port}, expected at most 65535: set a smaller vllm_server_port."
            )
        other = ports.setdefault((node, port), host)
        if other != host:
            made.problems.append(
                f"{node}: {other} and {host} would both have port {port}: set vllm_server_port in one of their "
                "entries; it is the first port of the entry's replicas."
            )
        for key in _PARTS.values():
            given = server.variables.get(key)
            for index in given if isinstance(given, (list, tuple)) else ():
                owner = lists.setdefault((node, key, str(index)), host)
                if owner != host:
                    what = key.removeprefix("vllm_server_")
                    made.problems.append(
                        f"{node}: {owner} and {host} both have {index} in {what}: give each its own, or a number."
                    )
