# SPDX-License-Identifier: Apache-2.0
"""deploy.yml over two nodes with the real vLLM (CPU) and a real model, behind a gateway: changed while clients go on
asking, measured with vLLM's own benchmark, and taken away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from load import Load
from real_nodes import RealNodes
from real_site import KEY, LOCAL, Site

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def site(real_nodes: RealNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two servers behind a gateway, and none when the tests are over."""
    made = Site(real_nodes, tmp_path_factory.mktemp("site"))
    try:
        made.play("deploy.yml")
        yield made
    finally:
        made.play("playbooks/teardown.yml", "-e", "teardown_confirm=yes")
        for node in real_nodes.fleet.nodes:
            assert real_nodes.fleet.exec(node.name, ["docker", "ps", "-aq"]).stdout == ""


def test_a_change_rolls_through_and_no_request_is_lost(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    # Two cores answer slowly while another server loads on them.
    slow: dict[str, Any] = {"concurrency": 2, "max_tokens": 16, "timeout": 300.0}
    with Load(site.url, model=LOCAL["vllm_server_model"], api_key=KEY, **slow) as clients:
        clients.wait_for(2, 300)
        said = site.play("deploy.yml", vllm_server_args={"max-model-len": 768})
        clients.wait_for(2, 300)
    assert "2 of 2 replicas, in 2 waves: node1 | node2" in " ".join(said.split())
    assert clients.report.clean, str(clients.report)
    assert clients.report.servers.keys() == {"node1", "node2"}
    for node in site.report()["nodes"]:
        assert (node["outcome"], node["release"]["release"]) == ("replaced", 2)
        assert "Paris" in node["answers"][0]["content"]
    assert "Nothing to do" in site.play("deploy.yml", "--tags", "rollout")
    with capsys.disabled():
        table = said[said.index("FLEET") :].split("\n", 1)[1]
        print(f"\n{table}{clients.report}")


def test_what_one_node_has_compiled_the_other_one_takes(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """With torch.compile: node1 compiles in the first wave, and node2 has its files before its own server stops."""
    said = site.play("deploy.yml", vllm_server_args={"max-model-len": 768, "enforce-eager": False})
    spent = {}
    for node in site.report()["nodes"]:
        assert node["outcome"] == "replaced", node
        at = {one["stage"]: one["at"] for one in node["stages"]}
        spent[node["name"]] = min(t for t in at.values() if t > at["compiling"]) - at["compiling"], at["ready"]
    with capsys.disabled():
        print(f"\nseconds of torch.compile, and until ready: {spent}\n{said[said.index('FLEET') :]}")
    assert spent["node2"][0] < spent["node1"][0] / 2
    assert "Nothing to do" in site.play("deploy.yml", "--tags", "rollout")


def test_vllms_own_benchmark_goes_into_the_report(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"requests": 4, "concurrency": 2, "input_tokens": 32, "output_tokens": 8}
    words = [word for name, value in few.items() for word in ("-e", f"benchmark_{name}={value}")]
    said = site.play("playbooks/benchmark.yml", *words)
    for node in site.report()["nodes"]:
        found = node["benchmark"]
        assert (found["completed"], found["failed"]) == (4, 0)
        assert found["total_output_tokens"] == 4 * 8
        assert found["output_throughput"] > 0
        assert found["mean_ttft_ms"] > 0
    with capsys.disabled():
        print("\n" + said[said.index("FLEET") :].split("\n", 1)[1])
