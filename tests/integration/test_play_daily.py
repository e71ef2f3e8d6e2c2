# SPDX-License-Identifier: Apache-2.0
"""playbooks/restart.yml, logs.yml, stop.yml, health.yml and teardown.yml on two servers of this machine, as somebody types them."""

from __future__ import annotations

import json
import os
import re
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
    rc, said = nodes.play(ROOT / "playbooks/logs.yml", logs_level="wrong")
    assert rc != 0 and "logs_level is 'wrong': write debug, info, warning or error." in said
    assert "did not answer" not in said and "No lines" not in said
    rc, said = nodes.play(ROOT / "playbooks/logs.yml", logs_since="yesterday")
    assert "node1 did not answer, so its lines are missing: logs_since: 'yesterday' is no time such as 30m" in said


def test_lines_are_followed_until_somebody_interrupts(nodes):
    command = ["ansible-playbook", "-i", str(nodes.dir / "hosts.yml"), str(ROOT / "playbooks/logs.yml")]
    # As a user has it: Python keeps back what goes into a pipe.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environ |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "VLLM_FLEET_REPORTS": str(nodes.dir / "reports")}
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


def test_the_only_server_of_a_model_is_stopped_for_who_says_so_and_missed_by_all(nodes):
    before, stop = nodes.states(), ROOT / "playbooks/stop.yml"
    rc, said = nodes.play(stop, "--limit", "node1", "--check")
    assert rc == 0, said
    assert "node1: would be drained and stopped, and be in maintenance." in said
    assert said.endswith("Check: 1 of 1 node would change. node1: its server would be stopped"), said
    # Each with a model of its own.
    own = {"vllm_server_args": {"served-model-name": "{{ inventory_hostname }}"}}
    rc, said = nodes.play(stop, "--limit", "node1", **own)
    assert rc != 0 and "node1 is the only server of node1, whose requests would all be refused until" in said, said
    assert nodes.states() == before
    rc, said = nodes.play(stop, "--limit", "node1", "-e", "rollout_min_available=0", **own)
    assert rc == 0, said
    assert re.search(r"FLEET \*+ 1 node in \S+ s: 1 stopped node1 has no server until start.yml Report: ", said), said
    assert nodes.states()["node1"]["Running"] is False

    command = [ROOT / "scripts/health", "-i", nodes.dir / "hosts.yml", "-e", json.dumps(own), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["servers"]["node1"]["state"], found["servers"]["node1"]["wrong"]) == ("maintenance", [])
    assert found["models"]["node1"] == {"wrong": ["no server up"]}


def test_a_teardown_names_what_it_leaves_because_nobody_describes_it(nodes):
    words = ["--limit", "node1", "-e", "teardown_confirm=yes"]
    # Both are this machine, and node2 is described by another name than its container has.
    rc, said = nodes.play(ROOT / "playbooks/teardown.yml", *words, vllm_server_name=nodes.names["node1"])
    assert rc == 0, said
    assert re.search(r"FLEET .* 1 removed Still running, not described: .* on node1", said), said
    assert re.search(r"To remove one: ansible node1 -b -m vllm_watchdog -a 'name=\S+ state=absent'", said), said
