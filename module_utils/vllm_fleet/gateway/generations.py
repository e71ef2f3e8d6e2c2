# SPDX-License-Identifier: Apache-2.0
"""Old and new pools side by side while keys or names change (docs/decisions/gateway-keys.md). Pure.

A generation is a pool with one key, one list of names and one of adapters. The file of the servers' keys records those
that a gateway has. What one of them is needed for is known from the gateway's own health checks.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any

from .fronts import served

#: Names of the configuration's own sections, and front-all-models, which no pool may have.
RESERVED = ("vllm-fleet-keys", "vllm-fleet-sources", "vllm-fleet-statistics", "all-models")
_KEY = re.compile(r"\s*setenv (VLLM_FLEET_KEY_\w+) '(.*)'\s*")
_RECORD = re.compile(r"\s*# (\{.*\})\s*")
NO_KEY = "none"  # HAProxy sets no variable to nothing


def variable(backend: str) -> str:
    """Return the name of the environment variable that holds the key of a backend's servers."""
    return f"VLLM_FLEET_KEY_{hashlib.sha256(backend.encode()).hexdigest()[:12]}"


def record(pool: Mapping[str, Any]) -> str:
    """Return a pool as the line of the secrets' file that records() reads."""
    kept = {"backend": pool["name"], **{name: pool[name] for name in ("model", "names", "adapters")}}
    return json.dumps(kept)


def quoted(secret: str) -> str:
    """Return a key for a line `setenv`: of HAProxy's formats and of its strong quotes nothing is left."""
    return (secret or NO_KEY).replace("%", "%%").replace("'", "'\\''")


def records(text: str) -> list[dict[str, Any]]:
    """Return what the secrets' file says: `backend`, `model`, `names`, `adapters` and `secret` of each generation."""
    found, secrets = [], {}
    for line in text.splitlines():
        if said := _RECORD.fullmatch(line):
            found.append(json.loads(said[1]))
        elif key := _KEY.fullmatch(line):
            secrets[key[1]] = key[2].replace("'\\''", "'").replace("%%", "%")
    for one in found:
        secret = secrets.get(variable(one["backend"]), NO_KEY)
        one["secret"] = "" if secret == NO_KEY else secret
    return found


class Known:
    """Where a gateway has servers, and where they are UP. ``entries`` are the servers of gateway_info."""

    def __init__(self, recorded: Iterable[Mapping[str, Any]], entries: Iterable[Mapping[str, Any]]) -> None:
        """Of backends without a record nothing is known."""
        self.serves = {one["backend"]: set(served(one)) for one in recorded}
        mine = [one for one in entries if one["backend"] in self.serves]
        self.has = {(one["backend"], one["name"]) for one in mine}
        self.up = {(one["backend"], one["name"]) for one in mine if str(one["status"]).startswith("UP")}
        #: HAProxy does not run, or has none of these: nobody can say that a generation is not needed any more.
        self.silent = not mine

    def needs(self, backend: str, server: str) -> bool:
        """Return whether a server may still be of a generation: it has there what it has nowhere else, or is down."""
        if (backend, server) not in self.has:
            return False
        others = [other for other in self.serves if other != backend and (other, server) in self.up]
        if (backend, server) in self.up:
            return not self.serves[backend] <= set(chain.from_iterable(self.serves[other] for other in others))
        return not others


def name_pools(
    pools: Sequence[dict[str, Any]], recorded: Sequence[Mapping[str, Any]], secrets: Mapping[str, str]
) -> None:
    """Give each pool the `name` of its backend: that of its record, or one that nothing has. ``secrets`` by model."""
    taken = {*RESERVED, *(one["backend"] for one in recorded)}
    for pool in pools:
        secret = secrets[pool["model"]]
        same = [one for one in recorded if all(one[what] == pool[what] for what in ("model", "names", "adapters"))]
        # A server without a key does not look at the one that it gets.
        fit = [one for one in same if one["secret"] == secret] or [one for one in same if not one["secret"]]
        pool["name"] = fit[0]["backend"] if fit else ""
    for pool in pools:
        others = {other["base"] for other in pools if other["base"] != pool["base"]}
        names = (pool["base"] if number == 1 else f"{pool['base']}:{number}" for number in count(1))
        pool["name"] = pool["name"] or next(name for name in names if name not in taken and name not in others)
        taken.add(pool["name"])


def kept(
    pools: Iterable[Mapping[str, Any]],
    recorded: Iterable[Mapping[str, Any]],
    known: Known,
    hosts: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the generations that are not described and still have servers, as pools.

    ``hosts`` are the servers by name, as the described pools have them; those without a container are not among them.
    """
    described = {pool["name"] for pool in pools}
    found = []
    for one in recorded:
        servers = [host for name, host in hosts.items() if known.silent or known.needs(one["backend"], name)]
        if one["backend"] in described or not servers:
            continue
        names = {server["name"] for server in servers}
        heirs = [pool for pool in pools if names.intersection(server["name"] for server in pool["servers"])]
        found.append(
            {
                "name": one["backend"],
                **{what: one[what] for what in ("model", "names", "adapters")},
                "key": bool(one["secret"]),
                "closed": any(pool["closed"] for pool in heirs)
                or (bool(one["secret"]) and not any(pool["model"] == one["model"] for pool in heirs)),
                "heirs": [pool["name"] for pool in heirs],
                "kept": True,
                "servers": [dict(server) for server in servers],
            }
        )
    return found


def add_guests(pools: Iterable[dict[str, Any]], known: Known, hosts: Mapping[str, Mapping[str, Any]]) -> None:
    """Leave servers that are to move to another pool in the one that they are in."""
    for pool in pools:
        own = {server["name"] for server in pool["servers"]}
        pool["servers"] += [
            {**host, "guest": True}
            for name, host in hosts.items()
            if name not in own and known.needs(pool["name"], name)
        ]


def add_leaving(pools: Iterable[dict[str, Any]], entries: Iterable[Mapping[str, Any]], hosts: Iterable[str]) -> None:
    """Leave servers that are no hosts of the inventory any more in the pool that they serve in, for the waves.

    Not one that stands where another server is or may be: a host has a new name, and its drain must end all requests.
    """
    pools, entries, hosts = list(pools), list(entries), set(hosts)
    seen = {(one["name"], str(one.get("address")).rpartition(":")[0]) for one in entries}
    taken = set()
    for server in (server for pool in pools for server in pool["servers"]):
        found = {_numbers(where) for name, where in seen if name == server["name"]} | {_numbers(server["address"])}
        # Nobody knows here where a name leads: it may be anywhere.
        taken |= {(where, int(server["port"])) for where in found - {""} or {"anywhere"}}
    for pool in pools:
        for entry in entries:
            where, _, port = str(entry.get("address")).rpartition(":")
            place = (_numbers(where), int(port) if port.isdigit() else 0)
            if entry["backend"] != pool["name"] or entry["name"] in hosts or not str(entry["status"]).startswith("UP"):
                continue
            if all(place) and not {place, ("anywhere", place[1])} & taken:
                here = {"name": entry["name"], "address": place[0], "port": place[1], "agent": 0, "guest": True}
                pool["servers"].append(here)


def _numbers(address: str) -> str:
    """Return an address in numbers, written in one way; empty for a name."""
    try:
        return str(ipaddress.ip_address(address.strip("[]")))
    except ValueError:
        return ""


def demand(pools: Sequence[dict[str, Any]]) -> None:
    """Say which names a server of each pool must list (`demands`): those that tell it from another generation."""
    for pool in pools:
        mine = set(served(pool))
        akin = [set(served(other)) for other in pools if other is not pool and mine.intersection(served(other))]
        generations = any(one.get("kept") or any(server.get("guest") for server in one["servers"]) for one in pools)
        pool["demands"] = sorted(set().union(*(mine - other for other in akin))) if generations else []


def spread(front: Mapping[str, Any], secrets: Mapping[str, str], by_client: bool) -> list[dict[str, Any]]:
    """Return how a front shares requests out between a described pool (`new`) and a kept one (`old`).

    `fresh` are names that only the new one has. ``by_client``: gateway_keys say who gets in.
    """
    found = []
    for new in front["pools"]:
        for old in front["pools"]:
            if new.get("kept") or new["name"] not in old.get("heirs", ()):
                continue
            same_clients = by_client or secrets[new["name"]] == secrets[old["name"]]
            nameless = front["default"] == new["name"] and new["name"] in old["heirs"] and same_clients
            if nameless or set(served(new)).intersection(served(old)):
                fresh = [name for name in served(new) if name not in served(old)]
                found.append({"new": new["name"], "old": old["name"], "fresh": fresh})
    return found
