# SPDX-License-Identifier: Apache-2.0
"""What fits, against figures that others printed: vLLM's own log, published sizes of caches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from model_configs import LLAMA, SMOLLM2, V31

from ansible.module_utils.vllm_fleet.models import sizing
from ansible.module_utils.vllm_fleet.models.sizing import Facts, Machine
from ansible.module_utils.vllm_fleet.vllm.cli import CommandError

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
#: A model whose own context is a million tokens.
LONG = {**LLAMA, "max_position_embeddings": 10**6}
MI300X = sizing.named("MI300X", 8)
GPT_OSS = {
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 36,
    "head_dim": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072,
    "quantization_config": {"quant_method": "mxfp4"},
}
GPT2 = {"n_head": 12, "n_layer": 12, "n_embd": 768, "n_positions": 1024, "torch_dtype": "float32"}
DEEPSEEK = Facts("deepseek-ai/DeepSeek-V3.1", V31, 688586727753, "test", "0.12.0")
DENSE = Facts("meta-llama/Llama-3.3-70B-Instruct", LLAMA, 141107412992)
RECIPE = {"tensor-parallel-size": 8, "enable-expert-parallel": True}


def refused(sized):
    return {one.what: one.sentence for one in sized.findings if one.level == "refused"}


def logged(path):
    """The tokens and requests of vLLM's line on its KV cache, and max-model-len."""
    found = re.search(
        r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x",
        (FIXTURES / path).read_text(),
    )
    assert found, path
    return int(found[1].replace(",", "")), int(found[2].replace(",", "")), float(found[3])


@pytest.mark.parametrize(
    ("log", "args"),
    [
        ("ready.log", {"max-model-len": 1024}),
        ("engine_killed.stdout.log", {"max-model-len": 512}),
        ("compiled.log", {"max-model-len": 1024, "dtype": "float32"}),
    ],
)
def test_the_kv_cache_is_the_one_that_vllm_logged(log, args):
    """SmolLM2 on a CPU with VLLM_CPU_KVCACHE_SPACE=1, as the real vLLM 0.32.0 started it."""
    tokens, length, requests = logged(f"vllm-0.32.0-cpu/{log}")
    sized = sizing.size(Facts("m", SMOLLM2, 269060552), Machine("CPU"), args, {"VLLM_CPU_KVCACHE_SPACE": 1})
    assert (sized.context_asked, sized.at_most) == (length, False)
    assert sized.lines[-1].endswith(f"= {tokens} tokens")
    assert round(sized.requests or 0, 2) == requests


@pytest.mark.parametrize(
    ("config", "tokens", "published"),
    [
        # llama.cpp, pull request 11446: DeepSeek-V3's compressed cache of 32k tokens in 16 bits, 1952 + 244 MiB.
        (V31, 32768, 2196 << 20),
        # Published for Llama 3.3 70B: 80 KiB a token in 4 bits, four times that in 16.
        (LLAMA, 1, 4 * 81920),
        # Published for gpt-oss-120b: 36.0 KiB a token for the 18 layers that keep the whole context.
        (GPT_OSS, 1, 36 << 10),
        # GPT2Config: 12 layers, K and V of 768 each, 16 bits.
        (GPT2, 1, 12 * 2 * 768 * 2),
    ],
)
def test_what_a_token_takes_is_what_others_published(config, tokens, published):
    sized = sizing.size(Facts("m", config), sizing.named("MI300X", 1), {})
    assert f"= {published // tokens} bytes per GPU" in sized.lines[-1]


def test_deepseek_on_eight_mi300x():
    sized = sizing.size(DEEPSEEK, MI300X, RECIPE, image_version="v0.31.0")
    assert sized.findings == ()
    assert sized.sizes == (1, 2, 4, 8)
    assert sized.weights_per_gpu == 86073340970  # 688586727753 / 8
    assert sized.kv_per_gpu == 189650320753 - 86073340970  # ceil(0.92 x 206141652992) less the weights
    assert (sized.context, sized.context_limit, sized.at_most) == (163840, 163840, True)
    assert round(sized.requests or 0, 1) == 9.0
    assert "the weights fit with 4 or 8" in sized.lines[0]


@pytest.mark.parametrize(
    ("facts", "machine", "args", "what", "words"),
    [
        (
            DEEPSEEK,
            MI300X,
            {"tensor-parallel-size": 2},
            "size of the model",
            "set tensor-parallel-size in vllm_server_args to 4",
        ),
        (DEEPSEEK, sizing.named("MI300X", 2), {"tensor-parallel-size": 2}, "size of the model", "use a quantised"),
        (DEEPSEEK, MI300X, {**RECIPE, "gpu-memory-utilization": 0.3}, "size of the model", "(0.3 of 191.98)"),
        (
            DEEPSEEK,
            MI300X,
            {"tensor-parallel-size": 6},
            "tensor-parallel-size",
            "a divisor of 128 attention heads, found 6",
        ),
        (DEEPSEEK, MI300X, {"tensor-parallel-size": 16}, "GPUs for the model", "expected 16, found 8 x MI300X"),
        (
            DEEPSEEK,
            MI300X,
            {**RECIPE, "max-model-len": "2M"},
            "context",
            "at most 1473936 tokens, found max-model-len 2097152",
        ),
        (DENSE, MI300X, {"max-model-len": 200000}, "context", "at most 148128 tokens"),
        (
            Facts("m", {"num_attention_heads": 40, "num_key_value_heads": 10}),
            MI300X,
            {"tensor-parallel-size": 8},
            "tensor-parallel-size",
            "a divisor of 40 attention heads that divides the 10 KV heads or is a multiple of them, found 8; set it in"
            " vllm_server_args to one of 1, 2, 5, 10, 20",
        ),
        # Over two nodes: 16 GPUs hold what 8 do not, as many ranks on each; what one node cannot have is not advised.
        (
            Facts("m", V31, 2000 << 30),
            MI300X,
            {"tensor-parallel-size": 8, "nnodes": 2},
            "size of the model",
            "set tensor-parallel-size in vllm_server_args to 16",
        ),
        (
            Facts("m", V31, 700 << 30),
            MI300X,
            {"tensor-parallel-size": 1, "pipeline-parallel-size": 3},
            "size of the model",
            "set tensor-parallel-size in vllm_server_args to 2",
        ),
        (
            Facts("m", V31, 2000 << 30),
            MI300X,
            {"tensor-parallel-size": 2, "pipeline-parallel-size": 3},
            "size of the model",
            "use a quantised",
        ),
    ],
)
def test_what_cannot_work_even_at_best_is_refused(facts, machine, args, what, words):
    found = refused(sizing.size(facts, machine, args))
    assert what in found
    assert words in found[what]


@pytest.mark.parametrize(
    ("facts", "machine", "args"),
    [
        (DEEPSEEK, MI300X, {"tensor-parallel-size": 4}),
        (DEEPSEEK, MI300X, {"tensor-parallel-size": 16, "nnodes": 2}),
        (DEEPSEEK, MI300X, {"data-parallel-size": 8, "enable-expert-parallel": True}),
        (DENSE, MI300X, {}),
        (DENSE, MI300X, {"max-model-len": 131072}),
        (DENSE, sizing.named("MI210", 1, 64 << 30), {"quantization": "fp8"}),  # how small it gets only vLLM knows
        (Facts("m", {}, None), MI300X, {}),
        (Facts("m", {"num_attention_heads": 8}, None), MI300X, {"tensor-parallel-size": 8}),
        # On disk twice what it takes, and perhaps so where nothing tells the type.
        (Facts("m", GPT2, 300 << 30), sizing.named("MI300X", 1), {"max-model-len": 16}),
        (Facts("m", {}, 300 << 30), sizing.named("MI300X", 1), {}),
        # Windows and chunks, of which layers is not said: what a context takes is not known.
        (Facts("m", {**LONG, "sliding_window": 1024}, 141107412992), MI300X, {"max-model-len": 10**6}),
        (Facts("m", {**LONG, "attention_chunk_size": 8192}, 141107412992), MI300X, {"max-model-len": 10**6}),
        # Sixteen ranks on two nodes that know nothing of each other but the address.
        (DEEPSEEK, MI300X, {"-dp": 16, "-dpl": 8, "-dpa": "10.0.0.1", "-ep": True}),
    ],
)
def test_what_may_work_is_not_refused(facts, machine, args):
    assert refused(sizing.size(facts, machine, args)) == {}


def test_layers_that_stay_on_disk_do_not_make_a_refusal():
    """The checkpoint of a model with a layer for multi-token prediction is larger than what is loaded."""
    just_over = 8 * 176 * (1 << 30) + (5 << 30)
    inside = Facts("m", V31, just_over)
    assert refused(sizing.size(inside, MI300X, {"tensor-parallel-size": 8})) == {}
    assert (
        refused(sizing.size(inside, MI300X, {"tensor-parallel-size": 8, "speculative-config": {"method": "mtp"}})) == {}
    )
    larger = Facts("m", V31, just_over + (9 << 30))
    assert refused(sizing.size(larger, MI300X, {"tensor-parallel-size": 8})) == {}
    assert refused(sizing.size(larger, MI300X, {"tensor-parallel-size": 8, "speculative-config": {"method": "mtp"}}))


@pytest.mark.parametrize(
    ("config", "args", "share"),
    [
        ({"torch_dtype": "bfloat16"}, {}, 1),
        ({"torch_dtype": "bfloat16"}, {"dtype": "float32"}, 2),
        ({"torch_dtype": "float32"}, {}, 0.5),
        ({"torch_dtype": "float32"}, {"dtype": "float32"}, 1),
        ({"dtype": "float32"}, {"dtype": "half"}, 0.5),
        ({"torch_dtype": "float32", "quantization_config": {"quant_method": "fp8"}}, {}, 1),
        ({"text_config": {"hidden_size": 8}, "torch_dtype": "float32"}, {}, 0.5),
        ({}, {}, 1),
    ],
)
def test_weights_in_memory_by_type(config, args, share):
    assert sizing.size(Facts("m", config, 1 << 30), Machine("MI300X", 1), args).weights_per_gpu == share * (1 << 30)


@pytest.mark.parametrize(
    ("args", "gpus"),
    [({"tensor-parallel-size": 4, "pipeline-parallel-size": 2}, 8), ({"data-parallel-size": 8}, 1), ({}, 1)],
)
def test_over_how_many_gpus_the_weights_are_spread(args, gpus):
    sized = sizing.size(Facts("m", {}, 8 << 30), MI300X, args)
    assert sized.weights_per_gpu == (8 << 30) // gpus


def test_the_compressed_cache_is_whole_on_every_gpu_unless_the_context_is_split():
    one = sizing.size(DEEPSEEK, MI300X, {**RECIPE, "max-model-len": 1})
    split = sizing.size(DEEPSEEK, MI300X, {**RECIPE, "max-model-len": 1, "decode-context-parallel-size": 8})
    assert split.requests == 8 * (one.requests or 0)


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (None, None),
        (32768, 32768),
        ("32k", 32000),
        ("32K", 32768),
        ("1.5k", 1500),
        ("1M", 1 << 20),
        ("auto", None),
        (-1, None),
    ],
)
def test_max_model_len_is_read_as_vllm_reads_it(value, tokens):
    assert sizing.tokens_of(value) == tokens


@pytest.mark.parametrize("value", [["1", "2"], True, "abc", ""])
def test_max_model_len_that_is_no_number_is_refused(value):
    with pytest.raises(CommandError, match="expected a number of tokens"):
        sizing.tokens_of(value)


@pytest.mark.parametrize(
    ("more", "args", "usual", "limit"),
    [
        ({}, {}, 16384, 16384),
        ({"rope_scaling": None}, {}, 16384, 16384),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {}, 65536, 65536),  # DeepSeek-Coder
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, {}, 32768, 32768),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}},
            {},
            163840,
            163840,
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, {}, 65536, 65536),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, {}, 16384, 16384),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}, {}, 4096, 16384),
        ({"rope_scaling": {"type": "mrope", "factor": None}}, {}, 16384, 16384),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8}, "sliding_attention": {}}},
            {},
            131072,
            131072,
        ),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8}}, {}, 16384, 16384),
        ({"seq_length": 8192}, {}, 8192, 8192),
        ({"model_max_length": 131072}, {}, 131072, 131072),
        ({}, {"hf-overrides": {"rope_scaling": {"rope_type": "yarn", "factor": 2}}}, 32768, 32768),
    ],
)
def test_the_context_is_the_one_that_vllm_derives(more, args, usual, limit):
    facts = Facts("m", {**LLAMA, "max_position_embeddings": 16384, **more}, 1 << 30)
    sized = sizing.size(facts, MI300X, {**args, "max-model-len": limit})
    assert (sized.context_limit, sized.findings) == (limit, ())
    (beyond,) = sizing.size(facts, MI300X, {**args, "max-model-len": limit + 1}).findings
    scaled = bool("hf-overrides" in args or more.get("rope_scaling"))
    assert (beyond.level, beyond.expected) == ("warning" if scaled else "refused", f"the model's own {limit}")
    allowed = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    (beyond,) = sizing.size(facts, MI300X, {**args, "max-model-len": limit + 1}, allowed).findings
    assert beyond.level == "warning"
    assert sizing.size(facts, MI300X, args).requests == 575488 / usual  # tokens that there is room for


def test_a_cost_that_is_not_known_says_why_and_leaves_the_rest():
    sized = sizing.size(DENSE, MI300X, {"kv-cache-dtype": "nvfp4", "max-model-len": 200000})
    assert "KV cache type is 'nvfp4'" in sized.lines[-1]
    assert (sized.context, sized.requests) == (None, None)
    assert [one.got for one in sized.findings] == ["max-model-len 200000"]
    unclear = sizing.size(Facts("m", {**LLAMA, "sliding_window": 1024}, 1 << 30), MI300X, {})
    assert "by sliding_window in config.json" in unclear.lines[-1]


@pytest.mark.parametrize(
    "args", [{"max-model-len": "long"}, {"tensor-parallel-size": "8x"}, {"gpu-memory-utilization": 0}]
)
def test_arguments_that_are_no_numbers_are_named(args):
    with pytest.raises(ValueError, match=next(iter(args))):
        sizing.size(DEEPSEEK, MI300X, args)


@pytest.mark.parametrize(
    ("tag", "older"),
    [("v0.11.0", True), ("0.9", True), ("v0.12.0", False), ("v0.31.0", False), ("nightly", False), ("", False),
     ("rocm7.14.0_cdna_ubuntu24.04_py3.14_pytorch_2.11.0_vllm_0.11.2", True), ("rocm6.4.1", False)],
)  # fmt: skip
def test_an_image_older_than_the_model_is_refused(tag, older):
    found = refused(sizing.size(DEEPSEEK, MI300X, RECIPE, image_version=tag))
    assert ("vLLM version" in found) is older


@pytest.mark.parametrize(("tag", "warned"), [("v0.12.0", True), ("v0.29.0", False), ("nightly", False)])
def test_flags_that_are_newer_than_the_image_are_a_warning(tag, warned):
    args = {**RECIPE, "max-num-queued-reqs": 64, "async-scheduling": True, "shutdown-timeout": None}
    found = {one.what: one.sentence for one in sizing.size(DEEPSEEK, MI300X, args, image_version=tag).findings}
    assert ("vLLM flags" in found) is warned
    if warned:
        assert f"expected flags of vLLM {tag}, found --max-num-queued-reqs (since 0.29); leave" in found["vLLM flags"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("AMD Instinct MI300X", "MI300X"), ("AMD Instinct MI355X OAM", "MI355X"), ("mi325x", "MI325X"), ("MI300A", "MI300A"),
     ("AMD Radeon PRO W7900", "AMD Radeon PRO W7900")],
)  # fmt: skip
def test_the_kind_in_a_products_name(name, kind):
    assert sizing.gpu_kind(name) == kind


def test_a_node_is_as_good_as_its_smallest_gpu_and_as_many_as_are_visible():
    gpus = [{"name": "AMD Instinct MI300X", "vram_total": total} for total in (200, 100, None, 300)]
    assert sizing.of_gpus(gpus) == Machine("MI300X", 4, 100)
    assert sizing.of_gpus(gpus, {"HIP_VISIBLE_DEVICES": "0,1"}) == Machine("MI300X", 2, 100)
    assert sizing.of_gpus([]) == Machine("no GPU", 0, None)


@pytest.mark.parametrize(
    ("args", "env", "share", "used"),
    [
        ({}, {}, 0.92, [0]),
        ({"gpu_memory_utilization": 0.5, "tensor-parallel-size": 2}, {}, 0.5, [0, 1]),
        ({"gpu-memory-utilization": "0.95", "tensor-parallel-size": 8}, {}, 0.95, list(range(8))),
        ({"tensor-parallel-size": 8, "pipeline-parallel-size": 2, "nnodes": 2}, {}, 0.92, list(range(8))),
        ({"tensor-parallel-size": 2, "data-parallel-size": 2}, {"HIP_VISIBLE_DEVICES": "4, 5,6,7"}, 0.92, [4, 5, 6, 7]),
        # More than there are: another finding says so.
        ({"tensor-parallel-size": 16}, {}, 0.92, list(range(8))),
    ],
)
def test_what_a_server_takes_of_a_node(args, env, share, used):
    assert sizing.wants([{"index": n} for n in range(8)], args, env) == (share, used)


def test_a_share_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"gpu-memory-utilization is 1\.5"):
        sizing.wants([], {"gpu-memory-utilization": 1.5}, {})
