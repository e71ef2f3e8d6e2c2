# SPDX-License-Identifier: Apache-2.0
"""The table of playbooks/status.yml: what each answer of a node is called."""

from __future__ import annotations

import re

import pytest

from fleet_report import status, watchdogs

GOOD = {
    "container": {"status": "running"},
    "spec": {"model": "acme/tiny", "image": "vllm:1"},
    "serving": {"health": "ready", "detail": "", "running": 3, "waiting": 0},
    "release": {"release": 7},
    "differences": [],
    "confirmed": True,
}
# As Ansible 2.19 and OpenSSH 9.2 word it for a closed port.
REFUSED = (
    'Data could not be sent to remote host "192.0.2.13". Make sure this host can be reached over ssh: '
    "ssh: connect to host 192.0.2.13 port 22: Connection refused\r\n"
)
FAILURE = {"class": "image_missing", "cause": "the image vllm:2 is not on this node"}


@pytest.mark.parametrize(
    ("change", "state", "drift"),
    [
        ({}, "running", ""),
        ({"differences": [{"name": "args.max-model-len"}, {"name": "image"}]}, "running", "args.max-model-len, image"),
        ({"serving": {"health": "not ready", "detail": "refused"}}, "running", "not ready (refused)"),
        ({"serving": None, "container": {"status": "exited"}, "differences": [{"name": "state"}]}, "exited", "state"),
        ({"confirmed": False, "release": None}, "running", "never verified"),
        ({"release": None}, "running", "no record of it"),
        ({"container": None, "spec": None, "serving": None}, "absent", "no server"),
        ({"failed": True, "failure": FAILURE}, "running", "image_missing: the image vllm:2 is not on this node"),
    ],
)
def test_what_a_node_is_called(change, state, drift):
    row = status.row("node1", {**GOOD, **change})
    assert (row["state"], row["drift"]) == (state, drift)


def test_nodes_that_cannot_be_asked():
    row = status.row("node3", {"failed": True, "not_reached": True, "msg": REFUSED})
    assert (row["state"], row["drift"]) == ("unreachable", "nothing listens at 192.0.2.13, port 22")
    assert (
        status.row("node3", {"failed": True, "msg": "no Docker engine answers"})["drift"] == "no Docker engine answers"
    )
    assert status.row("node3", None)["drift"] == "it was not asked"


def test_the_table_has_every_node_in_order():
    lines = status.lines(status.rows({"node10": GOOD, "node9": {**GOOD, "release": None}}))
    assert lines[0].split() == status.HEAD
    assert lines[1].split()[:2] == ["node9", "\u2013"]
    assert lines[2].split() == ["node10", "7", "acme/tiny", "vllm:1", "running", "ready", "3", "0", "\u2013", "none"]


PAIR = {"name": "pair", "head": "node1", "hosts": ["node1", "node2"]}
HEAD, WORKER = ({**GOOD, "replica": {**PAIR, "rank": rank}} for rank in (0, 1))
NO_PORT = {"serving": {"health": "not ready", "detail": "no port", "running": None, "waiting": None}}


@pytest.mark.parametrize(
    ("head", "worker", "state", "drift"),
    [
        ({}, {}, "running", ""),
        ({}, {"differences": [{"name": "image"}]}, "running", "node2: image"),
        ({}, {"container": {"status": "exited"}, "differences": [{"name": "state"}]}, "exited", "node2: state"),
        ({"differences": [{"name": "image"}]}, {"differences": [{"name": "image"}]}, "running", "image"),
        ({}, {"not_reached": True, "msg": "x over ssh: no route"}, "unreachable", "node2: no route"),
    ],
)
def test_a_server_over_several_nodes_is_one_row(head, worker, state, drift):
    found = status.rows({"node3": GOOD, "node2": {**WORKER, **NO_PORT, **worker}, "node1": {**HEAD, **head}})
    assert [row["node"] for row in found] == ["pair (node1+node2)", "node3"]
    assert (found[0]["state"], found[0]["health"], found[0]["drift"]) == (state, "ready", drift)


NOW = {"state": "serving", "seconds": 70.0, "why": "the engine works", "restarts": 0, "last_event": None}
BACK = {"at": "2026-11-29T12:31:05Z", "kind": "back", "why": "verified"}


@pytest.mark.parametrize(
    ("watchdog", "wanted", "cell", "drift"),
    [
        (None, True, "\u2013", ""),
        ({"state": "none"}, False, "off", ""),
        ({"state": "none"}, True, "absent", "no watchdog"),
        ({"state": "no systemd"}, True, "no systemd", ""),
        ({"state": "no systemd"}, False, "off", ""),
        ({"state": "starting"}, True, "starting", ""),
        (NOW, True, "serving", ""),
        ({**NOW, "last_event": {**BACK, "kind": "started"}}, True, "serving", ""),
        ({**NOW, "last_event": BACK}, True, "serving, back 11-29 12:31", ""),
        ({**NOW, "state": "stopped"}, True, "stopped", "its watchdog does not run"),
        (
            {**NOW, "state": "hung", "why": "3 requests, no step for 128 s"},
            True,
            "hung 1 m 10 s",
            "watchdog: 3 requests, no step for 128 s",
        ),
        (
            {**NOW, "state": "out", "last_event": {**BACK, "kind": "limit"}},
            True,
            "out 1 m 10 s: limit",
            "watchdog: the engine works",
        ),
        ({**NOW, "state": "left_alone", "seconds": 8.0}, True, "left alone 8 s", ""),
        # Whatever else it says: the gateways send nothing.
        ({**NOW, "quarantine": "GPU 3 is gone"}, True, "quarantine", "watchdog: GPU 3 is gone"),
    ],
)
def test_what_a_watchdog_thinks_is_a_column_and_drift_where_it_is_bad(watchdog, wanted, cell, drift):
    found = status.row("node1", {**GOOD, "watchdog": watchdog}, watched=wanted)
    assert (found["watchdog"], found["drift"]) == (cell, drift)


@pytest.mark.parametrize(
    ("status_of", "state", "drift"),
    [("exited", "maintenance", ""), ("running", "running", "it runs, though in maintenance")],
)
def test_a_server_in_maintenance_is_no_drift_unless_it_runs(status_of, state, drift):
    rests = {**GOOD, "container": {"status": status_of}, "maintenance": " since monday", "actions": ["start"]}
    found = status.row("node1", rests, watched=True)
    assert (found["state"], found["drift"]) == (state, drift)


def test_a_worker_of_a_replica_has_no_watchdog_of_its_own():
    replica = {"replica": {**PAIR, "rank": 1}}
    assert status.row("node2", {**GOOD, **replica, "watchdog": {"state": "none"}}, watched=True)["drift"] == ""


def test_what_a_watchdog_says_again_is_one_line():
    events = [
        {"at": f"2026-11-29T12:{n}:05Z", "server": server, "kind": kind, "why": "drained"}
        for n, (server, kind) in enumerate(
            [("a", "left_alone"), ("b", "left_alone"), ("a", "left_alone"), ("a", "back"), ("a", "left_alone")], 10
        )
    ]
    lines = watchdogs.lines({"node1": {"events": events}}, "1h")[1:]
    assert [re.split(r"  +", line)[2:4] for line in lines] == [
        ["a", "left_alone, 2 times"],
        ["b", "left_alone"],
        ["a", "back"],
        ["a", "left_alone"],
    ]


def test_events_of_all_nodes_are_one_timeline():
    def event(at, kind, **more):
        return {"at": f"2026-11-29T12:{at}:05Z", "server": "vllm", "kind": kind, "why": "because", **more}

    found = {
        "node1": {"events": [event("30", "hung"), event("32", "back", seconds=96.4)], "unreadable": 2},
        "node2": {"events": [event("31", "failed", evidence="/x/y", **{"class": "gpu_memory_taken"})], "unreadable": 0},
        "node3": {"unreachable": True, "msg": "no route"},
    }
    head, *lines = watchdogs.lines(found, "1h")
    assert re.split(r"  +", head) == watchdogs.HEAD
    assert [re.split(r"  +", line) for line in lines[:3]] == [
        ["2026-11-29 12:30:05", "node1", "vllm", "hung", "because", "\u2013"],
        ["2026-11-29 12:31:05", "node2", "vllm", "failed (gpu_memory_taken)", "because", "/x/y"],
        ["2026-11-29 12:32:05", "node1", "vllm", "back", "because (1 m 36 s)", "\u2013"],
    ]
    assert lines[3:] == [
        "node1: 2 lines could not be read.",
        "node3 did not answer, so its events are missing: no route",
    ]
    assert watchdogs.lines({"node1": {"events": []}}, "1h") == ["No events in the last 1h."]


ANSWER = {
    **GOOD,
    "release": {"release": 7},
    "replica": {**PAIR, "rank": 0},
    "watchdog": {**NOW, "state": "hung", "last_event": BACK},
    "failure": FAILURE,
    "msg": "x",
}
ODD = [None, True, -1, 1e308, float("nan"), "x", [], [1], {}, {"a": 1}, [{"name": None}], 10**30]


@pytest.mark.parametrize("failed", [True, False])
@pytest.mark.parametrize(
    "place",
    [(name,) for name in ANSWER] + [(a, b) for a in ("replica", "watchdog", "failure", "spec") for b in ANSWER[a]],
)
def test_a_node_that_says_anything_takes_none_out_of_the_table(place, failed):
    for odd in ODD:
        answer = {**ANSWER, "failed": failed}
        if len(place) == 1:
            answer[place[0]] = odd
        else:
            answer[place[0]] = {**answer[place[0]], place[1]: odd}
        lines = status.lines(status.rows({"node1": GOOD, "node9": answer}, {"node9"}))
        assert any(line.startswith("node1 ") and line.endswith(" none") for line in lines), (odd, lines)
        assert len(lines) == 3


def test_events_that_are_none_are_passed_over():
    good = {**BACK, "server": "vllm"}
    odd = [1, None, {}, {**good, "why": [1]}, {**good, "seconds": "x"}, {**good, "seconds": float("inf")}, good]
    lines = watchdogs.lines({"node1": {"events": odd}}, "1h")
    assert len(lines) == 2


def servers_of(nodes, kinds=("chat-1", "chat-2", "coder")):
    """Results and nodes of as many nodes, each with these servers."""
    hosts = {f"node{n}-{kind}": f"node{n}" for n in range(1, nodes + 1) for kind in kinds}
    return dict.fromkeys(hosts, GOOD), hosts


def test_servers_of_one_node_stand_together_with_what_nobody_describes():
    results, nodes = servers_of(2)
    results["alone"], nodes["b"] = GOOD, "node1"
    results["b"] = GOOD
    left = {"node1": {"by": "b", "servers": {"vllm-old": "running", "vllm-x": "exited"}}}
    found = status.rows(results, set(), nodes, left)
    first = ["alone", "b", "node1-chat-1", "node1-chat-2", "node1-coder", "node1: vllm-old", "node1: vllm-x"]
    assert [one["node"] for one in found] == [*first, "node2-chat-1", "node2-chat-2", "node2-coder"]
    assert [one["drift"] for one in found][5:7] == [
        "not described any more",
        "not described any more, and does not run",
    ]


def test_of_many_servers_those_of_a_node_are_one_line_but_for_what_is_not_as_described():
    results, nodes = servers_of(64, ("a", "b", "c", "d", "e", "f", "g", "h"))
    results["node2-c"] = {**GOOD, "differences": [{"name": "image"}]}
    results["node3-a"] = {**GOOD, "serving": {"health": "ready", "running": 5, "waiting": 2}, "spec": {"model": "x/y"}}
    lines = status.lines(status.rows(results, set(), nodes, {"node1": {"servers": {"old": "running"}}}))
    assert len(lines) == 1 + 64 + 2
    cells = [re.split(r"  +", line) for line in lines]
    assert cells[1] == ["node1 (8)", "\u2013", "8 tiny", "vllm:1", "running", "ready", "24", "0", "\u2013", "none"]
    assert cells[2][0] == "node1: old"
    assert [cells[3][0], cells[4][0], cells[4][-1]] == ["node2 (7)", "node2-c", "image"]
    assert cells[5][2:4] == ["y, 7 tiny", "2 images"]
    assert cells[5][6:8] == ["26", "2"]
