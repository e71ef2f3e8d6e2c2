# SPDX-License-Identifier: Apache-2.0
"""What a host's Ansible variables say of its server: names, replica, address. Pure.

``variables`` are those of one host, with what vllm_server returned there in this run (``vllm_server_result``,
``vllm_server_restore_result``); ``hostvars`` are those of all hosts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..common.probes import probed
from . import adapters, cli

PORT = 8000  # default of the role vllm_server
NAME = "vllm"  # likewise, of its container
LOOPBACK = "127.0.0.1"  # likewise
KEEP = 1  # default of rollout_min_available
WATCHED = False  # default of the role vllm_watchdog
SILENCE = 120  # likewise, of vllm_watchdog_silence
AGENT_OFFSET = 10000  # likewise: from a server's port to its watchdog's
MOST = 200  # servers of a node that are believed
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
#: Addresses that stand for all of a node.
WILDCARDS = ("0.0.0.0", "::", "*")  # noqa: S104 - names of what a server may listen on, nothing is bound here
_TRUE = ("true", "yes", "on", "1", "y", "t")


def truth(value: Any) -> bool:
    """Return a variable's truth as Ansible reads it: `yes`, `on`, `1` and the like, whatever the case."""
    return value is True or str(value).strip().lower() in _TRUE


def served_names(variables: Mapping[str, Any]) -> list[str]:
    """Return the names under which a host's server is to answer, the first one first."""
    return cli.served_names(variables.get("vllm_server_args") or {}, str(variables.get("vllm_server_model") or ""))


def adapter_names(variables: Mapping[str, Any]) -> list[str]:
    """Return the names of the LoRA adapters that a host's server is to have from its start."""
    own = cli.adapter_names(variables.get("vllm_server_args") or {})
    return list(dict.fromkeys([*own, *adapters.names(variables.get("vllm_server_adapters"))]))


def server_result(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what vllm_server found on a host in this run: by its own task, or by preflight's probe; empty without."""
    own = variables.get("vllm_server_result")
    return own or probed(variables.get("ansible_facts"), "vllm_server").get("result") or {}


def container_spec(variables: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a host's container is made of: ``spec`` of the newest result of vllm_server in this run.

    Empty where there is no container, None where the host was not asked.
    """
    for found in (variables.get("vllm_server_restore_result") or {}, server_result(variables)):
        if "spec" in found:
            return dict(found["spec"] or {})
    return None


def listens_on(variables: Mapping[str, Any]) -> tuple[str, int]:
    """Return the address and port of a host's container, or the inventory's where none is known."""
    spec = container_spec(variables) or {}
    return (
        str(spec.get("bind") or variables.get("vllm_server_bind") or LOOPBACK),
        int(spec.get("port") or variables.get("vllm_server_port") or PORT),
    )


def own_url(variables: Mapping[str, Any]) -> str:
    """Return the URL at which a host reaches its own server, as it runs now."""
    return url(*listens_on(variables))


def url(bind: str, port: int | str) -> str:
    """Return the URL at which a node reaches what listens at ``bind``."""
    return f"http://{bracketed(LOOPBACK if bind in (*WILDCARDS, 'localhost') else bind)}:{port}"


def watched(variables: Mapping[str, Any]) -> bool:
    """Return whether a host's server is to have a watchdog."""
    return truth(variables.get("vllm_watchdog_enabled", WATCHED))


def acts_after(variables: Mapping[str, Any]) -> str:
    """Return after how many seconds of silence a host's watchdog acts, as they are written; empty where it observes."""
    observes = variables.get("vllm_watchdog_action") == "observe"
    return "" if observes else str(variables.get("vllm_watchdog_silence", SILENCE))


def agent_port(variables: Mapping[str, Any]) -> int:
    """Return the port at which the watchdog of a host's described server answers gateways; 0 without one."""
    if not watched(variables):
        return 0
    given = variables.get("vllm_watchdog_port")
    if given not in (None, ""):
        return int(given)
    port = int(variables.get("vllm_server_port") or PORT)
    return port + AGENT_OFFSET if port + AGENT_OFFSET < 65536 else port - AGENT_OFFSET


def bracketed(address: str) -> str:
    """Return an address as URLs have it."""
    return f"[{address}]" if ":" in address else address


def node_of(variables: Mapping[str, Any], host: str) -> str:
    """Return the name of the machine that a host's server is on: ``vllm_node``, or the host's own name."""
    name = variables.get("vllm_node")
    return host if name in (None, "") else str(name)


def neighbours(hostvars: Mapping[str, Any], hosts: Iterable[str], host: str) -> list[str]:
    """Return the hosts that are servers on a host's machine, itself among them, in the order of ``hosts``.

    Only where the host has a ``vllm_node``, others are looked at: in a large fleet that costs.
    """
    if hostvars[host].get("vllm_node") in (None, ""):
        return [host]
    node = node_of(hostvars[host], host)
    return [other for other in hosts if other == host or node_of(hostvars[other], other) == node]


def container_name(variables: Mapping[str, Any]) -> str:
    """Return the name of a host's container."""
    return str(variables.get("vllm_server_name") or NAME)


def servers_seen(found: Mapping[str, Any]) -> dict[str, str]:
    """Return `servers` of a result of vllm_server; what is no name of a container with a state is a node's fancy."""
    servers = found.get("servers")
    named = servers.items() if isinstance(servers, Mapping) else ()
    good = {name: str(state)[:20] for name, state in named if isinstance(name, str) and _CONTAINER.fullmatch(name)}
    return good if len(good) <= MOST else {}


def undescribed(
    hostvars: Mapping[str, Any], fleet: Iterable[str], found: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Any]]:
    """Return the servers on nodes that no host of the ``fleet`` describes, by node.

    ``found`` are `servers` of vllm_server's results by host, where one of them is not the host's own. Gives of each
    node `by`, the first host that saw them, and `servers`, {container: state}.
    """
    if not found:
        return {}
    # A run that is limited to one of two hosts has not seen whether they are one machine: the same address counts.
    places = {host: _places(hostvars[host], host) for host in {*fleet, *found}}
    described = {(place, container_name(hostvars[host])) for host in fleet for place in places[host]}
    out: dict[str, dict[str, Any]] = {}
    for host, servers in found.items():
        node, *_ = places[host]
        left = {
            name: state
            for name, state in servers.items()
            if described.isdisjoint((place, name) for place in places[host])
        }
        if left:
            out.setdefault(node, {"by": host, "servers": {}})["servers"] |= left
    return out


def _places(variables: Mapping[str, Any], host: str) -> tuple[str, ...]:
    local = variables.get("ansible_connection") == "local"
    return (node_of(variables, host), f"at {'local' if local else variables.get('ansible_host') or host}")


def unread_servers(variables: Mapping[str, Any]) -> bool:
    """Return whether a host has ``vllm_servers`` that the inventory plugin of this name has not made hosts of."""
    return variables.get("vllm_node") in (None, "") and bool(variables.get("vllm_servers"))


#: What helps then, as the end of a sentence.
READ_SERVERS = (
    "put a file vllm_servers.yml with `plugin: vllm_servers` beside the inventory's hosts (its name comes after "
    "theirs), or leave out vllm_servers (docs/servers-per-node.md)"
)


def sharing_weights(
    hostvars: Mapping[str, Any], fleet: Iterable[str], play: Iterable[str], host: str
) -> dict[str, Any]:
    """Return which servers of a host's node have its model: `left` are not in ``play``, `first` is the first there."""
    names = ("vllm_server_model", "vllm_server_variant")
    model, play = [hostvars[host].get(name) or "" for name in names], list(play)
    same = [
        one for one in neighbours(hostvars, fleet, host) if [hostvars[one].get(name) or "" for name in names] == model
    ]
    return {"left": [one for one in same if one not in play], "first": next((one for one in same if one in play), host)}


def by_node(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, list[str]]:
    """Return the hosts of each machine in the order of ``hosts``, by node_of()."""
    found: dict[str, list[str]] = {}
    for host in hosts:
        found.setdefault(node_of(hostvars[host], host), []).append(host)
    return found


def first_of_nodes(hostvars: Mapping[str, Any], hosts: Iterable[str], number: int) -> list[str]:
    """Return the first host of each of the first ``number`` machines; no host after them is looked at."""
    found: dict[str, str] = {}
    for host in hosts:
        if len(found) == number:
            break
        found.setdefault(node_of(hostvars[host], host), host)
    return list(found.values())


def replica_name(variables: Mapping[str, Any]) -> str:
    """Return the name that the hosts of a server over several nodes share; empty for a host alone."""
    name = variables.get("vllm_server_replica")
    return "" if name is None else str(name)


def replica_head(hostvars: Mapping[str, Any], hosts: Iterable[str], host: str) -> str:
    """Return the host that answers for a host's replica: the first of its hosts in ``hosts``."""
    name = replica_name(hostvars[host])
    return next((other for other in hosts if replica_name(hostvars[other]) == name), host) if name else host


def replicas(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, list[str]]:
    """Return the hosts of each replica in the order of ``hosts``, by `replica <name>` or `host <name>`."""
    found: dict[str, list[str]] = {}
    for host in hosts:
        found.setdefault(group_name(hostvars, host), []).append(host)
    return found


def label(name: str, hosts: Sequence[str]) -> str:
    """Return `node3` for a host alone, `big (node1+node2)` for a replica of several; ``name`` is its group_name()."""
    return hosts[0] if len(hosts) == 1 else f"{name.partition(' ')[2]} ({'+'.join(hosts)})"


def min_available(hostvars: Mapping[str, Any], heads: Iterable[str], *, sole: int = 0) -> int:
    """Return how many servers of a pool must stay, by the hosts that answer for them.

    The largest rollout_min_available of them; without one a server, and ``sole`` of a pool of a single one.
    """
    heads = list(heads)
    given = [hostvars[head].get("rollout_min_available") for head in heads]
    values = [int(value) for value in given if value is not None]
    return max(values) if values else KEEP if len(heads) > 1 else sole


def group_name(hostvars: Mapping[str, Any], host: str) -> str:
    """Return `replica <name>` for a host of a server over several nodes, `host <name>` for a host alone."""
    name = replica_name(hostvars[host])
    return f"replica {name}" if name else f"host {host}"
