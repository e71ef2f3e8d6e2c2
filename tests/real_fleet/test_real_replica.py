# SPDX-License-Identifier: Apache-2.0
"""The real vLLM (CPU) over two nodes: tensor-parallel 2, one half on each; answers, dies, and comes back as a whole."""

from __future__ import annotations

import time

import pytest
from real_nodes import IMAGE, TREE, RealNodes
from replica_fleet import Replica
from tiny_model import make_model

pytestmark = pytest.mark.engine
NODES = ("node1", "node2")
MODEL = "/models/tiny"
ARGS = {
    "tensor-parallel-size": 2,
    "dtype": "float32",
    "max-model-len": 512,
    "enforce-eager": True,
    "load-format": "dummy",
}
ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def replica(real_nodes: RealNodes, tmp_path_factory: pytest.TempPathFactory) -> Replica:
    """Both nodes as one server."""
    make_model(real_nodes.models / "tiny")
    return Replica(
        real_nodes.fleet,
        tmp_path_factory.mktemp("replica"),
        vllm_server_image=IMAGE,
        vllm_server_model=MODEL,
        vllm_server_args=ARGS,
        vllm_server_env=ENV,
        vllm_server_volumes=[f"{TREE}:{TREE}:ro"],
        vllm_server_ready_timeout=600,
        vllm_server_verify_endpoints=["/v1/models"],
        # Random weights talk nonsense: that they answer at all takes both nodes.
        vllm_server_verify=[{"name": "any", "prompt": "Hello", "max_tokens": 8, "expect": {"min_chars": 1}}],
    )


def test_one_model_over_two_nodes_answers_and_a_lost_worker_brings_all_back(
    replica: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    first = replica.play().ok()
    ready = time.monotonic() - begun
    assert first.changed() == {"node1": 1, "node2": 1}
    answer = replica.ask(MODEL)
    assert answer
    head, worker = (replica.sh(node, "docker logs vllm 2>&1") for node in NODES)
    assert "world_size=2 rank=0" in head
    assert "world_size=2 rank=1" in worker
    assert "headless multiproc executor" in worker
    again = replica.play().ok()
    assert again.changed() == {"node1": 0, "node2": 0}

    counts = {node: replica.inspect(node)["RestartCount"] for node in NODES}
    killed = replica.sh("node2", "pgrep -f 'VLLM::Worker' | head -1")
    replica.sh("node2", f"kill -9 {killed}")
    noticed = replica.wait("the head is down", lambda: not replica.healthy(), 60)
    back = replica.wait(
        "all ranks are back",
        lambda: all(replica.inspect(n)["RestartCount"] > counts[n] for n in NODES) and replica.healthy(),
        300,
    )
    assert replica.ask(MODEL)
    assert replica.play().ok().changed() == {"node1": 0, "node2": 0}
    with capsys.disabled():
        print(
            f"\nfirst deployment {ready:.0f} s; answer {answer!r}; worker killed: head down after {noticed:.1f} s, "
            f"the replica answers again after {noticed + back:.0f} s"
        )
