# SPDX-License-Identifier: Apache-2.0
"""Why a host failed, or the whole run: the one story among the failed results. Pure; see build for the events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.vllm_fleet.preflight import connection

#: Of what no module names a class. Nothing is read in this word, so it is not shown.
PLAIN = "task"
#: What preflight says of a node that it refuses, in its parts.
_OF_PREFLIGHT = ("sentences", "ending", "further", "address")
_FIELDS = ("class", "cause", "evidence", "remedy", "exit_code", "host")
_NOTHING: dict[str, Any] = {"class": PLAIN, "cause": "", "evidence": [], "remedy": "", "exit_code": None}


def _module(action: str) -> str:
    return action.rpartition(".")[2]


def _lost(
    host: str, last: Mapping[str, Any], tasks: Mapping[Any, Mapping[str, Any]]
) -> tuple[str, str, dict[str, Any]]:
    """Why a node is out of reach, what to do, and the parts of both; ``last`` is what was said of it.

    Preflight says cause and remedy in one.
    """
    data = last.get("data", {})
    said = str(data.get("msg") or "the node did not answer")
    if _module(str(tasks.get(last.get("task"), {}).get("action"))) == "preflight_report":
        return said.removeprefix(f"{host}: "), "", _parts(data)
    told = connection.explain(said, name=host)
    if told is None:
        return said, "See to its network and its SSH server, then run again: what was begun is taken up", {}
    remedy = f"{told.remedy[0].upper()}{told.remedy[1:]}. Then run again: what was begun is taken up"
    return told.cause, remedy, {"address": told.address}


def _parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what preflight said of a node in its parts; empty where it is of another form."""
    sentences = data.get("sentences")
    if not isinstance(sentences, Sequence) or isinstance(sentences, str) or not sentences:
        return {}
    return {name: data.get(name) or "" for name in _OF_PREFLIGHT} | {"sentences": [str(one) for one in sentences]}


def of_host(
    host: str,
    run: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    tasks: Mapping[Any, Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Why a node failed: the first failure that counts is the cause, the last one says how it ended."""
    if host in run.get("unreachable", ()):
        last = next((r for r in reversed(results) if r["status"] == "unreachable"), None)
        cause, remedy, parts = _lost(host, last or {}, tasks)
        return {"class": "unreachable", "cause": cause, "evidence": [], "remedy": remedy, "exit_code": None, **parts}
    # What one host did for all says nothing of that host.
    bad = [r for r in results if _counts(r) and not tasks[r["task"]].get("once")]
    if host not in run.get("failed", ()):
        return None
    if not bad:
        once = any(_counts(r) for r in results)
        return None if once else {**_NOTHING, "cause": "it failed; see above"}
    return _told(host, bad, tasks)


def before_anything(last: Mapping[str, Mapping[str, Any]], why: Mapping[str, Any]) -> bool:
    """Return whether a host was refused when it was looked at; ``last`` are the results of vllm_server by state."""
    return bool(why.get("refused")) or ({*last} == {"asked"} and last["asked"]["status"] == "failed")


def of_the_run(results: Sequence[Mapping[str, Any]], tasks: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Why all hosts ended, where a task failed that one of them did for all; None where there is no such task."""
    bad = [r for r in results if _counts(r) and tasks[r["task"]].get("once")]
    return _told("", bad, tasks) if bad else None


def _counts(result: Mapping[str, Any]) -> bool:
    return result["status"] == "failed" and not result["ignored"]


def _told(host: str, bad: Sequence[Mapping[str, Any]], tasks: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The first failure that names a class, else the first one, and what the last one adds to it."""
    first = next((r for r in bad if r["data"].get("failure")), bad[0])
    task = tasks[first["task"]]
    found = first["data"].get("failure")
    said = str(first["data"].get("msg") or "")
    if found:
        told = {**{name: found.get(name) for name in _FIELDS}, "log_file": first["data"].get("log_file")}
        if told["cause"] is None:  # a module that says all of it in one sentence
            told |= {"cause": said, "remedy": "" if told["remedy"] == said else told["remedy"]}
        return told
    # Whatever the image could not be had for, by modules that know no classes.
    kind = "image_missing" if task.get("role") == "vllm_image" and _module(task["action"]) != "push_files" else PLAIN
    if _module(task["action"]) == "vllm_chat":
        kind = "verification"
    cause = said or f"the task {task['name']!r} failed"
    ending = str(bad[-1]["data"].get("msg") or "") if bad[-1] is not first else ""
    cause = cause.removeprefix(f"{host}: ")
    rest = ending.removeprefix(f"{host}: ").removeprefix(cause).strip()
    return {
        **_NOTHING,
        "class": kind,
        "cause": cause,
        "remedy": rest,
        "task": task["name"],
        "refused": _module(task["action"]) == "preflight_report",
        **_parts(first["data"]),
    }
