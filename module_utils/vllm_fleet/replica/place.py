# SPDX-License-Identifier: Apache-2.0
"""Filter: what a host is in a server over several nodes, and what its container needs for that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet

#: What is read of other hosts' variables.
READ = ("vllm_server_replica", "vllm_server_node_address", "ansible_host")
READ += ("vllm_server_interface", "vllm_server_rdma_devices", "vllm_server_rdma_gid_index")


def vllm_replica(
    hostvars: Mapping[str, Any], host: str, hosts: Sequence[str], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Give ``replica`` (name, hosts, head, rank, size, ...) and the options of the module that follow from it.

    ``settings``: the user's args, env, entrypoint, devices, capabilities, volumes, network_mode, bind, accelerator,
    image, model, state_dir, backend, master_addr, master_port. Without them only ``replica`` is worked out.
    """
    from ansible.module_utils.vllm_fleet.container import spec  # noqa: PLC0415  found once the path is set
    from ansible.module_utils.vllm_fleet.vllm import ranks  # noqa: PLC0415  found once the path is set

    own = {name: hostvars[host].get(name) for name in READ}
    # A host alone need not look at the others: on a large fleet that is most of the work.
    variables = {host: own}
    if own["vllm_server_replica"]:
        variables = {h: {name: hostvars[h].get(name) for name in READ} for h in hosts if h in hostvars} | variables
    given = dict(settings or {})
    try:
        found = ranks.describe(
            host,
            [h for h in hosts if h in variables] if own["vllm_server_replica"] else [host],
            variables,
            backend=str(given.get("backend") or "mp"),
            master_addr=str(given.get("master_addr") or ""),
            master_port=int(given.get("master_port") or 0),
        )
        if settings is None:
            return {"replica": found}
        return {"replica": found, **_options(found, given, ranks, spec)}
    except ranks.ReplicaError as exc:
        raise AnsibleFilterError(str(exc)) from None


def _options(found: dict[str, Any], given: Mapping[str, Any], replica: Any, spec: Any) -> dict[str, Any]:
    several = found["size"] > 1
    rocm = given["accelerator"] == "rocm"
    ident = replica.identity(found, given["args"], str(given["image"]), str(given["model"])) if several else ""
    mode = str(given["network_mode"])
    return {
        "args": replica.args(given["args"], found),
        # What the user says about one host wins over what follows from its place.
        "env": {**replica.environment(found), **given["env"]},
        # None is the image's own.
        "entrypoint": replica.entrypoint(found, given["entrypoint"] or [], ident) or None,
        "devices": replica.devices(found, given["devices"], spec.ROCM_DEVICES if rocm else ()),
        "capabilities": replica.capabilities(found, given["capabilities"], spec.ROCM_CAPABILITIES if rocm else ()),
        "volumes": [*given["volumes"], *replica.volumes(found, str(given["state_dir"]))],
        # Collectives choose ports as they like; only the host's own network lets them through.
        "network_mode": "host" if several and mode == "bridge" else mode,
        # A worker has no port.
        "bind": "127.0.0.1" if found["rank"] else given["bind"],
    }


def vllm_replica_seen(
    hostvars: Mapping[str, Any], host: str, hosts: Sequence[str], args: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Give ``replica`` as above and, as findings of preflight, what is wrong with it; then ``replica`` is empty.

    ``settings``: backend, master_addr, master_port.
    """
    own = {"args": args, "env": {}, "entrypoint": [], "devices": None, "capabilities": None, "volumes": []}
    own |= {"network_mode": "bridge", "bind": "", "accelerator": "", "image": "", "model": "", "state_dir": ""}
    try:
        found = vllm_replica(hostvars, host, hosts, {**own, **settings})["replica"]
    except AnsibleFilterError as exc:
        name = str(hostvars[host].get("vllm_server_replica"))
        told = str(exc).removeprefix(f"replica {name}: ").removeprefix(f"replica {name} ")
        remedy = "correct these variables of the replica's hosts (docs/multi-node.md)"
        finding = {"level": "refused", "what": f"replica {name}", "expected": "hosts that make one server"}
        return {"replica": {}, "findings": [{**finding, "got": told, "remedy": remedy}]}
    return {"replica": found if found["size"] > 1 else {}, "findings": []}


def vllm_replica_offers(replica: Mapping[str, Any], hostvars: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Give what a node shall connect to: of its partners that listen, by what ``name`` holds, address and offer."""
    out = []
    for host in replica["hosts"]:
        told = hostvars[host].get(name) or {}
        if host != replica["hosts"][replica["rank"]] and told.get("offered"):
            address = replica["addresses"][host]
            out.append({"host": host, "address": address, "offered": told["offered"], "word": told["word"]})
    return out


def vllm_replica_findings(
    replica: Mapping[str, Any], listening: Mapping[str, Any], connected: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Make findings of preflight of what vllm_replica_network said in its two steps."""
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


def vllm_replica_partners(host: str, hostvars: Mapping[str, Any], hosts: Sequence[str]) -> list[str]:
    """Give those of ``hosts`` that are one server with ``host``, itself among them."""
    name = hostvars[host].get("vllm_server_replica")
    return [h for h in hosts if h == host or (name and hostvars[h].get("vllm_server_replica") == name)]


def vllm_rollback_stays(replica: Sequence[Mapping[str, Any] | None], own: Mapping[str, Any]) -> bool:
    """Tell whether a node's part is older than the newest change of its replica, which is what a rollback takes back.

    ``replica``: of all its nodes, and ``own``: of this one, what vllm_release_info returned.
    """
    made = [run for known in replica if (run := _made(known))]
    return bool(_made(own)) and _made(own) < max(made, default="")


def _made(known: Mapping[str, Any] | None) -> str:
    """The run that brought what a node serves (ids begin with the time); of a release that came back, its first one."""
    current = (known or {}).get("current") or {}
    first = next((r for r in (known or {}).get("releases") or [] if r["release"] == current.get("restores")), current)
    return str(first.get("run") or first.get("when") or "")


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {
            "vllm_replica": vllm_replica,
            "vllm_replica_findings": vllm_replica_findings,
            "vllm_replica_offers": vllm_replica_offers,
            "vllm_replica_seen": vllm_replica_seen,
            "vllm_replica_partners": vllm_replica_partners,
            "vllm_rollback_stays": vllm_rollback_stays,
        }
