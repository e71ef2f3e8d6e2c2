# SPDX-License-Identifier: Apache-2.0
"""Figures out of a model's own files, in caches as huggingface_hub writes them, and what a node makes of them."""

from __future__ import annotations

import json

import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache
from fake_hf_cache import model_files as files_of_a_model

from ansible.module_utils.vllm_fleet.models import model_files
from ansible.module_utils.vllm_fleet.models.sizing import Facts

CONFIG = {"num_attention_heads": 8, "num_hidden_layers": 2, "hidden_size": 64, "torch_dtype": "bfloat16"}
NODE = {"gpus": [{"name": "AMD Instinct MI300X", "vram_total": 206141652992}] * 8}
ASKED = {
    "args": {}, "env": {}, "revision": "", "config": {}, "weights_bytes": 0, "min_vllm": "", "image_version": "",
    "preset": "", "exact": False, "gated": False,
}  # fmt: skip


@pytest.fixture
def cache(tmp_path):
    files = {**files_of_a_model(shards=3, floats=256), "config.json": json.dumps(CONFIG).encode()}
    return FakeCache(tmp_path / "hf", files)


def test_a_model_without_a_preset_is_known_by_its_files(cache):
    for revision in ("", "main", COMMIT):
        found = model_files.find(REPO, [cache.cache.parent / "none", cache.cache], revision)
        assert found is not None
        assert (found.config, found.weights_bytes) == (CONFIG, 3 * 256 * 4)
        assert COMMIT[:12] in found.source
    assert model_files.find(REPO, [cache.cache], "b" * 40) is None
    assert model_files.find("org/other", [cache.cache], "") is None


def test_a_path_is_read_as_it_lies_there(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert model_files.find(str(tmp_path), [], "") == Facts(str(tmp_path), CONFIG, None, str(tmp_path / "config.json"))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    found = model_files.find(str(tmp_path), [], "")
    assert found is not None
    assert found.weights_bytes == 100
    assert model_files.find(str(tmp_path / "none"), [], "") is None


def test_an_index_without_a_total_tells_no_size_even_if_some_shards_are_there(cache):
    index = cache.blob("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"t": "a.safetensors"}}))
    found = model_files.find(REPO, [cache.cache], "")
    assert found is not None
    assert found.weights_bytes is None
    index.write_text("[]")
    with pytest.raises(model_files.ModelFilesError, match=r"index\.json holds no JSON object"):
        model_files.find(REPO, [cache.cache], "")


def test_own_figures_come_before_the_presets(cache):
    preset = Facts(REPO, {"num_attention_heads": 4}, 77, "models/x.yml", "0.12.0")
    own = model_files.find(REPO, [cache.cache], "")
    found = model_files.complete(own, preset)
    assert (found.config, found.weights_bytes, found.min_vllm) == (CONFIG, 3072, "0.12.0")
    assert model_files.complete(None, preset) == preset
    half = Facts(REPO, CONFIG, None, "cache")
    assert model_files.complete(half, preset).weights_bytes == 77


def test_on_a_node_the_cache_tells_what_fits_and_a_wrong_size_is_refused(cache):
    sized, found = model_files.on_node(REPO, ASKED, NODE, cache.cache)
    assert sized is not None
    assert (sized.sizes, sized.weights_per_gpu, found) == ((1, 2, 4, 8), 3072, [])
    _, found = model_files.on_node(REPO, {**ASKED, "args": {"tensor-parallel-size": 3}}, NODE, cache.cache)
    assert [(one.level, one.what) for one in found] == [("refused", "tensor-parallel-size")]


def test_an_id_that_is_a_slip_of_one_in_the_nodes_cache_is_refused(cache):
    _, found = model_files.on_node("org/Model", ASKED, NODE, cache.cache)
    assert [(one.level, one.what, one.got) for one in found] == [("refused", "model's id", "org/Model")]
    assert REPO in found[0].sentence
    for more in ({"exact": True}, {"preset": "model.yml"}):
        assert model_files.on_node("org/Model", {**ASKED, **more}, NODE, cache.cache)[1] == []
    assert model_files.on_node("org/another-model", ASKED, NODE, cache.cache)[1] == []


def test_a_gated_model_without_a_token_is_told_unless_it_is_there(cache):
    gated = {**ASKED, "gated": True, "preset": "x.yml"}
    assert [(one.level, one.what) for one in model_files.on_node("org/new", gated, NODE, cache.cache)[1]] == [
        ("warning", "licence")
    ]
    assert model_files.on_node(REPO, gated, NODE, cache.cache)[1] == []


def test_without_gpus_the_model_itself_refuses_what_no_gpu_is_needed_for(cache):
    config = {**CONFIG, "max_position_embeddings": 4096}
    for args, what in (
        ({"tensor-parallel-size": 3}, ["tensor-parallel-size"]),
        ({"max-model-len": 5000}, ["context"]),
        ({"tensor-parallel-size": 4, "max-model-len": 4096}, []),
    ):
        sized, found = model_files.on_node("org/other", {**ASKED, "config": config, "args": args}, {"gpus": []}, None)
        assert (sized, [one.what for one in found]) == (None, what)
        assert {one.level for one in found} <= {"refused"}


def test_nothing_is_computed_without_gpus_and_arguments_that_are_wrong_are_a_finding(cache):
    assert model_files.on_node(REPO, ASKED, {"gpus": []}, cache.cache) == (None, [])
    for args, words in (
        ({"max-model-len": "long"}, "max-model-len is 'long'"),
        ({"max-model-len": [1, 2]}, "expected a number of tokens"),
        ({"port": 1}, "set by the option"),
        ({"a-b": 1, "a_b": 2}, "are the same flag"),
    ):
        sized, found = model_files.on_node(REPO, {**ASKED, "args": args}, NODE, cache.cache)
        assert sized is None
        assert words in found[0].sentence
        assert found[0].remedy == "correct vllm_server_args"
    cpu = {**ASKED, "env": {"VLLM_CPU_KVCACHE_SPACE": 1}}
    sized, _ = model_files.on_node(REPO, cpu, None, cache.cache)
    assert sized is not None
    assert (sized.machine, sized.kv_per_gpu) == ("CPU", 1 << 30)
