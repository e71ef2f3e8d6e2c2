# SPDX-License-Identifier: Apache-2.0
"""A release that breaks on the third node only: those before go back, also what a killed run had brought."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator

import pytest
from scene import Scene

pytestmark = pytest.mark.engine
GOOD = {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.02"}
BREAKS = {**GOOD, "STANDIN_FAIL_TEXT": "vllm serve: error: argument --dtype: invalid choice: 'float31'"}
NODES = ["node1", "node2", "node3"]


@contextlib.contextmanager
def moved(scene: Scene, node: str, folder: str) -> Iterator[None]:
    """A folder of the node's cache is not there meanwhile."""
    cache = "/home/ops/.cache/huggingface"
    scene.fleet.exec(node, ["mv", f"{cache}/{folder}", f"{cache}/{folder}.away"])
    try:
        yield
    finally:
        scene.fleet.exec(node, ["mv", f"{cache}/{folder}.away", f"{cache}/{folder}"])


def made_of(scene: Scene) -> dict[str, list[str]]:
    """What the nodes' servers are started with."""
    return {
        node: sorted(scene.server(node)["Config"]["Cmd"] + scene.server(node)["Config"]["Env"]) for node in scene.nodes
    }


def test_a_release_that_breaks_on_the_third_node_is_taken_back(scene: Scene, note: Callable[[object], None]) -> None:
    kept = dict(scene.variables)
    scene.deploy(vllm_server_env=GOOD).ok()
    before = made_of(scene)
    limit = ["--tags", "rollout", "--limit", ",".join(NODES)]
    env = f"{{{{ {json.dumps(BREAKS)} if inventory_hostname == 'node3' else {json.dumps(GOOD)} }}}}"
    # Names of a story before stay: gateways outside of the limit would not know others.
    args = {**scene.variables.get("vllm_server_args", {}), "max-model-len": 700}
    bad = {"vllm_server_env": env, "vllm_server_args": args, "rollout_on_failure": "rollback"}
    try:
        with scene.clients(4) as clients:
            clients.wait_for(8)
            run = scene.start(*limit, **bad)
            run.until(r"\[node2\] starting container")
            run.kill()
            assert made_of(scene)["node1"] != before["node1"]
            # A way back that fails: on the first node the weights are gone that its old release needs.
            run = scene.start(*limit)
            run.until(r"wave by wave: node3")
            with moved(scene, "node1", "hub"):
                done = run.wait().failed()
            stuck = "Not rolled back: node1, which still serves the new release: .* is not in the cache"
            assert re.search(stuck, done.text), done.output
            assert "Rolled back, because node3 failed: node2 serves release" in done.text, done.output
            assert made_of(scene)["node1"] != before["node1"]
            assert {node: made_of(scene)[node] for node in NODES[1:]} == {node: before[node] for node in NODES[1:]}
            assert set(scene.gateway().values()) == {"UP"}
            done = scene.deploy(*limit).failed()
            clients.wait_for(8)
        note(clients.report)
        assert clients.report.clean, str(clients.report)
        assert "Replaced before: node1 and node2." in done.text, done.output
        # Two nodes whose releases have the same number are said in one.
        back = r"Rolled back, because node3 failed: node1 (and node2 serve|serves) release \d+ again"
        assert re.search(back, done.text), done.output
        assert "invalid choice: 'float31'" in done.text
        assert "2 rolled back, 1 failed and restored" in done.text, done.output
        assert made_of(scene) == before
        scene.until(lambda: set(scene.gateway().values()) == {"UP"}, "all are up")
        for node in NODES:
            left = scene.fleet.exec(node, ["ls", "/var/lib/vllm-fleet/vllm"]).stdout
            assert "trial.json" not in left.split(), node
    finally:
        scene.variables = kept
    again = scene.deploy("--tags", "rollout", vllm_server_env=GOOD).ok()
    assert set(again.recap("changed").values()) == {0}, again.output
    scene.variables = kept
