# SPDX-License-Identifier: Apache-2.0
"""What moved between two releases of vLLM, read from PyPI's own wheels, is what the project's data say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ansible.module_utils.vllm_fleet.vllm import release_data

ROOT = Path(__file__).resolve().parents[2]


def test_the_data_have_what_the_wheels_of_two_releases_show():
    """A third of a GB each, which are removed again; the newest is the one up to which the data go."""
    command = [sys.executable, ROOT / "scripts/release_moves", "0.32.0", release_data.NEWEST]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    moved = done.stdout.splitlines()
    assert moved[0] == f"vLLM 0.32.0 -> {release_data.NEWEST}"
    assert "+ flag --watchdog-config" in moved
    assert "- variable VLLM_ROCM_USE_AITER_FP4_ASM_GEMM" in moved
    turned = {one.name: f"{one.before} -> {one.after}" for one in release_data.DEFAULTS if one.since == "0.33"}
    assert {line for line in moved if line[0] == "!"} == {f"! default {name}: {how}" for name, how in turned.items()}
