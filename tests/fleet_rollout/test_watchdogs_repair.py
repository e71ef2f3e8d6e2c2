# SPDX-License-Identifier: Apache-2.0
"""playbooks/repair.yml on a node whose emulated GPUs get sick: reset, rebooted, killed in the middle, and left alone."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

import pytest
from node_image import docker
from scene import Scene
from sysfs import trees

SICK, WELL = "node1", ["node2", "node3", "node4"]
REPAIR = "playbooks/repair.yml"
WATCHDOG = "/etc/systemd/system/vllm-fleet-watchdog@.service.d"
#: The node's GPUs and its kernel's log are files, and a boot makes them well.
UNIT = f"""\
mkdir -p {WATCHDOG}
cat > {WATCHDOG}/emulated.conf <<'END'
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -I /usr/local/lib/vllm-fleet/watchdog.pyz --sysfs /node/sys --kernel-log /node/kmsg run %i
END
cat > /usr/local/sbin/boot-gpus <<'END'
#!/bin/sh
: > /node/kmsg
for file in $(find /node/sys -name umc_err_count); do echo 'ue: 0' > $file; done
[ ! -e /node/away ] || mv /node/away /node/sys/bus/pci/devices/$(cat /node/address)
END
chmod +x /usr/local/sbin/boot-gpus
cat > /etc/systemd/system/boot-gpus.service <<'END'
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/boot-gpus
[Install]
WantedBy=sysinit.target
[Unit]
DefaultDependencies=no
END
systemctl enable -q boot-gpus.service
systemctl daemon-reload
: > /node/kmsg
"""
VARIABLES = {
    "vllm_server_accelerator": "rocm",
    "vllm_server_ulimits": ["nofile=1024"],  # memlock as the tests' own surroundings allow
    "vllm_fleet_sysfs_root": "/node/sys",
    "rocm_allowed_driver_versions": ["inbox"],
    "rocm_boot_time_command": "systemctl show --property=UserspaceTimestamp",
    # A container shares the machine's kernel: its settings are not the test's to change.
    "rocm_disable_numa_balancing": False,
    "preflight_gpus": 2,
    "preflight_clock": False,
    "repair_kernel_log": "/node/kmsg",
}


class Node:
    """The node that gets sick."""

    def __init__(self, scene: Scene, counter: str, address: str) -> None:
        self.scene, self.counter, self.address = scene, counter, address
        self.host_vars = scene.dir / "host_vars" / f"{SICK}.json"

    def sh(self, script: str) -> str:
        return self.scene.fleet.exec(SICK, ["sh", "-c", script]).stdout.strip()

    def variables(self, **more: object) -> None:
        self.host_vars.parent.mkdir(exist_ok=True)
        self.host_vars.write_text(json.dumps({**VARIABLES, **more}))

    def booted(self) -> str:
        return self.sh(str(VARIABLES["rocm_boot_time_command"]))

    def events(self) -> list[dict[str, str]]:
        lines = self.sh("cat /var/lib/vllm-fleet/vllm/events/events.jsonl").splitlines()
        return [one for one in map(json.loads, lines) if one["kind"].startswith(("repair", "quarantine", "released"))]

    def is_at_the_gateway(self, state: str) -> None:
        self.scene.until(lambda: self.scene.gateway()[SICK] == state, f"{SICK} is {state}")


@pytest.fixture(scope="module")
def node(scene: Scene) -> Iterator[Node]:
    """One node has emulated GPUs, and all have watchdogs."""
    tree = trees.Tree(scene.dir / "gpus")
    tree.host()
    tree.driver(version=None, srcversion=None)
    tree.add_gpus(2)
    counter = tree.write(tree.device_dir(0) / "ras/umc_err_count", "ue: 0\nce: 0")
    place = scene.fleet.node(SICK).container
    docker("cp", str(tree.root), f"{place}:/node")
    # A node that reboots is a container that ends: the engine starts it again, as firmware would.
    docker("update", "--restart", "always", place)
    made = Node(scene, f"/node/{counter.relative_to(tree.root)}", tree.device_dir(1).name)
    made.sh(UNIT + f"echo {made.address} > /node/address")
    made.variables()
    scene.deploy(vllm_watchdog_enabled=True).ok()
    made.is_at_the_gateway("UP")
    yield made
    docker("update", "--restart", "no", place)
    made.host_vars.unlink()
    scene.deploy(vllm_watchdog_enabled=False).ok()
    made.sh(f"systemctl disable -q boot-gpus.service; rm -r {WATCHDOG} /node; systemctl daemon-reload")


def test_sick_gpus_are_reset_and_no_other_node_is_touched(node: Node) -> None:
    scene = node.scene
    before, booted = {one: scene.server(one) for one in scene.nodes}, node.booted()
    node.sh(f"echo 'ue: 3' > {node.counter}")
    node.is_at_the_gateway("DOWN")
    # A release neither waits for that node nor goes to it.
    edit = ["-e", json.dumps({"vllm_server_labels": {"edited": "yes"}, "rollout_min_available": 3})]
    assert "run playbooks/repair.yml" in scene.deploy(*edit).failed().text
    said = scene.deploy("--check", "--limit", f"vllm:!{SICK}", *edit).failed().text
    assert re.search(r"rollout_min_available is 3, but 3 of 4 replicas of .* serve", said), said
    why = "GPU 0000:05:00.0 has 3 uncorrectable errors of memory or logic"
    refused = scene.deploy(playbook=REPAIR).failed().text
    assert f"{SICK} is not repaired: {why}; neither amd-smi nor rocm-smi may reset it" in refused
    node.variables(repair_reset_command=["sh", "-c", f"echo 'ue: 0' > {shlex.quote(node.counter)}"])
    said = scene.deploy("--check", playbook=REPAIR).ok()
    assert f"{SICK}: {why}. Not touched, for nothing is wrong with their GPUs: node2, node3 and node4." in said.text
    assert (
        f"To replace: 1 of 1 replica, in 1 wave: {SICK}. {SICK} will be drained and repaired in that wave" in said.text
    )
    assert {one: scene.server(one)["State"] for one in scene.nodes} == {
        one: state["State"] for one, state in before.items()
    }
    with scene.clients(4) as clients:
        scene.deploy("-e", "rollout_min_available=3", playbook=REPAIR).ok()
        clients.wait_for(4)
    assert clients.report.clean, clients.report
    after = {one: scene.server(one) for one in scene.nodes}
    assert all((after[one]["Id"], after[one]["State"]) == (before[one]["Id"], before[one]["State"]) for one in WELL)
    assert after[SICK]["Id"] == before[SICK]["Id"], "the same server, started again"
    assert after[SICK]["State"]["StartedAt"] > before[SICK]["State"]["StartedAt"]
    assert (scene.gateway()[SICK], node.booted()) == ("UP", booted)
    kinds = [event["kind"] for event in node.events()]
    assert kinds[-4:] == ["quarantine", "repair", "released", "repaired"]
    assert node.events()[kinds.index("repair")]["why"] == f"try 1 of 3 within a day: {why}"


def test_a_gpu_that_is_gone_comes_back_by_a_reboot_also_when_the_run_is_killed(node: Node) -> None:
    scene, booted = node.scene, node.booted()
    node.sh(f"mv /node/sys/bus/pci/devices/{node.address} /node/away")
    node.is_at_the_gateway("DOWN")
    # The reset does not help, and a reboot is not allowed.
    failed = scene.deploy(playbook=REPAIR).failed().text
    assert f"GPU {node.address} is gone from the PCI bus, after a reset of the GPUs. A reboot may help" in failed
    assert (scene.server(SICK)["State"]["Running"], scene.gateway()[SICK], node.booted()) == (False, "DOWN", booted)
    assert node.events()[-1]["kind"] == "repair_failed"
    node.variables(rocm_allow_reboot=True)
    killed = scene.start(playbook=REPAIR)
    killed.until(r"Probe the node after the reboot")
    killed.kill()
    assert node.booted() != booted
    booted = node.booted()
    said = scene.deploy(playbook=REPAIR).ok().text
    assert f"{SICK}: an earlier repair did not come to its end." in said
    assert (scene.server(SICK)["State"]["Running"], scene.gateway()[SICK], node.booted()) == (True, "UP", booted)
    assert node.events()[-1]["kind"] == "repaired"
    # Three tries within a day, the last of them by the run that was killed.
    node.sh(f"echo 'ue: 1' > {node.counter}")
    node.is_at_the_gateway("DOWN")
    running = scene.server(SICK)["State"]
    assert "it was repaired 3 times within a day (repair_tries is 3)" in scene.deploy(playbook=REPAIR).failed().text
    assert scene.server(SICK)["State"] == running
    node.sh(f"echo 'ue: 0' > {node.counter}")
    node.is_at_the_gateway("UP")
    nothing = scene.deploy(playbook=REPAIR).ok()
    assert set(nothing.recap("changed").values()) == {0}
    assert f"Not touched, for nothing is wrong with their GPUs: {SICK}, node2, node3 and node4." in nothing.text
