# SPDX-License-Identifier: Apache-2.0
"""What watchdogs think of their servers, and what they saw: a column of status.yml, the table of events.yml. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.vllm_fleet.watchdog.words import DOWN
from fleet_report.summary import table
from fleet_report.words import DASH, clip, count, duration

HEAD = ["TIME (UTC)", "NODE", "SERVER", "EVENT", "WHY", "EVIDENCE"]
#: Characters of a reason in the table.
WIDTH = 100
#: What makes two events one line; what was kept of each as evidence is another.
_SAID = ("kind", "class", "why", "evidence", "seconds")
#: Events that say nothing of how a server stands: every rollout has it left alone.
QUIET = ("", "started", "evidence", "left_alone")


def cell(found: Mapping[str, Any] | None, *, wanted: bool) -> str:
    """Return what the table of status.yml says; ``found`` is what vllm_server returned of the watchdog."""
    if not found:
        return DASH
    state, last = str(found.get("state")), found.get("last_event") or {}
    if state in ("none", "no systemd"):
        return "off" if not wanted else "absent" if state == "none" else state
    kind = str(last.get("kind") or "")
    if found.get("quarantine"):
        return "quarantine"
    if state == "serving":
        return state if kind in QUIET else f"{state}, {kind} {moment(last.get('at'))[5:16]}"
    if state == "stopped" or found.get("seconds") is None:
        return state
    why = f": {kind}" if state == "out" and kind in ("limit", "failed") else ""
    return f"{state.replace('_', ' ')} {duration(round(found['seconds']))}{why}".replace(".0 s", " s")


def drift(found: Mapping[str, Any] | None, *, wanted: bool) -> str:
    """Return what is not as it should be; empty where nothing is."""
    state = str((found or {}).get("state") or "")
    if (found or {}).get("quarantine"):
        return f"watchdog: {(found or {})['quarantine']}"
    if state in DOWN:
        return f"watchdog: {(found or {}).get('why') or state}"
    if wanted and state in ("none", "stopped"):
        return "no watchdog" if state == "none" else "its watchdog does not run"
    return ""


def moment(text: Any) -> str:
    """Write a time of an event, 2026-11-29T12:31:05Z, as a person reads it."""
    return str(text or "").replace("T", " ").removesuffix("Z") or DASH


def lines(found: Mapping[str, Mapping[str, Any] | None], since: str) -> list[str]:
    """Write the events of all nodes in one order of time, the newest last; ``found`` are results by node."""
    events = sorted(
        ((one, node) for node, looked in found.items() for one in (looked or {}).get("events") or [] if _is_event(one)),
        key=lambda pair: str(pair[0]["at"]),
    )
    rows = [[*_cells(node, one, times)] for node, one, times in _together(events)]
    out = table([HEAD, *rows]) if rows else [f"No events in the last {since}."]
    for node, looked in found.items():
        if "events" not in (looked or {}):
            why = clip(str((looked or {}).get("msg") or "it was not asked"), WIDTH)
            out.append(f"{node} did not answer, so its events are missing: {why}")
        elif looked and looked.get("unreadable"):
            out.append(f"{node}: {count(looked['unreadable'], 'line')} could not be read.")
    return out


def _together(events: Sequence[tuple[Mapping[str, Any], str]]) -> list[tuple[str, Mapping[str, Any], int]]:
    """Put what a watchdog said several times of its server, with nothing between, together: (node, the first, times).

    A rollout leaves a server alone, looks whether it serves, and leaves it alone once more.
    """
    told: list[tuple[str, Mapping[str, Any], int]] = []
    last: dict[tuple[str, str], int] = {}
    for one, node in events:
        place = last.get((node, str(one["server"])))
        if place is not None and all(told[place][1].get(name) == one.get(name) for name in _SAID):
            told[place] = (node, told[place][1], told[place][2] + 1)
            continue
        last[node, str(one["server"])] = len(told)
        told.append((node, one, 1))
    return told


def _is_event(one: Any) -> bool:
    texts = isinstance(one, Mapping) and all(isinstance(one.get(name), str) for name in ("at", "server", "kind", "why"))
    return texts and isinstance(one.get("seconds") or 0, (int, float)) and abs(one.get("seconds") or 0) < 1e9


def _cells(node: str, event: Mapping[str, Any], times: int) -> Sequence[str]:
    what = str(event["kind"]) + (f" ({event['class']})" if event.get("class") else "")
    what += f", {times} times" if times > 1 else ""
    why = str(event["why"]) + (f" ({duration(round(event['seconds']))})" if event.get("seconds") else "")
    server, evidence = str(event["server"]), str(event.get("evidence") or DASH)
    return moment(event["at"]), node, server, what, clip(why, WIDTH), evidence
