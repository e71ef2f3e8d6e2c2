# SPDX-License-Identifier: Apache-2.0
"""What HAProxy's answers say of one server, and the sums by which its files are compared."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import gateway_server
import pytest

from ansible.module_utils.vllm_fleet.gateway import generations, haproxy, servers
from ansible.module_utils.vllm_fleet.rollout import messages

PLACE = {"backend": "org_m", "server": "n1", "model": "org/m", "head": True}


def states(*given):
    return [{"status": status, "scur": sessions} for status, sessions in given]


@pytest.mark.parametrize(
    ("answer", "changed"),
    [
        ({"state_before": states(("UP", 1)), "state_after": states(("DRAIN", 1))}, True),
        ({"state_before": states(("UP", 1)), "state_after": states(("UP", 2))}, False),
        ({"state_before": states(("DRAIN", 0)), "state_after": states(("UP", 0))}, True),
        ({"state_before": None, "state_after": states(("UP", 0))}, True),
        ({"failed": True, "msg": "no socket"}, False),
        ({}, False),
    ],
)
def test_sessions_that_come_and_go_are_no_change_of_status(answer, changed):
    assert servers.status_changed(answer) is changed


@pytest.mark.parametrize(
    ("known", "status"),
    [
        ([], None),
        ([("org_m", "n2", "UP"), ("other", "n1", "UP")], None),
        ([("other", "n1", "UP"), ("org_m", "n1", "DOWN")], "DOWN"),
    ],
)
def test_the_entry_of_a_server_is_found_by_backend_and_name(known, status):
    probe = {"servers": [dict(zip(("backend", "name", "status"), one, strict=True)) for one in known]}
    assert (servers.entry_of(probe, PLACE) or {}).get("status") == status
    assert servers.entry_of({"unreachable": True}, PLACE) is None


@pytest.mark.parametrize(
    ("seen", "recorded", "pools", "says", "lost"),
    [
        ([("org_m", "n1", "UP")], ["org_m"], ["org_m"], [], []),
        (
            [
                ("org_m", "n1", "UP"),
                ("org_m", "n2", "UP"),
                ("org_m", "n3", "MAINT (resolution)"),
                ("org_m", "n4", "UP"),
            ],
            ["org_m"],
            ["org_m"],
            [
                "g1 forgets n2 and n4 (org/m, serving now); their containers stay",
                "g1 forgets n3 (org/m, in maintenance); its container stays",
            ],
            [],
        ),
        # In one generation it is down, in the other one it serves.
        (
            [("org_m", "n2", "UP"), ("org_m:2", "n2", "DOWN"), ("org_m", "n1", "UP")],
            ["org_m", "org_m:2"],
            ["org_m"],
            ["g1 forgets n2 (org/m, serving now); its container stays"],
            [],
        ),
        (
            [("org_m", "n1", "UP"), ("org_x", "n2", "DOWN")],
            ["org_m", "org_x"],
            ["org_m"],
            ["g1 forgets n2 (org/x, down); its container stays"],
            ["org/x"],
        ),
        # Of a pool without a record only its name in HAProxy is known.
        ([("org_x", "n2", "UP")], [], ["org_m"], ["g1 forgets n2 (org_x, serving now); its container stays"], []),
        # Another server has the model now; and one of the inventory that serves something else is not forgotten.
        (
            [("org_m", "n2", "UP")],
            ["org_m"],
            ["org_m"],
            ["g1 forgets n2 (org/m, serving now); its container stays"],
            [],
        ),
        ([("org_x", "n1", "UP")], ["org_x"], ["org_m"], [], []),
    ],
)
def test_servers_that_left_the_inventory_are_named_and_models_without_a_server(seen, recorded, pools, says, lost):
    def pool(backend):
        model = backend.partition(":")[0].replace("_", "/")
        return {"backend": backend, "model": model, "names": [model]}

    entries = [dict(zip(("backend", "name", "status"), one, strict=True)) for one in seen]
    found = servers.forgotten(entries, ["n1"], map(pool, recorded), map(pool, pools))
    assert [messages.gateway_forgets("g1", one, removed=False) for one in found[0]] == says
    assert found[1] == lost
    # Where the run may remove their containers it does not say that these stay.
    assert not any("stay" in messages.gateway_forgets("g1", one, removed=True) for one in found[0])


def test_sums_are_of_the_bytes_that_a_file_has():
    assert haproxy.sums({"/a": "é\n", "/b": ""}) == {
        "/a": hashlib.sha256(b"\xc3\xa9\n").hexdigest(),
        "/b": hashlib.sha256(b"").hexdigest(),
    }


def test_in_which_backends_a_server_is_drained():
    def look(gateway, *backends):
        return {"item": gateway, "servers": [{"backend": one, "name": "n1"} for one in backends]}

    place = {"backend": "new", "server": "n1"}
    looks = [look("g1", "old", "new:2"), look("g2", "old"), look("g3"), {"item": "g4", "unreachable": True}]
    found = [(one["gateway"], one["backend"]) for one in servers.entries(looks, place, ["g4"])]
    assert found == [("g1", "old"), ("g1", "new:2"), ("g2", "old"), ("g3", "new")]
    found = [(one["gateway"], one["backend"]) for one in servers.entries(looks, place, by_its_model=True)]
    assert found == [("g1", "old"), ("g1", "new:2"), ("g2", "new"), ("g3", "new"), ("g4", "new")]


def test_in_which_backend_a_server_is_asked_for():
    entries = [("org_m", "DOWN"), ("org_m:2", "UP")]
    looks = [{"item": "g1", "servers": [{"backend": one, "name": "n1", "status": status} for one, status in entries]}]
    assert servers.up_in([{"item": "g1", "backend": "org_m:3"}], "g1", looks, "n1") == "org_m:3"
    assert servers.up_in([], "g1", looks, "n1") == "org_m:2"
    assert servers.up_in([{"item": "g2"}], "g2", looks, "n1") == ""


def test_gateways_with_another_past_have_the_same_version():
    """After a change of keys a backend has another number, and so has the variable of its key."""

    def text(name, server):
        key = generations.variable(name)
        return f"description v @version@\nbackend {name}\n    set-header A ${{{key}}}\n    server n1 {server}\n"

    def version(name, server, **pool):
        return haproxy.versioned(text(name, server), [{"name": name, **pool}]).split()[2]

    first = version("org_m", "10.0.0.1:8000", base="org_m")
    assert first == version("org_m:2", "10.0.0.2:8000", base="org_m")
    assert first != version("org_m:2", "10.0.0.2:8000")


def test_servers_that_move_at_the_same_moment_all_have_their_new_port_in_the_file(tmp_path):
    config, names = tmp_path / "gateway.cfg", [f"n{number}" for number in range(8)]
    config.write_text("backend org_m\n" + "".join(f"    server {name} 10.0.0.1:1 id 1\n" for name in names))
    os.utime(config, (1, 1))

    def move(name):
        return [gateway_server.move_in_file(config, ("org_m", name, port, None)) for port in range(2, 40)]

    with ThreadPoolExecutor(len(names)) as pool:
        assert all(all(moved) for moved in pool.map(move, names))
    assert [line.split()[2] for line in config.read_text().splitlines()[1:]] == ["10.0.0.1:39"] * len(names)
    # Newer than its process, it would count as one that HAProxy has not read.
    assert config.stat().st_mtime == 1
