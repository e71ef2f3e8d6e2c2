# SPDX-License-Identifier: Apache-2.0
"""Who gives what to whom: the role's arithmetic over what the probes of all nodes found."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "filter_plugins" / "hf_cache.py"
spec = importlib.util.spec_from_file_location("hf_cache_filters", SOURCE)
assert spec
assert spec.loader
filters = importlib.util.module_from_spec(spec)
spec.loader.exec_module(filters)

C1, C2 = "1" * 40, "2" * 40


def has(commit: str = C1, repo: str = "org/model") -> dict[str, Any]:
    return {"complete": True, "repo_id": repo, "revision": "main", "commit": commit, "files": 8}


def lacks(files: int = 0, missing: int = 0, repo: str = "org/model") -> dict[str, Any]:
    lost = [str(number) for number in range(missing)]
    return {"complete": False, "repo_id": repo, "revision": "main", "files": files, "missing": lost, "corrupt": []}


def team(transport: str = "swarm", me: str = "a", **probes: Any) -> dict[str, Any]:
    hostvars = {host: {"hf_cache_result": probe} for host, probe in probes.items()}
    found: dict[str, Any] = filters.hf_cache_team(list(probes), hostvars, me, transport)
    return found


@pytest.mark.parametrize(
    ("probes", "seed", "receivers", "transport"),
    [
        ({"a": has(), "b": has()}, "a", [], "none"),
        ({"a": lacks()}, "a", [], "none"),
        ({"a": lacks(), "b": lacks()}, "a", ["b"], "rsync"),  # two nodes: one receives
        ({"a": lacks(), "b": lacks(), "c": lacks()}, "a", ["b", "c"], "swarm"),
        ({"a": lacks(), "b": lacks(), "c": has()}, "c", ["a", "b"], "swarm"),
        ({"a": lacks(8, 6), "b": lacks(8, 2), "c": lacks()}, "b", ["a", "c"], "swarm"),  # most of it
        ({"a": lacks(), "b": lacks(), "c": lacks(repo="org/other")}, "a", ["b"], "rsync"),  # another pool's model
        ({"a": lacks(), "b": {"skipped": True}, "c": {}}, "a", [], "none"),
    ],
)
def test_the_seed_and_the_transport(probes: dict[str, Any], seed: str, receivers: list[str], transport: str) -> None:
    found = team(**probes)
    assert (found["seed"], found["receivers"], found["transport"], found["conflict"]) == (
        seed,
        receivers,
        transport,
        "",
    )


@pytest.mark.parametrize(
    "variables",
    [{"ansible_connection": "local"}, {"hf_cache_source": "shared"}, {"hf_cache_distribution": "hub"}],
)
def test_who_neither_gives_nor_takes_is_no_seed_and_no_receiver(variables: dict[str, str]) -> None:
    ours = {"ansible_connection": "ssh", "hf_cache_source": "controller", "hf_cache_distribution": "rsync"}
    hostvars = {
        "a": {"hf_cache_result": has(C2), **variables},  # of another commit by that name: not ours to judge
        "b": {"hf_cache_result": lacks(), **ours},
        "c": {"hf_cache_result": has()},
        "d": {"hf_cache_result": lacks(), **variables},
    }
    found = filters.hf_cache_team(list(hostvars), hostvars, "b")
    assert (found["peers"], found["seed"], found["receivers"], found["conflict"]) == (["b", "c"], "c", ["b"], "")


def test_rsync_stays_what_was_asked_for() -> None:
    assert team("rsync", a=has(), b=lacks(), c=lacks())["transport"] == "rsync"


def test_one_name_for_two_commits_is_a_conflict() -> None:
    conflict = team(a=has(C1), b=has(C2))["conflict"]
    assert "a has " + C1 in conflict
    assert "b has " + C2 in conflict
    assert "Pin hf_cache_revision" in conflict


def results(**hosts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host: {f"__hf_cache_{name}": value for name, value in found.items()} for host, found in hosts.items()}


WANT = {"wanted": ["x"]}


@pytest.mark.parametrize(
    ("found", "by_rsync", "missed"),
    [
        ({"missing": {"wanted": []}}, False, ""),
        ({"missing": WANT, "joined": {"ok": True, "total": 1}, "followed": {"finished": True}}, False, ""),
        ({"missing": WANT, "joined": {"ok": True, "total": 1}, "followed": {"reason": "stood still"}}, False, "stood still"),
        ({"missing": WANT, "joined": {"ok": True, "total": 1}, "followed": {"unreachable": True, "msg": "no route"}}, False, "no route"),
        ({"missing": WANT, "joined": {"ok": False, "reason": "closed"}, "copied": {"rc": 0}}, True, ""),
        ({"missing": WANT, "joined": {"skipped": True}, "copied": {"rc": 23, "tail": ["disk full"]}}, True, "disk full"),
        ({"missing": WANT}, True, "not started"),
    ],
)  # fmt: skip
def test_what_became_of_a_receiver(found: dict[str, Any], by_rsync: bool, missed: str) -> None:
    group = {"receivers": ["b"], "transport": "swarm", "seed": "a"}
    hostvars = results(a={}, b=found)
    assert filters.hf_cache_by_rsync(group, hostvars) == (["b"] if by_rsync else [])
    said = filters.hf_cache_missed(group, hostvars, "b")
    assert missed in said
    assert bool(said) is bool(missed)


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        ({"followed": {"ok": True, "seed": True}}, "stood still"),
        ({}, "stood still"),
        ({"followed": {"ok": False, "reason": "the seed ended: no space"}}, "stood still; a, which has all of it: the seed ended: no space"),
    ],
)  # fmt: skip
def test_what_stands_still_is_said_with_what_ended_the_seed(seed: dict[str, Any], said: str) -> None:
    group = {"receivers": ["b"], "transport": "swarm", "seed": "a"}
    stuck = {"missing": WANT, "joined": {"ok": True, "total": 1}, "followed": {"ok": False, "reason": "stood still"}}
    assert filters.hf_cache_missed(group, results(a=seed, b=stuck), "b") == said


@pytest.mark.parametrize(
    ("probes", "same"),
    [
        ({}, False),
        ({"a": has()}, True),
        ({"a": has(), "b": has()}, True),
        ({"a": has(), "b": has(C2)}, False),
        ({"a": has(), "b": lacks()}, False),
        ({"a": has(), "b": {"failed": True}}, False),
        ({"a": has(), "b": None}, True),  # was not probed
    ],
)
def test_all_have_the_same_snapshot(probes: dict[str, Any], same: bool) -> None:
    hostvars = {host: {"hf_cache_result": probe} if probe is not None else {} for host, probe in probes.items()}
    assert filters.hf_cache_same_everywhere(list(probes), hostvars) is same


@pytest.mark.parametrize(
    ("results_", "commit"),
    [
        ([{}, {}], None),
        ([{"skipped": True}, has(C1)], C1),
        ([has(C2), has(C1)], C2),
        ([has(C2, "org/other"), has(C1)], C1),
        ([{**has(C2), "revision": "v1"}], None),
        ([{**has(), "commit": ""}], ""),
    ],
)
def test_what_was_fetched_is_of_this_snapshot(results_: list[dict[str, Any]], commit: str | None) -> None:
    assert filters.team.fetched(results_, "org/model", "main").get("commit") == commit


A, B, C = (letter * 64 for letter in "abc")


def test_wanted_is_what_any_receiver_lacks_of_the_snapshot_in_one_order() -> None:
    files = {f"{number}.bin": {"size": 1, "blob": blob} for number, blob in enumerate((C, A, B))}
    hostvars = results(a={"whole": {"manifest": {"files": files}}}, b={"missing": {"wanted": [C, A]}}, c={}, d={})
    hostvars["c"]["__hf_cache_missing"] = {"unreachable": True}
    # A receiver that asks for something else is not given it.
    hostvars["d"]["__hf_cache_missing"] = {"wanted": [B, A, "../../../../etc/shadow", "d" * 64, {"blob": A}]}
    assert filters.hf_cache_wanted({"receivers": ["b", "c", "d"], "seed": "a"}, hostvars) == [A, B, C]


def test_keyed_are_the_receivers_by_rsync_that_made_a_key() -> None:
    public = "ssh-ed25519 " + "A" * 68
    made = {"missing": WANT, "key": {"stdout_lines": ["/tmp/hf_cache.0123abcd.x1Y2z3W4", f"{public} hf_cache"]}}
    other = {"missing": WANT, "key": {"stdout_lines": ["/etc", public]}}
    hostvars = results(
        b=made, c={"missing": WANT, "key": {"failed": True}}, d={"missing": WANT}, e={"key": made["key"]}, f=other
    )
    group = {"receivers": ["b", "c", "d", "e", "f"], "transport": "rsync", "seed": "a"}
    assert filters.hf_cache_keyed(group, hostvars) == ["b"]


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "a"),
        ({"ansible_host": "192.0.2.1"}, "192.0.2.1"),
        ({"ansible_host": "192.0.2.1", "__hf_cache_ready": {"address": "10.0.0.2"}}, "10.0.0.2"),
        ({"__hf_cache_ready": {"address": "10.0.0.2"}, "__hf_cache_seeding": {"address": "10.0.0.3"}}, "10.0.0.3"),
        ({"__hf_cache_seeding": {"results": []}, "__hf_cache_ready": {"skipped": True}}, "a"),
        ({"hf_cache_swarm_address": "10.0.0.4", "__hf_cache_seeding": {"address": "10.0.0.3"}}, "10.0.0.4"),
        ({"hf_cache_swarm_address": "", "ansible_host": "192.0.2.1"}, "192.0.2.1"),
        ({"ansible_host": "fd00::1"}, "fd00::1"),  # a line of SSH's settings: no brackets
    ],
)
def test_the_seed_s_address(variables: dict[str, Any], address: str) -> None:
    assert filters.hf_cache_seed_address({"seed": "a"}, {"a": variables}) == address
