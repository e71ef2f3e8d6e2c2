# SPDX-License-Identifier: Apache-2.0
"""The archive of the module that probes the nodes is where Ansible's workers look for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import importlib.util, multiprocessing, sys
from pathlib import Path
from ansible import constants
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook import Playbook
from ansible.plugins.loader import init_plugin_loader
from ansible.vars.manager import VariableManager
init_plugin_loader([])
spec = importlib.util.spec_from_file_location("report", "callback_plugins/vllm_fleet_report.py")
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)
loader = DataLoader()
known = VariableManager(loader, InventoryManager(loader, ["node1,"]))
for name in ("../deploy", "preflight", "usage"):
    print(name, report._probing_module(Playbook.load(f"playbooks/{name}.yml", known, loader)))
report._build_ahead("node_probe")
for child in multiprocessing.active_children():
    child.join()
cache = Path(constants.DEFAULT_LOCAL_TMP) / "ansiballz_cache"
print(sorted(file.name for file in cache.iterdir() if file.stat().st_size))
"""


def test_the_archive_is_built_where_nodes_are_probed() -> None:
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *probing, files = done.stdout.splitlines()
    assert probing == ["../deploy node_probe", "preflight node_probe", "usage None"]
    assert files == "['ansible.legacy.node_probe-ZIP_DEFLATED-none']"
