# SPDX-License-Identifier: Apache-2.0
"""How a new release does among its peers between the first wave and the next (rollout_soak): each look. Pure.

A look has of each server what the gateways count (`answered`, `errors`, `response`), and of those that are watched what
their nodes say (vllm_soak: `age` of the release in seconds, `running`, `started`, `events`, and what earlier looks left
there, `first` and `wrong`). What nodes and gateways say is data.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..vllm import host_variables
from . import undo
from .replicas import outcome, pool_of

SKIP = "skip"
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
#: Answers before anything is said of a share of them, and errors before they count: one is an accident.
ANSWERS, ERRORS = 20, 3
#: How much larger than that of its peers the share of errors may be.
SHARE = 0.01
#: How many times the peers' milliseconds to the first byte, and by how many more of them, is too slow.
TIMES, SLOWER = 1.5, 100.0
#: Events of a watchdog that end it. A restart that went well is one: a good release needs none.
BAD = frozenset({"hung", "out", "restart", "failed", "limit", "gpu", "quarantine"})
#: Seconds between two looks, at least and at most: a twentieth of the whole time.
PAUSES = (2.0, 15.0)


def seconds(given: object) -> float:
    """Return the seconds of `10m`, `90`, `1h`; 0 for nothing, and for `skip`. Raises ValueError, one sentence."""
    text = str(given or "").strip().lower()
    if text in ("", SKIP, "none", "false"):
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([smh]?)", text)
    if not found:
        raise ValueError(f"rollout_soak is {given!r}; expected a time such as 10m, or skip.")
    return float(found[1]) * _SECONDS[found[2]]


def hosts(hostvars: Mapping[str, Any], plan: Mapping[str, Any], batch: Iterable[str], given: object) -> list[str]:
    """Return the heads that are watched before a wave may begin; none on the way back, or after a failure."""
    if not seconds(given) or undo.begun(hostvars) or undo.failures(hostvars, plan):
        return []
    done = [host for host in plan.get("hosts") or () if outcome(hostvars[host]).get("state") == "replaced"]
    members = [*undo.on_trial(hostvars, plan), *done]
    if not set(batch).isdisjoint(members):
        return []
    return [found[0] for found in host_variables.replicas(hostvars, members).values()]


def goes_back(variables: Mapping[str, Any]) -> bool:
    """Return whether a host's release has not passed its soak, by its node, and this run is to take it back."""
    failed = bool(host_variables.server_result(variables).get("trial_failed"))
    return failed and variables.get(undo.VARIABLE) == undo.ROLLBACK and seconds(variables.get("rollout_soak")) > 0


def look(
    before: Mapping[str, Any] | None,
    hostvars: Mapping[str, Any],
    watched: Sequence[str],
    said: Mapping[str, Mapping[str, Any]],
    *,
    fleet: Iterable[str],
    gateways: Iterable[str],
    wanted: object,
) -> dict[str, Any]:
    """Return what is known after one more look.

    ``before`` is what the last look of this run returned, ``said`` what vllm_soak returned by host. `left` are the
    seconds that remain, `pause` those until the next look, `wrong` a sentence by host, `ended` whether it is over,
    `says` a line, and `keep` what the nodes are to remember, by host: a run may be killed after any look.
    """
    now = _counts(hostvars, gateways)
    kept = {host: one for host in watched if (one := _first(said.get(host, {})))}
    first = (before or {}).get("first") or {
        "counts": next((one["counts"] for one in kept.values()), now),
        "started": {h: kept[h]["started"] if h in kept else said.get(h, {}).get("started") for h in watched},
    }
    left = _left(before or {}, said.values(), seconds(wanted))
    wrong: dict[str, str] = {}
    keep: dict[str, dict[str, Any]] = {}
    for host in watched:
        answer = said.get(host, {})
        if host not in kept and answer.get("age") is not None:
            keep[host] = {"first": {"counts": first["counts"], "started": answer.get("started")}}
        if earlier := _plain(answer.get("wrong"), most=300):
            wrong[host] = _failed(host, f"{earlier}, as an earlier run saw")
            continue
        peers = [
            other
            for other in fleet
            if other not in watched and other in hostvars and pool_of(hostvars[other]) == pool_of(hostvars[host])
        ]
        why = _node(said.get(host, {}), first["started"].get(host)) or _gateways(host, peers, first["counts"], now)
        if why:
            wrong[host] = _failed(host, why)
            keep.setdefault(host, {})["wrong"] = why
    return {
        "first": first,
        "keep": keep,
        "left": left,
        "pause": max(1.0, min(left, PAUSES[1], max(PAUSES[0], seconds(wanted) / 20))),
        "wrong": wrong,
        "ended": bool(wrong) or left <= 0,
        "says": f"{', '.join(watched)}: the new release is watched for {left:.0f} s more (rollout_soak).",
    }


def _left(before: Mapping[str, Any], said: Iterable[Mapping[str, Any]], wanted: float) -> float:
    """Return the seconds that remain, by the oldest release on trial; after a failed look by the last one."""
    answers = [one for one in said if "age" in one]
    ages = [float(one["age"]) for one in answers if isinstance(one["age"], (int, float))]
    if not answers:
        return max(0.0, before["left"] - before["pause"]) if before else wanted
    # The note is gone only where somebody removed it: nobody knows then since when it serves.
    return max(0.0, wanted - max(ages)) if ages else 0.0


def _node(said: Mapping[str, Any], started: object) -> str:
    """Return what the node knows against its server."""
    if not said or said.get("failed") or said.get("unreachable"):
        return ""  # one look that fails is no verdict; the gateways see a server that is gone
    if said.get("running") is False:
        return "its container does not run any more"
    if started and said.get("started") and said["started"] != started:
        return "its container was started again"
    for event in said.get("events") or ():
        if isinstance(event, Mapping) and str(event.get("kind")) in BAD:
            return f"its watchdog says {event['kind']}: {_plain(event.get('why'))}"
    return ""


def _failed(host: str, why: str) -> str:
    return f"{host}: the new release did not pass its soak: {why}."


def _first(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a node remembers of the first look; None where it has none, or of another form."""
    found = said.get("first")
    counts, started = (found.get("counts"), found.get("started")) if isinstance(found, Mapping) else (None, None)
    if not isinstance(counts, Mapping) or not (started is None or isinstance(started, str)):
        return None
    for servers in counts.values():
        if not isinstance(servers, Mapping) or not all(map(_three, servers.values())):
            return None
    return {"counts": {gateway: dict(servers) for gateway, servers in counts.items()}, "started": started}


def _three(given: object) -> bool:
    return isinstance(given, list) and len(given) == 3 and all(type(one) is int and one >= 0 for one in given)


def _plain(text: object, most: int = 160) -> str:
    plain = "".join(letter for letter in " ".join(str(text or "").split()) if letter.isprintable())
    return plain[:most].rstrip(".")


def _counts(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> dict[str, dict[str, list[int]]]:
    """Return by gateway and server its answers, errors, and milliseconds to the first byte."""
    found: dict[str, dict[str, list[int]]] = {}
    for gateway in gateways:
        servers: dict[str, list[int]] = found.setdefault(gateway, {})
        for entry in (hostvars[gateway].get("gateway_result") or {}).get("servers") or []:
            here = servers.setdefault(str(entry.get("name")), [0, 0, 0])
            answered, errors, response = (int(entry.get(name) or 0) for name in ("answered", "errors", "response"))
            here[0], here[1], here[2] = here[0] + answered, here[1] + errors, max(here[2], response)
    return found


def _gateways(host: str, peers: Iterable[str], first: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what the gateways know against a server, by its peers in the same time."""
    peers = list(peers)
    answered, errors, response = _since(host, first, now)
    others = [_since(peer, first, now) for peer in peers]
    if answered + errors < ANSWERS:
        return ""
    mine, theirs = errors / max(1, answered), sum(o[1] for o in others) / max(1, sum(o[0] for o in others))
    if errors >= ERRORS and mine > theirs + SHARE:
        return f"{errors} of its {answered} answers at the gateways were errors ({mine:.0%}, of its peers {theirs:.0%})"
    waits = [other[2] for other in others if other[0] >= ANSWERS and other[2]]
    beside = statistics.median(waits) if waits else 0
    if beside and response > beside * TIMES and response - beside > SLOWER:
        return f"its answers begin after {response} ms at the gateways, those of its peers after {beside:.0f} ms"
    return ""


def _since(server: str, first: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return answers and errors since the first look, by all gateways, and the longest time to the first byte.

    After a reload a gateway counts from nothing again: what it counts then is what has happened since.
    """
    answered = errors = response = 0
    for gateway, servers in now.items():
        here = servers.get(server)
        if not here:
            continue
        old = (first.get(gateway) or {}).get(server) or [0, 0, 0]
        old = old if here[0] >= old[0] and here[1] >= old[1] else [0, 0, 0]
        answered, errors, response = answered + here[0] - old[0], errors + here[1] - old[1], max(response, here[2])
    return answered, errors, response
