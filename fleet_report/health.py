# SPDX-License-Identifier: Apache-2.0
"""What servers, watchdogs and gateways said of themselves to one table with a verdict. Pure.

``seen`` are results of vllm_health by host: `kind` (server or gateway), and `found`, `not_reached` or `resting`. What
nodes say is data: of another form it is one more thing that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.module_utils.vllm_fleet.common import maintenance
from ansible.module_utils.vllm_fleet.gateway import haproxy
from ansible.module_utils.vllm_fleet.preflight import connection
from ansible.module_utils.vllm_fleet.rollout.messages import names
from fleet_report import watchdogs
from fleet_report.summary import table
from fleet_report.words import DASH, clip, count, latency, natural

HEAD = ("NODE", "SERVER", "ANSWERS", "WATCHDOG", "GATEWAYS", "WHAT IS WRONG")
#: Characters of what is wrong in the table.
WIDTH = 100
#: What a server that hangs, or has a long queue, says to health_probe.
SILENT = "no answer in time"
ODD = "its answer has not the form of vllm_health's"

Row = dict[str, Any]


def rows(seen: Mapping[str, Mapping[str, Any]], *, watched: Mapping[str, str], partly: Iterable[str] = ()) -> list[Row]:
    """Describe servers, then gateways, then models.

    Each has `name`, `kind`, `state`, `seconds`, `watchdog`, `gateways`, `wrong`, `resting`. `wrong` is empty where all
    is well, `resting` says since when a server is in maintenance. Gateways that are to be removed have no row.

    ``watched`` are to have a watchdog, which acts after so many seconds of silence (empty: never). ``partly`` are
    models some of whose servers were not asked; they have no row.
    """
    order = sorted((host for host in seen if not seen[host].get("removed")), key=natural)
    tables = {host: _table(seen[host]) for host in order if seen[host].get("kind") == "gateway"}
    servers = [host for host in order if host not in tables]
    out = [_of(_server, host, seen[host], watched=watched) for host in servers]
    for row in out:
        _at_gateways(row, tables)
    gateways = [_of(_gateway, host, seen[host], states=tables[host]) for host in tables]
    models: dict[str, list[Row]] = {}
    for row in out:
        models.setdefault(str(seen[row["name"]].get("model") or ""), []).append(row)
    known = [name for name, states in tables.items() if states is not None]
    judged = [model for model in sorted(models) if model and model not in partly]
    return [*out, *gateways, *(_model(model, models[model], known) for model in judged)]


def _of(describe: Any, host: str, looked: Mapping[str, Any], **more: Any) -> Row:
    row = _row(host, str(looked.get("kind") or "server"))
    try:
        describe(row, looked, **more)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        row |= {"state": "unknown", "wrong": [ODD]}
    return row


def _row(name: str, kind: str) -> Row:
    row: Row = {"name": name, "kind": kind, "state": None, "seconds": None, "watchdog": None}
    return row | {"gateways": {}, "wrong": [], "resting": "", "worker": False}


def _model(model: str, servers: Sequence[Row], gateways: Sequence[str]) -> Row:
    """Say where a model has no server: at gateways that answered, or at all where none of its servers answers."""
    row = _row(model, "model")
    without = [name for name in gateways if all(one["gateways"].get(name) != "UP" for one in servers)]
    if without:
        row["wrong"] = [f"no server up at {names(without)}"]
    elif not any(_serves(one) for one in servers):
        row["wrong"] = ["no server answers" if gateways else "no server up"]
    return row


def _serves(row: Row) -> bool:
    """Return whether a server answers; of one that was not asked a gateway knows."""
    unasked = row["resting"] or row["state"] in ("unreachable", "unknown")
    return row["seconds"] is not None or bool(unasked and "UP" in row["gateways"].values())


def _unreached(row: Row, looked: Mapping[str, Any]) -> bool:
    said = looked.get("not_reached")
    if said is None:
        return False
    told = connection.explain(str(said), name=row["name"])
    row |= {"state": "unreachable", "wrong": [str(told.cause) if told else clip(str(said), WIDTH)]}
    return True


def _server(row: Row, looked: Mapping[str, Any], *, watched: Mapping[str, str]) -> None:
    if looked.get("resting"):
        row |= {"state": "maintenance", "resting": str(looked["resting"])}
        return
    if _unreached(row, looked):
        return
    found = looked["found"]
    status = found["container"].get("status")
    row["state"] = "unknown" if status is None else str(status) or "absent"
    if found.get("note") is not None:
        row["resting"] = maintenance.shown(_note(str(found["note"])))
        if status != "running":
            row["state"] = "maintenance"
            return
        row["wrong"].append("it runs, though in maintenance")
    elif status is None:
        row["wrong"].append(f"Docker: {found['container'].get('trouble')}")
    elif status != "running":
        row["wrong"].append("no server" if not status else f"the container is {status}")
    else:
        _answer(row, found.get("answer"))
    dog = _watchdog(found["watchdog"])
    wanted = row["name"] in watched and not row["worker"]
    row["watchdog"] = watchdogs.cell(dog, wanted=wanted)
    said = watchdogs.drift(dog, wanted=wanted)
    if status == "running" and (found.get("answer") or {}).get("trouble") == SILENT and not row["resting"]:
        row["wrong"][-1] += _next(str(dog["state"]), watched.get(row["name"]))
    row["wrong"] += [said] if said else []


def _next(state: str, silence: str | None) -> str:
    """Say what becomes of a server that is silent, by the state of its watchdog; empty where that is not known."""
    if state in ("none", "no systemd"):
        return ", no watchdog: playbooks/deploy.yml restarts it"
    if state != "serving" or silence is None:
        return ""
    if not silence:
        return ", its watchdog only observes: playbooks/deploy.yml restarts it"
    return f", its watchdog acts after {silence} s of silence"


def _note(text: str) -> str:
    try:
        given = json.loads(text)
        return maintenance.words(given) if isinstance(given, Mapping) else ", whose note is damaged"
    except ValueError:
        return ", whose note is damaged"


def _answer(row: Row, found: Mapping[str, Any] | None) -> None:
    """Take what the server answered; a worker of a server over several nodes has no port, and is not asked."""
    if found is None:
        row["worker"] = True
        return
    trouble = found.get("trouble")
    if trouble is None:
        row["seconds"] = float(found["seconds"])
    else:
        code = f"HTTP {int(found['code'])}: " if found.get("code") else ""
        row["wrong"].append(f"it does not answer ({code}{' '.join(str(trouble).split())})")


def _watchdog(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what server/watched.look() says, from what the node read."""
    if not found["systemd"]:
        return {"state": "no systemd"}
    try:
        state = json.loads(found["state"]) if found.get("state") else None
    except ValueError:
        state = None
    if not isinstance(state, Mapping):
        return {"state": "starting" if found["runs"] else "none"}
    since, last = state.get("since"), state.get("last_event")
    return {
        "state": str(state.get("state")) if found["runs"] else "stopped",
        "seconds": max(0.0, float(found["now"]) - float(since)) if isinstance(since, (int, float)) else None,
        "why": str(state.get("trouble") or state.get("why") or ""),
        "quarantine": str(state.get("quarantine") or "") if found["runs"] else "",
        "last_event": {key: str(last.get(key) or "") for key in ("at", "kind", "why")} if last else None,
    }


def _table(looked: Mapping[str, Any]) -> dict[str, str] | None:
    """Return HAProxy's first word for each server, the best of its backends; None of a gateway that did not say."""
    found = looked.get("found")
    if not isinstance(found, Mapping) or not isinstance(found.get("table"), str):
        return None
    states: dict[str, str] = {}
    for one in haproxy.servers(found["table"]):
        word = (one.status.split() or ["?"])[0]
        if states.get(one.name) != "UP":
            states[one.name] = word
    return states


def _at_gateways(row: Row, tables: Mapping[str, Mapping[str, str] | None]) -> None:
    """Say what each gateway that answered does with a server."""
    if row["worker"]:
        return
    states = {name: known.get(row["name"], "unknown") for name, known in tables.items() if known is not None}
    row["gateways"] = states
    if row["resting"] or row["state"] == "unreachable":
        return
    bad: dict[str, list[str]] = {}
    for name, state in states.items():
        if state != "UP":
            bad.setdefault(state, []).append(name)
    row["wrong"] += [
        f"{' and '.join(names)} {'does' if len(names) == 1 else 'do'} not know it"
        if state == "unknown"
        else f"{state} at {' and '.join(names)}"
        for state, names in bad.items()
    ]


def _gateway(row: Row, looked: Mapping[str, Any], *, states: Mapping[str, str] | None) -> None:
    if _unreached(row, looked):
        return
    if states is None:
        row |= {"state": "stopped", "wrong": [f"HAProxy {looked['found'].get('trouble') or 'said nothing'}"]}
        return
    row |= {"state": "running", "gateways": dict(states)}
    if states and "UP" not in states.values():
        row["wrong"].append("none of its servers is up")


def well(found: Iterable[Row]) -> bool:
    """Return whether nothing is wrong."""
    return not any(row["wrong"] for row in found)


def lines(found: Sequence[Row]) -> list[str]:
    """Write the table, and a last line that counts."""
    out = [list(HEAD)]
    for row in found:
        if row["kind"] == "model":
            continue
        up = sum(state == "UP" for state in row["gateways"].values())
        places = f"{up} of {len(row['gateways'])} up" if row["gateways"] else DASH
        told = "; ".join(row["wrong"]) or (f"in maintenance{row['resting']}" if row["resting"] else DASH)
        answers = DASH if row["seconds"] is None else f"after {latency(row['seconds'])}"
        out.append([row["name"], str(row["state"]), answers, row["watchdog"] or DASH, places, clip(told, WIDTH)])
    models = [f"{row['name']}: {'; '.join(row['wrong'])}" for row in found if row["kind"] == "model" and row["wrong"]]
    return [*table(out), *models, _counts(found)]


def _counts(found: Sequence[Row]) -> str:
    def told(kind: str) -> str:
        here = [row for row in found if row["kind"] == kind]
        bad, rest = sum(bool(row["wrong"]) for row in here), sum(row["state"] == "maintenance" for row in here)
        parts = [f"{bad} not well"] * bool(bad) + [f"{rest} in maintenance"] * bool(rest)
        parts = [f"{len(here) - bad - rest} well"] * bool(len(here) - bad - rest) + parts
        return f"{count(len(here), kind)}: {', '.join(parts)}" if here else ""

    return "; ".join(filter(None, (told("server"), told("gateway")))) + "."


def as_json(found: Sequence[Row]) -> dict[str, Any]:
    """Return the table as data: `well`, `servers`, `gateways`, `models`; a row's `wrong` are sentences."""
    keys = {"server": ("state", "seconds", "watchdog", "gateways", "wrong"), "gateway": ("state", "gateways", "wrong")}
    keys["model"] = ("wrong",)
    out: dict[str, Any] = {"well": well(found), "servers": {}, "gateways": {}, "models": {}}
    for row in found:
        made = {key: row[key] for key in keys[row["kind"]]}
        if row["resting"]:
            made["maintenance"] = row["resting"].strip(" ,")
        out[f"{row['kind']}s"][row["name"]] = made
    return out
