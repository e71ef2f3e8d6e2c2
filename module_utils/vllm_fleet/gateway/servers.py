# SPDX-License-Identifier: Apache-2.0
"""What a change of a gateway means for the servers that it has: where they are, which of them it would lose. Pure.

``probes`` are the results of a loop of the module gateway_info over gateways, ``place`` is a server's (pools.place).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..vllm.host_variables import bracketed, min_available
from .fronts import asked
from .pools import address_and_port, is_generation

UP, DRAIN, MAINT = "UP", "DRAIN", "MAINT"  # HAProxy's words


@dataclass(frozen=True)
class Loss:
    """What a pool loses once its gateway has what is described: which servers, and why.

    ``have`` get requests now, ``stay`` still would, ``keep`` must.
    """

    model: str
    have: int
    stay: int
    keep: int
    refuse_key: tuple[str, ...]
    serve_other: tuple[str, ...]


def _numbers(text: str) -> str | None:
    """Return an address in numbers, written in one way; None for a name."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None


def moved(
    probes: Iterable[Mapping[str, Any]], hostvars: Mapping[str, Any], place: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return where gateways have a server elsewhere than it serves: `gateway`, `backend`, `address` (or None), `port`.

    A name keeps its address.
    """
    found = []
    for probe in probes:
        for entry in probe.get("servers") or []:
            if entry["name"] != place["server"] or not entry.get("address"):
                continue
            here = address_and_port(hostvars[place["server"]], hostvars[probe["item"]], [])
            address, (host, _, port) = _numbers(here["address"]), entry["address"].rpartition(":")
            if (address or _numbers(host), str(here["port"])) != (_numbers(host), port):
                new = {"backend": entry["backend"], "address": address, "port": here["port"]}
                found.append({"gateway": probe["item"], **new})
    return found


def entries(
    probes: Iterable[Mapping[str, Any]],
    place: Mapping[str, Any],
    without: Iterable[str] = (),
    *,
    by_its_model: bool = False,
) -> list[dict[str, str]]:
    """Return the `gateway` and `backend` of each entry of a server, but for the gateways in ``without``.

    ``by_its_model``: of a gateway that does not know the server by its model none but that one, which is not found.
    """
    found, without = [], list(without)
    for probe in probes:
        if probe["item"] in without:
            continue
        here = [one["backend"] for one in probe.get("servers") or [] if one["name"] == place["server"]]
        if not here or (by_its_model and not any(is_generation(backend, place["backend"]) for backend in here)):
            here = [place["backend"]]
        found += [{"gateway": probe["item"], "backend": backend} for backend in here]
    return found


def up_in(
    admissions: Iterable[Mapping[str, Any]], gateway: str, looks: Iterable[Mapping[str, Any]] = (), server: str = ""
) -> str:
    """Return the backend in which a gateway has admitted a server, or has it UP by ``looks``; else empty.

    A server that stands in two generations is UP in the one whose key it has.
    """
    admitted = (str(one.get("backend") or "") for one in admissions if one.get("item") == gateway)
    seen = (entry for look in looks if look.get("item") == gateway for entry in look.get("servers") or [])
    up = (str(one["backend"]) for one in seen if one["name"] == server and str(one["status"]).startswith("UP"))
    return next(admitted, "") or next(up, "")


def verification_urls(pools: Iterable[Mapping[str, Any]], seen: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the servers that get requests now: `pool`, `server`, the `url` that lists its models.

    One `stays` whatever it answers, because its old pool does.
    """
    seen, pools = list(seen), list(pools)
    up = {entry["name"] for entry in seen if str(entry["status"]).startswith(UP)}
    stays = {server["name"] for pool in pools for server in pool["servers"] if pool.get("kept") or server.get("guest")}
    return [
        {
            "pool": pool["name"],
            "server": server["name"],
            "url": f"http://{bracketed(server['address'])}:{server['port']}/v1/models",
            "stays": server["name"] in stays,
        }
        for pool in pools
        for server in pool["servers"]
        if server["name"] in up and not pool.get("kept") and not server.get("guest")
    ]


def losses(
    hostvars: Mapping[str, Any],
    pools: Iterable[Mapping[str, Any]],
    answers: Iterable[Mapping[str, Any]],
    also: Iterable[str] = (),
) -> list[Loss]:
    """Return which pools would keep too few servers once their gateway has what is described.

    `answers` is a loop of the module uri over verification_urls. Only a clear answer counts: a busy server gives none.
    A gateway takes servers that serve one of `also`, too.
    """
    found = []
    answers, also = list(answers), list(also)
    for pool in pools:
        if pool.get("kept"):
            continue
        names = [server["name"] for server in pool["servers"] if not server.get("guest")]
        keep = min_available(hostvars, names)
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
            found.append(Loss(pool["model"], len(mine), stay, keep, tuple(key), tuple(other)))
    return found


@dataclass(frozen=True)
class Forgotten:
    """Servers of a model that are no hosts of the inventory any more, and which a gateway has in one `state`."""

    model: str
    servers: tuple[str, ...]
    state: str


def forgotten(
    seen: Iterable[Mapping[str, Any]],
    hosts: Iterable[str],
    recorded: Iterable[Mapping[str, Any]],
    pools: Iterable[Mapping[str, Any]],
) -> tuple[list[Forgotten], list[str]]:
    """Return which servers a gateway forgets, because they left the inventory, and the models of which none is left.

    ``seen`` are the servers that it has (gateway_info), ``recorded`` its generations, ``pools`` what it is to have.
    """
    hosts, models = set(hosts), {one["backend"]: str(one["model"]) for one in recorded}
    states: dict[tuple[str, str], str] = {}
    for entry in seen:
        name, backend = str(entry["name"]), str(entry["backend"])
        if name in hosts:
            continue
        key = (models.get(backend, backend), name)
        # In one of two generations of its model it is down.
        if states.get(key) != UP:
            states[key] = str(entry["status"]).partition(" ")[0]
    groups: dict[tuple[str, str], list[str]] = {}
    for (model, name), state in states.items():
        groups.setdefault((model, state), []).append(name)
    known = {name for pool in pools for name in asked(pool)}
    lost = dict.fromkeys(model for model, _ in groups if model in models.values() and model not in known)
    return [Forgotten(model, tuple(names), state) for (model, state), names in groups.items()], list(lost)


def status_changed(answer: Mapping[str, Any]) -> bool:
    """Return whether community.general.haproxy changed a server's status.

    The module calls it a change, too, when sessions have come or gone meanwhile.
    """
    before, after = ([state["status"] for state in answer.get(name) or []] for name in ("state_before", "state_after"))
    return before != after


def entry_of(probe: Mapping[str, Any], place: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a gateway has of a server, None where it does not know it."""
    found = [
        one
        for one in probe.get("servers") or []
        if one["name"] == place["server"] and is_generation(one["backend"], place["backend"])
    ]
    return found[-1] if found else None


def kept_out(probes: Iterable[Mapping[str, Any]], server: str) -> list[str]:
    """Return the gateways at which an administrator has put a server into MAINT.

    HAProxy calls a server without an address MAINT, too, with the reason after the word.
    """
    return [
        probe["item"]
        for probe in probes
        if any((entry["name"], entry["status"]) == (server, MAINT) for entry in probe.get("servers") or [])
    ]
