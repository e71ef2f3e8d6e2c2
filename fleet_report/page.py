# SPDX-License-Identifier: Apache-2.0
"""A report as a page that needs nothing but itself: styles and pictures inline, light and dark."""

from __future__ import annotations

import functools
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from fleet_report import failure, replicas, summary, timeline, words

TEMPLATE = Path(__file__).with_name("page.html.j2")
#: Width of a picture's own units; the page stretches them.
WIDTH = 1000
#: Beyond so many nodes the rows of the picture are thinner.
MANY = 16
#: Beyond so many servers those of a node that are well are folded into one line.
FOLDED = 64
#: Tasks named in the table of where the time went.
TASKS = 12


@functools.cache
def _template() -> jinja2.Template:
    """Compile the page, once a process: a report with odd results is tried several times."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "duration": words.duration,
        "latency": words.latency,
        "rate": words.rate,
        "plain": plain,
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def render(report: Mapping[str, Any]) -> str:
    """Write the page."""
    nodes = report["nodes"]
    drawn = [node for node in nodes if node["timeline"]]
    used = {stretch["phase"] for node in drawn for stretch in node["timeline"]}
    return _template().render(
        report=report,
        nodes=nodes,
        drawn=drawn,
        headline=headline(report),
        command=command(report),
        cards=cards(nodes),
        failures=[*_stopped(report), *summary.failures([*nodes, *report["failures_elsewhere"]])],
        plain_class=failure.PLAIN,
        phases={name: text for name, text in timeline.PHASES.items() if name in used},
        any_down=any(node["down"] for node in drawn),
        axis=[{"left": 100 * at / _length(report), "label": words.axis(at)} for at in timeline.ticks(_length(report))],
        bars={node["name"]: bars(node, _length(report)) for node in drawn},
        width=WIDTH,
        dense=len(drawn) > MANY,
        grouped=grouped,
        folds=folds,
        told=told,
        undescribed=summary.undescribed(report),
        estimated=(report.get("estimate") or {}).get("waves") or [],
        measured=[node for node in nodes if node["benchmark"]],
        tried=[node for node in nodes if node["burn_in"]],
        compared=[node for node in nodes if node["started"] or node["answers"]],
        shared=shared(nodes),
        outcomes=summary.OUTCOMES,
        bad=summary.BAD,
        differences=summary.differences,
        tasks=report["tasks"][:TASKS],
        longest=max((task["seconds"] for task in report["tasks"]), default=0) or 1,
        change=change,
    )


def grouped(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[str | None, list[Mapping[str, Any]]]]:
    """Return servers by the node that they share, in their order; what shares none is together, without a name."""
    return [(on, list(members)) for on, members in groupby(nodes, key=lambda node: node.get("on"))]


def folds(nodes: Sequence[Mapping[str, Any]], members: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the servers of a node are one line: there are many, and nothing is wrong with these."""
    return len(nodes) > FOLDED and not any(node["outcome"] in summary.BAD for node in members)


def told(members: Sequence[Mapping[str, Any]]) -> str:
    """Say how the servers of a node ended, and how long one of them was away at most."""
    outcomes = Counter(str(node["outcome"]) for node in members)
    downtimes = [node["downtime"] for node in members if node["downtime"] is not None]
    away = f", at most {words.duration(max(downtimes))} without a server" if downtimes else ""
    return f"{words.count(len(members), 'server')}: {summary.told(outcomes)}{away}"


def command(report: Mapping[str, Any]) -> str:
    """Return what to type for the same run; values that were given with -e may be secret, so they are not kept."""
    words = ["ansible-playbook", str(report["playbook"])]
    for option, values in (
        ("-i", report["inventory"]),
        ("--limit", [report["limit"]] if report["limit"] else []),
        ("--tags", [",".join(report["tags"])] if report["tags"] else []),
    ):
        words += [part for value in values for part in (option, shlex.quote(str(value)))]
    return " ".join([*words, *(f"-e {name}=…" for name in report.get("extra_vars") or ())])


def _stopped(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ended the run for all nodes, as a failure of none of them."""
    return [{**report["stopped"], "nodes": [], "logs": []}] if report["stopped"] else []


def _length(report: Mapping[str, Any]) -> float:
    return max(float(report["elapsed"]), 0.001)


def plain(value: Any) -> str:
    """Write a value of a difference on one line."""
    return "absent" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def headline(report: Mapping[str, Any]) -> dict[str, str]:
    """Say in one sentence how it went, and whether that is good."""
    outcome = report["outcome"]
    bad = sum(outcome.get(name, 0) for name in summary.BAD)
    level = "bad" if bad or report["stopped"] or report["failures_elsewhere"] else "good"
    nodes = [f"{replicas.number(report['nodes'])}: {summary.told(outcome)}"] if report["nodes"] else []
    gateways = [f"{row['name']} {row['outcome']}" for row in report["gateways"] if row["outcome"] != "unchanged"]
    return {"level": level, "text": "; ".join([*nodes, *gateways])}


def cards(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Give the figures that stand on top: the worst downtime, and the middle of what was measured."""
    out = []
    downtimes = [(n["downtime"], n["name"]) for n in nodes if n["downtime"] is not None]
    if downtimes:
        worst, name = max(downtimes)
        note = f"on {name}" if len(downtimes) > 1 else "without a server"
        out.append({"title": "Longest downtime", "value": words.duration(worst), "note": note})
    ready = [n["ready"] for n in nodes if n["ready"] is not None]
    if ready:
        note = (
            f"from {words.duration(min(ready))} to {words.duration(max(ready))}"
            if len(ready) > 1
            else "from the container's start"
        )
        out.append({"title": "Time to ready", "value": words.duration(median(ready)), "note": note})
    for key, title, write, better in (
        ("ttft", "First token", words.latency, "lower"),
        ("tokens_per_second", "Tokens per second", words.rate, "higher"),
    ):
        now = [n[key] for n in nodes if n[key] is not None]
        before = [(n["previous"] or {}).get(key) for n in nodes if n[key] is not None]
        known = [b for b in before if b is not None]
        if now:
            note = f"before: {write(median(known))}" if known else f"{better} is better"
            out.append({"title": title, "value": write(median(now)), "note": note})
    return out


def shared(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """Give the differences when they are the same on every changed node; None when nodes differ in what changed."""
    found = [node["differences"] for node in nodes if node["changed"]]
    return found[0] if found and all(one == found[0] for one in found) else None


def bars(node: Mapping[str, Any], length: float) -> dict[str, list[dict[str, Any]]]:
    """Place a node's stretches and its time without a server on a picture of WIDTH units."""

    def place(begin: float, end: float) -> dict[str, float]:
        # A stretch that is too short to be seen still happened.
        return {"x": round(WIDTH * begin / length, 2), "w": round(max(WIDTH * (end - begin) / length, 1.2), 2)}

    stretches = [
        {
            **place(s["from"], s["to"]),
            "phase": s["phase"],
            "title": f"{timeline.PHASES[s['phase']]}: {words.duration(s['to'] - s['from'])}",
        }
        for s in node["timeline"]
    ]
    down = [
        {**place(begin, end), "title": f"without a server for {words.duration(end - begin)}"}
        for begin, end in node["down"]
    ]
    return {"stretches": stretches, "down": down}


def change(
    now: float | None, before: float | None, *, lower_is_better: bool, least: float = 0.0
) -> dict[str, str] | None:
    """Compare a figure with the previous release's: text and whether it is better, worse or about the same.

    A difference below ``least``, in the figure's unit, is the same, whatever its share.
    """
    if now is None or not before:
        return None
    ratio = now / before - 1
    if abs(ratio) < 0.05:
        return {"level": "same", "text": "±0\u00a0%" if abs(ratio) < 0.005 else _percent(ratio)}
    if abs(now - before) < least:
        return {"level": "same", "text": _percent(ratio)}
    better = (ratio < 0) == lower_is_better
    return {"level": "better" if better else "worse", "text": _percent(ratio)}


def _percent(ratio: float) -> str:
    return f"{ratio:+.0%}".replace("%", "\u00a0%").replace("-", "\u2212")
