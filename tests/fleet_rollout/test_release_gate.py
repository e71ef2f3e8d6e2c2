# SPDX-License-Identifier: Apache-2.0
"""Releases that start, answer their verification and are worse than the one before: they end at the canary, and no request is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from load import Load
from scene import Scene

pytestmark = pytest.mark.engine
LIMITS = {"ttft": 1.5, "itl": 1.3, "tokens_per_second": 0.7, "answers": 0.9}
LOAD = {"seconds": 3, "concurrency": 2, "input_tokens": 40, "output_tokens": 20}
ENV = {"STANDIN_START_SECONDS": "0.5", "STANDIN_TOKEN_DELAY": "0.02"}


@pytest.fixture(scope="module")
def judged(scene: Scene) -> Iterator[Scene]:
    """The fleet on a release that is as others leave it, with limits for the next one."""
    kept = dict(scene.variables)
    scene.deploy(vllm_server_env=ENV).ok()
    scene.variables |= {"rollout_gate": LIMITS, "rollout_gate_load": LOAD}
    yield scene
    scene.variables = kept
    scene.deploy().ok()


@pytest.fixture
def clients(judged: Scene, note: Callable[[object], None]) -> Iterator[Load]:
    """Clients for the length of a test; every one of their requests gets its whole answer."""
    with judged.clients(4) as asking:
        asking.wait_for(8)
        yield asking
        asking.wait_for(8)
    note(asking.report)
    assert asking.report.clean, str(asking.report)


def ends_on_the_old_release(scene: Scene, before: dict[str, str]) -> None:
    assert scene.servers() == before
    scene.until(lambda: set(scene.gateway().values()) == {"UP"}, "all are up")


def test_a_slower_release_goes_back_although_runs_are_killed_before_and_after_the_verdict(
    judged: Scene, clients: Load
) -> None:
    before = judged.servers()
    slow = {**ENV, "STANDIN_TOKEN_DELAY": "0.04"}
    judged.killed("before:Measure the release that is replaced", "--tags", "rollout", vllm_server_env=slow)
    assert judged.servers() == before
    judged.killed("after:Fail when the new release is worse", "--tags", "rollout")
    assert judged.gateway()["node1"] != "UP", "no client meets what was not judged"
    done = judged.deploy("--tags", "rollout").failed()
    assert re.search(
        r"node1: inter-token latency is 4\d\.\d ms, 2\d\.\d ms with release \d+ on this node", done.text
    ), done.output
    assert re.search(r"inter-token latency +4\S+ ms +2\S+ ms +- +\d\.\d\d ! +1\.3 +\d+%", done.output), done.output
    assert "not touched: node2, node3 and node4" in done.text
    ends_on_the_old_release(judged, before)


def test_a_release_with_a_third_of_its_answers_wrong_goes_back(judged: Scene, clients: Load) -> None:
    before = judged.servers()
    wrong = {**ENV, "STANDIN_WRONG_SHARE": "0.3"}
    done = judged.deploy("--tags", "rollout", vllm_server_env=wrong, rollout_gate={"answers": 0.9}).failed()
    assert "node1: 14 of 20 known answers are right, 20 with release" in done.text, done.output
    assert "The previous server is back and ready." in done.text
    ends_on_the_old_release(judged, before)
