# SPDX-License-Identifier: Apache-2.0
"""The pages of all runs: one line for each, the newest first, and the releases of each node over time.

Pure but for `add` and `rebuild`, which keep the lines in a file beside the runs' folders. That file is only a shorter
way: where it is lost, or of an earlier version, the lines are made of the runs' own report.json again. So a folder of
reports is all that is needed.

However many runs there are, a new one costs the reading of that file, and the parsing of its last lines: pages of older
runs are written once.
"""

from __future__ import annotations

import fcntl
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

import plugin_utils  # noqa: F401 - finds vllm_fleet
from fleet_report import page, summary, words

TEMPLATE = Path(__file__).with_name("index.html.j2")
RELEASES_TEMPLATE = Path(__file__).with_name("releases.html.j2")
#: One line of JSON for each run with a page, beside their folders.
LINES = "runs.jsonl"
#: Of a line's layout. A file whose first line has another one is made again.
FORMAT = 2
#: Runs on a page of older ones; the newest page has up to twice as many.
CHUNK = 500
#: Nodes of a run whose figures a line keeps, and releases of a node on the page of releases.
MOST_NODES = 64
MOST_RELEASES = 60
#: A picture's own units; the page stretches them.
WIDTH, HEIGHT = 600, 60
_KEPT = ("id", "when", "playbook", "limit", "elapsed", "by")
_FIGURES = ("downtime", "ready", "ttft", "tokens_per_second")
#: Outcomes after which a node has the release that its record names.
_DEEDS = ("deployed", "replaced", "rolled_back", "taken_back", "restarted", "started", "updated")


def line(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the pages say of one run, whatever version wrote its report; raises where it is no report."""
    nodes = [node for node in report.get("nodes") or () if isinstance(node, Mapping)]
    deeds = [node for node in nodes if node.get("changed") and node.get("outcome") in _DEEDS]
    figures = {name: [node[name] for node in deeds if _is_figure(node.get(name))] for name in _FIGURES}
    return {
        "format": FORMAT,
        **{name: report.get(name) for name in _KEPT},
        "id": str(report["id"]),
        **page.headline({"gateways": (), "stopped": None, "failures_elsewhere": (), **report, "nodes": nodes}),
        "changed": _changed(deeds),
        "downtime": max(figures["downtime"], default=None),
        "ttft": median(figures["ttft"]) if figures["ttft"] else None,
        "tokens_per_second": median(figures["tokens_per_second"]) if figures["tokens_per_second"] else None,
        "releases": [_release(node) for node in deeds[:MOST_NODES] if node.get("release")],
    }


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _changed(deeds: Iterable[Mapping[str, Any]]) -> str:
    """Say what changed, once for nodes where it is the same."""
    told = dict.fromkeys(summary.differences({"differences": (), "unstaged": False, **node}) for node in deeds)
    return words.clip("; ".join(told), 200)


def _release(node: Mapping[str, Any]) -> dict[str, Any]:
    release = node["release"]
    return {
        "node": str(node["name"]),
        **{name: release.get(name) for name in ("release", "image", "model", "restores")},
        **{name: node[name] if _is_figure(node.get(name)) else None for name in _FIGURES},
    }


# --- pages --------------------------------------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"duration": words.duration, "latency": words.latency, "rate": words.rate}
    environment.filters["stem"] = lambda playbook: Path(str(playbook or "")).stem
    return environment


def render(lines: Sequence[Mapping[str, Any]], older: Sequence[str] = (), total: int | None = None) -> str:
    """Write a page of runs; ``lines`` with the oldest first, ``older`` are the pages before it, the newest first."""
    template = _environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(runs=lines[::-1], older=older, total=len(lines) if total is None else total)


def render_releases(lines: Iterable[Mapping[str, Any]]) -> str:
    """Write the page of the nodes' releases over time; ``lines`` with the oldest first."""
    nodes: dict[str, list[dict[str, Any]]] = {}
    for run in lines:
        for one in run["releases"]:
            nodes.setdefault(one["node"], []).append({**one, "id": run["id"], "when": run["when"]})
    shown = [
        {"name": name, "releases": nodes[name][: -MOST_RELEASES - 1 : -1], "pictures": pictures(nodes[name])}
        for name in sorted(nodes, key=words.natural)
    ]
    template = _environment().from_string(RELEASES_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(nodes=shown, width=WIDTH, height=HEIGHT)


def pictures(releases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each figure that a node's releases have at least twice, the oldest at the left."""
    made = []
    recent = releases[-MOST_RELEASES:]
    for name, title, write in (
        ("tokens_per_second", "Tokens/s", words.rate),
        ("ttft", "First token", words.latency),
        ("downtime", "Downtime", words.duration),
    ):
        known = [(number, one) for number, one in enumerate(recent) if one[name] is not None]
        if len(known) < 2:
            continue
        values = [float(one[name]) for _, one in known]
        low, high = min(values), max(values)
        points = [
            {
                "x": round(10 + (WIDTH - 20) * number / (len(recent) - 1), 1),
                "y": round(HEIGHT - 10 - (HEIGHT - 20) * ((value - low) / (high - low) if high > low else 0.5), 1),
                "title": f"release {one['release']}, {one['when']}: {write(value)}",
            }
            for (number, one), value in zip(known, values, strict=True)
        ]
        made.append(
            {"title": title, "points": points, "now": write(values[-1]), "low": write(low), "high": write(high)}
        )
    return made


# --- the folder ---------------------------------------------------------------------------------------------------


def add(folder: Path, report: Mapping[str, Any]) -> None:
    """Add a run to the pages in ``folder``. Runs whose own folder is gone leave them; two runs may do so at once."""
    with (folder / LINES).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        there = file.read()
        first = next((one for text in there.split("\n", 3)[:3] if (one := _read(text))), None)
        if first is None or first["format"] != FORMAT:
            there = _rewritten(folder, there.split("\n"), file, without=str(report["id"]))
        new = json.dumps(line(report), ensure_ascii=False)
        # Of a run that was killed over its line a part may be there, without an end.
        file.write(("\n" if there and not there.endswith("\n") else "") + new + "\n")
        _write_pages(folder, [text for text in (*there.split("\n"), new) if text])


def rebuild(folder: Path) -> int:
    """Make all pages of the reports that are in ``folder``, and return how many runs they have."""
    with (folder / LINES).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        texts = _rewritten(folder, file.read().split("\n"), file).split("\n")
        for old in folder.glob("runs-*.html"):
            old.unlink()
        lines = [text for text in texts if text]
        _write_pages(folder, lines)
        return len(lines)


def _rewritten(folder: Path, texts: Iterable[str], file: Any, without: str = "") -> str:
    """Make the lines anew of the runs' own reports; of one that has none that can be read, its old line counts."""
    old = {one["id"]: one for text in texts if (one := _read(text)) and (folder / one["id"]).is_dir()}
    lines = dict(old)
    for path in folder.glob("*/report.json"):
        try:
            lines[path.parent.name] = {**line(json.loads(path.read_text(encoding="utf-8"))), "id": path.parent.name}
        except Exception:  # noqa: BLE001, S112  whatever is not a report, or is one of a version to come
            continue
    lines.pop(without, None)
    # An id begins with the time.
    text = "".join(f"{json.dumps(lines[name], ensure_ascii=False)}\n" for name in sorted(lines))
    file.seek(0)
    file.truncate()
    file.write(text)
    return text


def _write_pages(folder: Path, texts: Sequence[str]) -> None:
    """Write the newest page, and those of older runs that are not there yet; each line of ``texts`` is a run."""
    full = max(0, len(texts) // CHUNK - 1)
    older = [f"runs-{number:05d}.html" for number in range(1, full + 1)]
    for number, name in enumerate(older):
        if not (folder / name).is_file():
            known = _known(folder, texts[number * CHUNK : (number + 1) * CHUNK])
            (folder / name).write_text(render(known, older[:number][::-1]), encoding="utf-8")
    newest = _known(folder, texts[full * CHUNK :])
    (folder / "index.html").write_text(render(newest, older[::-1], total=full * CHUNK + len(newest)), encoding="utf-8")
    (folder / "releases.html").write_text(render_releases(newest), encoding="utf-8")


def _known(folder: Path, texts: Iterable[str]) -> list[dict[str, Any]]:
    return [one for text in texts if (one := _read(text)) and (folder / one["id"]).is_dir()]


def _read(text: str) -> dict[str, Any] | None:
    """Read a line of any version; None where it is none, as of a run that was killed over it."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    whole = isinstance(found, dict) and {*_KEPT, "level", "text"} <= found.keys() and "/" not in str(found["id"])
    if not whole:
        return None
    defaults: dict[str, Any] = {"format": 1, "changed": "", **dict.fromkeys(_FIGURES), "releases": []}
    return {**defaults, **found, "id": str(found["id"])}


if __name__ == "__main__":
    print(f"{rebuild(Path(sys.argv[1]))} runs: {Path(sys.argv[1]) / 'index.html'}")
