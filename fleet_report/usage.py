# SPDX-License-Identifier: Apache-2.0
"""Who used what through the gateways: the table and the CSV of playbooks/usage.yml. Pure."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.vllm_fleet.gateway.usage import COUNTS, Sum, together
from fleet_report.summary import table
from fleet_report.words import DASH, clip, latency

HEAD = [
    "KEY",
    "MODEL",
    "REQUESTS",
    "ERRORS",
    "HUNG UP",
    "FIRST BYTE P50",
    "P95",
    "IN",
    "OUT",
    "TOKENS IN",
    "TOKENS OUT",
    "KNOWN",
]
CSV_HEAD = ["day", "key", "model", *COUNTS, "first_byte_p50_s", "first_byte_p95_s"]
#: Rows of the table; 200 keys would hide the sum.
MOST = 20
#: Characters of a name.
WIDTH = 40
#: Seconds since 1970 at which no journal begins yet, in the year 5138.
LAST = 1e11


def rows_of(gateways: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of all gateways as one list; ``gateways`` are results of gateway_usage."""
    rows: list[dict[str, Any]] = together(_counted(found) or [] for found in gateways.values())
    return rows


def _counted(found: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows that a gateway says; None for none, and for what are none."""
    try:
        rows: list[dict[str, Any]] = together([found["rows"]])
        sound = all(isinstance(row[name], str) for row in rows for name in ("day", "key", "model"))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return rows if sound else None


def lines(gateways: Mapping[str, Mapping[str, Any]], since: str, until: str) -> list[str]:
    """Write the table by key and model, the largest first, their sum, and what it does not say."""
    sums: dict[tuple[str, str], Sum] = {}
    whole = Sum()
    for row in rows_of(gateways):
        sums.setdefault((row["key"], row["model"]), Sum()).add(row)
        whole.add(row)
    order = sorted(sums.items(), key=lambda one: (-(one[1].tokens_in + one[1].tokens_out), -one[1].requests, one[0]))
    rest = Sum()
    for _, found in order[MOST:]:
        rest.add(vars(found))
    shown = [[clip(key, WIDTH), clip(model, WIDTH), *_cells(found)] for (key, model), found in order[:MOST]]
    if rest.requests:
        shown.append([f"{len(order) - MOST} more", "", *_cells(rest)])
    shown.append(["all", "", *_cells(whole)])
    return [f"{since} to {until}, days in UTC", *table([HEAD, *shown]), *doubts(gateways, since)]


def _cells(found: Sum) -> list[str]:
    known = f"{found.with_tokens / found.requests:.0%}" if found.requests else DASH
    return [
        f"{found.requests:,}",
        f"{found.errors:,}",
        f"{found.hung_up:,}",
        latency(found.quantile(0.5)),
        latency(found.quantile(0.95)),
        size(found.bytes_in),
        size(found.bytes_out),
        f"{found.tokens_in:,}" if found.with_tokens else DASH,
        f"{found.tokens_out:,}" if found.with_tokens else DASH,
        known,
    ]


def size(count: float) -> str:
    """Return bytes in the unit that leaves at most three digits: 0 B, 12 kB, 3.4 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop(0)
    unit = units[0]
    return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"


def doubts(gateways: Mapping[str, Mapping[str, Any]], since: str) -> list[str]:
    """Return what is missing in the sums, as sentences."""
    found = [
        f"{name} did not answer, so its requests are missing: {clip(str(one.get('msg') or 'it was not reached'), 200)}"
        if "rows" not in one
        else f"{name} says no sums, so its requests are missing; look at what that gateway runs."
        for name, one in gateways.items()
        if _counted(one) is None
    ]
    for name, one in gateways.items():
        if _counted(one) is not None:
            begins = one.get("begins")
            sound = isinstance(begins, (int, float)) and 0 < begins < LAST
            day = datetime.datetime.fromtimestamp(float(begins or 0), datetime.UTC) if sound else None
            if day is None:
                found.append(f"{name} has no line of HAProxy in its journal.")
            elif day.date().isoformat() >= since and day.time() > datetime.time():
                found.append(
                    f"The journal of {name} begins at {day:%Y-%m-%d %H:%M} UTC; what was before is not counted."
                )
            if isinstance(one.get("unreadable"), int) and one["unreadable"]:
                found.append(
                    f"{one['unreadable']:,} lines of requests in the journal of {name} have another form, as of an "
                    "earlier release of this project, and are not counted."
                )
    return found


def _no_formula(text: str) -> str:
    """A name as a cell that no spreadsheet computes: a client chooses what it calls a model."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return all rows as CSV: a line for each day, key and model."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for row in rows:
        found = Sum()
        found.add(row)
        times = [found.quantile(part) for part in (0.5, 0.95)]
        writer.writerow(
            [row["day"], *(_no_formula(row[name]) for name in ("key", "model")), *(row[name] for name in COUNTS)]
            + ["" if one is None else f"{one:.3f}" for one in times]
        )
    return text.getvalue()
