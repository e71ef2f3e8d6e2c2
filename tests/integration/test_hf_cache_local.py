# SPDX-License-Identifier: Apache-2.0
"""The role hf_cache on the machine that runs Ansible, prewarming, and the seed of the local default."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import play
import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache, blob_name, model_files
from hf_snapshot_tools import ROOT, module
from hub_standin import hub_reads

SEED = ROOT / "scripts" / "seed_smollm2" / "seed.py"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_COMMIT = "faa8289707760e33e32f0488108bb088e4294bcc"
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def seed(tmp_path: Path) -> FakeCache:
    return FakeCache(tmp_path / "seed")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".cache" / "huggingface"


def test_the_role_looks_copies_once_and_is_quiet_afterwards(seed: FakeCache, target: Path, tmp_path: Path) -> None:
    book = {
        "hosts": "all",
        "gather_facts": False,
        "vars": {
            "hf_cache_path": "~/.cache/huggingface",
            "hf_cache_home": str(target.parents[1]),
            "hf_cache_repo_id": REPO,
            "hf_cache_source": "controller",
            "hf_cache_controller_path": str(seed.cache),
        },
        "roles": ["hf_cache"],
        "post_tasks": [{"ansible.builtin.debug": {"msg": "{{ hf_cache_folder }} has {{ hf_cache_commit }}"}}],
    }
    (tmp_path / "play.yml").write_text(json.dumps([book]))
    (target.parents[1]).mkdir()

    def run(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "node,", "-c", "local", *arguments]
        environment = {**os.environ, "ANSIBLE_PYTHON_INTERPRETER": sys.executable}
        environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
        done = subprocess.run(
            [*command, str(tmp_path / "play.yml")],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            check=False,
        )
        return " ".join((done.stdout + done.stderr).split())  # YAML output breaks long lines

    # Pruning in check mode too: what is to be kept has not come yet.
    for arguments, changed in (("--check", "-e", "hf_cache_prune=true"), 1), ((), 1), ((), 0):
        output = run(*arguments)
        assert f"changed={changed} " in output, output
        assert "failed=0" in output
        assert target.exists() is ("--check" not in arguments)
    assert f"{target} has {COMMIT}" in output
    assert "ok=4 " in output  # arguments, one look, the facts, the message
    # What was served before stays, what is older goes.
    older = [FakeCache(target, {"config.json": letter.encode()}, commit=letter * 40, ref=None) for letter in "bd"]
    os.utime(older[0].snapshot, (0, 0))
    # An engine that does not answer is not one without containers.
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text("#!/bin/sh\nexit 1\n")
    engine.chmod(0o755)
    output = run("-e", "hf_cache_prune=true")
    assert "failed=1" in output and older[0].snapshot.exists(), output
    engine.write_text("#!/bin/sh\n")
    output = run("-e", "hf_cache_prune=true")
    assert "changed=1 " in output and "failed=0" in output, output
    assert [model.snapshot.exists() for model in older] == [False, True]
    assert (target / "hub" / seed.repo.name / "snapshots" / COMMIT / SHARD).exists()
    (target / "hub" / seed.repo.name / "blobs" / blob_name(SHARD, seed.files[SHARD])).unlink()
    shared = run("-e", "hf_cache_source=shared")
    assert f"the shared cache {target} cannot be served from" in shared
    assert SHARD in shared
    assert "changed=0" in shared


def test_of_two_models_in_one_play_each_has_its_own_commit(seed: FakeCache, target: Path, tmp_path: Path) -> None:
    FakeCache(target, repo_id="org/other", commit="b" * 40)  # there already
    own = {"hf_cache_path": str(target), "hf_cache_create": True, "hf_cache_source": "controller"}
    note = {"ansible.builtin.set_fact": {"told": "{{ told | default([]) + [hf_cache_commit] }}"}}
    tasks = []
    for model in (REPO, "org/other"):
        tasks += [play.role("hf_cache") | {"vars": {"hf_cache_repo_id": model}}, {"name": "Note it", **note}]
    done = play.run(tmp_path, tasks, own | {"hf_cache_controller_path": str(seed.cache)}, facts=["told"]).ok()
    assert done.facts["told"] == [COMMIT, "b" * 40]


def test_the_role_reads_the_weights_into_memory_and_tells_before_and_after(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # a disk: what lies in memory is left alone
        model = FakeCache(Path(folder) / "hf", model_files(3, 1 << 20))
        for path in model.files:
            with model.blob(path).open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        # As in a run that did not stage the weights: they are looked for where the server will.
        keep = {"name": "Keep", "ansible.builtin.set_fact": {"told": "{{ hf_cache_prewarmed }}"}}
        tasks = [
            play.role("hf_cache", "prewarm"),
            keep,
            play.role("hf_cache", "prewarm") | {"vars": {"hf_cache_prewarm": "off"}},
        ]
        variables = {"hf_cache_repo_id": REPO, "vllm_server_hf_cache": str(model.cache), "hf_cache_prewarm_reserve": 0}
        variables["hf_cache_prewarm_rate"] = 2_000_000
        done = play.run(tmp_path, tasks, variables, facts=["told"]).ok()
        found = done.facts["told"]
        assert found["bytes"] == sum(
            len(content) for path, content in model.files.items() if "safetensors" in path and "index" not in path
        )
        # The kernel takes a page here and there while the reading goes on.
        assert found["resident_before"] < 0.5 * found["bytes"] < 0.9 * found["bytes"] < found["resident_after"], found
        assert re.search(
            r"^\[localhost\] org/model: reading into memory \d+ % of 12\.\d MB, ", done.output, re.MULTILINE
        )
        assert " % are now" in " ".join(done.output.split())
        assert not done.recap("changed")
        assert done.recap("skipped") == 2


def test_the_seed_is_the_same_everywhere_and_becomes_a_cache_that_huggingface_hub_reads(
    target: Path, hub_python: str
) -> None:
    done = subprocess.run([sys.executable, SEED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["commit"] == SMOLLM2_COMMIT  # a hash of all its files
    again = json.loads(subprocess.run([sys.executable, SEED], capture_output=True, text=True, check=True).stdout)
    assert again["changed"] is False
    result = module(cache=str(target), repo_id=SMOLLM2, source=made["cache"])
    assert (result["commit"], result["complete"], result["hashed"]) == (SMOLLM2_COMMIT, True, True)
    snapshot = hub_reads(hub_python, target, SMOLLM2)
    assert "not the Hub's copy" in (snapshot / "README.md").read_text()
    assert json.loads((snapshot / "config.json").read_text())["num_hidden_layers"] == 30
