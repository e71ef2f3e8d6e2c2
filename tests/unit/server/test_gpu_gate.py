# SPDX-License-Identifier: Apache-2.0
"""The gate's own judgement, on trees of files; what a server makes of it: tests/integration/test_vllm_server_gpu.py."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from fake_hf_cache import FakeCache, model_files
from sysfs import trees

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.models import model_files as figures
from ansible.module_utils.vllm_fleet.server import gpu_gate
from ansible.module_utils.vllm_fleet.server.options import ServerOptions

GIB = 1 << 30
UPPER = "4,5,6,7"
RENDERS = [f"/dev/dri/renderD{number}" for number in (160, 168, 176, 184)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Eight MI300X, of which another server holds the first four."""
    tree = trees.mi300x(tmp_path_factory.mktemp("gate") / "node")
    for number in range(4):
        tree.hold(number, 4711, 170 * GIB)
    return tree


def of(tree, **more):
    """Options of a server on that node."""
    return ServerOptions.from_params({"model": "m", "sysfs_root": str(tree.sys), **more})


def judge(tree, passed=("/dev/null",), **options):
    """Let the gate judge; the devices that Docker would pass are this machine's."""
    return gpu_gate.before_stop(of(tree, **options), SimpleNamespace(devices=passed, command=()), frozenset(), {})


@pytest.mark.parametrize(
    "more",
    [
        {"env": {"HIP_VISIBLE_DEVICES": UPPER}},
        {"env": {"ROCR_VISIBLE_DEVICES": UPPER}},
        {"env": {"CUDA_VISIBLE_DEVICES": UPPER}},
        {"devices": ["/dev/kfd", *RENDERS]},
    ],
    ids=["hip", "rocr", "cuda", "devices"],
)
def test_gpus_that_the_server_does_not_see_are_not_in_its_way(shared, more):
    options = {"args": {"tensor-parallel-size": 4}, **more}
    assert judge(shared, **options).notes == []
    with pytest.raises(Refused, match="ask for 5 GPUs on this node and there are 4"):
        judge(shared, **{**options, "args": {"tensor-parallel-size": 5}})
    with pytest.raises(Refused, match="GPU 0 has"):
        judge(shared, args=options["args"])
    gpu_gate.after_stop(of(shared, **options), ())


def test_gpus_named_by_uuid_are_counted_and_said_to_be_unchecked(shared):
    options = {"env": {"ROCR_VISIBLE_DEVICES": "GPU-4b2c1a9f8d3e6f7a,GPU-0b2c1a9f8d3e6f7b"}}
    (note,) = judge(shared, **options).notes
    assert "their free memory was not checked" in note
    with pytest.raises(Refused, match="ask for 4 GPUs on this node and there are 2"):
        judge(shared, args={"tensor-parallel-size": 4}, **options)


def test_data_parallel_over_nodes_is_judged_by_what_this_one_has_of_it(shared):
    args = {"data-parallel-size": 16, "data-parallel-size-local": 4}
    assert judge(shared, args=args, env={"HIP_VISIBLE_DEVICES": UPPER}).notes == []
    with pytest.raises(Refused, match="ask for 16 GPUs"):
        judge(shared, args={"data-parallel-size": 16})


@pytest.mark.parametrize(
    ("config", "args", "fits"),
    [
        # In 32 bits on disk and 16 in memory: 150 GiB on one GPU of 192.
        ({"torch_dtype": "float32"}, {}, True),
        ({"torch_dtype": "float32"}, {"dtype": "float32"}, False),
        ({"torch_dtype": "bfloat16"}, {}, False),
        ({}, {}, True),  # perhaps
        ({"torch_dtype": "bfloat16"}, {"quantization": "fp8"}, True),
        ({"torch_dtype": "bfloat16"}, {"cpu_offload_gb": 120}, True),
        ({"torch_dtype": "bfloat16"}, {"cpu-offload-gb": 0}, False),
        # The checkpoint is quantised already; the flag only repeats it.
        ({"torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}, {"quantization": "fp8"}, False),
    ],
)
def test_the_gate_and_preflight_count_weights_alike(tmp_path, config, args, fits):
    tree = trees.mi300x(tmp_path / "node")
    files = model_files()
    index = json.loads(files["model.safetensors.index.json"])
    files["model.safetensors.index.json"] = json.dumps({**index, "metadata": {"total_size": 300 * GIB}}).encode()
    files["config.json"] = json.dumps({"num_attention_heads": 64, **config}).encode()
    cache = FakeCache(tmp_path / "hf", files, repo_id="acme/tiny").cache
    options = {"args": args, "model": "acme/tiny", "hf_cache": str(cache)}
    asked = {"args": args, "env": {}, "preset": "", "exact": True, "gated": False, "revision": "", "config": {}}
    asked |= {"weights_bytes": 0, "min_vllm": "", "image_version": "", "devices": None}
    _, found = figures.on_node("acme/tiny", asked, {"gpus": gpu_gate.gpus_as_dicts(of(tree))}, cache)
    assert ("size of the model" in {one.what for one in found if one.level == "refused"}) is not fits
    if fits:
        judge(tree, **options)
        return
    with pytest.raises(Refused, match="The weights take at least") as caught:
        judge(tree, **options)
    assert caught.value.failure_class == "model_too_large"


def test_a_size_that_is_no_number_is_refused(shared):
    with pytest.raises(Refused, match=r"tensor-parallel-size is 'eight'") as caught:
        judge(shared, args={"tensor-parallel-size": "eight"})
    assert caught.value.failure_class == "bad_argument"
