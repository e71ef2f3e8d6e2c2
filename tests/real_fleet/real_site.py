# SPDX-License-Identifier: Apache-2.0
"""An inventory of nodes with the real vLLM (CPU) behind a gateway, and the playbooks that are run with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from real_nodes import CACHE, IMAGE, TREE, RealNodes

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
LOCAL = yaml.safe_load((ROOT / "inventory/local/group_vars/vllm.yml").read_text())
KEY = "a-key-of-this-test"


class Site:
    """The nodes as the user of an inventory has them."""

    def __init__(self, nodes: RealNodes, folder: Path, image: str = IMAGE, **variables: Any) -> None:
        """Write the inventory; the first node is the gateway, too. ``variables`` are laid over those of all sites."""
        self.nodes, self.folder, self.reports = nodes, folder, folder / "reports"
        inventory = yaml.safe_load((nodes.folder / "inventory.yml").read_text())
        inventory["all"]["children"]["gateway"] = {"hosts": {"node1": {}}}
        (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
        name, _, tag = image.partition(":")
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
            "rollout_order": "inventory",
            **variables,
        }

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://{self.nodes.fleet.node('node1').address}:8080"

    def run(self, playbook: str, *words: str, **edit: Any) -> tuple[int, str]:
        """Run a playbook after an edit; gives its exit code and what it printed."""
        self.variables |= edit
        (self.folder / "group_vars").mkdir(exist_ok=True)
        (self.folder / "group_vars" / "all.yml").write_text(yaml.safe_dump(self.variables))
        environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "400"}
        environ["VLLM_FLEET_REPORTS"] = str(self.reports)
        command = [PLAYBOOK, "-i", str(self.folder / "inventory.yml"), str(ROOT / playbook), *words]
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        return done.returncode, done.stdout + done.stderr

    def play(self, playbook: str, *words: str, **edit: Any) -> str:
        """Run a playbook that must go well, after an edit."""
        code, said = self.run(playbook, *words, **edit)
        assert code == 0, said
        return said

    def report(self) -> dict[str, Any]:
        """The newest report."""
        newest = max(self.reports.glob("*/report.json"), key=lambda path: path.stat().st_mtime_ns)
        found: dict[str, Any] = json.loads(newest.read_text())
        return found


def changed(said: str) -> int:
    """What the recap of a run counts as changed, of all hosts together."""
    found = re.findall(r"^\S+\s+: .*\bchanged=(\d+)", said, re.MULTILINE)
    assert found, said
    return sum(map(int, found))
