# SPDX-License-Identifier: Apache-2.0
"""Events of a run to its report: one dictionary, which is also report.json. Pure.

Events, in the order they came (``at``: seconds since the run began):

- ``{"type": "play", "hosts": [...], "roles": [...]}``
- ``{"type": "task", "task": id, "name", "role", "file", "action", "once", "at"}``: ``file`` is that of the task,
  without folder and ending, ``once`` true for a task that one host does for all
- ``{"type": "start", "task": id, "host", "at"}``
- ``{"type": "result", "task": id, "host", "at", "status", "changed", "ignored", "state", "asked", "data"}``: ``status``
  is one of ok, failed, unreachable, skipped, ``data`` what ``picked`` left of the module's result, and ``asked`` true
  for a rollout's question before it acts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.vllm_fleet.rollout.replicas import repair_of
from ansible.module_utils.vllm_fleet.vllm.host_variables import LOOPBACK
from fleet_report import endpoints, estimate, failure, gateways, replicas, timeline
from fleet_report.words import natural

FORMAT = 1
#: Roles whose plays are about the nodes of the fleet.
NODE_ROLES = frozenset({"vllm_server", "rollout", "vllm_image", "hf_cache", "benchmark", "burnin", "teardown"})
#: Roles of plays that may leave a server changed; their failures are worth a report.
CHANGING_ROLES = frozenset({"vllm_server", "rollout", "rollback", "teardown"})
_PICKED = {
    "vllm_server": (
        "actions",
        "differences",
        "container",
        "elapsed",
        "downtime",
        "stages",
        "rolled_back",
        "release",
        "previous_release",
        "spent",
        "failure",
        "notes",
        "confirmed",
        "watchdog",
        "log_file",
        "replica",
        "msg",
    ),
    "vllm_chat": ("results", "msg"),
    "burnin_report": ("finding",),
    "preflight_report": ("findings", "not_checked", "sentences", "ending", "further", "address"),
    "gateway_info": ("differing",),
    "vllm_drained": ("drained", "elapsed", "says", "msg"),
}
_ANSWER = ("name", "api", "content", "finish_reason", "usage", "ttft", "tokens_per_second", "error")
#: What a run would do to a server that gives no answer.
_RESTART = {"name": "state", "current": "running", "desired": "restarted"}


#: What of a run is said of its nodes one by one.
_OF_HOSTS = ("failed", "unreachable", "benchmarks", "machines", "gateway_hosts")


def module_of(action: str) -> str:
    """Give a module's short name."""
    return action.rpartition(".")[2]


def picked(action: str, result: Mapping[str, Any], *, failed: bool) -> dict[str, Any]:
    """Take from a module's result what a report shows; of other modules only what a failure says."""
    if module_of(action) == "set_fact":
        facts = result.get("ansible_facts") or {}
        noted = {
            "mark": (facts.get("rollout_outcome") or {}).get("state"),
            "repair": (facts.get("vllm_server_repair") or {}).get("because"),
            "urls": facts.get("gateway_urls"),
            "closed": facts.get("gateway_closed"),
            "forgets": facts.get("gateway_forgets"),
            "left_out": facts.get("rollout_left_out") or (facts.get("deploy_steps") or {}).get("left_out"),
            "estimate": (facts.get("rollout_plan") or {}).get("estimate"),
            "last_lines": facts.get("maintenance_says") or facts.get("teardown_says") or facts.get("rollback_says"),
            "undescribed": _names_of((facts.get("rollout_plan") or {}).get("undescribed") or {}),
        }
        return {name: value for name, value in noted.items() if value}
    names = _PICKED.get(module_of(action), ())
    kept = {name: result[name] for name in names if result.get(name) is not None}
    if brought := _brought(module_of(action), result):
        kept["brought"] = brought
    spec = result.get("spec")
    if module_of(action) == "vllm_server" and isinstance(spec, Mapping) and spec.get("port"):
        kept["at"] = {"bind": str(spec.get("bind") or LOOPBACK), "port": int(spec["port"])}
        env = spec.get("env")
        kept["at"] |= {"key": True} if isinstance(env, Mapping) and env.get("VLLM_API_KEY") else {}
    if failed:
        result = _failed_item(result)
        kept |= {"msg": result["msg"]} if result.get("msg") is not None else {}
        # Of other modules, too, as hf_snapshot's; a word of the same name is none of these.
        kept |= {"failure": result["failure"]} if isinstance(result.get("failure"), Mapping) else {}
    return kept


def _brought(module: str, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return whether what a node is to have is there as a whole, and its bytes; None of other modules.

    One that has a part of it is neither: nobody knows how much came then.
    """
    if module == "hf_snapshot" and isinstance(result.get("complete"), bool):
        lacks, files = len(result.get("missing") or ()), int(result.get("files") or 0)
        part = not result["complete"] and files > 0 and lacks < files
        return None if part else {"whole": result["complete"], "bytes": int(result.get("bytes") or 0)}
    if module == "vllm_image" and isinstance(result.get("present"), bool):
        return {"whole": result["present"], "bytes": int(result.get("size") or 0)}
    return None


def _failed_item(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the item for which a loop failed: of the loop itself Ansible says only that one did."""
    items = result.get("results")
    items = [one for one in items if isinstance(one, Mapping)] if isinstance(items, Sequence) else []
    return next((one for one in items if one.get("failed") or one.get("unreachable")), result)


def _names_of(undescribed: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    return {node: sorted(found["servers"]) for node, found in undescribed.items()}


def build(run: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make the report.

    ``run``: id, playbook, began, elapsed, check_mode, and whatever else describes the run; ``failed`` and
    ``unreachable`` list the hosts that ended so, ``benchmarks`` maps hosts to figures, ``machines`` those that share a
    node to its name, ``gateway_hosts`` are the gateways of the inventory.
    """
    tasks = {e["task"]: e for e in events if e["type"] == "task"}
    roles = {role for e in events if e["type"] == "play" for role in e["roles"]}
    results = [e for e in events if e["type"] == "result" and not _foreign(e)]
    starts = {(e["task"], e["host"]): e["at"] for e in events if e["type"] == "start"}
    on: Mapping[str, str] = run.get("machines") or {}
    left_out: dict[str, Any] = {}
    for one in results:
        left_out |= one["data"].get("left_out") or {}
    nodes = replicas.merged(
        [
            _node(host, run, [r for r in results if r["host"] == host], tasks, starts)
            for host in sorted(
                _hosts(events, results, tasks), key=lambda host: (natural(on.get(host, host)), natural(host))
            )
        ]
    )
    elsewhere = sorted({*run.get("failed", ()), *run.get("unreachable", ())} - _names(nodes), key=natural)
    report = {
        "format": FORMAT,
        **{name: value for name, value in run.items() if name not in _OF_HOSTS},
        "nodes": nodes,
        "undescribed": next((r["data"]["undescribed"] for r in results if r["data"].get("undescribed")), {}),
        "removed": _removed(run, results, tasks),
        "says": next((r["data"]["last_lines"] for r in results if r["data"].get("last_lines")), []),
        "left_out": {host: found for host, found in left_out.items() if not found.get("lost")},
        "gateways": gateways.rows(run, results, tasks),
        "endpoints": endpoints.found(run, results, nodes),
        "endpoints_want_key": endpoints.want_key(run, results, nodes),
        "stopped": failure.of_the_run(results, tasks),
        "findings": next((r["data"]["findings"] for r in results if _judged(r)), {}),
        "not_checked": next((_texts(r["data"].get("not_checked")) for r in results if _judged(r)), []),
        # Hosts that are no nodes, such as gateways.
        "failed_elsewhere": elsewhere,
        "failures_elsewhere": [
            {"name": host, "failure": told}
            for host in elsewhere
            if (told := failure.of_host(host, run, [r for r in results if r["host"] == host], tasks))
        ],
        "changing": bool(roles & CHANGING_ROLES) or any(n["started"] for n in nodes),
        "tasks": _tasks(results, tasks, starts),
    }
    for node in nodes:
        if node["name"] in report["left_out"] and not node["failure"]:
            node["outcome"] = "left_out"
    report["outcome"] = _outcome(nodes)
    planned: Mapping[str, Any] = next((r["data"]["estimate"] for r in results if r["data"].get("estimate")), {})
    report["estimate"] = estimate.compared(planned, nodes)
    report["rates"] = {} if run.get("check_mode") else estimate.rates(results, tasks, starts)
    return report


def _texts(given: Any) -> list[str]:
    return [str(one) for one in given] if isinstance(given, list) else []


def _judged(result: Mapping[str, Any]) -> bool:
    """Return whether a result has the numbers of preflight's findings by level."""
    found = result["data"].get("findings")
    return isinstance(found, Mapping) and all(isinstance(number, int) for number in found.values())


def worth_a_page(report: Mapping[str, Any]) -> bool:
    """Whether somebody will want to look: a server was changed or measured, GPUs were tried, or a deployment failed."""
    if report["check_mode"]:
        return False
    nodes = report["nodes"]
    # Where all ended before any server was looked at, the terminal has said all of it.
    stopped = bool(report["stopped"]) and any(n["started"] for n in nodes)
    bad = stopped or any(
        n["outcome"] in ("failed", "restored", "taken_back", "unreachable")
        or (n["outcome"] == "refused" and n["started"])
        for n in nodes
    )
    return acted(report) or (bool(report["changing"]) and bad)


def acted(report: Mapping[str, Any]) -> bool:
    """Whether a run changed or measured anything of servers, nodes or gateways."""
    of_nodes = any(n["changed"] or n["benchmark"] or n["burn_in"] for n in report["nodes"])
    return of_nodes or bool(report["removed"]) or any(row["outcome"] == "changed" for row in report["gateways"])


def _names(nodes: Sequence[Mapping[str, Any]]) -> set[str]:
    """The hosts of the nodes, and those of servers over several."""
    return {str(n["name"]) for one in nodes for n in (one, *(one.get("members") or ()))}


def _of_another(task: Mapping[str, Any]) -> bool:
    """Return whether a task of vllm_server is about a server that no host of the inventory describes any more."""
    return task.get("role") == "rollout" and task.get("file") == "remove"


def _removed(
    run: Mapping[str, Any], results: Iterable[Mapping[str, Any]], tasks: Mapping[Any, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Return which servers that are not described any more were removed, by node."""
    found: dict[str, list[str]] = {}
    for one in results:
        task = tasks[one["task"]]
        if one["changed"] and _of_another(task) and module_of(task["action"]) == "vllm_server":
            node = (run.get("machines") or {}).get(one["host"], one["host"])
            found.setdefault(node, []).append(str(one.get("of") or "a server"))
    return {node: found[node] for node in sorted(found, key=natural)}


def _foreign(result: Mapping[str, Any]) -> bool:
    """Return whether a result says nothing of a deployment: skipped tasks, and vllm_server with mode status."""
    return result["status"] == "skipped" or bool(result.get("only_status"))


def _hosts(
    events: Sequence[Mapping[str, Any]], results: Iterable[Mapping[str, Any]], tasks: Mapping[Any, Mapping[str, Any]]
) -> list[str]:
    found = {h for e in events if e["type"] == "play" and set(e["roles"]) & NODE_ROLES for h in e["hosts"]}
    found |= {r["host"] for r in results if module_of(tasks[r["task"]]["action"]).startswith("vllm_server")}
    found |= {r["host"] for r in results if module_of(tasks[r["task"]]["action"]) == "vllm_chat"}
    return sorted(found, key=natural)


@dataclass
class _Seen:
    """What the results of one host say, in the order they came."""

    #: Result of vllm_server by state, and of a rollout's plan under `asked`; the last one of each.
    last: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Answers of the largest verification of the server itself, and whether it passed.
    answers: list[Mapping[str, Any]] = field(default_factory=list)
    right: bool = False
    stretches: list[timeline.Stretch] = field(default_factory=list)
    #: Seconds of the run, from and to, in which the host had no server.
    down: list[list[float]] = field(default_factory=list)
    #: Since when a server is stopped for a reboot: the host is without one until the next start.
    stopped: float | None = None
    mark: str | None = None
    #: Why a server that is as described is restarted, or would be.
    repair: str | None = None

    def data(self, *names: str) -> Mapping[str, Any]:
        """Return the data of the first of these results that is there; empty without any."""
        return next((self.last[name]["data"] for name in names if name in self.last), {})

    @property
    def restored(self) -> Mapping[str, Any] | None:
        """The result of a restore that brought the previous server back."""
        found = self.last.get("restored")
        return found if found and _went_back(found) else None


def _node(
    host: str,
    run: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    tasks: Mapping[Any, Mapping[str, Any]],
    starts: Mapping[tuple[Any, str], float],
) -> dict[str, Any]:
    seen = _Seen()
    for one in results:
        task = tasks[one["task"]]
        _collect(seen, one, task, starts.get((one["task"], host), task["at"]))
    why = failure.of_host(host, run, results, tasks)
    burn_in = [r["data"]["finding"] for r in results if r["data"].get("finding")]
    server = _server(seen, check_mode=bool(run.get("check_mode")))
    outcome = _node_outcome(host, run, seen.last, why, answered=seen.right)
    # A deployment may bring an earlier release again, too: that is what was asked for, and nothing went back.
    goes_back = any(tasks[r["task"]].get("role") == "rollback" for r in results)
    if outcome == "replaced" and goes_back and (server["release"] or {}).get("restores"):
        outcome = "rolled_back"
    # It failed after its wave, as in a soak, and serves its old release again.
    if outcome == "failed" and goes_back and _came_back(results, tasks):
        outcome = "taken_back"
    down = _down(seen)
    return {
        "name": host,
        "on": (run.get("machines") or {}).get(host),
        "outcome": "tried" if burn_in and outcome == "untouched" else outcome,
        **server,
        **_answered(seen),
        "downtime": _downtime(seen, down),
        "failure": why,
        "timeline": timeline.joined(seen.stretches),
        "down": [[round(at, 3), round(to, 3)] for at, to in down],
        "benchmark": (run.get("benchmarks") or {}).get(host),
        "burn_in": burn_in,
        "replica": next((r["data"]["replica"] for r in results if r["data"].get("replica")), None),
    }


def _came_back(results: Sequence[Mapping[str, Any]], tasks: Mapping[Any, Mapping[str, Any]]) -> bool:
    """Return whether a host's last turn in the waves ended well, after the role rollback had asked for its records."""
    back = False
    mark = None
    for one in results:
        if tasks[one["task"]].get("role") == "rollback":
            back, mark = True, None
        mark = one["data"].get("mark", mark)
    return back and mark == "replaced"


def _collect(seen: _Seen, one: Mapping[str, Any], task: Mapping[str, Any], begin: float) -> None:
    """Add one result to what was seen of its host; ``begin`` is when the task began there."""
    module, state, end = module_of(task["action"]), one.get("state"), one["at"]
    if module == "vllm_server" and not _of_another(task):
        seen.last["asked" if one.get("asked") else state or "started"] = one
    said = one["data"].get("results") or [] if module == "vllm_chat" else []
    # A request that only shows that the gateway finds the server is no measurement of the server.
    if said and len(said) >= len(seen.answers) and task.get("role") not in ("gateway", "rollout"):
        seen.answers, seen.right = said, one["status"] == "ok"
    if one.get("asked"):
        seen.stretches.append({"phase": "check", "from": begin, "to": end})
    elif module == "vllm_server" and (state or "started") in ("started", "restarted"):
        parts, gap = timeline.server_stretches(begin, end, one["data"])
        if seen.stopped is not None and "start" in (one["data"].get("actions") or []):
            gap, seen.stopped = [seen.stopped, end], None
        seen.stretches += parts
        seen.down += [gap] if gap else []
    else:
        if module == "vllm_server" and state == "stopped" and one["changed"]:
            seen.stopped = begin
        seen.stretches.append({"phase": timeline.phase_of(task, state, seen.mark), "from": begin, "to": end})
    seen.mark = one["data"].get("mark", seen.mark)
    seen.repair = one["data"].get("repair", seen.repair)


def _down(seen: _Seen) -> list[list[float]]:
    """The times without a server; what was ready before a restore answered wrongly, so it does not count."""
    if seen.restored and seen.down:
        return [*seen.down[:-1], [seen.down[-1][0], seen.restored["at"]]]
    return seen.down


def _downtime(seen: _Seen, down: Sequence[Sequence[float]]) -> float | None:
    """Seconds without a server: as the node measured them, unless a restore or a reboot added to them."""
    if not down:
        return None
    measured = seen.data("restarted", "started", "asked").get("downtime")
    if measured is not None and not seen.restored and "stopped" not in seen.last:
        return float(measured)
    return round(sum(to - at for at, to in down), 3)


def _server(seen: _Seen, *, check_mode: bool) -> dict[str, Any]:
    """What vllm_server did or would do."""
    started, confirmed = seen.data("started", "asked"), seen.data("confirmed")
    # A server that was restarted is as described afterwards, so what the restart did is what the run did.
    did = seen.data("restarted") or started
    if not did and seen.last.get("stopped", {}).get("changed"):
        did = seen.data("stopped")
    if seen.last.get("absent", {}).get("changed"):
        did = seen.data("absent")
    because = seen.repair or repair_of({"vllm_server_result": started}).get("because")
    if check_mode and because and not started.get("actions"):
        did = {"differences": [_RESTART], "actions": ["start"], "notes": [f"restarted because {because}"]}
    changed = did is not started or any(seen.last.get(state, {}).get("changed") for state in ("started", "restarted"))
    changed = changed or (bool(seen.last.get("stopped", {}).get("changed")) and seen.stopped is not None)
    at = seen.data("restored", "confirmed", "restarted", "started", "asked").get("at")
    release = confirmed.get("release") or started.get("release") or (seen.restored or {}).get("data", {}).get("release")
    return {
        "started": "started" in seen.last or "asked" in seen.last,
        "at": at,
        "changed": changed or bool(seen.restored),
        "release": release,
        "previous": confirmed.get("previous_release"),
        **{name: did.get(name) or [] for name in ("differences", "actions", "notes", "stages")},
        "spent": did.get("spent") or {},
        "unstaged": check_mode and changed and not did.get("actions"),
        "ready": _ready(did),
    }


def _answered(seen: _Seen) -> dict[str, Any]:
    """What the server answered, and how fast the first streamed answer came."""
    first = next((a for a in seen.answers if a.get("ttft") is not None), {})
    return {
        "ttft": first.get("ttft"),
        "tokens_per_second": first.get("tokens_per_second"),
        "answered": seen.right,
        "answers": [{name: a.get(name) for name in _ANSWER} for a in seen.answers],
    }


def _went_back(restored: Mapping[str, Any]) -> bool:
    """Whether a restore brought the previous server; its task fails never, its result says."""
    return restored["status"] == "ok" and not restored["data"].get("failure")


def _ready(started: Mapping[str, Any]) -> float | None:
    stages = started.get("stages") or []
    reached = [s["at"] for s in stages if s["stage"] == "ready"]
    return reached[-1] if reached and "start" in (started.get("actions") or []) and not started.get("failure") else None


def _node_outcome(
    host: str,
    run: Mapping[str, Any],
    last: Mapping[str, Mapping[str, Any]],
    why: Mapping[str, Any] | None,
    *,
    answered: bool,
) -> str:
    """One word: a key of summary.OUTCOMES. ``untouched`` becomes ``tried`` for a node whose GPUs were burned in."""
    if host in run.get("unreachable", ()):
        return "unreachable"
    started, restored = last.get("started"), last.get("restored")
    if why:
        back = (started or {}).get("data", {}).get("rolled_back") or (restored and _went_back(restored))
        return "refused" if failure.before_anything(last, why) else "restored" if back else "failed"
    if started:
        deed = _deed(started["data"].get("actions") or []) if started["changed"] else "unchanged"
        return "restarted" if (last.get("restarted") or {}).get("changed") else deed
    for state, acted, not_acted in (("absent", "removed", "absent"), ("asked", "untouched", "unchanged")):
        if state in last:
            return acted if last[state]["data"].get("actions") else not_acted
    if host in (run.get("benchmarks") or {}):
        return "measured"
    return "stopped" if last else "answered" if answered else "untouched"


def _deed(actions: Sequence[str]) -> str:
    if "create" in actions:
        return "replaced" if {"keep", "remove"} & set(actions) else "deployed"
    return "started" if "start" in actions else "updated"


def _outcome(nodes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node["outcome"]] = counts.get(node["outcome"], 0) + 1
    return counts


def _tasks(
    results: Sequence[Mapping[str, Any]],
    tasks: Mapping[Any, Mapping[str, Any]],
    starts: Mapping[tuple[Any, str], float],
) -> list[dict[str, Any]]:
    """Say how long each task took, from its first host's start to its last one's end, all waves together."""
    spans: dict[Any, list[float]] = {}
    hosts: dict[tuple[Any, Any], set[str]] = {}
    for one in results:
        # What an include brings in is counted itself.
        if module_of(tasks[one["task"]]["action"]).startswith("include_"):
            continue
        begin = starts.get((one["task"], one["host"]), tasks[one["task"]]["at"])
        span = spans.setdefault(one["task"], [begin, one["at"]])
        spans[one["task"]] = [min(span[0], begin), max(span[1], one["at"])]
        hosts.setdefault(_heading(tasks[one["task"]]), set()).add(one["host"])
    rows: dict[tuple[Any, Any], dict[str, Any]] = {}
    for task, (begin, end) in spans.items():
        role, name = heading = _heading(tasks[task])
        row = rows.setdefault(heading, {"name": name, "role": role, "seconds": 0.0, "hosts": len(hosts[heading])})
        row["seconds"] = round(row["seconds"] + end - begin, 3)
    return sorted(rows.values(), key=lambda row: -row["seconds"])


def _heading(task: Mapping[str, Any]) -> tuple[Any, Any]:
    return task.get("role"), task["name"]
