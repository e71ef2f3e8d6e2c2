# SPDX-License-Identifier: Apache-2.0
"""scripts/sync_recipes on a small checkout: what changed, what is no preset, a draft. Nothing of the project is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
meta: {date_updated: 2026-08-01, hardware: {mi300x: verified, h100: verified}}
model: {model_id: acme/Tiny-1B, min_vllm_version: 0.20.0, base_args: [--trust-remote-code]}
features: {reasoning: {description: words of theirs, args: [--reasoning-parser, x]}}
variants: {default: {precision: bf16, vram_minimum_gb: 9, description: words of theirs}}
hardware_overrides: {amd: {extra_env: {VLLM_ROCM_USE_AITER: "1"}}}
strategy_overrides: {single_node_tp: {tp: 1}}
"""


@pytest.fixture
def checkout(tmp_path):
    file = tmp_path / "models/acme/Tiny-1B.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(RECIPE)
    (file.parent / "Other.yaml").write_text(RECIPE.replace("mi300x: verified, ", ""))
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, timeout=60)
    return tmp_path


def sync(checkout, *words):
    command = [sys.executable, ROOT / "scripts/sync_recipes", checkout, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_recipes_that_are_no_preset_and_a_draft_of_one(checkout):
    assert sync(checkout, "--list").stdout == "models/acme/Tiny-1B.yaml: MI300X verified\n"
    done = sync(checkout, "--new", "models/acme/Tiny-1B.yaml")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout) == {
        "model": "acme/Tiny-1B",
        "min_vllm": "0.20.0",
        "api": "chat",
        "vram_gb": 9,
        "accelerators": {
            "rocm": {
                "args": {"tensor-parallel-size": 1, "trust-remote-code": True},
                "env": {"VLLM_ROCM_USE_AITER": "1"},
            },
            "MI300X": {"verified_by": "vllm-project/recipes", "gpus": 1},
        },
        "features": {"reasoning": {"args": {"reasoning-parser": "x"}}},
        "recipe": {"file": "models/acme/Tiny-1B.yaml"},
    }
    assert "words of theirs" not in done.stdout


def test_what_changed_upstream_is_a_diff_and_fails(checkout):
    """All recipes of the presets are gone from this one."""
    done = sync(checkout)
    assert done.returncode == 1
    assert '- "models/zai-org/GLM-4.7.yaml": {' in done.stdout
    assert "glm-4.7.yml: models/zai-org/GLM-4.7.yaml is not among the recipes" in done.stdout


def test_what_is_no_checkout_is_said(tmp_path):
    done = sync(tmp_path / "none")
    assert done.returncode and "git ls-tree ended with" in done.stderr
