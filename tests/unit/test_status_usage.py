# SPDX-License-Identifier: Apache-2.0
"""The table and the CSV of playbooks/usage.yml."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_report import usage


def row(key: str, tokens: int, requests: int = 10, day: str = "2026-11-01", **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(usage.COUNTS, 0)
    known = {"requests": requests, "with_tokens": requests // 2, "tokens_in": tokens, "tokens_out": 1, "bytes_in": 1234}
    return {"day": day, "key": key, "model": "acme/large", **counts, **known, "first": {"24": requests}, **more}


def test_few_keys_are_added_over_days_and_gateways() -> None:
    one = {"rows": [row("app", 5), row("app", 5, day="2026-11-02"), row("batch", 5000)], "begins": 1.0, "unreadable": 0}
    other = {"rows": [row("app", 5)], "begins": 1.0, "unreadable": 0}
    lines = usage.lines({"g1": one, "g2": other}, "2026-11-01", "2026-11-30")
    assert [line.split() for line in lines[2:]] == [
        ["batch", "acme/large", "10", "0", "0", "100", "ms", "100", "ms", "1.2", "kB", "0", "B", "5,000", "1", "50%"],
        ["app", "acme/large", "30", "0", "0", "100", "ms", "100", "ms", "3.7", "kB", "0", "B", "15", "3", "50%"],
        ["all", "40", "0", "0", "100", "ms", "100", "ms", "4.9", "kB", "0", "B", "5,015", "4", "50%"],
    ]
    text = usage.csv_text(usage.rows_of({"g1": one, "g2": other})).splitlines()
    assert text[0].startswith("day,key,model,requests,errors,hung_up")
    assert text[1] == "2026-11-01,app,acme/large,20,0,0,2468,0,10,10,2,0.100,0.100"
    assert len(text) == 4


def test_many_keys_leave_the_sum_in_sight() -> None:
    found = {"rows": [row(f"key-{number}", number) for number in range(200)], "begins": 1.0, "unreadable": 0}
    lines = usage.lines({"g1": found}, "2026-11-01", "2026-11-30")
    assert len(lines) == 1 + 1 + usage.MOST + 2
    assert lines[2].startswith("key-199 ")
    assert lines[-2].startswith("180 more ")
    assert lines[-1].split()[:2] == ["all", "2,000"]


def test_a_name_of_a_client_is_no_formula() -> None:
    names = ("=HYPERLINK(1)", "@SUM(1)", "-1", "acme/large-1", "\tx")
    found = {"rows": [row("app", 1, model=name) for name in names]}
    text = usage.csv_text(usage.rows_of({"g1": found}))
    assert [line.split(",")[2] for line in text.splitlines()[1:]] == [
        "'\tx",
        "'-1",
        "'=HYPERLINK(1)",
        "'@SUM(1)",
        "acme/large-1",
    ]


@pytest.mark.parametrize(
    "odd",
    [
        *({"rows": rows} for rows in ("x", [1], [{}], {"a": 1}, None, 5)),
        {"rows": [row("app", 1, first=[1])]},
        {"rows": [{**row("app", 1), "requests": "many"}]},
        {"rows": [row("app", 1, model=["x"])]},
        {"rows": [row("app", 1, bytes_in=float("inf"))]},
    ],
)
def test_a_gateway_that_says_anything_takes_none_out_of_the_table(odd: dict[str, Any]) -> None:
    good = {"rows": [row("app", 5)], "begins": 1.0, "unreadable": 0}
    text = "\n".join(usage.lines({"odd": odd, "good": good}, "2026-11-01", "2026-11-30"))
    assert "odd says no sums, so its requests are missing" in text
    assert "acme/large" in text
    for begins in ("x", float("nan"), 1e300, -5, [1]):
        assert usage.doubts({"good": {**good, "begins": begins, "unreadable": "x"}}, "2026-11-01")


def test_what_is_missing_is_said() -> None:
    found = {
        "silent": {"msg": "Connection timed out"},
        "young": {"rows": [], "begins": 1793664000.0 + 3600, "unreadable": 1200},
        "empty": {"rows": [], "begins": None, "unreadable": 0},
    }
    text = "\n".join(usage.lines(found, "2026-11-01", "2026-11-30"))
    assert "silent did not answer, so its requests are missing: Connection timed out" in text
    assert "young begins at 2026-11-03 01:00 UTC" in text
    assert "1,200 lines of requests in the journal of young have another form" in text
    assert "empty has no line of HAProxy in its journal." in text
    assert usage.size(999_600) == "1.0 MB"
