# SPDX-License-Identifier: Apache-2.0
"""Whom a rollback of all would take back too far: tables of what the nodes remember."""

from __future__ import annotations

import json

import pytest

from ansible.module_utils.vllm_fleet.rollout import rollback
from ansible.module_utils.vllm_fleet.server import release


def node(*served, restores=None):
    """What vllm_release_info returns for releases (run, content); the last one runs."""
    releases = [{"release": n, "run": run, "restores": None} for n, (run, _) in enumerate(served, 1)]
    if restores:
        releases[-1]["restores"] = restores
    contents = {str(n): content for n, (_, content) in enumerate(served, 1)}
    return {"releases": releases, "current": releases[-1] if releases else None, "contents": contents}


Z, A, B, C = ("r0", "z"), ("r1", "a"), ("r2", "b"), ("r3", "c")


@pytest.mark.parametrize(
    ("nodes", "ahead", "behind"),
    [
        ([node(Z, A), node(Z, A)], [], []),
        ([node(Z, A, B), node(Z, A, B)], [], []),
        # Killed, or ended at a canary: the others would go to Z.
        ([node(Z, A, B), node(Z, A), node(Z, A)], [1], [2, 3]),
        ([node(Z, A, B), node(Z, A, B), node(Z, A)], [1, 2], [3]),
        # Twice in a row.
        ([node(Z, A, B, C), node(Z, A)], [1], [2]),
        ([node(Z, A, B, C), node(Z, A, B), node(Z, A)], [1], [2, 3]),
        # A rollout that a second run has finished, and one that was made node by node: nobody is behind.
        ([node(Z, A, B), node(Z, A, ("r9", "b"))], [], []),
        ([node(("r1", "a"), ("r2", "b")), node(("r3", "a"), ("r4", "b"))], [], []),
        # The release before was finished by a second run, the newest one was not: its content tells.
        ([node(Z, A, B), node(Z, ("r1b", "a"))], [1], [2]),
        # Nodes that have nothing in common but the run: theirs tells.
        ([node(("r0", "z1"), ("r1", "a1"), ("r2", "b1")), node(("r0", "z2"), ("r1", "a2"))], [1], [2]),
        # Added later, with what the others have; pools of their own; nothing recorded.
        ([node(Z, A, B), node(("r5", "b"))], [], []),
        ([node(Z, A, B), node(("r0x", "y"), ("r1x", "x"))], [], []),
        ([node(Z, A, B), node()], [], []),
        # Everybody went back: what was before that is past.
        ([node(Z, A, B, ("r4", "a"), restores=2), node(Z, A, B, ("r4", "a"), restores=2)], [], []),
        ([node(Z, A, B, ("r4", "a"), restores=2), node(Z, A, B)], [2], [1]),
        # The canary of a rollout went back alone, to what the others have.
        ([node(Z, A, B, ("r4", "a"), restores=2), node(Z, A)], [], []),
        # Half of the nodes went back, and they have nothing in common but the runs.
        (
            [
                node(("r0", "z1"), ("r1", "a1"), ("r2", "b1"), ("r4", "a1"), restores=2),
                node(("r0", "z2"), ("r1", "a2"), ("r2", "b2")),
            ],
            [2],
            [1],
        ),
        # Without run ids, as when the callback is switched off.
        ([node((None, "a"), (None, "b")), node((None, "a"), (None, "b"))], [], []),
        ([node((None, "z"), (None, "a"), (None, "b")), node((None, "z"), (None, "a"))], [1], [2]),
    ],
)
def test_who_is_behind(nodes, ahead, behind):
    known = {f"node{n}": one for n, one in enumerate(nodes, 1)}
    told = rollback.behind_and_ahead(known, {})
    assert told == {"ahead": [f"node{n}" for n in ahead], "behind": [f"node{n}" for n in behind]}


def test_of_a_server_over_several_nodes_its_newest_change_counts():
    """A change of one of its nodes gives that node alone another release."""
    known = {"node1": node(Z, A, B), "node2": node(Z, A), "node3": node(Z, A, B)}
    pair = {"node1": "big", "node2": "big", "node3": ""}
    assert rollback.behind_and_ahead(known, pair) == {"ahead": [], "behind": []}
    known["node3"] = node(Z, A)
    assert rollback.behind_and_ahead(known, pair) == {"ahead": ["node1", "node2"], "behind": ["node3"]}


def test_what_releases_of_different_nodes_have_in_common():
    def record(**more):
        own = {
            "model": "m",
            "args": {"max-model-len": 1},
            "env": {"A": "1", "KEY": "fingerprint x"},
            "secrets": ["KEY"],
        }
        made = {"groups": ["44"], "volumes": ["/x:/y"], **own, **more}
        return {"spec": made, "image": {"reference": "i:1", "id": "sha256:1", "digests": []}, "model": {"commit": "c"}}

    one = release.common(record())
    env = {"A": "1", "KEY": "fingerprint y"}
    assert release.common(record(env=env, groups=["991"], volumes=["/z:/y"])) == one
    for other in ({"args": {"max-model-len": 2}}, {"env": {"A": "2"}, "secrets": []}, {"model": "n"}):
        assert release.common(record(**other)) != one


APART = {"behind": ["node3"], "ahead": ["node1", "node2"]}
TOGETHER = {"behind": [], "ahead": []}
TARGET = {"target": {"release": 2}, "image": {"present": True}}
GONE = {**TARGET, "image": {"present": False, "reference": "vllm:1", "id": "sha256:1"}}


@pytest.mark.parametrize(
    ("found", "split", "options", "says"),
    [
        (TARGET, TOGETHER, {}, []),
        ({"target": None}, TOGETHER, {}, ["There is no earlier release to go back to"]),
        ({"target": None, "releases": []}, TOGETHER, {"to": 7}, ["There is no release 7, known are none."]),
        ({"target": None, "releases": [{"release": 1}, {"release": 2}]}, TOGETHER, {"to": 7}, ["known are 1, 2."]),
        (TARGET, APART, {"gone_back": ["node3"]}, ["node3 went back already, node1, node2 not yet."]),
        (TARGET, APART, {}, ["node3 never had the release that node1, node2 would go back from."]),
        (TARGET, APART, {"again": True}, []),
        (TARGET, APART, {"to": 2}, []),
        (GONE, TOGETHER, {}, ["The image of release 2 is not on the node any more (vllm:1, sha256:1)."]),
        (TARGET, TOGETHER, {"missing": ["A_KEY", "B_KEY"]}, ["does not have today: A_KEY, B_KEY. Add them"]),
        (GONE, APART, {"missing": ["A_KEY"]}, ["never had the release", "not on the node any more", "A_KEY"]),
    ],
)
def test_what_speaks_against_a_rollback(found, split, options, says):
    given = {"gone_back": [], "missing": [], **options}
    told = rollback.problems(found, split, given.pop("gone_back"), given.pop("missing"), **given)
    assert len(told) == len(says)
    assert all(part in sentence for part, sentence in zip(says, told, strict=True))


@pytest.mark.parametrize(
    ("went", "replicas", "gone"),
    [
        ([], {}, []),
        (["b"], {}, ["b"]),
        # Their partners with them.
        (["b"], {"a": "big", "b": "big"}, ["a", "b"]),
        (["a", "b"], {"a": "big", "b": "big"}, ["a", "b"]),
        (["c"], {"a": "big", "b": "big", "c": ""}, ["c"]),
    ],
)
def test_who_went_back(went, replicas, gone):
    known = {host: {"current": {"release": 3, "rolled_back_from": 2 if host in went else None}} for host in "abc"}
    assert rollback.gone_back({**known, "d": {"current": None}}, replicas) == gone


@pytest.mark.parametrize(
    ("recorded", "secrets", "env", "made"),
    [
        ({}, [], {}, {}),
        ({"A": "1"}, [], {"A": "2", "B": "3"}, {"A": "1"}),
        ({"A": "1"}, ["KEY"], {"KEY": "s", "B": "3"}, {"A": "1", "KEY": "s"}),
    ],
)
def test_the_variables_of_a_record_have_todays_secrets_and_no_preset(recorded, secrets, env, made):
    found = {"variables": {"vllm_server_env": recorded, "vllm_server_model": "m"}, "secret_env": secrets}
    assert rollback.variables(found, env, "/none") == {
        "vllm_server_env": made,
        "vllm_server_model": "m",
        "vllm_server_presets_path": "/none",
        "vllm_server_variant": "",
        "vllm_server_features": [],
        "vllm_server_adapters": {},
    }
    assert found["variables"]["vllm_server_env"] == recorded


@pytest.mark.parametrize(
    ("wanted", "current", "names"),
    [
        ({"a": 1, "b": {"c": [1]}}, [1, {"c": [1]}], []),
        ({"a": 1, "b": {"c": [1]}}, [1, {"c": [2]}], ["b"]),
        ({"a": 1, "b": "2"}, [True, 2], ["a", "b"]),
    ],
)
def test_what_overrides_a_record(wanted, current, names):
    assert rollback.overridden(wanted, current, json.dumps) == names


def test_a_rollback_does_not_pass_over_a_record_that_cannot_be_read():
    found = {"target": {"release": 1}, "in_doubt": [2], "image": {"present": True}}
    said = rollback.problems(found, {"behind": [], "ahead": []}, [], [])
    assert len(said) == 1 and said[0].startswith("The node's record 000002.json cannot be read")
