# SPDX-License-Identifier: Apache-2.0
"""playbooks/restart.yml and logs.yml on two servers of this machine, as somebody types them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest
from test_play_repair import ROOT, Nodes

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, standin_image, docker_client):
    made = Nodes(tmp_path_factory.mktemp("daily"), standin_image, docker_client)
    rc, said = made.play(made.dir / "first.yml")
    assert rc == 0, said
    yield made
    made.close()


def test_a_restart_is_in_waves_as_it_is_and_of_the_limit_alone(nodes):
    before = nodes.states()
    rc, said = nodes.play(ROOT / "playbooks/restart.yml", "--limit", "node2", vllm_server_env={"A": "b"})
    assert rc != 0
    assert "node2 runs something else than is described (env.A" in said
    assert nodes.states() == before

    rc, said = nodes.play(ROOT / "playbooks/restart.yml", "--limit", "node2")
    assert rc == 0, said
    assert "To replace: 1 of 1 replica, in 1 wave: node2. node2 is drained and restarted in that wave" in said
    after = nodes.states()
    assert after["node1"] == before["node1"]
    assert after["node2"]["Running"] and after["node2"]["StartedAt"] > before["node2"]["StartedAt"]


def test_the_last_lines_of_all_servers_with_their_nodes(nodes):
    rc, said = nodes.play(ROOT / "playbooks/logs.yml", logs_lines=5)
    assert rc == 0, said
    assert "[node1] 20" in said and "[node2] 20" in said
    rc, said = nodes.play(ROOT / "playbooks/logs.yml", "--limit", "node1", logs_since="1h", logs_level="error")
    assert rc == 0, said
    assert "No lines of class error in the last 1h." in said
    rc, said = nodes.play(ROOT / "playbooks/logs.yml", logs_since="yesterday")
    assert "node1 did not answer, so its lines are missing: logs_since: 'yesterday' is no time such as 30m" in said


def test_lines_are_followed_until_somebody_interrupts(nodes):
    command = ["ansible-playbook", "-i", str(nodes.dir / "hosts.yml"), str(ROOT / "playbooks/logs.yml")]
    environ = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "VLLM_FLEET_REPORTS": str(nodes.dir / "reports"),
    }
    run = subprocess.Popen(
        [*command, "-e", "logs_follow=true", "--limit", "node1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environ,
        start_new_session=True,
    )
    limit = threading.Timer(30, os.killpg, (run.pid, signal.SIGKILL))
    limit.start()
    try:
        assert any("[node1] 20" in line for line in run.stdout)
        # The first lines are there: what is said from now on comes by itself.
        name = nodes.names["node1"]
        nodes.client.containers.get(name).exec_run(["sh", "-c", "echo said later hf_abcdefABCDEF123456 > /proc/1/fd/1"])
        line = next(line for line in run.stdout if "said later" in line)
        assert line.startswith("[node1] 20") and line.rstrip().endswith("said later ***")
    finally:
        os.killpg(run.pid, signal.SIGINT)
        run.communicate()
        limit.cancel()
