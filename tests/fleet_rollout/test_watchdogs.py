# SPDX-License-Identifier: Apache-2.0
"""Watchdogs on nodes with systemd: installed without touching a server, one hung server restarted, all taken away again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from scene import Scene

UNIT = "vllm-fleet-watchdog@vllm.service"
#: Who asks, one request at a time each.
CLIENTS = 8
#: What is of a watchdog on a node, but for the events.
LEFT = "find / -xdev ( -name *watchdog.pyz -o -name vllm-fleet-watchdog* -o -path /etc/vllm-fleet* -o -path /run/vllm-fleet/vllm )"


@pytest.fixture(scope="module")
def watched(scene: Scene) -> Iterator[Scene]:
    """The fleet with watchdogs, which know after ten seconds that a server hangs."""
    scene.deploy().ok()  # another story may have ended with a server that was taken away
    before = scene.servers()
    said = scene.deploy(vllm_watchdog_enabled=True, vllm_watchdog_silence=10).ok()
    assert set(scene.nodes) <= {host for host, changed in said.recap("changed").items() if changed}
    assert scene.servers() == before, "no server was touched"
    yield scene
    scene.deploy(vllm_watchdog_enabled=False).ok()
    for node in scene.nodes:
        assert remains(scene, node) == ""


def remains(scene: Scene, node: str) -> str:
    found = scene.fleet.exec(node, LEFT.split(), check=False).stdout
    return (
        found
        + scene.fleet.exec(node, ["systemctl", "list-units", "--all", "--plain", "--no-legend", "vllm-fleet-w*"]).stdout
    )


def test_a_second_run_changes_nothing_and_visits_no_node_for_it(watched: Scene) -> None:
    again = watched.deploy().ok()
    assert set(again.recap("changed").values()) == {0}
    assert "watchdog" not in again.output.lower()
    assert set(watched.gateway("last_agt").values()) == {"via"}, "the gateway asks them: via agent : up"


def test_a_server_that_hangs_is_out_restarted_and_back(watched: Scene, note: Callable[[object], None]) -> None:
    node = watched.nodes[0]
    before = watched.server(node)
    with watched.clients(CLIENTS) as clients:
        clients.wait_for(2 * CLIENTS)
        watched.fleet.exec(node, ["kill", "-STOP", str(before["State"]["Pid"])])
        watched.until(lambda: watched.gateway()[node] == "DOWN", "it is out")
        watched.until(
            lambda: watched.server(node)["State"]["StartedAt"] != before["State"]["StartedAt"], "it is restarted"
        )
        watched.until(lambda: watched.gateway()[node] == "UP", "it is back")
        clients.wait_for(2 * CLIENTS)
    # Each client has one request at a time: lost is what was inside the hung server, and nothing after it was out.
    lost = clients.report.errors + clients.report.truncated
    note(f"{lost} of {clients.report.requests} requests lost in a hang of one of four servers")
    assert 0 < lost <= CLIENTS, clients.report
    others = [other for other in watched.nodes if other != node]
    assert not any(
        f"from {other}" in why or f"of {other}" in why for other in others for why in clients.report.failures
    )
    assert watched.server(node)["Id"] == before["Id"]
    status = watched.deploy(playbook="playbooks/status.yml").ok().output
    rows = {line.split()[0]: line for line in status.splitlines() if re.match(r" +node\d  ", line)}
    assert re.search(r"  serving, back \d\d-\d\d \d\d:\d\d +none$", rows[node].rstrip()), status
    assert all(re.search(r"  serving +none$", rows[other].rstrip()) for other in watched.nodes[1:]), status
    events = watched.deploy("-e", "events_since=10m", playbook="playbooks/events.yml").ok().output
    kinds = [line.split()[4] for line in events.splitlines() if f" {node} " in line and "vllm" in line]
    assert [kind for kind in kinds if kind in ("hung", "out", "back")][-3:] == ["hung", "out", "back"], events


def test_teardown_leaves_nothing(watched: Scene) -> None:
    node = watched.nodes[-1]
    gone = watched.deploy("--limit", node, "-e", "teardown_confirm=yes", playbook="playbooks/teardown.yml").ok()
    assert gone.recap("changed")[node] > 0
    assert remains(watched, node) == ""
    assert not watched.fleet.exec(node, ["systemctl", "is-active", UNIT], check=False).stdout.startswith("active")
