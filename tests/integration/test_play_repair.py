# SPDX-License-Identifier: Apache-2.0
"""playbooks/repair.yml on two nodes that are this machine, without a gateway: reset, failed, taken up again, limited."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest
import standin
import trees
import yaml

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]


class Nodes:
    """Two hosts with GPUs and servers of their own."""

    def __init__(self, folder, image, client):
        self.dir, self.client, self.trees = folder, client, {}
        os.mknod(folder / "kfd", 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null by another name
        for host in ("node1", "node2"):
            self.trees[host] = tree = trees.Tree(folder / host)
            tree.host()
            tree.driver(version=None, srcversion=None)
            tree.add_gpu(0)
            tree.write(tree.device_dir(0) / "ras/umc_err_count", "ue: 0\nce: 0")
            (folder / f"{host}.kmsg").touch()
        self.variables = {
            "vllm_server_image": image,
            "vllm_server_model": "acme/tiny",
            "vllm_server_hf_cache": "",
            "vllm_server_devices": [f"{folder}/kfd:/dev/kfd"],
            "vllm_server_ulimits": ["nofile=1024"],
            "vllm_server_gpu_memory_policy": "off",
            "vllm_server_env": {"STANDIN_START_SECONDS": "0.1"},
            "vllm_server_stop_timeout": 6,
            "rocm_allowed_driver_versions": ["inbox"],
            "fleet_lock_path": str(folder / "lock"),
        }
        hosts = {
            host: {
                "vllm_server_name": f"repair-{os.getpid()}-{host}",
                "vllm_server_port": standin.free_port(),
                "vllm_server_state_dir": str(folder / host / "state"),
                "vllm_fleet_sysfs_root": str(tree.sys),
                "repair_kernel_log": str(folder / f"{host}.kmsg"),
            }
            for host, tree in self.trees.items()
        }
        self.names = {host: own["vllm_server_name"] for host, own in hosts.items()}
        local = {"ansible_connection": "local", "ansible_python_interpreter": standin.PYTHON}
        inventory = {"vllm": {"hosts": hosts, "vars": {**local, **self.variables}}}
        (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        play = [{"hosts": "vllm", "gather_facts": False, "become": True, "roles": ["vllm_server"]}]
        (folder / "first.yml").write_text(yaml.safe_dump(play))

    def play(self, playbook, *words, **more):
        command = ["ansible-playbook", "-i", str(self.dir / "hosts.yml"), str(playbook), "-e", json.dumps(more), *words]
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"}
        environ["VLLM_FLEET_REPORTS"] = str(self.dir / "reports")
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def repair(self, *words, **more):
        return self.play(ROOT / "playbooks/repair.yml", *words, **more)

    def counter(self, host="node1"):
        return self.trees[host].device_dir(0) / "ras/umc_err_count"

    def states(self):
        return {host: self.client.api.inspect_container(name)["State"] for host, name in self.names.items()}

    def events(self, host="node1"):
        file = self.dir / host / "state" / self.names[host] / "events/events.jsonl"
        return [json.loads(line)["kind"] for line in file.read_text().splitlines()] if file.exists() else []

    def close(self):
        for name in self.names.values():
            for container in self.client.containers.list(all=True, filters={"name": name}):
                container.remove(force=True, v=True)


@pytest.fixture
def nodes(tmp_path, standin_image, docker_client):
    made = Nodes(tmp_path, standin_image, docker_client)
    rc, said = made.play(tmp_path / "first.yml")
    assert rc == 0, said
    yield made
    made.close()


WHY = "GPU 0000:05:00.0 has 3 uncorrectable errors of memory or logic"


def test_a_sick_node_is_reset_one_that_stays_sick_is_left_stopped_and_no_other_is_touched(nodes):
    before = nodes.states()
    nodes.counter().write_text("ue: 3\n")
    helps = {"repair_reset_command": ["sh", "-c", f"echo 'ue: 0' > {shlex.quote(str(nodes.counter()))}"]}
    useless = {"repair_reset_command": ["sh", "-c", "echo not supported >&2; exit 3"]}
    rc, said = nodes.repair()
    assert rc != 0
    assert (
        f"node1 is not repaired: {WHY}; neither amd-smi nor rocm-smi may reset it, and rocm_allow_reboot is false"
        in said
    )
    rc, said = nodes.repair("--check", **helps)
    assert rc == 0, said
    assert f"node1: {WHY}. Not touched, for nothing is wrong with their GPUs: node2." in said
    assert f"in 1 wave: node1. node1 will be drained and repaired in that wave: {WHY}." in said
    assert (nodes.states(), nodes.events()) == (before, [])

    rc, said = nodes.repair(**useless)
    assert rc != 0
    assert (
        f"node1: {WHY}, after a reset of the GPUs (sh -c echo not supported >&2; exit 3: not supported). A reboot may"
        in said
    )
    assert "The server stays stopped." in said
    states = nodes.states()
    assert (states["node1"]["Running"], states["node2"]) == (False, before["node2"])

    rc, said = nodes.repair(**helps)
    assert rc == 0, said
    states = nodes.states()
    assert (states["node1"]["Running"], states["node2"]) == (True, before["node2"])
    assert nodes.events() == ["repair", "repair_failed", "repair", "repaired"]
    assert nodes.events("node2") == []
    rc, said = nodes.repair(**helps)
    assert rc == 0 and re.search(r"node1 +: ok=\d+ +changed=0", said), said
    assert (nodes.states(), len(nodes.events())) == (states, 4)


def test_a_run_that_was_killed_before_the_start_is_brought_to_its_end(nodes):
    """What it leaves: the mark, GPUs that are well, and a stopped server."""
    mark = nodes.dir / "node1/state" / nodes.names["node1"] / "repair.json"
    mark.write_text('{"gpus": ["0000:05:00.0"]}')
    nodes.client.api.stop(nodes.names["node1"], timeout=5)
    rc, said = nodes.repair()
    assert rc == 0, said
    assert "node1: an earlier repair did not come to its end." in said
    assert nodes.states()["node1"]["Running"]
    assert (nodes.events(), mark.exists()) == (["repaired"], False)
