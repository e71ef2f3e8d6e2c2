# SPDX-License-Identifier: Apache-2.0
"""Filters: which servers stand behind a gateway, worked out from the inventory alone."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.server import result

# What HAProxy takes as a name (configuration manual, 2.2): letters, digits and these.
NAME = r"[A-Za-z0-9_.:-]+"
SERVED_NAME = "served-model-name"
PORT = 8000  # default of the role vllm_server
LOOPBACK = "127.0.0.1"  # likewise
MAINT, UP = "MAINT", "UP"
# A name with these would end the quotes or the line that it stands in, in the configuration.
NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f'\"]")
ALLOWED = "vllm_server_allow_unauthenticated"
# What a header may hold, without blanks: the rest of Latin-1 and beyond is read differently by every client.
KEY = re.compile(r"[!-~]+")
MOVE = (
    "Bring the new ones up as a second pool with a port of its own and move the clients (docs/gateway.md), or accept "
    "the gap with -e rollout_min_available=0."
)
WILDCARDS = ("0.0.0.0", "::", "*")  # noqa: S104 - names of what a server may listen on, nothing is bound here


def served_names(variables: Mapping[str, Any]) -> list[str]:
    """Names under which a host's server answers, the first one first."""
    for flag, value in (variables.get("vllm_server_args") or {}).items():
        if str(flag).lstrip("-").replace("_", "-") == SERVED_NAME and value:
            return [str(name) for name in ([value] if isinstance(value, str) else value)]
    return [str(variables.get("vllm_server_model") or "")]


def backend_name(model: str) -> str:
    """The model's name as HAProxy can have it."""
    return re.sub(r"[^A-Za-z0-9_.:-]", "_", model)


def replica_head(hostvars: Mapping[str, Any], hosts: Iterable[str], host: str) -> str:
    """The host that answers for a replica: of those with the same vllm_server_replica the first of the inventory."""
    replica = hostvars[host].get("vllm_server_replica")
    if replica in (None, ""):
        return host
    return next((other for other in hosts if hostvars[other].get("vllm_server_replica") == replica), host)


def gateway_place(hostvars: Mapping[str, Any], hosts: Iterable[str], host: str) -> dict[str, Any]:
    """Where a host stands: `backend`, `server`, `model` asked for, and whether it is the `head` of its replica."""
    head = replica_head(hostvars, hosts, host)
    model = served_names(hostvars[head])[0]
    return {"backend": backend_name(model), "server": head, "model": model, "head": head == host}


def served_place(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The `bind` and `port` of a host's container, or the inventory's where none is known."""
    made = result.made_of(variables) or {}
    return {
        "bind": str(made.get("bind") or variables.get("vllm_server_bind") or LOOPBACK),
        "port": int(made.get("port") or variables.get("vllm_server_port") or PORT),
    }


def gateway_own_url(variables: Mapping[str, Any]) -> str:
    """Where a host asks its own server."""
    place = served_place(variables)
    bind = LOOPBACK if place["bind"] in (*WILDCARDS, "localhost") else place["bind"]
    return f"http://{_bracketed(bind)}:{place['port']}"


def _bracketed(address: str) -> str:
    """An address as URLs have it."""
    return f"[{address}]" if ":" in address else address


def _where(
    server: Mapping[str, Any], gateway: Mapping[str, Any], problems: list[str], known: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """`address` and `port` at which a gateway finds a server as it is now, before its turn to be replaced has come.

    Of a host that this run has not asked the gateway goes on with the port that it has, in `known`.
    """
    address, place = _address(server, gateway, problems), served_place(server)
    if not _is_loopback(place["bind"]):
        address = _address({**server, "vllm_server_bind": place["bind"]}, gateway, [])
    port = place["port"]
    if result.made_of(server) is None:
        ports = [
            str(one.get("address")).rpartition(":")[2]
            for one in known
            if one.get("name") == server.get("inventory_hostname")
        ]
        port = next((int(text) for text in ports if text.isdigit() and int(text)), port)
    return {"address": address, "port": port}


def _numbers(text: str) -> str | None:
    """An address in numbers, written in one way; None for a name."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None


def gateway_moved(
    looks: Iterable[Mapping[str, Any]], hostvars: Mapping[str, Any], place: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The gateways that look for a server elsewhere than it serves, with the `address` (or None) and `port` it needs.

    `looks` is a loop of gateway_info over gateways, `place` is the server's (gateway_place). A name keeps its address.
    """
    found = []
    for look in looks:
        for entry in look.get("servers") or []:
            if (entry["backend"], entry["name"]) != (place["backend"], place["server"]) or not entry.get("address"):
                continue
            here = _where(hostvars[place["server"]], hostvars[look["item"]], [])
            address, (host, _, port) = _numbers(here["address"]), entry["address"].rpartition(":")
            if (address or _numbers(host), str(here["port"])) != (_numbers(host), port):
                found.append({"gateway": look["item"], "address": address, "port": here["port"]})
    return found


def gateway_questions(pools: Iterable[Mapping[str, Any]], seen: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The servers that get requests now: `pool`, `server`, and the `url` that lists its models."""
    up = {entry["name"] for entry in seen if str(entry["status"]).startswith(UP)}
    return [
        {
            "pool": pool["name"],
            "server": server["name"],
            "url": f"http://{_bracketed(server['address'])}:{server['port']}/v1/models",
        }
        for pool in pools
        for server in pool["servers"]
        if server["name"] in up
    ]


def gateway_losses(
    hostvars: Mapping[str, Any],
    pools: Iterable[Mapping[str, Any]],
    answers: Iterable[Mapping[str, Any]],
    gateway: str,
    also: Iterable[str] = (),
) -> list[str]:
    """Say which pools would keep too few servers once `gateway` has what is described, as sentences.

    `answers` is a loop of the module uri over gateway_questions. Only a clear answer counts: a busy server gives none.
    """
    said = []
    answers, also = list(answers), list(also)
    for pool in pools:
        names = [server["name"] for server in pool["servers"]]
        told = [hostvars[name].get("rollout_min_available") for name in names]
        keep = max([int(value) for value in told if value is not None] or [min(1, len(names) - 1)])
        mine = [answer for answer in answers if answer["item"]["pool"] == pool["name"]]
        key = [answer["item"]["server"] for answer in mine if answer.get("status") in (401, 403)]
        other = [
            answer["item"]["server"]
            for answer in mine
            if answer.get("status") == 200
            and not {str(model.get("id")) for model in (answer.get("json") or {}).get("data") or []}.intersection(
                [*pool["names"], *also]
            )
        ]
        stay = len(mine) - len(key) - len(other)
        if (key or other) and stay < keep:
            why = [f"{', '.join(key)} does not take vllm_server_api_key as it is described"] if key else []
            why += [f"{', '.join(other)} does not serve {pool['model']}"] if other else []
            said.append(
                f"With what is described, {gateway} would send requests for {pool['model']} to {stay} of {len(mine)} "
                f"servers that have them now, expected at least {keep} (rollout_min_available): {'; '.join(why)}. "
                f"{MOVE} The gateway was not changed."
            )
    return said


def gateway_kept_out(looks: Iterable[Mapping[str, Any]], server: str) -> list[str]:
    """The gateways at which an administrator has put a server into MAINT; `looks` is a loop of gateway_info over them.

    HAProxy calls a server without an address MAINT, too, with the reason after the word.
    """
    return [
        look["item"]
        for look in looks
        if any((entry["name"], entry["status"]) == (server, MAINT) for entry in look.get("servers") or [])
    ]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two inventory hosts are one machine, as far as the inventory tells."""
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
    if _is_loopback(bind):
        if not _same_machine(server, gateway):
            problems.append(
                f"{name} serves on {bind} alone, where {gateway.get('inventory_hostname')} cannot reach it: set "
                "vllm_server_bind: 0.0.0.0 and a vllm_server_api_key, or gateway_server_address to where it is reached."
            )
        return LOOPBACK if bind == "localhost" else bind
    if bind not in WILDCARDS:
        return bind
    return LOOPBACK if _same_machine(server, gateway) else str(server.get("ansible_host") or name)


def gateway_pools(
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
) -> dict[str, list[Any]]:
    """The pools behind `gateway` and, as sentences, what is wrong with them.

    A pool is the replicas that serve the same model; `key` says whether they have one. `port` is that of the only pool
    or of the first one, `ports` gives others by model; `offset` leads from a pool's port to its listener on loopback.
    The gateway listens on `bind`, and takes servers that serve one of `also_healthy`. A server stands there at the
    address and port that it has now, which its wave may change; `known` is what the gateway itself has (gateway_info).
    """
    hosts, known = list(hosts), list(known)
    problems: list[str] = []
    pools: dict[str, dict[str, Any]] = {}
    for host in hosts:
        variables, head = hostvars[host], replica_head(hostvars, hosts, host)
        names = served_names(variables)
        if not names[0]:
            problems.append(f"{host} has no vllm_server_model, so nobody knows what it serves: set it.")
            continue
        if head != host:
            if names[0] != served_names(hostvars[head])[0]:
                problems.append(
                    f"{host} and {head} are one replica ({variables.get('vllm_server_replica')}) but serve {names[0]} "
                    f"and {served_names(hostvars[head])[0]}: give them the same model, or another vllm_server_replica."
                )
            continue
        if not re.fullmatch(NAME, host):
            problems.append(f"HAProxy cannot call a server {host!r}: rename it with letters, digits and _.:- alone.")
        pool = pools.setdefault(
            names[0],
            {
                "name": backend_name(names[0]),
                "model": names[0],
                "names": names,
                "head": host,
                "key": bool(variables.get("vllm_server_api_key")),
                "servers": [],
            },
        )
        if variables.get("vllm_server_api_key") != hostvars[pool["head"]].get("vllm_server_api_key"):
            problems.append(
                f"{host} and {pool['head']} serve {names[0]} with different keys, so a client could not tell which to "
                "send: give them the same vllm_server_api_key."
            )
        pool["servers"].append({"name": host, **_where(variables, hostvars[gateway], problems, known)})
    _give_ports(list(pools.values()), port, ports, offset, problems)
    _open_pools(list(pools.values()), hostvars, gateway, bind, problems)
    _odd_words(list(pools.values()), hostvars, also_healthy, problems)
    if not hosts:
        problems.append("Group vllm has no hosts, so there is nothing to stand in front of.")
    return {"pools": list(pools.values()), "problems": problems}


def local_port(port: int, offset: int) -> int:
    """The port on loopback that belongs to a pool's port."""
    return port + offset if port + offset < 65536 else port - offset


def gateway_local_url(gateway: Mapping[str, Any], model: str, port: int, offset: int) -> str:
    """Where a gateway takes its administrator's requests for a model; `port` and `offset` if it has none of its own."""
    ports = gateway.get("gateway_ports") or {}
    front = int(ports.get(model, gateway.get("gateway_port") or port))
    return f"http://{LOOPBACK}:{local_port(front, int(gateway.get('gateway_local_offset') or offset))}"


def _give_ports(
    pools: list[dict[str, Any]], port: int, ports: Mapping[str, int], offset: int, problems: list[str]
) -> None:
    """Give every pool its port; a model without one has the default, which only one can have."""
    taken: dict[int, str] = {}
    for pool in pools:
        model = pool["model"]
        pool["port"] = int(ports.get(model, port))
        pool["local_port"] = local_port(pool["port"], offset)
        for number in (pool["port"], pool["local_port"]):
            if number in taken:
                problems.append(
                    f"{taken[number]} and {model} would both be on port {number} of the gateway: give each its own in "
                    f"gateway_ports, such as {{{model}: {number + 1}}}."
                )
            taken.setdefault(number, model)
    for model in ports:
        if model not in {pool["model"] for pool in pools}:
            problems.append(
                f"gateway_ports names {model}, which no host of group vllm serves; served are "
                f"{', '.join(pool['model'] for pool in pools) or 'none'}."
            )
    names = [pool["name"] for pool in pools]
    problems.extend(
        f"{pool['model']} and another model are both {pool['name']} to HAProxy: give one another served-model-name."
        for pool in pools
        if names.count(pool["name"]) > 1
    )


def _open_pools(
    pools: list[dict[str, Any]], hostvars: Mapping[str, Any], gateway: str, bind: str, problems: list[str]
) -> None:
    """A server on loopback needs no key, until a gateway makes it everybody's."""
    if _is_loopback(bind):
        return
    for pool in pools:
        names = [server["name"] for server in pool["servers"]]
        closed = [name for name in names if not boolean(hostvars[name].get(ALLOWED, False), strict=False)]
        if not pool["key"] and closed:
            problems.append(
                f"{pool['model']} has no vllm_server_api_key, and {gateway} would publish it on {bind}: set the key "
                f"(from vault), gateway_bind: {LOOPBACK}, or vllm_server_allow_unauthenticated: true for "
                f"{', '.join(closed)} if anyone may use it."
            )


def _odd_words(
    pools: list[dict[str, Any]], hostvars: Mapping[str, Any], also_healthy: Iterable[str], problems: list[str]
) -> None:
    """Refuse what does not fit into a line of the configuration. A key is not shown."""
    named = [*(name for pool in pools for name in pool["names"]), *map(str, also_healthy)]
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
        if pool["key"] and not KEY.fullmatch(str(hostvars[pool["head"]]["vllm_server_api_key"]))
    )


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {
            "gateway_kept_out": gateway_kept_out,
            "gateway_local_url": gateway_local_url,
            "gateway_losses": gateway_losses,
            "gateway_moved": gateway_moved,
            "gateway_own_url": gateway_own_url,
            "gateway_place": gateway_place,
            "gateway_pools": gateway_pools,
            "gateway_questions": gateway_questions,
        }
