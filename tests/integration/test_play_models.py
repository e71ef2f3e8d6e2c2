# SPDX-License-Identifier: Apache-2.0
"""Models as their user meets them: playbooks/plan.yml, the table of preflight, a preset's requests, exact names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import hub_standin
import play
import pytest
import yaml
from fake_hf_cache import COMMIT, REPO, FakeCache, tree_of
from standin import free_port
from sysfs import trees

INDEX = "model.safetensors.index.json"
CONFIG = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 64,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}
TWO_FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    INDEX: json.dumps({"metadata": {"total_size": 65 << 30}, "weight_map": {"t": "a.safetensors"}}).encode(),
}


def playbook(name: str, *words: str, environment: dict[str, str] | None = None, **variables: Any) -> tuple[int, str]:
    """Run a playbook; its exit code and everything it said, without line breaks inside of sentences."""
    done = subprocess.run(
        [play.PLAYBOOK, f"playbooks/{name}.yml", "-e", json.dumps(variables), *words],
        cwd=play.ROOT,
        env={**play.environment(), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def touched(folder: Path) -> dict[str, object]:
    """Everything below it, without what the controller keeps for its next run: presets that are right, modules."""
    kept = ("fleet/presets", "fleet/modules")
    return {path: what for path, what in tree_of(folder).items() if path != "fleet" and not path.startswith(kept)}


@pytest.fixture
def empty_home(tmp_path: Path) -> dict[str, str]:
    """An environment whose caches are empty."""
    return {"HF_HOME": str(tmp_path / "home"), "VLLM_FLEET_CACHE": str(tmp_path / "fleet")}


def test_a_plan_needs_two_small_files_and_no_node(tmp_path: Path, empty_home: dict[str, str]) -> None:
    """Nobody has deployed the model, no preset knows it, there is no node and no network."""
    folder = tmp_path / "two"
    folder.mkdir()
    for name, content in TWO_FILES.items():
        (folder / name).write_bytes(content)
    before = touched(tmp_path)
    code, text = playbook(
        "plan",
        "-v",
        environment=empty_home,
        vllm_server_model="acme/Unheard-32B",
        plan_path=str(folder),
        plan_gpu="MI300X, MI210=48",
        plan_gpus=4,
        plan_hub=False,
    )
    assert code == 0, text
    assert touched(tmp_path) == before
    assert "acme/Unheard-32B: 32 attention heads, context 40960." in text
    rows = [line.split() for line in text.splitlines() if " x MI" in line and line.strip().startswith("-  ")]
    assert [(row[3], row[4]) for row in rows] == [(kind, tp) for kind in ("MI300X", "MI210") for tp in ("1", "2", "4")]
    assert re.search(r"-  +4 x MI300X +1 +1,2,4 +65.0 GiB +<= 111.6 GiB +<= 40960 +<= 11.2 +65.0 GiB", text)
    assert re.search(r"-  +4 x MI210 +1 +1,2,4 +65.0 GiB +none +does not fit +0 +65.0 GiB", text)
    assert "on 4 x MI210: nothing fixes tensor-parallel-size; 2 is the least that fits." in text
    assert "64 layers x 2 x 4 KV heads x 128 x 2 bytes = 131072 bytes per GPU" in text
    assert re.search(r"localhost .*changed=0 .*failed=0", text)


def test_a_plan_is_of_what_the_inventory_says(tmp_path: Path, empty_home: dict[str, str]) -> None:
    """It runs on this machine, for which the inventory says nothing; a commit belongs to the inventory's own model."""
    folder = tmp_path / "two"
    folder.mkdir()
    for name, content in TWO_FILES.items():
        (folder / name).write_bytes(content)
    node = {"ansible_connection": "local", "vllm_server_model": "acme/Unheard-32B", "vllm_server_revision": "c" * 40}
    node |= {"vllm_server_args": {"max_model_len": 4096, "tensor-parallel-size": 2}, "hf_token": hub_standin.CANARY}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"vllm": {"hosts": {"n1": node}}}))
    words = ("-vvv", "-i", str(tmp_path / "hosts.yml"))
    asked = {"plan_gpu": "MI300X", "plan_path": str(folder)}
    code, text = playbook("plan", *words, environment=empty_home, **asked)
    assert code == 0, text
    assert re.search(r"-  +8 x MI300X +2 +1,2,4,8 +32.5 GiB +<= \S+ GiB +4096 of <= 40960", text)
    assert "c" * 40 in text
    assert hub_standin.CANARY not in text
    code, text = playbook("plan", *words, environment=empty_home, **asked, vllm_server_model="acme/Other-32B")
    assert code == 0, text
    assert "acme/Other-32B: 32 attention heads" in text
    assert "c" * 40 not in text
    assert "4096 of" not in text and "The vllm_server_args of the inventory are those of its own model" in text


def test_several_models_share_a_node(empty_home: dict[str, str]) -> None:
    """Two presets on eight GPUs, without a node and without the Hub; what is proposed is an inventory's block."""
    models = "meta-llama/Llama-3.3-70B-Instruct, Qwen/Qwen3-235B-A22B"
    asked = {"plan_models": models, "plan_gpu": "MI300X", "plan_hub": False, "plan_fill": True}
    code, text = playbook("plan", environment=empty_home, **asked)
    assert code == 0, text
    assert re.search(r"meta-llama/Llama-3.3-70B-Instruct +1 \(recommended\) +1 +8 ", text)
    lines = [line.strip() for line in text.splitlines()]
    assert "b1 b1 b1 b1 a1 a2 a3 a4" in lines
    shown = text[text.index("vllm_servers:") :].partition("\n\n")[0]
    block = yaml.safe_load("\n".join(line[4:] if line[:4].isspace() else line for line in shown.splitlines()))
    assert block["vllm_servers"]["llama-3-3-70b-instruct"]["replicas"] == 4
    assert block["vllm_servers"]["qwen3-235b-a22b"] == {"gpus": 4, "vllm_server_model": "Qwen/Qwen3-235B-A22B"}
    code, text = playbook("plan", environment=empty_home, **{**asked, "plan_gpus": 4})
    assert code != 0
    assert "one server of each takes more than 4 GPUs" in text


def test_a_plan_of_inventory_tensorwave_as_it_comes_needs_no_node(empty_home: dict[str, str]) -> None:
    code, text = playbook(
        "plan", "-i", "inventory/tensorwave", environment=empty_home, plan_gpu="MI300X", plan_hub=False
    )
    assert code == 0, text
    assert "8 x MI300X  8 " in text


@pytest.fixture
def hub() -> Iterator[Any]:
    server = hub_standin.Hub({**TWO_FILES, "a.safetensors": b"never asked for"})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_plan_asks_the_hub_for_two_files_and_leaves_nothing(
    hub: Any, tmp_path: Path, empty_home: dict[str, str]
) -> None:
    """The real huggingface_hub against a Hub on this machine."""
    done = subprocess.run(
        [sys.executable, hub_standin.SEED, "--print-python"], capture_output=True, text=True, check=True
    )
    environment = {**empty_home, "HF_ENDPOINT": hub.url}
    asked = {
        "vllm_server_model": REPO,
        "plan_revision": COMMIT,
        "plan_gpu": "MI300X",
        "plan_python": done.stdout.strip(),
    }
    code, text = playbook("plan", "-vvv", environment=environment, hf_token=hub_standin.CANARY, **asked)
    assert code == 0, text
    assert sorted(set(hub.gets)) == ["config.json", INDEX]
    assert f"{REPO}: 32 attention heads, context 40960. Figures: config.json on the Hub, {COMMIT[:12]}." in text
    assert not (tmp_path / "home").exists()
    # The command line that a user types is Ansible's to show; the module never says the token.
    assert hub_standin.CANARY not in text.partition("PLAY [Say what")[2]

    code, text = playbook("plan", environment=environment, **asked)
    assert code != 0
    assert "is gated: accept its licence on its page" in " ".join(text.split())
    code, text = playbook(
        "plan", environment=environment, hf_token=hub_standin.CANARY, **{**asked, "plan_revision": "d" * 40}
    )
    assert code != 0
    assert "correct vllm_server_revision or plan_revision" in " ".join(text.split())
    code, text = playbook("plan", environment=environment, **{**asked, "vllm_server_model": "acme/none"})
    assert code != 0
    assert "the Hub has no acme/none" in " ".join(text.split())


def inventory(folder: Path, **variables: Any) -> str:
    """One node of eight MI300X, on this machine."""
    tree = trees.mi300x(folder / "node")
    host = {
        "ansible_connection": "local",
        "preflight_sysfs_root": str(tree.sys),
        "preflight_proc_root": str(tree.proc),
        "ansible_python_interpreter": "/usr/bin/python3",
        "vllm_server_name": f"models-{os.getpid()}",
        "vllm_image_name": "acme",
        "vllm_image_tag": "v0.31.0",
        "vllm_server_port": 1,
        "preflight_disk_image": 0,
        "preflight_disk_weights": 0,
        "preflight_clock": False,
        "preflight_show_all": False,
        "hf_cache_path": str(folder / "cache"),
        "hf_cache_create": True,
        **variables,
    }
    path = folder / "inventory.yml"
    path.write_text(json.dumps({"vllm": {"hosts": {"node1": host}}}), encoding="utf-8")
    return str(path)


def test_preflight_says_what_fits_from_the_preset_and_from_the_nodes_cache(
    tmp_path: Path, empty_home: dict[str, str]
) -> None:
    row = r"node1 +8 x MI300X +8 +1,2,4,8 +80.2 GiB +<= 96.5 GiB +<= 163840 +<= 9.0 +641.3 GiB"
    nodes = inventory(tmp_path)
    code, text = playbook("preflight", "-i", nodes, vllm_server_model="deepseek-ai/DeepSeek-V3.1")
    assert code == 0, text
    assert re.search(row, text)
    assert "61 layers" not in text

    # A model without a preset, its files on the node, and a size that cannot be.
    FakeCache(tmp_path / "cache", TWO_FILES, repo_id="acme/Unheard-32B")
    bad = {"vllm_server_model": "acme/Unheard-32B", "vllm_server_args": {"tensor-parallel-size": 5}}
    code, text = playbook("preflight", "-v", "-i", nodes, environment=empty_home, **bad)
    assert code != 0
    words = " ".join(text.split())
    assert (
        "tensor-parallel-size: expected a divisor of 32 attention heads, found 5; set it in vllm_server_args to"
        in words
    )
    assert "Nothing was touched." in words
    assert "65.00 GiB / 5 GPUs = 13.00 GiB per GPU" in words

    # What the preset's source says about the GPU, and a variant that there is not.
    pro = {"vllm_server_model": "deepseek-ai/DeepSeek-V4-Pro-0813", "vllm_server_variant": "fp9"}
    code, text = playbook("preflight", "-i", nodes, environment=empty_home, **pro)
    assert code != 0
    words = " ".join(text.split())
    assert (
        "model on this GPU: expected MI355X (vllm-project/recipes), found MI300X: vllm-project/recipes says so" in words
    )
    assert "vllm_server_variant: expected what the model's preset has, found 'fp9', and models/deepseek-v4-pro" in words

    # What the node's cache holds is known: an id that is a slip of it is refused.
    code, text = playbook("preflight", "-i", nodes, environment=empty_home, vllm_server_model="acme/unheard-32b")
    assert code != 0
    assert "model's id: expected acme/Unheard-32B (in the cache), found acme/unheard-32b" in " ".join(text.split())


@pytest.mark.parametrize("model", ["DeepSeek V3.1", "deepseek-ai/deepseek-v3.1"])
def test_an_inexact_name_is_refused_with_the_nearest_and_with_whatever_else_is_wrong(
    tmp_path: Path, model: str
) -> None:
    nodes = inventory(tmp_path, vllm_server_bind="0.0.0.0")
    before = touched(tmp_path)
    code, text = playbook("preflight", "-i", nodes, vllm_server_model=model)
    assert code != 0
    words = " ".join(text.split())
    assert f"model's id: expected deepseek-ai/DeepSeek-V3.1, found '{model}' (" in words
    assert "V2-Lite" not in words
    assert "vllm_server_bind: expected loopback, or an API key" in words
    assert re.search(r"node1 .*changed=0 .*unreachable=0 .*failed=1", text)
    assert touched(tmp_path) == before


@pytest.mark.engine
def test_a_presets_requests_verify_and_the_users_own_win(
    tmp_path: Path, standin_image: str, docker_client: Any
) -> None:
    """A preset of the user's own folder: a model without a chat template, with a name of its own and a GPU's flag."""
    name, port = f"models-{os.getpid()}", free_port()
    presets = tmp_path / "models"
    presets.mkdir()
    request = {
        "name": "continued",
        "api": "completions",
        "prompt": "The capital of France is",
        "expect": {"pattern": "Paris"},
    }
    preset = {
        "model": "acme/tiny",
        "served_name": "tiny",
        "revision": "c" * 40,
        "api": "completions",
        "accelerators": {"cpu": {"args": {"max-model-len": 256}}, "rocm": {"args": {"max-model-len": 1}}},
        "verify": [request],
        "features": {"tools": {"args": {"enable-auto-tool-choice": True, "tool-call-parser": "hermes"}}},
        "variants": {"fp8": {"model": "acme/tiny-fp8", "accelerators": {"cpu": {"args": {"max-model-len": 128}}}}},
    }
    (presets / "tiny.yml").write_text(yaml.safe_dump(preset))
    variables = {
        "vllm_server_name": name,
        "vllm_server_image": standin_image,
        "vllm_server_model": "acme/tiny",
        "vllm_server_accelerator": "cpu",
        "vllm_server_port": port,
        "vllm_server_hf_cache": "",
        "vllm_server_state_dir": str(tmp_path / "state"),
        "vllm_server_env": {"STANDIN_START_SECONDS": "0.3"},
        "vllm_server_presets_path": str(presets),
        "vllm_server_stop_timeout": 3,
    }
    try:
        done = play.run(tmp_path, [play.role("vllm_server")], variables).ok()
        assert "completions / continued:" in done.output
        assert "chat / " not in done.output
        command = docker_client.containers.get(name).attrs["Config"]["Cmd"]
        flags = dict(pairwise(command))
        assert (flags["--max-model-len"], flags["--served-model-name"], flags["--revision"]) == (
            "256",
            "tiny",
            "c" * 40,
        )
        own = {"vllm_server_verify": [{**request, "name": "my own"}], "vllm_server_revision": "main"}
        own["vllm_server_args"] = {
            "served_model_name": ["mine", "tiny"]
        }  # the verification must know it in any spelling
        again = play.run(tmp_path, [play.role("vllm_server")], {**variables, **own}).ok()
        assert "completions / my own:" in again.output
        command = docker_client.containers.get(name).attrs["Config"]["Cmd"]
        assert dict(pairwise(command))["--revision"] == "main"
        assert dict(pairwise(command))["--served-model-name"] == "mine"
        # Other weights under the same name, and a feature's flags.
        chosen = {"vllm_server_variant": "fp8", "vllm_server_features": ["tools"]}
        third = play.run(tmp_path, [play.role("vllm_server")], {**variables, **chosen}).ok()
        assert "completions / continued:" in third.output
        command = docker_client.containers.get(name).attrs["Config"]["Cmd"]
        flags = dict(pairwise(command))
        assert (command[0], flags["--max-model-len"], flags["--served-model-name"]) == ("acme/tiny-fp8", "128", "tiny")
        assert "--revision" not in command and flags["--tool-call-parser"] == "hermes"
    finally:
        for container in docker_client.containers.list(all=True, filters={"name": name}):
            container.remove(force=True, v=True)
