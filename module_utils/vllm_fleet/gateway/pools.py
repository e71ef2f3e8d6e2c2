# SPDX-License-Identifier: Apache-2.0
"""Which servers stand behind a gateway, worked out from the inventory and from where the servers are now. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..common.secrets import unsendable
from ..vllm import cli
from ..vllm.host_variables import (
    LOOPBACK,
    READ_SERVERS,
    WILDCARDS,
    adapter_names,
    agent_port,
    container_spec,
    listens_on,
    replica_head,
    served_names,
    truth,
    unread_servers,
)
from . import fronts as listeners
from . import generations, room
from . import keys as clients

# What HAProxy takes as a name (configuration manual, 2.2): letters, digits and these.
NAME = r"[A-Za-z0-9_.:-]+"
# A name with these would end the quotes or the line that it stands in, in the configuration.
NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f'\"]")
ALLOWED = "vllm_server_allow_unauthenticated"


def backend_name(model: str) -> str:
    """Return the model's name as HAProxy can have it."""
    return re.sub(r"[^A-Za-z0-9_.:-]", "_", model)


def place(hostvars: Mapping[str, Any], hosts: Iterable[str], host: str) -> dict[str, Any]:
    """Return a host's `backend` (without its generation), `server` and `model`, and whether it is its replica's `head`.

    `serves` is a name that its container has by now.
    """
    head = replica_head(hostvars, hosts, host)
    model, spec = served_names(hostvars[head])[0], container_spec(hostvars[head]) or {}
    now = cli.served_names(spec.get("args") or {}, str(spec.get("model") or ""))[0] if spec else model
    return {
        "backend": backend_name(model),
        "server": head,
        "model": model,
        "serves": now or model,
        "head": head == host,
    }


def is_generation(backend: str, base: str) -> bool:
    """Return whether a backend is a generation of the pool ``base``."""
    return re.fullmatch(re.escape(base) + r"(:[0-9]+)?", backend) is not None


def address_and_port(
    server: Mapping[str, Any], gateway: Mapping[str, Any], problems: list[str], known: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return `address` and `port` at which a gateway finds a server as it is now, before its turn in the waves.

    Of a host that this run has not asked the gateway goes on with the port that it has, in `known`.
    """
    address, (bind, port) = _address(server, gateway, problems), listens_on(server)
    if not is_loopback(bind):
        address = _address({**server, "vllm_server_bind": bind}, gateway, [])
    if container_spec(server) is None:
        ports = [
            str(one.get("address")).rpartition(":")[2]
            for one in known
            if one.get("name") == server.get("inventory_hostname")
        ]
        port = next((int(text) for text in ports if text.isdigit() and int(text)), port)
    return {"address": address, "port": port}


def is_loopback(address: str) -> bool:
    """Return whether only the machine itself reaches an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two inventory hosts are one machine, as far as the inventory says."""
    if one.get("inventory_hostname") == other.get("inventory_hostname"):
        return True
    if one.get("ansible_connection") == other.get("ansible_connection") == "local":
        return True
    address = one.get("ansible_host")
    return address is not None and address == other.get("ansible_host")


def _address(server: Mapping[str, Any], gateway: Mapping[str, Any], problems: list[str]) -> str:
    """The address at which a gateway finds a server."""
    name, bind = str(server.get("inventory_hostname")), str(server.get("vllm_server_bind") or LOOPBACK)
    if server.get("gateway_server_address"):
        return str(server["gateway_server_address"])
    if is_loopback(bind):
        if not same_machine(server, gateway):
            problems.append(
                f"{name} serves on {bind} alone, where {gateway.get('inventory_hostname')} cannot reach it: set "
                "vllm_server_bind: 0.0.0.0 and a vllm_server_api_key, or gateway_server_address to where it is reached."
            )
        return LOOPBACK if bind == "localhost" else bind
    if bind not in WILDCARDS:
        return bind
    return LOOPBACK if same_machine(server, gateway) else str(server.get("ansible_host") or name)


def pools_behind(
    hostvars: Mapping[str, Any],
    hosts: Iterable[str],
    gateway: str,
    *,
    port: int,
    ports: Mapping[str, int],
    offset: int,
    bind: str = "*",
    also_healthy: Iterable[str] = (),
    known: Iterable[Mapping[str, Any]] = (),
    keys: Iterable[Mapping[str, Any]] = (),
    paths: Iterable[str] = (),
    split: Mapping[str, Mapping[str, Any]] | None = None,
    aliases: Mapping[str, Any] | None = None,
    recorded: Sequence[Mapping[str, Any]] = (),
    keep_old: bool = True,
    keep_leaving: bool = False,
) -> dict[str, Any]:
    """Return the pools behind `gateway`, its fronts (see fronts.py) and, as sentences, what is wrong with them.

    A pool is the replicas that serve the same model by its `names`, and `adapters` of it; `key` says whether they have
    one, `closed` whether clients need one. `port` is that of all models, `ports` gives others by model; `offset` leads
    from a port to its listener on loopback. The gateway listens on `bind`, and takes servers that serve one of
    `also_healthy`. A server stands there at the address and port that it has now, which its wave may change; `known` is
    what the gateway itself has (gateway_info). Its `agent` is the port of its watchdog, 0 without one.
    `keys`, `paths`, `split` and `aliases` are gateway_keys, gateway_paths, gateway_split and gateway_aliases.
    `recorded` are the generations that the gateway has (generations.records); those with servers that are not replaced
    yet are pools, too, marked `kept`, unless `keep_old` is false. With `keep_leaving` a server that is no host any
    more stays where it serves. `secrets` are the servers' keys by backend.
    """
    hosts, known, keys = list(hosts), list(known), list(keys)
    problems: list[str] = []
    pools: dict[str, dict[str, Any]] = {}
    for host in hosts:
        variables, head = hostvars[host], replica_head(hostvars, hosts, host)
        names = served_names(variables)
        if not names[0]:
            problems.append(f"{host} has no vllm_server_model, so its model is unknown: set it.")
            continue
        if head != host:
            if names[0] != served_names(hostvars[head])[0]:
                problems.append(
                    f"{host} and {head} are one replica ({variables.get('vllm_server_replica')}) but serve {names[0]} "
                    f"and {served_names(hostvars[head])[0]}: give them the same model, or another vllm_server_replica."
                )
            continue
        if unread_servers(variables):
            problems.append(f"{host} has vllm_servers and is one server: {READ_SERVERS}.")
        if not re.fullmatch(NAME, host):
            problems.append(f"HAProxy cannot call a server {host!r}: rename it with letters, digits and _.:- alone.")
        pool = pools.setdefault(
            names[0],
            {
                "name": backend_name(names[0]),
                "base": backend_name(names[0]),
                "model": names[0],
                "names": names,
                "adapters": adapter_names(variables),
                "head": host,
                "key": bool(variables.get("vllm_server_api_key")),
                "closed": bool(keys or variables.get("vllm_server_api_key")),
                "servers": [],
            },
        )
        if variables.get("vllm_server_api_key") != hostvars[pool["head"]].get("vllm_server_api_key"):
            problems.append(
                f"{host} and {pool['head']} serve {names[0]} with different keys, so a client could not tell which to "
                "send: give them the same vllm_server_api_key."
            )
        at = address_and_port(variables, hostvars[gateway], problems, known)
        pool["servers"].append({"name": host, **at, "agent": agent_port(variables)})
    made = list(pools.values())
    own = {pool["model"]: str(hostvars[pool["head"]].get("vllm_server_api_key") or "") for pool in made}
    generations.name_pools(made, recorded, own)
    found = listeners.fronts(made, port, ports, offset, problems)
    problems += [*listeners.same_names(made, split or {}), *listeners.odd_splits(made, split or {})]
    problems += listeners.odd_aliases(made, aliases or {})
    _name_aliases(made, aliases or {})
    _open_pools(made, hostvars, gateway, bind, problems)
    _odd_words(made, hostvars, also_healthy, problems)
    problems += [*clients.problems(keys, made), *listeners.odd_paths(paths)]
    if not hosts:
        problems.append("Group vllm has no hosts, so there is nothing to stand in front of.")
    secrets = {pool["name"]: own[pool["model"]] for pool in made} | {
        one["backend"]: one["secret"] for one in recorded if one["backend"] not in {pool["name"] for pool in made}
    }
    made += _keep_generations(made, found, recorded if keep_old else [], known, hostvars)
    if keep_leaving and keep_old:
        generations.add_leaving(made, known, hosts)
    # Those above were for what is checked of the described pools; an alias may mean a kept one, too.
    _name_aliases(made, aliases or {})
    for front in found:
        front["splits"] = listeners.splits(front["pools"], split or {})
        front["aliases"] = listeners.aliases(front["pools"], aliases or {})
        front["spreads"] = generations.spread(front, secrets, by_client=bool(keys))
    for pool in made:
        ids = listeners.server_ids(server["name"] for server in pool["servers"])
        for server in pool["servers"]:
            server["id"] = ids[server["name"]]
    return {"pools": made, "fronts": found, "problems": problems, "secrets": secrets}


def _keep_generations(
    made: Sequence[dict[str, Any]],
    fronts: Iterable[dict[str, Any]],
    recorded: Sequence[Mapping[str, Any]],
    entries: Iterable[Mapping[str, Any]],
    hostvars: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the generations that have servers yet, and add them to the fronts of the pools that take these over."""
    seen = generations.Known(recorded, entries)
    # Of a host without a container nothing is left.
    hosts = {
        server["name"]: server
        for pool in made
        for server in pool["servers"]
        if container_spec(hostvars[server["name"]]) != {}
    }
    kept = generations.kept(made, recorded, seen, hosts)
    generations.add_guests(made, seen, hosts)
    generations.demand([*made, *kept])
    for front in fronts:
        here = {pool["name"] for pool in front["pools"]}
        front["pools"] = [*front["pools"], *(one for one in kept if here.intersection(one["heirs"]))]
    return kept


def _name_aliases(pools: list[dict[str, Any]], aliases: Mapping[str, Any]) -> None:
    """Give each pool its `aliases`."""
    for pool in pools:
        pool["aliases"] = [name for names in listeners.aliases([pool], aliases).values() for name in names]


def client_problems(
    hostvars: Mapping[str, Any], hosts: Iterable[str], gateway: str, given: Mapping[str, Any]
) -> list[str]:
    """Return what is wrong with gateway_keys, _paths, _split, _aliases, _http2 and _buffer_size of ``given``, as
    sentences.

    ``given`` are all variables of the gateway. What may change until its turn, or is a server's, is left out.
    """
    behind = pools_behind(
        hostvars,
        [host for host in hosts if served_names(hostvars[host])[0]],
        gateway,
        port=int(given["gateway_port"]),
        ports=given["gateway_ports"],
        offset=int(given["gateway_local_offset"]),
        aliases=given["gateway_aliases"],
    )
    made = behind["pools"]
    split = given["gateway_split"]
    return [
        *clients.problems(given["gateway_keys"], made),
        *listeners.odd_paths(given["gateway_paths"]),
        *listeners.same_names(made, split),
        *listeners.odd_splits(made, split),
        *listeners.odd_aliases(made, given["gateway_aliases"]),
        *listeners.odd_http2(given["gateway_http2"], given["gateway_certificate"]),
        *room.problems(int(given["gateway_buffer_size"]), behind["fronts"]),
    ]


def local_url(gateway: Mapping[str, Any], model: str, port: int, offset: int) -> str:
    """Return where a gateway takes its administrator's requests; `port` and `offset` if it has none of its own."""
    ports = gateway.get("gateway_ports") or {}
    front = int(ports.get(model, gateway.get("gateway_port") or port))
    return f"http://{LOOPBACK}:{listeners.local_port(front, int(gateway.get('gateway_local_offset') or offset))}"


def _open_pools(
    pools: list[dict[str, Any]], hostvars: Mapping[str, Any], gateway: str, bind: str, problems: list[str]
) -> None:
    """A server on loopback needs no key, until a gateway makes it everybody's."""
    if is_loopback(bind):
        return
    for pool in pools:
        names = [server["name"] for server in pool["servers"]]
        closed = [name for name in names if not truth(hostvars[name].get(ALLOWED))]
        if not pool["closed"] and closed:
            problems.append(
                f"{pool['model']} has no vllm_server_api_key, and {gateway} would publish it on {bind}: set the key "
                f"(from vault), gateway_keys, gateway_bind: {LOOPBACK}, or vllm_server_allow_unauthenticated: true for "
                f"{', '.join(closed)} if anyone may use it."
            )


def _odd_words(
    pools: list[dict[str, Any]], hostvars: Mapping[str, Any], also_healthy: Iterable[str], problems: list[str]
) -> None:
    """Refuse what does not fit into a line of the configuration. A key is not shown."""
    named = [*(name for pool in pools for name in listeners.asked(pool)), *map(str, also_healthy)]
    problems.extend(
        f"HAProxy cannot look for a model called {name!r}: give it a served-model-name without quotes, line breaks and "
        "control characters."
        for name in named
        if NO_NAME.search(name)
    )
    problems.extend(
        f"The vllm_server_api_key of {pool['model']} has characters that no header can carry, such as a blank or a "
        "line break at its end: use printable ASCII alone (`openssl rand -hex 32` gives such a key)."
        for pool in pools
        if pool["key"] and unsendable(hostvars[pool["head"]]["vllm_server_api_key"])
    )
