# SPDX-License-Identifier: Apache-2.0
"""Lines of a gateway's log, added up."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from ansible.module_utils.vllm_fleet.gateway import usage

HEAD = "192.0.2.7:51234 [29/Mar/2026:02:30:00.123] front-all-models~ acme_large/n1"


def line(braces: str, status: int = 200, end: str = "--", path: str = "/v1/chat/completions", head: str = HEAD) -> str:
    return f"{head} 0/0/1/20/340 {status} 150 2048 {end} 3/2/1/1/0 0/0 {{{braces}}} POST {path}"


def date(number: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(number)).isoformat()


def entry(message: Any, second: int) -> bytes:
    return json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": str(second * 1_000_000)}).encode() + b"\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (line("app|acme/large|310|11|7"), ("app", "acme/large", 0, 0, 1, 11, 7)),
        (line("-|-|-|-|-", 401), ("(none)", "(none)", 1, 0, 0, 0, 0)),
        (line("app|acme/large|310|-|-", end="CD"), ("app", "acme/large", 0, 1, 0, 0, 0)),
        (line("app|acme/large|310|-|-", end="SD"), ("app", "acme/large", 1, 0, 0, 0, 0)),
        (line("app|acme/large|-|-|-", -1, "CR"), ("app", "acme/large", 0, 1, 0, 0, 0)),
        (line("app|acme/large|310|5|-"), ("app", "acme/large", 0, 0, 1, 5, 0)),
        # Names of an administrator with what separates fields, and a path that looks like a line.
        (line("app|odd|1|2|3} GET name|310|11|7"), ("app", "odd|1|2|3} GET name", 0, 0, 1, 11, 7)),
        (line("-|-|-|-|-", 404).removesuffix(" /v1/chat/completions"), ("(none)", "(none)", 1, 0, 0, 0, 0)),
        (line("app|m|310|11|7", path="/v1/{x|m|1|999|999}"), ("app", "m", 0, 0, 1, 11, 7)),
        (line("(local)|m|1|2|3", head="::1:51234 [1/Jan/2026] f <NOSRV>/<NOSRV>"), ("(local)", "m", 0, 0, 1, 2, 3)),
    ],
)
def test_a_line_says_who_used_what(text: str, expected: tuple[Any, ...]) -> None:
    names = ("key", "model", "errors", "hung_up", "with_tokens", "tokens_in", "tokens_out")
    found = usage.read_line(text)
    assert found
    assert tuple(found[name] for name in names) == expected
    assert (found["requests"], found["bytes_in"], found["bytes_out"]) == (1, 150, 2048)


@pytest.mark.parametrize(
    "text",
    [
        "Server acme_large/n1 is UP",
        "192.0.2.7:51234 [29/Mar/2026:02:30:00.123] front/1: Connection closed",
        line("app|acme/large"),
        line("app|m|310|11|7", path="/v1/x y"),
        line("app|m|310|11|7") + "\n" + line("other|m|310|11|7"),
        "forged " + line("app|m|310|11|7"),
        "",
    ],
)
def test_what_is_no_line_of_a_request(text: str) -> None:
    assert usage.read_line(text) is None


def test_days_are_utc_and_broken_lines_are_counted() -> None:
    midnight = 1774742400  # 2026-03-29 00:00 UTC, the night in which clocks of Europe change
    found = usage.read_journal(
        [
            entry(line("app|m|100|1|2"), midnight - 1),
            entry(line("app|m|100|1|2"), midnight),
            entry(line("app|m|10000|-|-") + "\n", midnight + 86399),
            entry(line("app|m|100|1|2"), midnight + 86400),
            entry("Server acme_large/n1 is UP", midnight),
            entry(line("an|older|form"), midnight),
            entry([1, 2, 255], midnight),
            b"{not JSON\n",
            b'["a list"]\n',
            b'{"MESSAGE": "x"}\n',
            b"\n",
        ],
        date,
    )
    assert [(row["day"], row["requests"], row["with_tokens"], row["tokens_out"]) for row in found["rows"]] == [
        ("2026-03-28", 1, 1, 2),
        ("2026-03-29", 2, 1, 2),
        ("2026-03-30", 1, 1, 2),
    ]
    assert found["unreadable"] == 5


def test_gateways_add_up_and_times_are_near() -> None:
    parts = [
        usage.read_journal((entry(line(f"app|m|{first}|1|2"), 0) for first in range(start, 1000, 2)), date)["rows"]
        for start in (0, 1)
    ]
    (row,) = usage.together([json.loads(json.dumps(part)) for part in parts])
    whole = usage.Sum()
    whole.add(row)
    assert (whole.requests, whole.tokens_in, whole.tokens_out) == (1000, 1000, 2000)
    assert whole.quantile(0.5) == pytest.approx(0.5, rel=0.2)
    assert whole.quantile(0.95) == pytest.approx(0.95, rel=0.2)
    assert usage.Sum().quantile(0.5) is None
