# SPDX-License-Identifier: Apache-2.0
"""What a host is in a server over several nodes, what its container needs for that, and what is wrong with it. Pure.

Runs on the controller: ``hostvars`` are the variables of all hosts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..container import fields
from ..vllm import host_variables, ranks

#: What is read of other hosts' variables.
READ = (
    *("vllm_server_replica", "vllm_server_node_address", "ansible_host"),
    *("vllm_server_interface", "vllm_server_rdma_devices", "vllm_server_rdma_gid_index"),
)


def options(
    hostvars: Mapping[str, Any], host: str, hosts: Sequence[str], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return ``replica`` (name, hosts, head, rank, size, ...) and the options of the module that follow from it.

    ``settings``: the user's args, env, entrypoint, devices, capabilities, volumes, network_mode, bind, accelerator,
    image, model, state_dir, backend, master_addr, master_port. Without them only ``replica`` is worked out. Raises
    ranks.ReplicaError where the inventory describes none.
    """
    own = {name: hostvars[host].get(name) for name in READ}
    # A host alone need not look at the others: on a large fleet that is most of the work.
    variables = {host: own}
    if own["vllm_server_replica"]:
        variables = {h: {name: hostvars[h].get(name) for name in READ} for h in hosts if h in hostvars} | variables
    given = dict(settings or {})
    found = ranks.describe(
        host,
        [h for h in hosts if h in variables] if own["vllm_server_replica"] else [host],
        variables,
        backend=str(given.get("backend") or "mp"),
        master_addr=str(given.get("master_addr") or ""),
        master_port=int(given.get("master_port") or 0),
    )
    return {"replica": found, **({} if settings is None else _options(found, given))}


def _options(found: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    several = found["size"] > 1
    rocm = given["accelerator"] == "rocm"
    ident = ranks.identity(found, given["args"], str(given["image"]), str(given["model"])) if several else ""
    mode = str(given["network_mode"])
    return {
        "args": ranks.args(given["args"], found),
        # What the user says about one host wins over what follows from its place.
        "env": {**ranks.environment(found), **given["env"]},
        # None is the image's own.
        "entrypoint": ranks.entrypoint(found, given["entrypoint"] or [], ident) or None,
        "devices": ranks.devices(found, given["devices"], fields.ROCM_DEVICES if rocm else ()),
        "capabilities": ranks.capabilities(found, given["capabilities"], fields.ROCM_CAPABILITIES if rocm else ()),
        "volumes": [*given["volumes"], *ranks.volumes(found, str(given["state_dir"]))],
        # Collectives choose ports as they like; only the host's own network lets them through.
        "network_mode": "host" if several and mode == "bridge" else mode,
        # A worker has no port.
        "bind": "127.0.0.1" if found["rank"] else given["bind"],
    }


def checked(
    hostvars: Mapping[str, Any], host: str, hosts: Sequence[str], args: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``replica`` as above and, as findings of preflight, what is wrong with it; then ``replica`` is empty.

    ``settings``: backend, master_addr, master_port.
    """
    own: dict[str, Any] = {
        "args": args,
        "env": {},
        "entrypoint": [],
        "devices": None,
        "capabilities": None,
        "volumes": [],
    }
    own |= {"network_mode": "bridge", "bind": "", "accelerator": "", "image": "", "model": "", "state_dir": ""}
    try:
        found = options(hostvars, host, hosts, {**own, **settings})["replica"]
    except ranks.ReplicaError as exc:
        name = str(hostvars[host].get("vllm_server_replica"))
        told = str(exc).removeprefix(f"replica {name}: ").removeprefix(f"replica {name} ")
        remedy = "correct these variables of the replica's hosts (docs/multi-node.md)"
        finding = {"level": "refused", "what": f"replica {name}", "expected": "hosts that make one server"}
        return {"replica": {}, "findings": [{**finding, "got": told, "remedy": remedy}]}
    return {"replica": found if found["size"] > 1 else {}, "findings": []}


def offers(replica: Mapping[str, Any], hostvars: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return what a node connects to: of its partners that listen, by what ``name`` holds, address and offer."""
    out = []
    for host in replica["hosts"]:
        told = hostvars[host].get(name) or {}
        if host != replica["hosts"][replica["rank"]] and told.get("offered"):
            address = replica["addresses"][host]
            out.append({"host": host, "address": address, "offered": told["offered"], "word": told["word"]})
    return out


def findings(
    replica: Mapping[str, Any], listening: Mapping[str, Any], connected: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Return the findings of preflight from what vllm_replica_network returned in its two steps."""
    through = f" through {replica['interface']}" if replica["interface"] else ""
    wanted = f"{replica['address']}{through}, and all nodes reach each other"
    what = f"network of replica {replica['name']}"
    for answer in (listening, connected):
        failure = answer.get("failure")
        if failure:
            got = "; ".join(failure.get("evidence") or [failure["cause"]])
            return [{"level": "refused", "what": what, "expected": wanted, "got": got, "remedy": failure["remedy"]}]
        if answer.get("failed") or answer.get("unreachable"):
            got = " ".join(str(answer.get("msg") or "no answer").split())[:200]
            return [{"level": "unknown", "what": what, "expected": wanted, "got": got, "remedy": ""}]
    reached = [str(offer["host"]) for offer in connected.get("reached") or []]
    got = f"{replica['address']}{through}" + (f", reaches {', '.join(reached)}" if reached else "")
    return [{"level": "ok", "what": what, "expected": wanted, "got": got, "remedy": ""}]


def partners(host: str, hostvars: Mapping[str, Any], hosts: Sequence[str]) -> list[str]:
    """Return those of ``hosts`` that are one server with ``host``, itself among them."""
    name = host_variables.group_name(hostvars, host)
    return [other for other in hosts if host_variables.group_name(hostvars, other) == name]
