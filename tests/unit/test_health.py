# SPDX-License-Identifier: Apache-2.0
"""How the fleet is: what is well, what is not and why, of servers and gateways; and the probe that asks them."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fleet_report import health  # noqa: E402
from fleet_report.words import DASH  # noqa: E402
from plugin_utils import health_probe  # noqa: E402

SEEN = json.dumps({"state": "serving", "since": 50.0, "why": "", "restarts": []})
DOG = {"systemd": True, "runs": True, "state": SEEN, "now": 60.0}
NO_DOG = {"systemd": True, "runs": False, "state": None, "now": 60.0}
GOOD = {"container": {"status": "running"}, "answer": {"code": 200, "seconds": 0.05}, "watchdog": DOG, "note": None}
NOTE = json.dumps({"since": "2026-11-30 10:00 UTC", "by": "ada", "why": "new DIMM"})


def table(**states):
    """HAProxy's answer to `show stat`."""
    rows = [f"pool,{name},{state},0,0,0" for name, state in states.items()]
    return "\n".join(["# pxname,svname,status,scur,qcur,stot", *rows, "pool,BACKEND,UP,0,0,0", ""])


def server(**more):
    return {"kind": "server", "found": {**GOOD, **more}}


def gateway(**states):
    return {"kind": "gateway", "found": {"table": table(**states)}}


@pytest.mark.parametrize(
    ("looked", "state", "wrong"),
    [
        (server(), "running", []),
        (server(container={"status": "exited"}, answer={"trouble": "x"}), "exited", ["the container is exited"]),
        (server(container={"status": ""}), "absent", ["no server"]),
        (server(container={"trouble": "nothing listens"}), "unknown", ["Docker: nothing listens"]),
        (
            server(answer={"trouble": "no answer in time"}),
            "running",
            ["it does not answer (no answer in time), its watchdog acts after 120 s of silence"],
        ),
        # It may be loading its model: nobody restarts it for that.
        (server(answer={"trouble": "nothing listens"}), "running", ["it does not answer (nothing listens)"]),
        (
            server(answer={"code": 500, "seconds": 1.0, "trouble": "Internal\nError"}),
            "running",
            ["it does not answer (HTTP 500: Internal Error)"],
        ),
        (server(watchdog=NO_DOG), "running", ["no watchdog"]),
        (server(watchdog={**DOG, "runs": False}), "running", ["its watchdog does not run"]),
        (
            server(watchdog={**DOG, "state": json.dumps({"state": "hung", "since": 55, "why": "silent for 20 s"})}),
            "running",
            ["watchdog: silent for 20 s"],
        ),
        (server(note=NOTE, container={"status": "exited"}), "maintenance", []),
        (server(note=NOTE), "running", ["it runs, though in maintenance"]),
        (server(note="{", container={"status": "exited"}), "maintenance", []),
        ({"kind": "server", "resting": ", says rollout_maintenance of the inventory"}, "maintenance", []),
        (
            {"kind": "server", "not_reached": "ssh: connect to host 10.0.0.7 port 22: No route to host"},
            "unreachable",
            ["there is no way to 10.0.0.7"],
        ),
        # A node in other hands takes no other node out of the table.
        ({"kind": "server", "found": {"container": 3}}, "unknown", [health.ODD]),
        ({"kind": "server", "found": {**GOOD, "answer": {"code": 200, "seconds": "soon"}}}, "unknown", [health.ODD]),
    ],
)
def test_what_is_wrong_with_a_server(looked, state, wrong):
    (row,) = health.rows({"node1": looked}, watched={"node1": "120"})
    assert (row["state"], row["wrong"]) == (state, wrong)
    assert health.well([row]) == (not wrong)
    json.dumps(health.as_json([row]))
    assert len(health.lines([row])) == 3


def test_who_has_no_port_and_who_wants_no_watchdog():
    found = {name: GOOD[name] for name in ("container", "watchdog", "note")}
    worker = {"kind": "server", "found": {**found, "watchdog": NO_DOG}}
    rows = health.rows(
        {"node1": server(watchdog=NO_DOG), "node2": worker, "gw": gateway(node1="UP")}, watched={"node2": "120"}
    )
    assert health.well(rows)


@pytest.mark.parametrize(
    ("gateways", "wrong"),
    [
        ({"gw1": gateway(node1="UP"), "gw2": gateway(node1="UP 1/3")}, []),
        ({"gw1": gateway(node1="UP"), "gw2": gateway(node1="DOWN")}, ["DOWN at gw2"]),
        ({"gw1": gateway(node1="DRAIN"), "gw2": gateway(node1="DRAIN")}, ["DRAIN at gw1 and gw2"]),
        ({"gw1": gateway(), "gw2": gateway(node1="UP")}, ["gw1 does not know it"]),
        # A gateway that did not answer says nothing of servers: its own row says that.
        ({"gw1": {"kind": "gateway", "not_reached": "no"}, "gw2": gateway(node1="UP")}, []),
        ({"gw1": {"kind": "gateway", "removed": True}}, []),
    ],
)
def test_what_the_gateways_do_with_a_server(gateways, wrong):
    rows = health.rows({"node1": server(), **gateways}, watched={})
    assert next(row["wrong"] for row in rows if row["name"] == "node1") == wrong


def test_the_gateways_themselves():
    stopped = {"kind": "gateway", "found": {"trouble": "does not run"}}
    rows = health.rows(
        {"gw1": stopped, "gw2": gateway(node1="DOWN"), "gw3": {"kind": "gateway", "found": 3}}, watched={}
    )
    assert [row["wrong"] for row in rows] == [
        ["HAProxy does not run"],
        ["none of its servers is up"],
        [health.ODD],
    ]


def test_the_table():
    seen = {
        "node1": server(),
        "node2": server(answer={"trouble": "nothing listens"}),
        "node10": server(note=NOTE, container={"status": "exited"}),
        "gateway1": gateway(node1="UP", node2="DOWN", node10="DRAIN"),
    }
    rows = health.rows(seen, watched={"node1": "120"})
    assert [line.replace(DASH, "-") for line in health.lines(rows)] == [
        "NODE      SERVER       ANSWERS      WATCHDOG  GATEWAYS   WHAT IS WRONG",
        "node1     running      after 50 ms  serving   1 of 1 up  -",
        "node2     running      -            serving   0 of 1 up  it does not answer (nothing listens); DOWN at gateway1",
        "node10    maintenance  -            -         0 of 1 up  in maintenance since 2026-11-30 10:00 UTC by ada (new DIMM)",
        "gateway1  running      -            -         1 of 3 up  -",
        "3 servers: 1 well, 1 not well, 1 in maintenance; 1 gateway: 1 well.",
    ]
    found = health.as_json(rows)
    assert found["well"] is False
    assert found["servers"]["node10"]["maintenance"] == "since 2026-11-30 10:00 UTC by ada (new DIMM)"
    assert found["gateways"]["gateway1"] == {
        "state": "running",
        "gateways": {"node1": "UP", "node2": "DOWN", "node10": "DRAIN"},
        "wrong": [],
    }


HUNG = {"answer": {"trouble": "no answer in time"}}


@pytest.mark.parametrize(
    ("watchdog", "watched", "says"),
    [
        (NO_DOG, {}, ", no watchdog: playbooks/deploy.yml restarts it"),
        ({**DOG, "systemd": False}, {}, ", no watchdog: playbooks/deploy.yml restarts it"),
        (DOG, {"node1": "60"}, ", its watchdog acts after 60 s of silence"),
        # The inventory does not have it any more.
        (DOG, {}, ""),
        (DOG, {"node1": ""}, ", its watchdog only observes: playbooks/deploy.yml restarts it"),
        # One that does not judge the server now says so in its own column.
        ({**DOG, "state": json.dumps({"state": "left_alone"})}, {"node1": "60"}, ""),
    ],
)
def test_what_becomes_of_a_server_that_hangs(watchdog, watched, says):
    (row,) = health.rows({"node1": server(**HUNG, watchdog=watchdog)}, watched=watched)
    assert row["wrong"] == [f"it does not answer (no answer in time){says}"]


REST = {"note": NOTE, "container": {"status": "exited"}}
AWAY = {"kind": "server", "resting": ", says rollout_maintenance of the inventory"}
LOST = {"kind": "server", "not_reached": "no"}


@pytest.mark.parametrize(
    ("servers", "gateways", "wrong"),
    [
        ([server()], {}, []),
        ([server(), server(**REST)], {}, []),
        ([server(**REST)], {}, ["no server up"]),
        ([AWAY], {}, ["no server up"]),
        ([LOST, server(**HUNG)], {}, ["no server up"]),
        ([server()], {"gw": gateway(node1="UP")}, []),
        ([server(**REST), AWAY], {"gw": gateway(node1="MAINT", node2="DOWN")}, ["no server up at gw"]),
        ([server(), server()], {"gw": gateway(node1="DOWN", node2="UP 1/3")}, []),
        # Clients of one gateway have none.
        ([server()], {"gw1": gateway(node1="UP"), "gw2": gateway()}, ["no server up at gw2"]),
        # A gateway takes a server that hangs for up, and knows of one whose node has lost SSH alone.
        ([server(**HUNG)], {"gw": gateway(node1="UP")}, ["no server answers"]),
        ([LOST], {"gw": gateway(node1="UP")}, []),
        # A gateway that said nothing is no witness.
        ([server()], {"gw": {"kind": "gateway", "not_reached": "no"}}, []),
    ],
)
def test_a_model_without_a_server_is_a_line_whatever_the_cause(servers, gateways, wrong):
    seen = {f"node{number}": {**one, "model": "acme/other"} for number, one in enumerate(servers, 1)}
    rows = health.rows({"node9": {**server(), "model": "m"}, **seen, **gateways}, watched={})
    assert next(row["wrong"] for row in rows if row["name"] == "acme/other") == wrong
    assert ("acme/other: " in "\n".join(health.lines(rows))) == bool(wrong)
    assert health.as_json(rows)["models"]["acme/other"] == {"wrong": wrong}
    assert not (wrong and health.well(rows))
    # Of a part of its servers nothing is known (--limit).
    rows = health.rows({**seen, **gateways}, watched={}, partly=["acme/other"])
    assert [row["name"] for row in rows if row["kind"] == "model"] == []


def test_a_server_in_maintenance_leaves_the_table_with_the_line_of_its_model():
    seen = {"node1": {**server(), "model": "m"}, "node3": {**server(**REST), "model": "acme/other"}}
    rows = health.rows({**seen, "gw": gateway(node1="UP", node3="MAINT")}, watched={})
    assert health.lines(rows)[-2:] == [
        "acme/other: no server up at gw",
        "2 servers: 1 well, 1 in maintenance; 1 gateway: 1 well.",
    ]
    assert not health.well(rows)


class Server(http.server.BaseHTTPRequestHandler):
    """Answers chats as ``replies`` say, and keeps what it was asked."""

    replies: ClassVar[dict[str, tuple[int, str]]] = {}
    seen: ClassVar[list[tuple[str, str, str]]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.seen.append((self.path, self.headers.get("Authorization"), body))
        code, text = self.replies.get(self.path, (200, '{"choices": [{}]}'))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


REFUSED = {"/v1/chat/completions": (404, "no such API"), "/v1/completions": (404, "no such")}


@pytest.fixture
def asked():
    """What is asked of a server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        Server.replies, Server.seen = {}, []
        yield {"host": "127.0.0.1", "port": made.server_port, "model": "m", "key": "k", "timeout": 5.0}
        made.shutdown()


def test_a_server_is_asked_for_one_token_with_its_key(asked):
    found = health_probe.answer(asked)
    assert found["code"] == 200 and found["seconds"] < 5 and "trouble" not in found
    ((path, key, body),) = Server.seen
    assert (path, key, json.loads(body)["max_tokens"]) == ("/v1/chat/completions", "Bearer k", 1)


@pytest.mark.parametrize(
    ("replies", "says", "paths"),
    [
        # Of a model without a chat template the chat is refused.
        ({"/v1/chat/completions": (400, "no template")}, {"code": 200}, 2),
        # Of one that gives vectors or scores both are, and of one that is broken the rest as well.
        ({**REFUSED, "/v1/embeddings": (200, '{"data": [{}]}')}, {"code": 200}, 3),
        ({**REFUSED, "/v1/embeddings": (501, ""), "/v1/rerank": (200, '{"results": [{}]}')}, {"code": 200}, 4),
        ({**REFUSED, "/v1/embeddings": (404, ""), "/v1/rerank": (404, "")}, {"code": 404, "trouble": "no such"}, 4),
        ({"/v1/chat/completions": (500, "sad")}, {"code": 500, "trouble": "sad"}, 1),
        ({"/v1/chat/completions": (200, "{}")}, {"code": 200, "trouble": "an answer without choices"}, 1),
        ({"/v1/chat/completions": (200, "<p>")}, {"trouble": "Expecting value: line 1 column 1 (char 0)"}, 1),
    ],
)
def test_what_is_no_answer(asked, replies, says, paths):
    Server.replies = replies
    found = health_probe.answer(asked)
    found.pop("seconds", None)
    assert (found, len(Server.seen)) == (says, paths)


def test_nothing_that_listens_is_told_in_words(asked, tmp_path):
    assert health_probe.answer({**asked, "port": 9})["trouble"] == "nothing listens"
    assert health_probe.container({"docker": str(tmp_path / "none"), "name": "vllm"}) == {
        "trouble": "No such file or directory"
    }
    assert health_probe.gateway({"socket": str(tmp_path / "none"), "timeout": 1}) == {"trouble": "does not run"}
