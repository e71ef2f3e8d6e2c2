# SPDX-License-Identifier: Apache-2.0
"""Tasks of a node to the stretches of its time line. Pure; times in seconds since the run began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: What a node can be busy with, in the order of a run; the page has a colour and a sentence for each.
PHASES = {
    "check": "looked at",
    "prepare": "prepared: engine, driver",
    "stage": "staging image and weights",
    "drain": "drained, finishing its requests",
    "boot": "reboots",
    "down": "no server: the old one stops, the new one is made",
    "load": "the new server loads",
    "verify": "asked for answers",
    "admit": "admitted",
    "restore": "the previous server comes back",
    "benchmark": "measured",
    "failed": "a start that failed",
}
_ROLES = {
    "preflight": "check",
    "docker_engine": "prepare",
    "rocm": "prepare",
    "vllm_image": "stage",
    "hf_cache": "stage",
    "benchmark": "benchmark",
    "burnin": "benchmark",
}
#: Task files of the roles rollout and gateway whose tasks take a server out or put it back, whatever they are called.
_FILES = {
    "drain": "drain",
    "fail_drain": "drain",
    "admit": "admit",
    "verify_routing": "admit",
    "fail_admission": "admit",
}
#: Other task files of the role rollout.
_OWN = frozenset(
    (
        *("main", "plan", "probe_gateways", "readmit_leftovers", "recover", "remove", "replace", "restore_or_confirm"),
        "verdict",
    )
)
#: What a server's state in the rollout makes of tasks that its user has written (rollout_drain_tasks, ..._admit_tasks),
#: and of those that drain and admit have in common.
_MARKS = {"draining": "drain", "admitting": "admit"}
_ACTIONS = {"vllm_drained": "drain", "vllm_chat": "verify", "reboot": "boot"}
_STATES = {"restored": "restore", "started": "load", "restarted": "load", "stopped": "down", "absent": "down"}
#: Stretches that are closer to each other than this are one, where they are of the same phase.
_JOIN = 0.3

Stretch = dict[str, Any]


def phase_of(task: Mapping[str, Any], state: str | None = None, mark: str | None = None) -> str:
    """Say which phase a task belongs to.

    ``state`` is that of a task of vllm_server, ``mark`` the host's state in the rollout when the task began.
    """
    action, role, file = str(task["action"]).rpartition(".")[2], str(task.get("role") or ""), task.get("file")
    if action == "vllm_server":
        return _STATES.get(state or "started", "check")
    if role in ("rollout", "gateway") and file in _FILES:
        return _FILES[file]
    if action in _ACTIONS:
        return _ACTIONS[action]
    if role in ("rollout", "gateway") and mark in _MARKS and file not in _OWN:
        return _MARKS[mark]
    return _ROLES.get(role, "check")


def server_stretches(begin: float, end: float, data: Mapping[str, Any]) -> tuple[list[Stretch], list[float] | None]:
    """Cut one start of vllm_server into what it was made of, and give the time without a server, [from, to].

    The node's clock is not the controller's: only durations are taken from the result, counted back from its end.
    """
    actions, stages = data.get("actions") or [], data.get("stages") or []
    downtime, failed = data.get("downtime"), bool(data.get("failure"))
    if "start" not in actions:
        return [_stretch("failed" if failed else "check", begin, end)], None
    ready = float(stages[-1]["at"]) if stages else 0.0
    down = max(begin, end - downtime) if downtime is not None else None
    if failed:
        if down is None:
            return [_stretch("failed", begin, end)], [begin, end] if "stop" in actions else None
        # When it died is not in the result; its last stage is.
        broke = min(end, down + ready)
        return [
            _stretch("check", begin, down),
            _stretch("failed", down, broke),
            _stretch("restore", broke, end),
        ], [down, end]
    load = max(begin if down is None else down, end - ready)
    out = [_stretch("check", begin, load if down is None else down)]
    if down is not None:
        out.append(_stretch("down", down, load))
    return [*out, _stretch("load", load, end)], [down, end] if down is not None else None


def joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Put neighbours of the same phase together and leave out what has no length."""
    out: list[Stretch] = []
    for one in sorted(stretches, key=lambda s: (s["from"], s["to"])):
        if one["to"] - one["from"] < 1e-3:
            continue
        if out and out[-1]["phase"] == one["phase"] and one["from"] - out[-1]["to"] < _JOIN:
            out[-1] = {**out[-1], "to": max(out[-1]["to"], one["to"])}
        else:
            out.append(dict(one))
    return [{**one, "from": round(one["from"], 3), "to": round(one["to"], 3)} for one in out]


def ticks(length: float, most: int = 8) -> list[float]:
    """Give round times for an axis of ``length`` seconds, at most ``most`` steps."""
    for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400):
        if length / step <= most:
            return [float(step * n) for n in range(int(length // step) + 1)]
    return [0.0, length]


def _stretch(phase: str, begin: float, end: float) -> Stretch:
    return {"phase": phase, "from": begin, "to": max(begin, end)}
