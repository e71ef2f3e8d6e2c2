# SPDX-License-Identifier: Apache-2.0
"""Two nodes and a gateway that have IPv6 alone, by the two commands of a user: a deployment, and the one after it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import FakeCache
from fleet import Fleet
from node_image import docker

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]
KEY, MODEL = "canary-key-6a0c3d91", "acme/tiny"
#: What the roles would install: where the archive is reached by IPv4 alone, it has to be there before.
PACKAGES = {"node1": "rsync", "node2": "rsync", "gateway1": "haproxy"}


class Site:
    """The fleet, and what its user has in group_vars."""

    def __init__(self, fleet: Fleet, folder: Path, **variables: Any) -> None:
        self.fleet, self.folder = fleet, folder
        hosts = {node.name: {"vllm_server_bind": node.address} for node in fleet.nodes if node.group == "vllm"}
        groups = {"vllm": {"hosts": hosts}, "gateway": {"hosts": {"gateway1": {}}}}
        (folder / "site.json").write_text(json.dumps({"all": {"children": groups, "vars": variables}}))

    def run(self, playbook: str = "deploy.yml", *words: str) -> str:
        command = [Path(sys.executable).with_name("ansible-playbook"), "-i", f"{self.fleet.directory}/inventory.yml"]
        command += ["-i", self.folder / "site.json", ROOT / playbook, *words]
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"}
        environ["VLLM_FLEET_REPORTS"] = str(self.folder / "reports")
        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def sh(self, node: str, script: str) -> str:
        return self.fleet.exec(node, ["sh", "-c", script]).stdout.strip()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    import docker as sdk
    import standin

    client, folder = sdk.from_env(), tmp_path_factory.mktemp("ipv6")
    fleet = Fleet(f"ipv6-{os.getpid()}", lambda _: None)
    with standin.using_images():
        image = standin.build_image(client)
        try:
            fleet.up(folder / "fleet", ["bookworm", "trixie"], gateways=["bookworm"], ipv6=True)
            fleet.load([image])
            for node, package in PACKAGES.items():
                # Nodes with an engine have lists of packages.
                update = "apt-get update -qq && " if node == "gateway1" else ""
                install = f"{update}apt-get install -qq --no-install-recommends {package}"
                fleet.exec(node, ["sh", "-c", f"{install} && systemctl disable --now {package} 2>/dev/null || true"])
            fleet.drop_ipv4()
            seed = FakeCache(folder / "seed", repo_id=MODEL)
            name, _, tag = image.partition(":")
            yield Site(
                fleet,
                folder,
                vllm_server_model=MODEL,
                vllm_server_revision=seed.commit,
                vllm_server_accelerator="cpu",
                vllm_server_args={"max-model-len": 512},
                vllm_server_env={"STANDIN_START_SECONDS": "0.5"},
                vllm_server_api_key=KEY,
                vllm_image_source="archive",
                vllm_image_archive="/nowhere.tar",
                vllm_image_expected_id=docker("image", "inspect", "--format", "{{.Id}}", image),
                vllm_image_name=name,
                vllm_image_tag=tag,
                hf_cache_source="controller",
                hf_cache_controller_path=str(seed.cache),
                hf_cache_path="~/.cache/huggingface",
                hf_cache_create=True,
                gateway_bind="::",
            )
        finally:
            fleet.down()
            client.close()


def test_a_fleet_with_ipv6_alone_is_deployed_serves_and_is_left_alone_by_the_next_run(site: Site) -> None:
    for node in site.fleet.nodes:
        assert ":" in node.address
        assert site.sh(node.name, "ip -4 -o address show scope global dev eth0") == ""

    first = site.run()
    assert "Copy the missing blobs by rsync" in first, first
    commits = "cat ~ops/.cache/huggingface/hub/models--acme--tiny/refs/main"
    assert len({site.sh(node, commits) for node in ("node1", "node2")}) == 1
    for node in ("node1", "node2"):
        address = site.fleet.node(node).address
        assert f"[{address}]:8000 " in site.sh(node, "ss -Hltn"), node

    at = f"http://[{site.fleet.node('gateway1').address}]:8080/v1/chat/completions"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    request = urllib.request.Request(
        at, json.dumps(body).encode(), {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert "Paris" in json.load(answer)["choices"][0]["message"]["content"]

    again = site.run()
    assert re.findall(r"^node\d\s+: ok=.*?changed=(\d+)", again, re.MULTILINE) == ["0", "0"], again
