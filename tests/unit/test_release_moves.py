# SPDX-License-Identifier: Apache-2.0
"""scripts/release_moves: what moved between two wheels, read without running them, against what the project knows."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.models import sizing
from ansible.module_utils.vllm_fleet.vllm import release_data, releases

ROOT = Path(__file__).resolve().parents[2]
ENGINE = """
class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        group = parser.add_argument_group("x")
        group.add_argument("--model", "-m", default="a")
        {more}
"""
FRONTEND = """
class BaseFrontendArgs:
    chat_template: str | None = None
    def f(self): ...
class FrontendArgs(BaseFrontendArgs):
    disable_log_requests: bool = False
class Other:
    not_a_flag: int = 1
"""
VARIABLES = """
if TYPE_CHECKING:
    VLLM_ROCM_USE_AITER: bool = {aiter}
    VLLM_PORT: int | None = None
environment_variables: dict[str, Callable[[], Any]] = {{
    "VLLM_ROCM_USE_AITER": lambda: 1, "VLLM_PORT": lambda: 1, {more}
}}
raise SystemExit("it was run")
"""


def wheel(folder: Path, version: str, flag: str = "", variable: str = "", aiter: str = "False") -> Path:
    file = folder / f"vllm-{version}.whl"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("vllm/engine/arg_utils.py", ENGINE.format(more=f'group.add_argument("--{flag}")' if flag else ""))
        made.writestr("vllm/entrypoints/common/cli_args.py", FRONTEND)
        made.writestr("vllm/entrypoints/cli/serve.py", "")
        made.writestr("vllm/envs.py", VARIABLES.format(more=f'"{variable}": None' if variable else "", aiter=aiter))
        made.writestr(f"vllm-{version}.dist-info/METADATA", "")
    return file


def moves(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts/release_moves", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_what_moved_is_shown_and_what_the_project_does_not_know_fails(tmp_path):
    old = wheel(tmp_path, "0.32.0", flag="brand-old", variable="VLLM_ATTENTION_BACKEND")
    new = wheel(tmp_path, "0.33.0", flag="watchdog-config", variable="VLLM_BRAND_NEW", aiter="True")
    done = moves(old, new)
    assert done.stdout.splitlines() == [
        "vLLM 0.32.0 -> 0.33.0",
        "+ flag --watchdog-config",
        "- flag --brand-old",
        "+ variable VLLM_BRAND_NEW",
        "- variable VLLM_ATTENTION_BACKEND",
        "! default VLLM_ROCM_USE_AITER: False -> True",
    ]
    assert (done.returncode, done.stderr.split("\n  ")[1:]) == (
        1,
        ["FLAGS_GONE: brand-old", "DEFAULTS: VLLM_ROCM_USE_AITER\n"],
    )
    same = moves(new, new)
    assert (same.returncode, same.stdout) == (0, "vLLM 0.33.0 -> 0.33.0\nnothing moved\n")


@pytest.mark.parametrize("given", ["nothing-here", "."])
def test_what_is_no_wheel_is_said(tmp_path, given):
    done = moves(tmp_path if given == "." else given, given)
    assert done.returncode and ("no file, no folder" in done.stderr or "holds no vLLM" in done.stderr)


def test_the_data_agree_with_themselves():
    newest = max(releases.SINCE.values(), key=lambda one: releases.version_of(one) or (0, 0, 0))
    assert not releases.older(release_data.NEWEST, newest)
    assert releases.VARIABLES_UNTIL.keys() >= release_data.VARIABLES_INSTEAD.keys()
    assert not release_data.DEPRECATED.keys() & release_data.FLAGS_GONE.keys()
    for name, since in releases.VARIABLES_SINCE.items():
        assert releases.older(since, releases.VARIABLES_UNTIL.get(name, "9.0")), name


def test_a_default_is_that_of_the_release():
    assert [releases.default_of("gpu-memory-utilization", tag) for tag in ("v0.19.1", "v0.20.0", "nightly")] == [
        "0.9",
        "0.92",
        "0.92",
    ]


def test_a_flag_that_is_to_go_is_a_warning():
    machine = sizing.Machine("CPU")
    for tag, count in (("v0.33.0", 1), ("v0.31.0", 0), ("nightly", 0)):
        flags = {"log-config-file": "x", "disable-cascade-attn": True}
        found = sizing.size(sizing.Facts("acme/x"), machine, flags, image_version=tag).findings
        assert [one.what for one in found] == ["vLLM flags"] * count, tag
    found = sizing.size(sizing.Facts("acme/x"), machine, {"ir-op-priority": "x"}, image_version="v0.33.0").findings
    assert found[0].got == "--ir-op-priority (to be gone in 0.34)"


def test_the_page_names_every_default_that_turned():
    page = (ROOT / "docs/image.md").read_text()
    for turned in release_data.DEFAULTS:
        assert re.search(rf"`{turned.name}` \| {turned.since} \| {turned.before} \| {turned.after} ", page), turned.name
