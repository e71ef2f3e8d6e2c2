# SPDX-License-Identifier: Apache-2.0
"""deploy.yml over two nodes with the real vLLM (CPU) and a real model, behind a gateway: changed while clients go on
asking, measured with vLLM's own benchmark, and taken away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from load import Load
from real_nodes import CACHE, IMAGE, TREE, RealNodes

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
LOCAL = yaml.safe_load((ROOT / "inventory/local/group_vars/vllm.yml").read_text())
KEY = "a-key-of-this-test"


class Site:
    """The nodes as the user of an inventory has them."""

    def __init__(self, nodes: RealNodes, folder: Path) -> None:
        """Write the inventory; the first node is the gateway, too."""
        self.nodes, self.folder, self.reports = nodes, folder, folder / "reports"
        inventory = yaml.safe_load((nodes.folder / "inventory.yml").read_text())
        inventory["all"]["children"]["gateway"] = {"hosts": {"node1": {}}}
        (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
        name, _, tag = IMAGE.partition(":")
        self.variables: dict[str, Any] = {
            **{name: LOCAL[name] for name in ("vllm_server_model", "vllm_server_revision", "vllm_server_accelerator")},
            "vllm_server_volumes": [f"{TREE}:{TREE}:ro"],
            "vllm_server_bind": "0.0.0.0",
            "vllm_server_api_key": KEY,
            "vllm_server_ready_timeout": 600,
            "vllm_server_env": {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            # As from an archive that was loaded before.
            "vllm_image_source": "archive",
            "vllm_image_archive": "/nowhere.tar",
            "vllm_image_name": name,
            "vllm_image_tag": tag,
            "vllm_image_expected_id": nodes.image_id,
            "hf_cache_source": "controller",
            "hf_cache_controller_path": str(CACHE / "seed"),
            "hf_cache_distribution": "rsync",
            "hf_cache_path": "/var/lib/huggingface",
            "hf_cache_create": True,
        }

    def play(self, playbook: str, *words: str, **edit: Any) -> str:
        """Run a playbook that must go well, after an edit."""
        self.variables |= edit
        (self.folder / "group_vars").mkdir(exist_ok=True)
        (self.folder / "group_vars" / "all.yml").write_text(yaml.safe_dump(self.variables))
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "400"}
        environ["VLLM_FLEET_REPORTS"] = str(self.reports)
        command = [PLAYBOOK, "-i", str(self.folder / "inventory.yml"), str(ROOT / playbook), *words]
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def report(self) -> dict[str, Any]:
        """The newest report."""
        newest = max(self.reports.glob("*/report.json"), key=lambda path: path.stat().st_mtime_ns)
        found: dict[str, Any] = json.loads(newest.read_text())
        return found


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
    url = f"http://{site.nodes.fleet.node('node1').address}:8080"
    # Two cores answer slowly while another server loads on them.
    slow: dict[str, Any] = {"concurrency": 2, "max_tokens": 16, "timeout": 300.0}
    with Load(url, model=LOCAL["vllm_server_model"], api_key=KEY, **slow) as clients:
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
