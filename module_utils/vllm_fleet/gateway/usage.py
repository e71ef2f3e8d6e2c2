# SPDX-License-Identifier: Apache-2.0
"""Who used what: lines of a gateway's log, added up by day, key and model. Pure.

The line is `log-format` of roles/gateway/templates/gateway.cfg.j2. Sums are plain dictionaries, which go
from the gateways to the controller and are added there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Fields of HAProxy alone, then names of the configuration and figures; a path has no blank.
LINE = re.compile(
    r"\S+ \[[^\]]+\] \S+ \S+/\S+ -?\d+/-?\d+/-?\d+/-?\d+/\+?-?\d+ (?P<status>-?\d+) (?P<up>\d+) \+?(?P<down>\d+) "
    r"(?P<end>\S\S) [\d/+]+ \d+/\d+ "
    r"\{(?P<key>[^|{}]*)\|(?P<model>.*)\|(?P<first>-|\d+)\|(?P<tokens_in>-|\d+)\|(?P<tokens_out>-|\d+)\} \S+( \S*)?"
)
# Other lines of HAProxy are no requests: servers that went up or down, its start, errors of a connection.
REQUEST = re.compile(r"\S+:\d+ \[\d\d/\w{3}/\d{4}:")
NONE = "(none)"
#: Classes of times for each tenfold: two that are side by side differ by a fifth.
CLASSES = 12
COUNTS = ("requests", "errors", "hung_up", "bytes_in", "bytes_out", "with_tokens", "tokens_in", "tokens_out")


@dataclass
class Sum:
    """What one key asked of one model on one day. `first` counts the times of first bytes by their class."""

    requests: int = 0
    #: Answers with 400 or more, and answers that a server or the gateway broke off.
    errors: int = 0
    #: Requests that their client ended.
    hung_up: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    #: Requests whose answer named its tokens.
    with_tokens: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    first: dict[str, int] = field(default_factory=dict)

    def add(self, other: Mapping[str, Any]) -> None:
        """Add another sum, as `row` writes it."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + int(other[name]))
        for step, count in other["first"].items():
            self.first[step] = self.first.get(step, 0) + int(count)

    def quantile(self, part: float) -> float | None:
        """Return the seconds in which ``part`` of the requests had their first byte, to a tenth; None without any."""
        left = part * sum(self.first.values())
        for step, count in sorted(self.first.items(), key=lambda entry: int(entry[0])):
            left -= count
            if left <= 0:
                return float(10 ** (int(step) / CLASSES) / 1000)
        return None


def read_line(message: str) -> dict[str, Any] | None:
    """Return key, model and figures of a request's line; None where it is none of this role's."""
    found = LINE.fullmatch(message)
    if not found:
        return None
    status, end = int(found["status"]), found["end"]
    gone = end[0] in "Cc"
    one: dict[str, Any] = {
        "key": NONE if found["key"] == "-" else found["key"],
        "model": NONE if found["model"] == "-" else found["model"],
        "requests": 1,
        "errors": int(not gone and (status >= 400 or status < 0 or end[0] not in "-L")),
        "hung_up": int(gone),
        "bytes_in": int(found["up"]),
        "bytes_out": int(found["down"]),
        "with_tokens": int(found["tokens_in"] != "-"),
        "first": {},
    }
    for name in ("tokens_in", "tokens_out"):
        one[name] = 0 if found[name] == "-" else int(found[name])
    if found["first"] != "-":
        one["first"] = {str(round(CLASSES * math.log10(max(1, int(found["first"]))))): 1}
    return one


def read_journal(lines: Iterable[str | bytes], date: Callable[[int], str]) -> dict[str, Any]:
    """Return `rows` of what ``lines`` say (of `journalctl --output=json`), and how many lines are `unreadable`.

    ``date`` writes a number of days since 1970 as 2026-11-01. A row is a Sum with its `day` (UTC, when
    the request ended), `key` and `model`.
    """
    sums: dict[tuple[str, str, str], Sum] = {}
    days: dict[int, str] = {}
    unreadable = 0
    for line in lines:
        try:
            entry = json.loads(line)
            message, second = entry["MESSAGE"], int(entry["__REALTIME_TIMESTAMP"]) // 1_000_000
        except (ValueError, KeyError, TypeError):
            unreadable += bool(line.strip())
            continue
        one = read_line(message.rstrip("\n")) if isinstance(message, str) else None
        if one is None:
            unreadable += not isinstance(message, str) or bool(REQUEST.match(message))
            continue
        number = second // 86400
        if number not in days:
            days[number] = date(number)
        sums.setdefault((days[number], one["key"], one["model"]), Sum()).add(one)
    return {"rows": rows(sums), "unreadable": unreadable}


def rows(sums: Mapping[tuple[str, str, str], Sum]) -> list[dict[str, Any]]:
    """Return sums in the order of day, key and model."""
    return [
        {"day": day, "key": key, "model": model, **asdict(found)}
        for (day, key, model), found in sorted(sums.items(), key=lambda entry: entry[0])
    ]


def together(parts: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of several gateways as one list of rows."""
    sums: dict[tuple[str, str, str], Sum] = {}
    for part in parts:
        for row in part:
            sums.setdefault((row["day"], row["key"], row["model"]), Sum()).add(row)
    return rows(sums)
