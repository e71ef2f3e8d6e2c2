# SPDX-License-Identifier: Apache-2.0
"""The network of a replica's nodes is checked without a gateway in the inventory, too; nodes that do not answer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Nothing listens on port 1.
INVENTORY = """
vllm:
  hosts:
    one: {vllm_server_replica: pair, ansible_host: 127.0.0.1}
    two: {vllm_server_replica: pair, ansible_host: 127.0.0.2}
    alone: {ansible_host: 127.0.0.3}
  vars:
    ansible_port: 1
    vllm_server_model: acme/large
    vllm_server_model_exact: true
    vllm_image_tag: v0.32.0
    vllm_server_args: {tensor-parallel-size: 8, pipeline-parallel-size: 2}
"""


@pytest.mark.parametrize("playbook", ["deploy.yml", "playbooks/preflight.yml"])
def test_the_network_of_a_replica_is_checked_without_a_gateway(playbook: str, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(INVENTORY)
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_SSH_RETRIES": "0"}
    environ |= {"ANSIBLE_NOCOLOR": "1", "VLLM_FLEET_REPORTS": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        ["ansible-playbook", playbook, "-i", str(inventory)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    _, _, rest = done.stdout.partition("TASK [preflight : Check the node's network, and listen")
    checked, _, _ = rest.partition("PLAY [")
    assert "[one]" in checked, done.stdout
    assert "[two]" in checked, done.stdout
    assert "[alone]" not in checked, done.stdout
