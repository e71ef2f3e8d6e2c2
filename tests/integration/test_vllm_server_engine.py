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
from fleet import Fleet

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
STORE = {"features": {"containerd-snapshotter": True}, "live-restore": True}


@pytest.fixture(scope="module")
def node(tmp_path_factory, standin_image):
    """A Debian 13 node over SSH whose engine keeps images in containerd's store and survives its own restarts."""
    fleet = Fleet(f"engine-{os.getpid()}")
    folder = tmp_path_factory.mktemp("fleet")
    try:
        fleet.up(folder, ["trixie"])
        name = fleet.nodes[0].name
        fleet.exec(
            name,
            [
                "sh",
                "-ec",
                "systemctl stop docker.socket docker containerd; mkdir -p /etc/docker /var/lib/docker/containerd-store;"
                # overlayfs does not stack on the node's own overlay; the volume of the engine carries it.
                "mount --bind /var/lib/docker/containerd-store /var/lib/containerd;"
                f"echo '{json.dumps(STORE)}' > /etc/docker/daemon.json; systemctl start containerd docker",
            ],
        )
        fleet.load([standin_image])
        yield fleet, folder, name
    finally:
        fleet.down()


def start(node, image, wait=True, **options):
    """Run the module as a user does; `wait=False` gives the running process."""
    _, folder, name = node
    options = {"image": image, "model": "acme/tiny", "accelerator": "cpu", "stop_timeout": 12, **options}
    options["env"] = {"STANDIN_START_SECONDS": "0.5", **options.get("env", {})}
    command = [str(Path(sys.executable).parent / "ansible"), "-i", str(folder / "inventory.yml"), name, "-b"]
    command += ["-m", "vllm_server", "-a", json.dumps(options)]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    run = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return run.communicate(timeout=180)[0] if wait else run


def kill_engine(node):
    fleet, _, name = node
    fleet.exec(name, ["sh", "-c", "kill -9 $(cat /var/run/docker.pid)"])


def until(node, script, seconds=30):
    """Wait until a shell test on the node is true."""
    fleet, _, name = node
    deadline = time.monotonic() + seconds
    while fleet.exec(name, ["sh", "-c", script], check=False).returncode:
        assert time.monotonic() < deadline, f"never true: {script}"
        time.sleep(0.2)


def servers(node):
    fleet, _, name = node
    return fleet.exec(name, ["docker", "ps", "--format", "{{.Names}}"]).stdout.split()


def test_containerds_image_store_compares_right(node, standin_image):
    fleet, _, name = node
    driver = fleet.exec(name, ["docker", "info", "--format", "{{.DriverStatus}}"]).stdout
    assert "io.containerd.snapshotter" in driver
    assert "| CHANGED =>" in start(node, standin_image)
    again = start(node, standin_image)
    assert "| SUCCESS =>" in again
    assert re.search(r"actions: \[\]", again)


def test_an_engine_killed_while_a_start_is_watched_costs_nothing(node, standin_image):
    run = start(node, standin_image, wait=False, env={"STANDIN_START_SECONDS": "12"})
    until(node, "docker logs vllm 2>&1 | grep -q 'Starting to load model' && ! docker logs vllm 2>&1 | grep -q startup")
    kill_engine(node)
    run.communicate(timeout=120)
    # Whatever became of that run, the next one takes up the same start and ends it.
    assert "failed" not in start(node, standin_image, env={"STANDIN_START_SECONDS": "12"}).lower()
    assert servers(node) == ["vllm"]


def test_an_engine_killed_in_the_middle_of_a_replacement_is_taken_up_by_the_next_run(node, standin_image):
    # The old server ignores SIGTERM, so the stop takes long enough to be interrupted in it.
    start(node, standin_image, env={"STANDIN_IGNORE_TERM": "1"})
    run = start(node, standin_image, wait=False, labels={"release": "2"})
    # Docker has sent the SIGTERM of this stop, and waits twelve seconds before it kills.
    until(node, "docker events --since 20s --until 0s --filter event=kill --filter container=vllm | grep -q kill")
    kill_engine(node)
    run.communicate(timeout=180)
    until(node, "docker info >/dev/null 2>&1", seconds=60)
    assert "failed" not in start(node, standin_image, labels={"release": "2"}).lower()
    assert servers(node) == ["vllm"]
    fleet, _, name = node
    assert fleet.exec(name, ["docker", "inspect", "-f", "{{.Config.Labels.release}}", "vllm"]).stdout.strip() == "2"
    assert "| SUCCESS =>" in start(node, standin_image, labels={"release": "2"})
