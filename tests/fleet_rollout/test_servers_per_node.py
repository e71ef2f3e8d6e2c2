# SPDX-License-Identifier: Apache-2.0
"""Several servers on each of two nodes, two models behind the gateway. One story; at its end the fleet is as before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fake_hf_cache import FakeCache, model_files
from load import Load
from node_image import docker
from scene import KEY, Run, Scene
from sysfs import trees

pytestmark = pytest.mark.engine
PAIR, SECOND = ["node3", "node4"], "acme/second"
LIMIT = ("--limit", "node3,node4,gateway1")


class Pair:
    """Two nodes of the fleet that have servers by entries, which a test edits."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.source = scene.dir / "vllm_servers.yml"
        self.source.write_text("---\nplugin: vllm_servers\n")
        # Another commit than that of the fleet's model, which the group has for all.
        seed = FakeCache(
            scene.dir / "seed", {**model_files(2), "README.md": b"# second\n"}, repo_id=SECOND, commit="b" * 40
        )
        second = {"vllm_server_model": SECOND, "vllm_server_revision": seed.commit}
        self.entries: dict[str, dict[str, Any]] = {
            "chat": {"replicas": 2},
            "second": {**second, "vllm_server_args": {"max-model-len": 512}},
        }
        self.more: dict[str, dict[str, Any]] = {}

    def write(self) -> None:
        for node in PAIR:
            path = self.scene.dir / "host_vars" / f"{node}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"vllm_servers": self.entries, **self.more.get(node, {})}))

    def words(self, *words: str) -> tuple[str, ...]:
        self.write()
        return ("-i", str(self.source), *LIMIT, *words)

    def deploy(self, *words: str, **options: Any) -> Run:
        return self.scene.deploy(*self.words(*words), **options)

    def remove(self) -> None:
        for path in (self.source, *(self.scene.dir / "host_vars" / f"{node}.json" for node in PAIR)):
            path.unlink(missing_ok=True)

    def containers(self) -> dict[str, str]:
        """Docker's ids of the servers of both nodes, by the names of their hosts."""
        found = {}
        for node in PAIR:
            shown = self.scene.fleet.exec(node, ["docker", "ps", "--no-trunc", "--format", "{{.Names}} {{.ID}}"]).stdout
            for line in shown.splitlines():
                name, identity = line.split()
                found[f"{node}-{name.removeprefix('vllm-')}"] = identity
        return found

    def up(self) -> set[str]:
        return {name for name, state in self.scene.gateway().items() if state == "UP" and name[:5] in PAIR}

    def sh(self, node: str, script: str) -> str:
        return self.scene.fleet.exec(node, ["sh", "-c", script]).stdout.strip()


@pytest.fixture(scope="module")
def pair(scene: Scene) -> Iterator[Pair]:
    """Their own servers come back in the end, and those of the entries go."""
    kept = dict(scene.variables)
    made = Pair(scene)
    yield made
    made.remove()
    scene.variables = kept
    scene.deploy("-e", "rollout_remove_undescribed=true").ok()
    assert {name: len(made.sh(name, "docker ps -aq").split()) for name in PAIR} == {"node3": 1, "node4": 1}
    for node in PAIR:
        made.sh(node, "rm -rf /var/lib/vllm-fleet/vllm-*")


@pytest.fixture
def load(scene, note):
    """Clients of both models for the length of a test; every request of theirs gets its whole answer."""
    key = scene.variables.get("vllm_server_api_key", KEY)
    with ExitStack() as stack:
        first = stack.enter_context(scene.clients(4))
        first.wait_for(8)
        both = [first]
        if "UP" in {state for name, state in scene.gateway().items() if name.endswith("-second")}:
            both.append(stack.enter_context(Load(scene.url, model=SECOND, api_key=key, concurrency=4)))
        yield both
        for one in both:
            one.wait_for(8)
    for one in both:
        note(one.report)
        assert one.report.clean, str(one.report)


def test_a_first_deployment_does_what_belongs_to_a_node_once(pair, load):
    """The nodes lack what the engine's role installs, and the second model; each server of the old kind goes."""
    for node in PAIR:
        pair.sh(node, "DEBIAN_FRONTEND=noninteractive apt-get -qq remove python3-docker >/dev/null 2>&1")
    run = pair.deploy(vllm_server_port=8300, rollout_waves=["100%"], rollout_remove_undescribed=True).ok()
    servers = [f"{node}-{name}" for node in PAIR for name in ("chat-1", "chat-2", "second")]
    assert sorted(pair.containers()) == servers
    assert pair.up() == set(servers)
    # What the stories before have left on these nodes is forgotten, and named.
    assert re.search(r"gateway1 forgets node3.* \(acme/\w+, serving now\)", run.text), run.output
    # One of each node installs, one of each node and model fetches; the others take it over.
    installs = run.output.partition("TASK [docker_engine : Install Docker's packages]")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^changed: \[(\S+)\]", installs, re.M)) == ["node3-chat-1", "node4-chat-1"], run.output
    fetched = re.findall(r"PLAY \[Fetch the weights: (.*?)\]", run.output)
    assert fetched == ["node3-chat-1, node4-chat-1", "node3-second, node4-second"], run.output
    again = pair.deploy().ok()
    assert set(again.recap("changed").values()) == {0}, again.output
    assert "6 servers on 2 nodes, nothing to change" in again.text, again.output


def test_one_model_changes_over_a_killed_run_and_the_other_one_is_untouched(pair, load):
    before = pair.containers()
    pair.entries["second"]["vllm_server_args"] = {"max-model-len": 1024}
    slow = {**pair.scene.variables.get("vllm_server_env", {}), "STANDIN_START_SECONDS": "3"}
    pair.entries["second"]["vllm_server_env"] = {**slow, "STANDIN_TOKEN_DELAY": "0.02"}
    run = pair.scene.start(*pair.words("--tags", "rollout", "--limit", "*-second,gateway1"))
    run.until(r"\[node3-second\] starting container")
    run.kill()
    done = pair.deploy("--tags", "rollout", "--limit", "*-second,gateway1").ok()
    assert "2 of 2 replicas" in done.text or "1 of 2 replicas" in done.text, done.output
    after = pair.containers()
    assert {name for name in before if after[name] != before[name]} == {"node3-second", "node4-second"}
    pair.scene.until(lambda: pair.up() == set(after), "all up")


def test_one_that_does_not_start_leaves_its_neighbours_alone(pair, load):
    before, kept = pair.containers(), pair.entries["second"]["vllm_server_env"]
    pair.entries["second"]["vllm_server_env"] = {"STANDIN_FAIL_TEXT": "vllm serve: error: argument --x: invalid choice"}
    run = pair.deploy("--tags", "rollout", "--limit", "node3-second").failed()
    pair.entries["second"]["vllm_server_env"] = kept
    assert "node3-second: bad_argument: " in run.text, run.output
    assert pair.containers() == before
    pair.scene.until(lambda: pair.up() == set(before), "all up")


def test_one_server_is_added_and_another_one_goes_with_its_requests(pair, load):
    before = pair.containers()
    pair.entries["chat"]["replicas"] = 1
    pair.entries["more"] = {}
    table = pair.scene.deploy(*pair.words(), playbook="playbooks/status.yml").ok()
    assert re.search(r"node3: vllm-chat-2 .* not described any more", table.output), table.output
    run = pair.deploy("--tags", "rollout").ok()
    assert "Removed, not described any more: vllm-chat-2 on node3; vllm-chat-2 on node4" in run.text, run.output
    after = pair.containers()
    assert sorted(after) == [f"{node}-{name}" for node in PAIR for name in ("chat-1", "more", "second")]
    assert {name for name in after if after[name] == before.get(name)} == set(after) - {"node3-more", "node4-more"}
    assert pair.up() == set(after)


def test_a_node_boots_once_in_a_wave_with_all_of_its_servers(pair, load):
    before, place = pair.containers(), pair.scene.fleet.node("node4").container
    tree = trees.Tree(pair.scene.dir / "gpus-of-node4")
    tree.host()
    tree.driver(version=None, srcversion=None)
    tree.add_gpus(1)
    docker("cp", str(tree.root), f"{place}:/node")
    booted = "systemctl show --property=UserspaceTimestamp"
    pair.more["node4"] = {
        **{"rocm_enabled": True, "rocm_allow_reboot": True, "rocm_reboot_required": ["this test wants it"]},
        **{"rocm_sysfs_root": "/node/sys", "rocm_allowed_driver_versions": ["inbox"], "rocm_boot_time_command": booted},
        "rocm_disable_numa_balancing": False,
        # New containers, too: in the one turn of the node.
        "vllm_server_labels": {"edited": "for the boot"},
    }
    # A node that reboots is a container that ends: the engine starts it again, as firmware would.
    docker("update", "--restart", "always", place)
    began = pair.sh("node4", booted)
    try:
        run = pair.deploy("--tags", "rollout").ok()
    finally:
        docker("update", "--restart", "no", place)
        pair.more.clear()
        pair.sh("node4", "rm -rf /node")
    assert pair.sh("node4", booted) != began
    assert "node4 will be drained and rebooted in that wave: this test wants it." in run.text, run.output
    assert "3 of 6 replicas, in 1 wave: node4-chat-1, node4-second and node4-more." in run.text
    assert run.output.count("Reboot and wait for the node") == 1
    after = pair.containers()
    assert {name for name in before if after[name] != before[name]} == {name for name in before if "node4" in name}
    assert pair.up() == set(before)
    report = json.loads(max(pair.scene.reports.glob("*/report.json")).read_text())
    gaps = {node["name"]: len(node["down"]) for node in report["nodes"] if node["name"].startswith("node4")}
    assert set(gaps.values()) == {1}, f"one time without a server for the boot and the edit: {gaps}"


def test_a_mistake_in_an_entry_ends_the_run_before_anything_is_looked_at(pair):
    pair.entries["more"] = {"gpu": 1}
    run = pair.deploy().failed()
    assert "node3, entry more: gpu is no key of an entry: write gpus. (And so of 1 more node.)" in run.text, run.output
    assert "PLAY [" not in run.output
    pair.entries["more"] = {}
