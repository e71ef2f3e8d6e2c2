# SPDX-License-Identifier: Apache-2.0
"""A release that leaks errors when it has served for a while: seen in its soak and taken back, whenever runs are killed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from scene import Scene

pytestmark = pytest.mark.engine
GOOD = {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.02"}
SOAKS = r"the new release is watched for (\d+) s more"


def test_a_release_that_leaks_errors_late_is_taken_back(scene: Scene, note: Callable[[object], None]) -> None:
    kept = dict(scene.variables)
    scene.deploy(vllm_server_env=GOOD).ok()
    before = {node: sorted(scene.server(node)["Config"]["Env"]) for node in scene.nodes}
    leaks = {"vllm_server_env": {**GOOD, "STANDIN_CONTROL": "1"}, "rollout_soak": "2m"}
    rollout = ["--tags", "rollout"]
    try:
        with scene.clients(8) as clients:
            at = "after:Confirm the server, and record the release"
            scene.killed(at, *rollout, **leaks, rollout_on_failure="rollback")
            assert scene.gateway()["node1"] == "DRAIN", "good, and not admitted"
            run = scene.start(*rollout, kill="after:Record what is wrong with the new release")
            run.until(SOAKS)
            assert int(re.findall(SOAKS, run.output)[0]) > 110, "what no client has met was not watched so far"
            scene.order("node1", "leak")
            assert run.wait().rc < 0
            asked = clients.report.requests
            done = scene.deploy(*rollout).failed()
            clients.wait_for(8)
        note(f"{clients.report}; {clients.report.requests - asked} requests after the kill")
        assert not re.search(SOAKS, done.output), "the verdict was there already"
        assert re.search(
            r"node1: the new release did not pass its soak: \d+ of its \d+ answers at the gateways were errors \(\d+%, of its "
            r"peers 0%\), as an earlier run saw\.",
            done.text,
        ), done.output
        assert "not touched: node2, node3 and node4" in done.text
        assert "Rolled back, because node1 failed: node1 serves release" in done.text
        assert "1 failed and taken back" in done.text, done.output
        # What clients lost is what the release itself answered.
        assert all("500" in why and "made to leak" in why for why in clients.report.failures), clients.report.failures
        assert clients.report.truncated == 0
        assert {node: sorted(scene.server(node)["Config"]["Env"]) for node in scene.nodes} == before
        scene.until(lambda: set(scene.gateway().values()) == {"UP"}, "all are up")
    finally:
        scene.variables = kept
