# SPDX-License-Identifier: Apache-2.0
"""vllm_server on a node of its own: Docker's other image store, and a Docker engine that is killed under it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import spelling_tools
from fleet import Fleet

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
STORE = {"features": {"containerd-snapshotter": True}, "live-restore": True}


@pytest.fixture(scope="module")
def node(tmp_path_factory, standin_image):
    """A Debian 13 node over SSH whose engine keeps images in containerd's store and survives its own restarts.

    Beside it is one of Debian 12 with its engine as it comes.
    """
    fleet = Fleet(f"engine-{os.getpid()}")
    folder = tmp_path_factory.mktemp("fleet")
    try:
        fleet.up(folder, ["trixie", "bookworm"])
        name = fleet.nodes[0].name
        fleet.exec(
            name,
            [
                "sh",
                "-ec",
                "systemctl stop docker.socket docker containerd; mkdir -p /etc/docker /var/lib/docker/containerd-store;"
                # overlayfs does not stack on the node's own overlay; the volume of the engine carries it.
                "mount --bind /var/lib/docker/containerd-store /var/lib/containerd;"
                f"echo '{json.dumps(STORE)}' > /etc/docker/daemon.json;"
                # An engine that these tests kill often is started again each time.
                "mkdir -p /run/systemd/system/docker.service.d;"
                "printf '[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nRestartSec=100ms\\n' > /run/systemd/system/docker.service.d/test.conf;"
                "systemctl daemon-reload; systemctl start containerd docker",
            ],
        )
        fleet.load([standin_image])
        yield fleet, folder, name
    finally:
        fleet.down()


def start(node, image, wait=True, check=False, **options):
    """Run the module as a user does; `wait=False` gives the running process."""
    _, folder, name = node
    options = {"image": image, "model": "acme/tiny", "accelerator": "cpu", "stop_timeout": 12, **options}
    options["env"] = {"STANDIN_START_SECONDS": "0.5", **options.get("env", {})}
    command = [str(Path(sys.executable).parent / "ansible"), "-i", str(folder / "inventory.yml"), name, "-b"]
    command += ["-m", "vllm_server", "-a", json.dumps(options), *(["--check"] if check else [])]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    run = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return run.communicate(timeout=300)[0] if wait else run


def shell(node, script):
    fleet, _, name = node
    return fleet.exec(name, ["sh", "-c", script], check=False)


def kill_engine(node):
    assert shell(node, "kill -9 $(cat /var/run/docker.pid)").returncode == 0


def engine_back(node):
    """Wait for an engine that answers; systemd starts it again."""
    until(node, "docker info >/dev/null 2>&1")


def until(node, script, seconds=120):
    """Wait until a shell test on the node is true; the limit is only there to end a test that went wrong."""
    deadline = time.monotonic() + seconds
    while shell(node, script).returncode:
        assert time.monotonic() < deadline, (
            f"never true: {script}\n{shell(node, 'docker ps -a; docker logs vllm').stdout}"
        )
        time.sleep(0.2)


def servers(node):
    return shell(node, "docker ps --format '{{.Names}}'").stdout.split()


def label(node):
    return shell(node, "docker inspect -f '{{.Config.Labels.release}}' vllm").stdout.strip()


def test_containerds_image_store_compares_right(node, standin_image):
    assert "io.containerd.snapshotter" in shell(node, "docker info --format '{{.DriverStatus}}'").stdout
    assert "| CHANGED =>" in start(node, standin_image)
    again = start(node, standin_image)
    assert "| SUCCESS =>" in again
    assert re.search(r"actions: \[\]", again)


@pytest.mark.parametrize("suite", ["trixie", "bookworm"])
def test_spellings_of_each_option(node, standin_image, suite):
    """Debian 13's engine with containerd's image store, and Debian 12's with its storage driver."""
    fleet = node[0]
    container = next(one.container for one in fleet.nodes if one.suite == suite)
    found = spelling_tools.compared(["docker", "exec", "-i", container, "python3"], standin_image, "spelling")
    assert found["wrong"] == []


def test_an_engine_killed_while_a_start_is_watched_costs_nothing(node, standin_image):
    """With live-restore the server goes on, and so does the watch: it waits for the engine and reads on."""
    # It loads until the test says so.
    silent = {"STANDIN_STAGE_SILENT": "loaded", "STANDIN_SILENT_SECONDS": "20"}
    silent = {"env": silent, "labels": {"release": "silent"}}
    run = start(node, standin_image, wait=False, **silent)
    until(node, "docker inspect -f '{{.Config.Labels.release}}' vllm | grep -q silent")
    until(node, "docker logs vllm 2>&1 | grep -q 'Loading weights took'")
    before = shell(node, "docker inspect -f '{{.Id}} {{.State.StartedAt}}' vllm").stdout
    kill_engine(node)
    out = run.communicate(timeout=300)[0]
    assert "| CHANGED =>" in out, out
    assert shell(node, "docker inspect -f '{{.Id}} {{.State.StartedAt}}' vllm").stdout == before
    again = start(node, standin_image, **silent)
    assert "| SUCCESS =>" in again, again
    assert servers(node) == ["vllm"]


def test_an_engine_killed_in_the_middle_of_a_replacement_is_taken_up_by_the_next_run(node, standin_image):
    # The old server ignores SIGTERM, so the stop takes long enough to be interrupted in it.
    ignoring = {"env": {"STANDIN_IGNORE_TERM": "1"}, "stop_timeout": 20}
    start(node, standin_image, **ignoring)
    old = shell(node, "docker inspect -f '{{.Id}}' vllm").stdout.strip()
    run = start(node, standin_image, wait=False, **ignoring, labels={"release": "2"})
    until(
        node, "docker events --since 300s --until 0s --filter event=kill --filter container=" + old + " | grep -q kill"
    )
    kill_engine(node)
    out = run.communicate(timeout=300)[0]
    # That run says what happened, and that the old server, which nobody stopped after all, still serves.
    assert "FAILED" in out, out
    assert re.search(r"rolled_back: true", out), out
    assert servers(node) == ["vllm"]
    again = start(node, standin_image, **ignoring, labels={"release": "2"})
    assert "| CHANGED =>" in again, again
    assert (servers(node), label(node)) == (["vllm"], "2")
    assert "| SUCCESS =>" in start(node, standin_image, **ignoring, labels={"release": "2"})


#: Kills the engine while it starts a container, until it has lost track of the container's port; one in five does.
LOSE = """
docker rm -f vllm vllm.previous lost >/dev/null 2>&1
(docker create --name lost -p 127.0.0.1:8000:8000 %s sleep 600 && docker start lost) >/dev/null 2>&1 &
while ! pgrep -x docker-proxy >/dev/null && kill -0 $!; do :; done
kill -9 $(cat /var/run/docker.pid); wait $!
until docker info >/dev/null 2>&1; do sleep 0.1; done
test -z "$(docker ps -q)" && pgrep -x docker-proxy >/dev/null && docker rm -f lost >/dev/null
"""


def lose_the_port(node, image):
    for _ in range(50):
        if shell(node, LOSE % image).returncode == 0:
            refused = shell(node, f"docker run --rm -p 127.0.0.1:8000:8000 {image} true")
            assert "port is already allocated" in refused.stderr, "or else there is nothing to mend"
            return
    raise AssertionError("the engine never lost a port")


def test_a_port_that_a_killed_engine_lost_track_of_is_had_again(node, standin_image):
    lose_the_port(node, standin_image)
    predicted = start(node, standin_image, check=True)
    assert re.search(r"actions:\s+- restart_engine\s+- create\s+- start", predicted), predicted
    out = start(node, standin_image)
    assert "| CHANGED =>" in out, out
    assert re.search(r"actions:\s+- restart_engine\s+- create\s+- start", out), out
    assert "was held by the Docker engine for a container that does not run" in re.sub(r"\s+", " ", out)
    assert servers(node) == ["vllm"]


def test_without_live_restore_it_is_said_what_to_do(node, standin_image):
    """Restarting the engine would then stop every container of the node, which is the user's to decide."""
    lose_the_port(node, standin_image)
    shell(
        node,
        'sed -i \'s/"live-restore": true/"live-restore": false/\' /etc/docker/daemon.json; systemctl reload docker',
    )
    until(node, "docker info --format '{{.LiveRestoreEnabled}}' | grep -q false")
    text = re.sub(r"\s+", " ", start(node, standin_image))
    assert "FAILED" in text and "port_taken" in text, text
    assert "port 8000 on 127.0.0.1 is still held by Docker itself" in text
    assert "systemctl restart docker" in text
    assert shell(node, "systemctl restart docker").returncode == 0
    engine_back(node)
    assert "| CHANGED =>" in start(node, standin_image)
