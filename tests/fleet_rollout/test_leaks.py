# SPDX-License-Identifier: Apache-2.0
"""A release that leaks errors only after a while: seen during its soak, also by the second run, and taken back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from scene import Scene

pytestmark = pytest.mark.engine
GOOD = {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.02"}
#: Seconds until it leaks: longer than what a run does before its soak, and a killed one of it besides.
LATE = 75


def test_a_release_that_leaks_errors_late_is_taken_back(scene: Scene, note: Callable[[object], None]) -> None:
    kept = dict(scene.variables)
    scene.deploy(vllm_server_env=GOOD).ok()
    before = {node: sorted(scene.server(node)["Config"]["Env"]) for node in scene.nodes}
    leaks = {"vllm_server_env": {**GOOD, "STANDIN_LEAK_AFTER": str(LATE)}, "rollout_soak": "5m"}
    try:
        with scene.clients(8) as clients:
            run = scene.start("--tags", "rollout", **leaks, rollout_on_failure="rollback")
            run.until(r"the new release is watched for \d+ s more")
            first = int(re.findall(r"watched for (\d+) s more", run.output)[0])
            run.kill()
            done = scene.deploy("--tags", "rollout").failed()
            again = int(re.findall(r"watched for (\d+) s more", done.output)[0])
            clients.wait_for(8)
        note(f"{clients.report}; watched for {first} s more, after the kill for {again} s more")
        assert again < first <= 300
        assert re.search(
            r"node1: the new release did not pass its soak: \d+ of its \d+ answers at the gateways were errors \(\d+%, of its peers 0%\)",
            done.text,
        ), done.output
        assert "not touched: node2, node3 and node4" in done.text
        assert "Rolled back, because node1 failed: node1 serves release" in done.text
        # What clients lost is what the release itself answered.
        assert all("500" in why and "made to leak" in why for why in clients.report.failures), clients.report.failures
        assert clients.report.truncated == 0
        assert {node: sorted(scene.server(node)["Config"]["Env"]) for node in scene.nodes} == before
        scene.until(lambda: set(scene.gateway().values()) == {"UP"}, "all are up")
    finally:
        scene.variables = kept
