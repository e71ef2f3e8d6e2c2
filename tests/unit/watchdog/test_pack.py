# SPDX-License-Identifier: Apache-2.0
"""The program's archive: the same bytes wherever it is made, all that it needs, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ansible.module_utils.vllm_fleet.watchdog.pack import needed, pack

PACKAGES = Path(__file__).parents[3] / "module_utils" / "vllm_fleet"


def test_the_same_files_make_the_same_bytes(tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(PACKAGES, copy)
    for path in copy.rglob("*"):
        path.chmod(0o700)
        os.utime(path, (0, 0))
    (copy / "common" / "stray.py").write_text("")
    assert pack(PACKAGES) == pack(copy)


def test_what_is_in_it():
    files = needed(PACKAGES)
    assert {"watchdog/judge.py", "server/lifecycle.py", "vllm/chat.py", "diagnosis/diagnose.py"} <= set(files)
    assert not [name for name in files if name.startswith(("gateway/", "rollout/", "preflight/", "replica/"))]


def test_each_file_in_it_can_be_imported_by_a_bare_python(tmp_path):
    archive = tmp_path / "watchdog.pyz"
    archive.write_bytes(pack(PACKAGES))
    names = [f"vllm_fleet.{name.removesuffix('.py').replace('/', '.')}" for name in needed(PACKAGES)]
    program = "import importlib, sys\nsys.path.insert(0, sys.argv[1])\nfor name in sys.argv[2:]: importlib.import_module(name)"
    command = [sys.executable, "-I", "-S", "-c", program, str(archive), *(n for n in names if "__init__" not in n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
