# SPDX-License-Identifier: Apache-2.0
"""Prometheus and Alertmanager of the distribution on the gateway watch the fleet, and nothing fires while it works."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
import yaml
from node_image import docker
from scene import KEY, MODEL, Scene
from sysfs import trees

PLAYBOOK = "playbooks/monitoring.yml"
RULES = "/etc/prometheus/vllm-fleet/rules/vllm-fleet.yml"
ENV = {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.02", "STANDIN_CONTROL": "1"}
#: Requests that a server computes at a time.
SLOTS = 2
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


class Watch:
    """The fleet with a monitoring host."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.took = scene, 0.0
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

    def until(self, names: set[tuple[str, str]], what: str) -> dict[tuple[str, str], dict[str, str]]:
        """Wait until these alerts fire and no other one; return their labels."""
        found: dict[tuple[str, str], dict[str, str]] = {}

        def so() -> bool:
            nonlocal found
            found = self.alerts()
            return set(found) == names

        try:
            self.scene.until(so, what)
        except AssertionError:
            raise AssertionError(f"{what}: expected {names}, found {found}") from None
        return found

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
    scene.variables |= {"monitoring_interval": 1}
    began = time.monotonic()
    scene.deploy(vllm_server_env=ENV, vllm_server_args={"max-model-len": 1024, "max-num-seqs": SLOTS}).ok()
    made.took = time.monotonic() - began
    assert "Page: ssh -L 9090:127.0.0.1:9090 " in (said := made.play().ok().text), said
    yield made
    made.play("-e", "monitoring_remove=true").ok()
    for name in ("vllm_server_env", "vllm_server_args", "monitoring_interval"):
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


# What each trouble needs on its node.
REPLACE = """
import docker
client = docker.from_env()
old = client.api.inspect_container("vllm")
client.api.remove_container("vllm", force=True)
config = {**old["Config"], "HostConfig": old["HostConfig"]}
client.api.start(client.api.create_container_from_config(config, "vllm")["Id"])
"""


def ask(scene: Scene, node: str, words: int, *, path: str = "v1/completions") -> int:
    """Have a server count ``words``, or tell it something; return the status of its answer."""
    url = f"http://{scene.fleet.node(node).address}:8000/{path}"
    body = {"model": MODEL, "prompt": "word " * words, "max_tokens": words}
    key = scene.variables.get("vllm_server_api_key", KEY)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=120) as answer:
        answer.read()
        return int(answer.status)


def test_nothing_fires_while_the_fleet_works(watch: Watch) -> None:
    watch.hasten()
    with watch.scene.clients(4) as clients:
        clients.wait_for(40)
        assert watch.query("vllm_fleet:tokens:rate > 0")
        assert watch.alerts() == {}


def test_each_trouble_has_its_alert_and_no_other_and_clears(watch: Watch) -> None:
    """After the rules were hastened. A node each: its alerts are its own."""
    scene = watch.scene
    first, second, third, fourth = scene.nodes
    release = {one["metric"]["node"]: one["metric"]["release"] for one in watch.query("vllm_fleet_release_info")}
    release[fourth] = "none"  # a container that no run has brought

    def own(node: str) -> set[tuple[str, str]]:
        return {("node", node), ("server", "vllm"), ("model", MODEL), ("release", release[node])}

    # One that computes, and does not go on. One whose requests wait. One that is stopped. Another container than the record's.
    with ThreadPoolExecutor(32) as pool:
        hanging = pool.submit(ask, scene, second, 450)
        running = f'vllm:num_requests_running{{node="{second}"}} > 0'
        scene.until(lambda: bool(watch.query(running)), "it computes")
        assert ask(scene, second, 1, path="standin/stop") == 200
        queue = [pool.submit(ask, scene, third, 240) for _ in range(12 * SLOTS)]
        scene.fleet.exec(first, ["docker", "stop", "vllm"])
        scene.fleet.exec(fourth, ["python3", "-c", REPLACE])
        expected = {
            ("VLLMServerDown", first),
            ("VLLMServerHung", second),
            ("VLLMQueue", third),
            ("VLLMServerDrift", fourth),
            ("VLLMServerNotVerified", fourth),
        }
        fired = watch.until(expected, "each trouble has its alert")
        assert ask(scene, second, 1, path="standin/go_on") == 200
        scene.fleet.exec(first, ["docker", "start", "vllm"])
        assert {one.result() for one in [hanging, *queue]} == {200}
    assert all(own(node) <= set(labels.items()) for (_, node), labels in fired.items()), fired
    assert {labels["severity"] for labels in fired.values()} == {"page", "ticket"}
    other = {("VLLMServerDrift", fourth), ("VLLMServerNotVerified", fourth)}
    watch.until(other, "what is over clears")

    # A run that fails. What is wrong on the fourth stays until it is replaced.
    failing = {**ENV, "STANDIN_FAIL_AT": "kv_cache"}
    failed = scene.deploy("--limit", first, vllm_server_env=failing).failed()
    assert "failure ordered at stage kv_cache" in failed.text
    fired = watch.until({*other, ("VLLMRolloutFailed", first)}, "a rollout that failed")
    assert set(fired[("VLLMRolloutFailed", first)].items()) >= own(first) - {("release", release[first])}


def test_a_monitoring_that_is_down_or_hangs_costs_a_deployment_nothing(
    watch: Watch, note: Callable[[object], None]
) -> None:
    scene = watch.scene
    scene.fleet.exec("gateway1", ["systemctl", "kill", "-s", "STOP", "prometheus", "prometheus-alertmanager"])
    for node in [*scene.nodes, "gateway1"]:
        scene.fleet.exec(node, ["systemctl", "kill", "-s", "STOP", "vllm-fleet-metrics", "vllm-fleet-node-exporter"])
    began = time.monotonic()
    with watch.scene.clients(4) as clients:
        said = scene.deploy(vllm_server_env={**ENV, "STANDIN_START_SECONDS": "0.6"}).ok()
    took = time.monotonic() - began
    assert (clients.report.errors, clients.report.truncated) == (0, 0), clients.report
    assert "4 replaced" in said.text, said.output
    note(f"a deployment took {watch.took:.1f} s before there was a monitoring, {took:.1f} s with clients while it hung")
    for node in [*scene.nodes, "gateway1"]:
        scene.fleet.exec(node, ["systemctl", "kill", "-s", "CONT", "vllm-fleet-metrics", "vllm-fleet-node-exporter"])
    scene.fleet.exec("gateway1", ["systemctl", "kill", "-s", "CONT", "prometheus", "prometheus-alertmanager"])
    watch.until(set(), "a failed rollout clears with one that is verified")
