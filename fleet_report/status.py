# SPDX-License-Identifier: Apache-2.0
"""What the nodes said of their servers to one table. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ansible.module_utils.vllm_fleet.preflight import connection
from fleet_report import replicas, watchdogs
from fleet_report.summary import table
from fleet_report.words import DASH, clip, natural

HEAD = ["NODE", "RELEASE", "MODEL", "IMAGE", "STATE", "HEALTH", "RUNNING", "WAITING", "WATCHDOG", "DRIFT"]
#: Characters of a drift's text in the table.
WIDTH = 90
ODD = "its answer has not the form of vllm_server's; look at what that node runs"
#: Beyond so many rows the servers of a node are one row, but for those that are not as described.
MANY = 40


#: What the table shows of a server between its node and its drift.
COLUMNS = ("release", "model", "image", "state", "health", "running", "waiting", "watchdog")


def row(host: str, looked: Mapping[str, Any] | None, *, watched: bool = False) -> dict[str, Any]:
    """Describe a node from the result of vllm_server in check mode; ``drift`` is empty where all is as it should be.

    ``watched``: it is to have a watchdog.
    """
    out: dict[str, Any] = dict.fromkeys(COLUMNS)
    out |= {"node": host, "drift": ""}
    try:
        return _row(out, looked, watched=watched)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        # A node in other hands takes no other node out of the table.
        return {**out, **dict.fromkeys(COLUMNS), "state": "unknown", "drift": ODD}


def _row(out: dict[str, Any], looked: Mapping[str, Any] | None, *, watched: bool) -> dict[str, Any]:
    if looked is None:
        return {**out, "state": "unknown", "drift": "it was not asked"}
    if looked.get("not_reached"):
        return {**out, "state": "unreachable", "drift": clip(_reason(str(looked.get("msg")), out["node"]), WIDTH)}
    container, spec = looked.get("container"), looked.get("spec") or {}
    serving, release = _serving(looked), looked.get("release")
    out["state"] = (container or {}).get("status") or ("absent" if "container" in looked else "unknown")
    out |= {"model": spec.get("model"), "image": spec.get("image")}
    out |= {"health": serving.get("health"), "running": serving.get("running"), "waiting": serving.get("waiting")}
    out["release"] = release["release"] if release else None
    if looked.get("maintenance"):
        runs = out["state"] == "running"
        drift = "it runs, though in maintenance" if runs else ""
        return {**out, "state": "running" if runs else "maintenance", "drift": drift}
    watched = watched and not (looked.get("replica") or {}).get("rank")
    out["watchdog"] = watchdogs.cell(looked.get("watchdog"), wanted=watched)
    out["drift"] = clip(_drift(looked, watchdogs.drift(looked.get("watchdog"), wanted=watched)), WIDTH)
    return out


def _drift(looked: Mapping[str, Any], watchdog: str) -> str:
    failure = looked.get("failure")
    if looked.get("failed") or failure:
        cause = str((failure or {}).get("cause") or looked.get("msg") or "it could not be asked")
        return f"{failure['class']}: {cause}" if failure else cause
    if not looked.get("container"):
        return "no server"
    found = [str(d["name"]) for d in looked.get("differences") or []]
    serving = _serving(looked)
    if serving.get("health") not in (None, "ready"):
        found.append(f"{serving['health']} ({serving.get('detail')})")
    if watchdog:
        found.append(watchdog)
    if found:
        return ", ".join(found)
    if not looked.get("confirmed"):
        return "never verified"
    return "" if looked.get("release") else "no record of it"


def _serving(looked: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the server is; of one over several nodes the head answers, workers have no port."""
    return {} if (looked.get("replica") or {}).get("rank") else looked.get("serving") or {}


def _reason(msg: str, node: str) -> str:
    """Of what Ansible and ssh say, the known cause, or else ssh's last line."""
    told = connection.explain(msg, name=node)
    if told:
        return str(told.cause)
    said = msg.rpartition("over ssh:")[2].replace("\\r\\n", "\n")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("ssh: ") if lines else "no answer"


def rows(
    results: Mapping[str, Mapping[str, Any] | None],
    watched: Collection[str] = frozenset(),
    nodes: Mapping[str, str] | None = None,
    undescribed: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Describe all servers, node10 after node9; one over several nodes is one row. ``watched`` have a watchdog.

    ``nodes`` are the nodes of hosts that share one, which is `on` of their rows; ``undescribed`` are the servers that
    no host describes (host_variables.undescribed()), each a row after those of its node.
    """
    nodes = nodes or {}
    hosts = sorted(results, key=lambda host: (natural(nodes.get(host, host)), natural(host)))
    described = [(host, _replica(results[host])) for host in hosts]
    out = []
    for replica, places in replicas.groups(described):
        members = [row(hosts[place], results[hosts[place]], watched=hosts[place] in watched) for place in places]
        out.append(members[0] if replica is None else _one(replica, members))
        out[-1]["on"] = nodes.get(hosts[places[0]])
    for node, left in (undescribed or {}).items():
        place = max((at for at, one in enumerate(out) if node in (one["on"], one["node"])), default=len(out) - 1) + 1
        out[place:place] = [_leftover(node, name, state, nodes) for name, state in sorted(left["servers"].items())]
    return out


def _replica(looked: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The replica that a node says it is part of; None for none, and for what is none."""
    found = looked.get("replica") if isinstance(looked, Mapping) else None
    if not isinstance(found, Mapping) or not all(isinstance(found.get(name), str) for name in ("name", "head")):
        return None
    hosts = found.get("hosts")
    return found if isinstance(hosts, (list, tuple)) and all(isinstance(host, str) for host in hosts) else None


def _leftover(node: str, name: str, state: str, nodes: Mapping[str, str]) -> dict[str, Any]:
    """Describe a server that no host of the inventory describes."""
    out: dict[str, Any] = dict.fromkeys(COLUMNS)
    on = node if node in nodes.values() else None
    drift = "not described any more" if state == "running" else "not described any more, and does not run"
    return {**out, "node": f"{node}: {name}", "state": state, "drift": drift, "on": on}


def _one(replica: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for a server over several nodes: the head's, with the first state that is not running, and all drifts."""
    order = {host: place for place, host in enumerate(replica["hosts"])}
    members = sorted(members, key=lambda one: order.get(one["node"], len(order)))
    head = next((one for one in members if one["node"] == replica["head"]), members[0])
    drifts = {one["node"]: one["drift"] for one in members if one["drift"]}
    same = len(drifts) == len(members) and len(set(drifts.values())) == 1
    told = next(iter(drifts.values())) if same else "; ".join(f"{host}: {drift}" for host, drift in drifts.items())
    state = next((one["state"] for one in members if one["state"] != "running"), head["state"])
    name = replicas.label(str(replica["name"]), [one["node"] for one in members])
    return {**head, "node": name, "state": state, "drift": clip(told, WIDTH)}


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the table; of many servers those of a node in one row, and by themselves what is not as described."""
    out = [HEAD]
    for one in _few(found) if len(found) > MANY else found:
        cells = [one["node"], *(one[name] for name in COLUMNS)]
        drift = "" if one["state"] == "unreachable" and not one["drift"] else one["drift"] or "none"
        out.append([DASH if cell is None else str(cell) for cell in cells] + [drift])
    return table(out)


def _few(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Put the servers of each node that are as described into one row."""
    out: list[Mapping[str, Any]] = []
    good: dict[str, list[Mapping[str, Any]]] = {}
    for one in found:
        node = one.get("on")
        if not node or one["drift"]:
            out.append(one)
        elif node in good:
            good[node].append(one)
        else:
            out.append({"all_of": node})
            good[node] = [one]
    return [_all_of(one["all_of"], good[one["all_of"]]) if "all_of" in one else one for one in out]


def _all_of(node: str, servers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Write the servers of a node in one row: how many of each kind, and requests of all."""
    if len(servers) == 1:
        return servers[0]
    models = Counter(str(one["model"] or DASH).rpartition("/")[2] for one in servers)
    together = {name: ", ".join(_counted(one[name] for one in servers)) for name in ("state", "health", "watchdog")}
    requests = {
        name: sum(one[name] for one in servers if isinstance(one[name], int)) for name in ("running", "waiting")
    }
    images = list(dict.fromkeys(str(one["image"] or DASH) for one in servers))
    return {
        "node": f"{node} ({len(servers)})",
        "release": None,
        "model": ", ".join(f"{count} {name}" if count > 1 else name for name, count in models.items()),
        "image": images[0] if len(images) == 1 else f"{len(images)} images",
        "drift": "",
        **together,
        **requests,
    }


def _counted(words: Iterable[Any]) -> list[str]:
    """Count words, where there is more than one kind of them."""
    counts = Counter(DASH if word is None else str(word) for word in words)
    return [f"{count} {word}" if len(counts) > 1 else word for word, count in counts.items()]
