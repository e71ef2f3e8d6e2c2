# SPDX-License-Identifier: Apache-2.0
"""What a host's Ansible variables say of its server: names, replica, address. Pure.

``variables`` are those of one host, with what vllm_server returned there in this run (``vllm_server_result``,
``vllm_server_restore_result``); ``hostvars`` are those of all hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..common.probes import probed
from . import cli

PORT = 8000  # default of the role vllm_server
LOOPBACK = "127.0.0.1"  # likewise
KEEP = 1  # default of rollout_min_available
WATCHED = False  # default of the role vllm_watchdog
AGENT_OFFSET = 10000  # likewise: from a server's port to its watchdog's
#: Addresses that stand for all of a node.
WILDCARDS = ("0.0.0.0", "::", "*")  # noqa: S104 - names of what a server may listen on, nothing is bound here
_TRUE = ("true", "yes", "on", "1", "y", "t")


def truth(value: Any) -> bool:
    """Return a variable's truth as Ansible reads it: `yes`, `on`, `1` and the like, whatever the case."""
    return value is True or str(value).strip().lower() in _TRUE


def served_names(variables: Mapping[str, Any]) -> list[str]:
    """Return the names under which a host's server is to answer, the first one first."""
    return cli.served_names(variables.get("vllm_server_args") or {}, str(variables.get("vllm_server_model") or ""))


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


def min_available(hostvars: Mapping[str, Any], heads: Iterable[str]) -> int:
    """Return how many servers of a pool must stay, by the hosts that answer for them.

    The largest rollout_min_available of them; without one a server, and none of a pool of a single one.
    """
    heads = list(heads)
    given = [hostvars[head].get("rollout_min_available") for head in heads]
    values = [int(value) for value in given if value is not None]
    return max(values) if values else min(KEEP, len(heads) - 1)


def group_name(hostvars: Mapping[str, Any], host: str) -> str:
    """Return `replica <name>` for a host of a server over several nodes, `host <name>` for a host alone."""
    name = replica_name(hostvars[host])
    return f"replica {name}" if name else f"host {host}"
