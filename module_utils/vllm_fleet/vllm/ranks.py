# SPDX-License-Identifier: Apache-2.0
"""One server over several nodes, worked out from the inventory: who is which rank, and what each rank is started with.

Pure: names and variables in, plain values out.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from . import cli, host_variables

#: Where the first process of every rank is inside the container, and its name in the node's state folder.
GUARD_TARGET = cli.REPLICA_GUARD
GUARD_FILE = "replica_guard.py"

#: torch.distributed's own default port, and that of Ray's GCS.
MASTER_PORT = 29500
RAY_PORT = 6379

#: Flags that say where a rank stands: worked out here, so that no two nodes can claim the same place.
OWN_FLAGS = ("nnodes", "node-rank", "master-addr", "master-port", "headless", "distributed-executor-backend")

#: What an RDMA network needs in a container: the verbs devices, and the right to lock the memory that is registered.
RDMA_DEVICE = "/dev/infiniband"
RDMA_CAPABILITY = "IPC_LOCK"


class ReplicaError(ValueError):
    """The inventory does not describe a replica; the text says which, what was expected, what was got, what to do."""


def members(host: str, hosts: Sequence[str], variables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Hosts of ``host``'s replica, in the inventory's order: the first is the head. A host alone is its own replica."""
    return host_variables.replicas(variables, hosts).get(host_variables.group_name(variables, host), [host])


def replica_name(host: str, variables: Mapping[str, Mapping[str, Any]]) -> str:
    """Name of a host's replica: ``vllm_server_replica``, or the host's own name."""
    return host_variables.replica_name(variables[host]) or host


def describe(
    host: str,
    hosts: Sequence[str],
    variables: Mapping[str, Mapping[str, Any]],
    *,
    backend: str = "mp",
    master_addr: str = "",
    master_port: int = 0,
) -> dict[str, Any]:
    """Return what a host is in its replica. A host alone gives ``size`` 1 and nothing to add.

    ``variables``: of every host, ``vllm_server_replica``, ``vllm_server_node_address``, ``ansible_host``,
    ``vllm_server_interface``, ``vllm_server_rdma_devices``, ``vllm_server_rdma_gid_index``. Ports: ``master_port`` and
    the one after it, for mp; Ray's own and the one after it.
    """
    all_of_it = members(host, hosts, variables)
    name = replica_name(host, variables)
    base: dict[str, Any] = {"name": name, "hosts": all_of_it, "head": all_of_it[0], "size": len(all_of_it)}
    base["rank"] = all_of_it.index(host)
    if len(all_of_it) == 1:
        return base
    if backend not in ("mp", "ray"):
        raise ReplicaError(f"vllm_server_distributed_backend: expected mp or ray, got {backend!r}")
    addresses = {other: address(other, variables) for other in all_of_it}
    if len(set(addresses.values())) < len(addresses):
        raise ReplicaError(
            f"replica {name}: two of its hosts have the same address ({addresses}); every node needs its own "
            f"(vllm_server_node_address)"
        )
    head = _literal(master_addr, "vllm_server_master_addr") if master_addr else addresses[all_of_it[0]]
    port = int(master_port or (RAY_PORT if backend == "ray" else MASTER_PORT))
    if not 1 <= port <= 65534:
        raise ReplicaError(f"vllm_server_master_port: expected 1 to 65534 (the next port is used too), got {port}")
    return base | {
        "backend": backend,
        "addresses": addresses,
        "address": addresses[host],
        "master_addr": head,
        "master_port": port,
        "guard_port": port + 1,
        "interface": str(_get(variables, host, "vllm_server_interface") or ""),
        "rdma_devices": _list(_get(variables, host, "vllm_server_rdma_devices")),
        "rdma_gid_index": _get(variables, host, "vllm_server_rdma_gid_index"),
    }


def address(host: str, variables: Mapping[str, Mapping[str, Any]]) -> str:
    """Address at which the other nodes of the replica reach this one: its own variable, else ``ansible_host``."""
    for name in ("vllm_server_node_address", "ansible_host"):
        given = _get(variables, host, name)
        if given:
            return _literal(str(given), f"{host}: {name}")
    return _literal(host, f"{host}: vllm_server_node_address is not set and the host's name")


def _literal(text: str, what: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ReplicaError(
            f"{what}: expected an IP address that the other nodes of the replica reach, got {text!r}; set "
            f"vllm_server_node_address to the node's address on the network between the nodes"
        ) from None


def args(wanted: Mapping[str, Any], replica: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the server's flags what its rank needs. Raises ReplicaError for what cannot be spread.

    vLLM 0.32.0 config/parallel.py: the ranks are dealt out evenly, so the number of nodes must divide their count.
    """
    if replica["size"] == 1:
        return dict(wanted)
    spelt = {cli.flag_name(str(key)): value for key, value in wanted.items()}
    name, size = replica["name"], replica["size"]
    for flag in OWN_FLAGS:
        if spelt.get(flag) is not None and not (flag == OWN_FLAGS[-1] and spelt[flag] == replica["backend"]):
            raise ReplicaError(
                f"vllm_server_args: {flag} of replica {name} follows from the inventory; remove it (the backend is "
                f"vllm_server_distributed_backend, the address vllm_server_master_addr)"
            )
    world = world_size(spelt)
    if world % size:
        raise ReplicaError(
            f"replica {name} has {size} nodes, but tensor x pipeline parallel is {world}: expected a multiple of "
            f"{size}, as every node runs as many of the ranks; correct tensor-parallel-size or "
            f"pipeline-parallel-size (vllm_server_args), or the hosts of the replica"
        )
    out = {key: value for key, value in wanted.items() if cli.flag_name(str(key)) != OWN_FLAGS[-1]}
    out["distributed-executor-backend"] = replica["backend"]
    if replica["backend"] == "mp":
        out |= {"nnodes": size, "node-rank": replica["rank"]}
        out |= {"master-addr": replica["master_addr"], "master-port": replica["master_port"]}
    if replica["rank"]:
        out["headless"] = True
    return out


def world_size(flags: Mapping[str, Any]) -> int:
    """Ranks of the whole server: tensor x pipeline x data parallel, each 1 where it is not given."""
    total = 1
    for flag in ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"):
        value = flags.get(flag)
        try:
            total *= int(str(value)) if value is not None else 1
        except ValueError:
            raise ReplicaError(f"vllm_server_args: {flag}: expected a number, got {value!r}") from None
    return total


def environment(replica: Mapping[str, Any]) -> dict[str, str]:
    """Environment of a rank that follows from its place: addresses, interfaces, adapters."""
    if replica["size"] == 1:
        return {}
    env = {"VLLM_HOST_IP": str(replica["address"])}
    if replica["interface"]:
        # NCCL and RCCL take a list of prefixes, and `=` makes it one exact name; gloo knows exact names only.
        env |= {"NCCL_SOCKET_IFNAME": f"={replica['interface']}", "GLOO_SOCKET_IFNAME": replica["interface"]}
    if replica["rdma_devices"]:
        env["NCCL_IB_HCA"] = "=" + ",".join(replica["rdma_devices"])
    if replica["rdma_gid_index"] is not None and replica["rdma_gid_index"] != "":
        env["NCCL_IB_GID_INDEX"] = str(replica["rdma_gid_index"])
    return env


def devices(replica: Mapping[str, Any], wanted: Sequence[str] | None, default: Sequence[str]) -> list[str] | None:
    """Devices of a rank: the user's or the default ones, and the verbs devices where RDMA is used."""
    if replica["size"] == 1 or not replica["rdma_devices"]:
        return None if wanted is None else list(wanted)
    return sorted({*(default if wanted is None else wanted), RDMA_DEVICE})


def capabilities(replica: Mapping[str, Any], wanted: Sequence[str] | None, default: Sequence[str]) -> list[str] | None:
    """Capabilities of a rank, with the same reasoning."""
    if replica["size"] == 1 or not replica["rdma_devices"]:
        return None if wanted is None else list(wanted)
    return sorted({*(default if wanted is None else wanted), RDMA_CAPABILITY})


def identity(replica: Mapping[str, Any], wanted: Mapping[str, Any], image: str, model: str) -> str:
    """A short text that ranks of the same release share: ranks of two releases must not meet."""
    shared = {k: replica[k] for k in ("name", "hosts", "backend", "master_addr", "master_port")}
    try:
        spelt: Mapping[str, Any] = cli.normalise_args(wanted)
    except cli.CommandError:  # the module refuses them in its own words
        spelt = wanted
    # The same flags however they are written, and without those that a record has besides (see without_place).
    flags = {k: v for k, v in spelt.items() if k not in (*OWN_FLAGS, "shutdown-timeout") and v is not None}
    text = json.dumps([shared, flags, image, model], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entrypoint(replica: Mapping[str, Any], wanted: Sequence[str], ident: str) -> list[str]:
    """Entrypoint of a rank: the guard, and behind it the server, or its part of a Ray cluster.

    Ray's workers have no server of their own: what follows the entrypoint (model and flags) is left aside there.
    """
    server = list(wanted) or ["vllm", "serve"]
    if replica["size"] == 1:
        return list(wanted)
    words = ["python3", GUARD_TARGET, "--rank", str(replica["rank"]), "--size", str(replica["size"])]
    words += ["--head", str(replica["master_addr"]), "--port", str(replica["guard_port"]), "--id", ident]
    if replica["backend"] == "mp":
        return [*words, "--", *server]
    node = f"--node-ip-address={replica['address']}"
    if replica["rank"]:
        # A worker of Ray gives up on a head that is not there yet, and all start at the same moment.
        start = (
            f"until ray health-check --address={_at(replica)} >/dev/null 2>&1; do sleep 1; done; "
            f"exec ray start --address={_at(replica)} {node} --disable-usage-stats --block"
        )
    else:
        # The server is a driver on the head's own node: it finds the cluster by this address and no other.
        start = (
            f"ray start --head --port={replica['master_port']} {node} --include-dashboard=false "
            f'--disable-usage-stats && export RAY_ADDRESS={_at(replica)} && exec {shlex.join(server)} "$@"'
        )
    return [*words, "--exec", start, "--"]


def behind_guard(words: Sequence[str] | None) -> list[str] | None:
    """Return what a rank's entrypoint runs behind the guard, None for the default: what may be asked for its help."""
    if words is None or GUARD_TARGET not in words:
        return None if words is None else list(words)
    return list(words[words.index("--") + 1 :]) or None


def without_id(words: Sequence[str]) -> list[str]:
    """Return a rank's entrypoint without the text that its release shares: what says nothing of what it is made of."""
    words = list(words)
    if GUARD_TARGET in words and "--id" in words:
        cut = words.index("--id")
        return [*words[:cut], *words[cut + 2 :]]
    return words


def without_place(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded container's options as they were before its place in a replica was added to them.

    ``distributed_backend`` says how its ranks met. What follows from the inventory of today is left out: rank,
    addresses, guard. The options of a host alone stay as they are.
    """
    words = [str(word) for word in spec.get("entrypoint") or ()]
    if GUARD_TARGET not in words:
        return dict(spec)
    args = {k: v for k, v in (spec.get("args") or {}).items() if cli.flag_name(str(k)) not in OWN_FLAGS}
    return {
        **spec,
        "args": args,
        "env": {k: v for k, v in (spec.get("env") or {}).items() if k != "VLLM_HOST_IP"},
        "entrypoint": behind_guard(words) or [],
        "volumes": [v for v in spec.get("volumes") or () if str(v).split(":")[1:2] != [GUARD_TARGET]],
        "distributed_backend": "ray" if "--exec" in words else "mp",
    }


def _at(replica: Mapping[str, Any]) -> str:
    head = str(replica["master_addr"])
    return f"[{head}]:{replica['master_port']}" if ":" in head else f"{head}:{replica['master_port']}"


def volumes(replica: Mapping[str, Any], state_dir: str) -> list[str]:
    """Mounts that a rank needs besides the user's."""
    return [] if replica["size"] == 1 else [f"{state_dir}/{GUARD_FILE}:{GUARD_TARGET}:ro"]


def together(actions: Mapping[str, Sequence[str]]) -> str:
    """What must happen on all nodes, by what each of them alone would do: ``replace``, ``restart``, or ``""``.

    The ranks of an engine meet once, at its start: none can be exchanged, or come back, while the others go on.
    """
    planned = [set(words) for words in actions.values()]
    if any("create" in words for words in planned):
        return "replace"
    return "restart" if any("start" in words for words in planned) else ""


def _get(variables: Mapping[str, Mapping[str, Any]], host: str, name: str) -> Any:
    found = variables.get(host) if host in variables else None
    return None if found is None else found.get(name)


def _list(value: Any) -> list[str]:
    if value in (None, ""):
        return []
    return [str(v) for v in (value if isinstance(value, (list, tuple)) else str(value).split(","))]
