# SPDX-License-Identifier: Apache-2.0
"""The module hf_snapshot as a process, for the tests of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from fake_hf_cache import REPO

ROOT = Path(__file__).resolve().parents[2]

# The module as Ansible's own wrapper starts it, without the second that the command line takes.
RUN = f"""
import sys
import ansible.module_utils
from ansible.module_utils import basic
ansible.module_utils.__path__.append({str(ROOT / "module_utils")!r})
sys.path.insert(0, {str(ROOT / "library")!r})
basic._ANSIBLE_PROFILE = "legacy"
import hf_snapshot
hf_snapshot.main()
"""


def start(options: dict[str, Any], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdin
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": {"repo_id": REPO, "margin": 0, **options}}))
    process.stdin.close()
    process.stdin = None
    return process


def module(*, check: bool = False, environment: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    extra = {"_ansible_check_mode": check, "_ansible_diff": True}
    stdout, stderr = start(options | extra, environment).communicate(timeout=120)
    assert stdout, stderr
    return cast("dict[str, Any]", json.loads(stdout.strip().splitlines()[-1]))


def four_ways(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Check, real, again, again in check mode."""
    return [
        module(check=True, **options),
        module(**options),
        module(**options),
        module(check=True, **options),
    ]
