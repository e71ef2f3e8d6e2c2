# SPDX-License-Identifier: Apache-2.0
"""The page of all runs: one line for each, the newest first. Pure but for `add`, which keeps the lines in a file."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from fleet_report import page, words

TEMPLATE = Path(__file__).with_name("index.html.j2")
#: One line of JSON for each run with a page, beside their folders.
LINES = "runs.jsonl"
#: Runs on the page.
MOST = 500
_KEPT = ("id", "when", "playbook", "limit", "elapsed", "by")


def line(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page of all runs says of one."""
    return {**{name: report[name] for name in _KEPT}, **page.headline(report)}


def render(lines: Iterable[Mapping[str, Any]]) -> str:
    """Write the page; ``lines`` with the oldest first."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["duration"] = words.duration
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(runs=list(lines)[: -MOST - 1 : -1])


def add(folder: Path, report: Mapping[str, Any]) -> None:
    """Add a run to the page in ``folder``. Runs whose own folder is gone leave it; two runs may do so at once."""
    with (folder / LINES).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        there, new = file.read(), json.dumps(line(report), ensure_ascii=False)
        # Of a run that was killed over its line a part may be there, without an end.
        file.write(("\n" if there and not there.endswith("\n") else "") + new + "\n")
        known = [one for text in (*there.split("\n"), new) if (one := _read(text)) and (folder / one["id"]).is_dir()]
        (folder / "index.html").write_text(render(known), encoding="utf-8")


def _read(text: str) -> dict[str, Any] | None:
    """Read a line; None where it is none, as of a run that was killed over it."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    whole = isinstance(found, dict) and {*_KEPT, "level", "text"} <= found.keys() and "/" not in str(found["id"])
    return found if whole else None
