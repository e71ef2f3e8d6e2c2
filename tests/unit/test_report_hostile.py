# SPDX-License-Identifier: Apache-2.0
"""A node in other hands gives back anything as a result: the report of the others is made all the same."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_runs import Run

from fleet_report import telling

ODD: list[Any] = [None, -1, float("nan"), "<script>", [None], {"a": [1]}, 10**400]


def places(data: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, value in pairs:
        yield (*before, name)
        yield from places(value, (*before, name))


def with_odd(events: list[dict[str, Any]], number: int, place: tuple[Any, ...], odd: Any) -> list[dict[str, Any]]:
    made = copy.copy(events)
    made[number] = copy.deepcopy(events[number])
    inside = made[number]["data"]
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = odd
    return made


def test_what_one_node_says_leaves_the_report_of_the_others() -> None:
    run = Run(3).deploy()
    described = run.described()
    whole = telling.tell(described, run.events, "index.html")
    assert whole.page and whole.left_out == []
    mine = next(node for node in whole.report["nodes"] if node["name"] == "node1")
    left_out, seen = 0, set()
    for number, event in enumerate(run.events):
        if event["type"] != "result" or event["host"] != "node2":
            continue
        for place in places(event["data"]):
            # One of a list stands for all of it, and one odd value a place for what is done there.
            kind = (event["task"], *(0 if isinstance(name, int) else name for name in place))
            if kind not in seen:
                odd = ODD[len(seen) % len(ODD)]
                told = telling.tell(described, with_odd(run.events, number, place, odd), "index.html")
                assert told.left_out in ([], ["node2"]), (place, odd)
                left_out += bool(told.left_out)
                assert next(node for node in told.report["nodes"] if node["name"] == "node1") == mine
                assert told.page and "<script>" not in told.page
                assert any(line.startswith("node1 ") for line in told.lines), told.lines
            seen.add(kind)
    assert left_out


def test_two_nodes_that_say_anything_are_left_out_together() -> None:
    run = Run(4).deploy()
    for host in ("node1", "node3"):
        for event in run.events:
            if event.get("host") == host and event["type"] == "result":
                event["data"] = {
                    "differences": [{"name": None, "current": 1, "desired": 2}],
                    "stages": 5,
                    "actions": [1],
                }
    told = telling.tell(run.described(), run.events, "index.html")
    assert told.left_out == ["node1", "node3"]
    assert {node["name"] for node in told.report["nodes"]} == {"node1", "node2", "node3", "node4"}


def test_a_fault_of_the_report_itself_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        telling.tell({}, Run(1).deploy().events, "")


def test_a_page_of_all_runs_that_cannot_be_written_leaves_a_run_its_lines(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "callback_plugins/vllm_fleet_report.py"
    spec = importlib.util.spec_from_file_location("vllm_fleet_report_alone", source)
    assert spec and spec.loader
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    (tmp_path / "runs.jsonl").mkdir()  # as good as a file of another user
    run, said, warned = Run(2).deploy(), [], []
    own = SimpleNamespace(
        run="r",
        get_option=lambda _: str(tmp_path),
        _describe=lambda _: run.described(),
        _events=run.events,
        _hand_on=lambda _: None,
        _keep_rates=lambda _: None,
        _display=SimpleNamespace(banner=said.append, display=said.append, warning=warned.append),
    )
    plugin.CallbackModule._tell(own, None)
    assert said[0] == "FLEET" and len(said) > 2
    assert (tmp_path / "r" / "index.html").exists() and "page of all runs" in warned[0]
