# SPDX-License-Identifier: Apache-2.0
"""The table of the gateways."""

from __future__ import annotations

import pytest

from fleet_report import gateways


def server(name, status, sessions=0, queue=0):
    return {"name": name, "status": status, "sessions": sessions, "queue": queue}


def test_a_row_for_each_gateway():
    servers = [server("n1", "UP", 12), server("n2", "UP 1/3", 11, 2), server("n3", "DRAIN")]
    found = gateways.lines(
        {
            "gw1": {"running": True, "version": "3.0.11", "servers": servers},
            "gw2": {"running": False, "reason": "does not run: no process listens on /run/x", "servers": []},
            "gw3": {"unreachable": True, "msg": "Failed to connect:\nssh: no route to host"},
            "gw4": None,
        }
    )
    assert [line.split()[0] for line in found[1:]] == ["gw1", "gw2", "gw3", "gw4"]
    assert " ".join(found[1].replace(gateways.DASH, "-").split()) == "gw1 3.0.11 running 2 of 3 23 2 - - - n3 DRAIN"
    assert found[2].endswith("does not run: no process listens on /run/x")
    assert "stopped" in found[2]
    assert ("unreachable" in found[3], found[3].endswith("ssh: no route to host")) == (True, True)
    assert found[4].endswith("it was not asked")


def test_what_is_wrong_stands_under_the_table():
    one = {"running": True, "version": "3.0.11", "servers": [server("n1", "UP")], "certificate": {"days_left": 12}}
    one |= {
        "configuration": "5b0f24a1c9",
        "doors": [],
        "vip": {"wanted": "10.0.0.9/24", "running": True, "holds": True},
    }
    other = {
        **one,
        "configuration": "0123456789",
        "doors": ["8080 gives 200 without a key"],
        "certificate": {"days_left": -1},
    }
    other["vip"] = {"wanted": "10.0.0.9/24", "running": False, "holds": False}
    found = gateways.lines({"gw1": one, "gw2": other, "gw3": {"skipped": True, "changed": False}})
    assert (
        " ".join(found[1].replace(gateways.DASH, "-").split())
        == "gw1 3.0.11 running 1 of 1 0 0 5b0f24a1c9 12 days left checked none"
    )
    assert ("expired  " in found[2], "wrong" in found[2], "removed" in found[3]) == (True, True, True)
    assert found[4:] == [
        "gw1 and gw2 have different configurations: run deploy.yml without --limit.",
        "gw2: port 8080 gives 200 without a key.",
        "gw2: keepalived does not run, so gw2 cannot take over the shared address.",
        "10.0.0.9/24 is at gw1.",
    ]
    assert gateways.lines({"gw1": one, "gw2": one})[-1] == "10.0.0.9/24 is at gw1 and gw2."


@pytest.mark.parametrize(
    ("status", "agent", "told"),
    [
        ("DOWN (agent)", "down (hung)", "n1 DOWN (hung)"),
        ("DOWN (agent)", "down", "n1 DOWN (agent)"),
        ("DOWN (agent)", "no answer (Connection refused)", "n1 DOWN (no answer (Connection refused))"),
        ("DOWN", "up", "n1 DOWN"),
        ("DRAIN (agent)", "up", "n1 DRAIN (agent)"),
    ],
)
def test_why_a_server_is_out(status, agent, told):
    one = {"name": "n1", "status": status, "agent": agent, "sessions": 0, "queue": 0}
    found = gateways.lines({"gw1": {"running": True, "version": "2.6", "servers": [one]}})
    assert told in found[1]
