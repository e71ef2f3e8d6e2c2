# SPDX-License-Identifier: Apache-2.0
"""The events of one server as they were written down, for whoever asks later. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..common import received

#: The older file comes first.
FILES = ("events.jsonl.1", "events.jsonl")
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_TEXTS = ("at", "server", "kind", "why")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """Return the seconds of `90`, `30m`, `1h` or `2d`. Raises ValueError, one sentence."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([smhd]?)", text.strip())
    if not found:
        raise ValueError(f"{text!r} is no time such as 30m, 1h or 2d")
    return float(found[1]) * _SECONDS[found[2]]


def events(lines: Iterable[str], after: str) -> tuple[list[dict[str, Any]], int]:
    """Return the events at or after a time (2026-11-29T12:31:05Z), and how many lines are none."""
    found, unreadable = [], 0
    for line in lines:
        if not line.strip():
            continue
        event = _event(line)
        if event is None:
            unreadable += 1
        elif event["at"] >= after:
            found.append(event)
    return found, unreadable


def _event(line: str) -> dict[str, Any] | None:
    """Return one event; None for what is none, such as half a line of a full disk."""
    try:
        read = received.parsed(line)
    except ValueError:
        return None
    if not isinstance(read, Mapping) or not all(isinstance(read.get(name), str) for name in _TEXTS):
        return None
    if not _STAMP.fullmatch(read["at"]):
        return None
    event: dict[str, Any] = {name: read[name] for name in _TEXTS}
    event |= {name: read[name] for name in ("evidence", "class") if isinstance(read.get(name), str)}
    took = read.get("seconds")
    if isinstance(took, (int, float)) and not isinstance(took, bool):
        event["seconds"] = float(took)
    return event
