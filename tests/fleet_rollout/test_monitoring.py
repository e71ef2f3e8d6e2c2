# SPDX-License-Identifier: Apache-2.0
"""Prometheus and Alertmanager of the distribution on the gateway watch the fleet, and nothing fires while it works."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from node_image import docker
from scene import MODEL, Scene
from sysfs import trees

PLAYBOOK = "playbooks/monitoring.yml"
RULES = "/etc/prometheus/vllm-fleet/rules/vllm-fleet.yml"
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


class Watch:
    """The fleet with a monitoring host."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.source = scene.dir / "watch.yml"
        self.source.write_text(yaml.safe_dump({"monitoring": {"hosts": {"gateway1": None}}}))

    def play(self, *words: str) -> Any:
        return self.scene.deploy("-i", str(self.source), *words, playbook=PLAYBOOK)

    def ask(self, url: str) -> Any:
        return json.loads(self.scene.fleet.exec("gateway1", ["python3", "-c", ASK, url]).stdout)

    def query(self, text: str) -> list[dict[str, Any]]:
        answer = self.ask(f"http://127.0.0.1:9090/api/v1/query?query={quote(text)}")
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def alerts(self) -> dict[tuple[str, str], dict[str, str]]:
        """What Alertmanager has, by name and node."""
        found = [one["labels"] for one in self.ask("http://127.0.0.1:9093/api/v2/alerts")]
        return {(labels["alertname"], labels.get("node", "")): labels for labels in found}

    def hasten(self) -> None:
        """Have the rules fire after seconds: what they ask for stays."""
        shorter = ["-e", r"s/for: \w+/for: 1s/", "-e", r"s/\[(3|5|10)m\]/[8s]/"]
        self.scene.fleet.exec("gateway1", ["sed", "-i", "-E", *shorter, RULES])
        self.scene.fleet.exec("gateway1", ["systemctl", "reload", "prometheus"])


@pytest.fixture(scope="module")
def watch(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """The fleet is watched, each second; node2 has emulated GPUs."""
    made = Watch(scene)
    tree = trees.mi300x(tmp_path_factory.mktemp("gpus"))
    docker("cp", str(tree.root), f"{scene.fleet.node('node2').container}:/node")
    host_vars = scene.dir / "host_vars" / "node2.json"
    host_vars.parent.mkdir(exist_ok=True)
    host_vars.write_text(json.dumps({"vllm_fleet_sysfs_root": "/node/sys"}))
    env = {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.02", "STANDIN_CONTROL": "1"}
    scene.variables |= {"monitoring_interval": 1}
    scene.deploy(vllm_server_env=env).ok()
    made.play().ok()
    yield made
    made.play("-e", "monitoring_remove=true").ok()
    for name in ("vllm_server_env", "monitoring_interval"):
        scene.variables.pop(name)
    host_vars.unlink()
    scene.fleet.exec("node2", ["rm", "-r", "/node"])
    scene.deploy().ok()
    left = "find / -xdev ( -name metrics.pyz -o -name *.prom -o -path /etc/vllm-fleet/monitoring* -o -name vllm-fleet-m*.service )"
    assert {scene.fleet.exec(node, left.split(), check=False).stdout for node in scene.nodes} == {""}


def test_a_second_run_changes_nothing_and_every_machine_answers_the_monitoring_host_alone(watch: Watch) -> None:
    assert set(watch.play().ok().recap("changed").values()) == {0}
    watch.scene.until(lambda: len(watch.query("up == 1")) == 5, "four nodes and the gateway answer")
    assert {one["metric"]["node"] for one in watch.query("up")} == {*watch.scene.nodes, "gateway1"}
    address = watch.scene.fleet.node("node1").address
    said = watch.scene.fleet.exec("gateway1", ["python3", "-c", ANYBODY, address], check=False)
    assert "certificate required" in said.stdout or "bad certificate" in said.stdout, said.stdout
    listens = watch.scene.fleet.exec("gateway1", ["ss", "-Hltn"]).stdout
    assert {line.split()[3] for line in listens.splitlines() if re.search(r":(909\d|9100)\b", line.split()[3])} == {
        "127.0.0.1:9090",
        "127.0.0.1:9093",
    }
    assert watch.scene.fleet.exec("node1", ["sh", "-c", "ss -Hltn | grep -c :9100"], check=False).stdout == "0\n"


ANYBODY = """
import ssl, socket, sys
context = ssl._create_unverified_context()
try:
    with context.wrap_socket(socket.create_connection((sys.argv[1], 9110), timeout=5)) as one:
        one.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n"); print(one.recv(100))
except OSError as exc: print(exc)
"""


def test_series_say_where_they_are_from(watch: Watch) -> None:
    release = str(int(watch.query('vllm_fleet_release_info{node="node1"}')[0]["metric"]["release"]))
    own = {"node": "node1", "server": "vllm", "replica": "node1", "model": MODEL, "release": release}
    (found,) = watch.query('vllm:num_requests_running{node="node1"}')
    assert own.items() <= found["metric"].items(), found
    (info,) = watch.query('vllm_fleet_release_info{node="node1"}')
    assert re.fullmatch("[0-9a-f]{40}", info["metric"]["revision"]), info
    assert len(watch.query('gpu_total_vram{node="node2"}')) == 8
    assert {one["metric"]["replica"] for one in watch.query('haproxy_server_status{state="UP"} == 1')} == {
        *watch.scene.nodes
    }
    # It looks each second here, and each 15 seconds elsewhere.
    watch.scene.until(lambda: bool(watch.query("rate(vllm_fleet_metrics_cpu_seconds_total[20s])")), "it was looked at")
    looks = {
        one["metric"]["node"]: float(one["value"][1])
        for one in watch.query("rate(vllm_fleet_metrics_cpu_seconds_total[20s])")
    }
    assert looks["node2"] * 4 < 0.1, f"a look takes {looks['node2']:.3f} s of processor, and there are four a minute"


def test_nothing_fires_while_the_fleet_works(watch: Watch) -> None:
    watch.hasten()
    with watch.scene.clients(4) as clients:
        clients.wait_for(40)
        assert watch.query("vllm_fleet:tokens:rate > 0")
        assert watch.alerts() == {}
