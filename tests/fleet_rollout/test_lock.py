# SPDX-License-Identifier: Apache-2.0
"""The fleet's lock, as two controllers meet it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.engine
FILE = "/var/lib/vllm-fleet/fleet.lock"
PLAY = [{"hosts": "vllm", "gather_facts": False, "roles": ["fleet_lock"]}]


@pytest.fixture
def play(scene):
    """A play that takes the lock and ends; `pause` seconds later."""
    path = scene.dir / "lock.yml"

    def start(*words: str, pause: int = 0):
        tasks = [{"ansible.builtin.wait_for": {"timeout": pause}, "delegate_to": "localhost", "run_once": True}]
        path.write_text(json.dumps([{**PLAY[0], "tasks": tasks if pause else []}]))
        return scene.start(*words, playbook=str(path))

    return start


def holder(scene, node="node1"):
    text = scene.fleet.exec(node, ["cat", FILE], check=False).stdout
    return json.loads(text) if text else None


def hold(scene, age=0, **who):
    """What a run of somebody else would have left on the first node."""
    other = {"user": "ada", "host": "ci-7", "pid": 4242, "since": "2026-01-01 00:00:00 UTC", "from": "/srv/fleet"}
    line = json.dumps({**other, "limit": "node9", "machine": "another", "born": "1", **who})
    scene.fleet.exec("node1", ["sh", "-c", f"mkdir -p {FILE.rpartition('/')[0]}; cat >{FILE} <<'X'\n{line}\nX"])
    scene.fleet.exec("node1", ["touch", "-d", f"{age} seconds ago", FILE])


def test_another_controllers_run_is_respected_until_it_is_silent_for_a_lease(scene, play):
    hold(scene, age=60)
    run = play().wait().failed()
    says = "ada@ci-7 (pid 4242) since 2026-01-01 00:00:00 UTC, from /srv/fleet, limited to node9"
    assert f"Another run holds this fleet: {says}, says node1. Nothing was touched." in run.text
    assert holder(scene)["host"] == "ci-7"

    # Whatever a run is limited to, and not when it only looks.
    assert "Another run holds" in play("--limit", "node4").wait().failed().text
    play("--check").wait().ok()

    hold(scene, age=130)
    run = play().wait().ok()
    assert f"[node1] taking over the lock of {says}: it has not been heard of for 13" in run.text
    scene.until(lambda: holder(scene) is None, "given back")

    hold(scene)
    assert "you said so" in play("-e", "fleet_lock_takeover=true").wait().ok().text
    scene.until(lambda: holder(scene) is None, "given back")


def processes(scene):
    """The run, those that give its lock back, one for each of three nodes, and the worker that pauses."""
    pattern = f"{scene.dir}/lock.yml"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_a_run_of_this_machine_is_known_to_be_dead_at_once(scene, play):
    run = play(pause=60)
    scene.until(lambda: holder(scene, "node3") is not None, "held")
    scene.until(lambda: len(processes(scene)) == 5, "pausing")
    assert holder(scene)["pid"] == run.process.pid
    # All that a machine loses with its power, also those that would give the lock back: at one moment, so none sees
    # another one end. A worker may have ended by itself since it was counted.
    for sent in (signal.SIGSTOP, signal.SIGKILL):
        for pid in processes(scene):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
    run.process.wait(30)
    time.sleep(1)
    assert holder(scene)["pid"] == run.process.pid
    run = play().wait().ok()
    assert "that run is dead" in run.text
    scene.until(lambda: holder(scene) is None, "given back")


def test_a_killed_run_gives_the_lock_back(scene, play):
    run = play(pause=60)
    scene.until(lambda: holder(scene, "node3") is not None, "held")
    run.kill()
    scene.until(lambda: all(holder(scene, node) is None for node in ("node1", "node2", "node3")), "given back")
    assert "taking over" not in play().wait().ok().text


def test_a_node_that_is_off_does_not_keep_the_others_from_being_locked(scene, play):
    hasty = ("-e", "ansible_ssh_retries=0", "-e", "ansible_ssh_timeout=3")
    # What ended before gives it back a moment after its end.
    scene.until(lambda: holder(scene) is None and holder(scene, "node3") is None, "free")
    with scene.fleet.cut("node1", 60):
        run = play("--limit", "node2,node3", *hasty, pause=10)
        scene.until(lambda: holder(scene, "node3") is not None, "held")
        assert holder(scene) is None
        assert "Another run holds" in play("--limit", "node4", *hasty).wait().failed().text
    done = run.wait().ok()
    assert "node1 cannot hold the fleet's lock" in done.text
