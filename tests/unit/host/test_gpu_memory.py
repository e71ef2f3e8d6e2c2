# SPDX-License-Identifier: Apache-2.0
"""memory.py: vLLM's own arithmetic, checked against lines that vLLM printed."""

import math
import random
import re
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.host import gpu, gpu_memory

GIB = 1 << 30
MI300X = 206141652992  # bytes; 191.98 GiB
FIXTURES = Path(__file__).parents[2] / "fixtures/vllm-0.32.0-cpu"

TRAINER = gpu.Holder(4711, "python3 train.py", "ab" * 32, "trainer", 26 * GIB)
ORPHAN = gpu.Holder(31337, None, "cd" * 32, None, None)


def seed_free() -> int:
    """The free bytes of the line that a user's MI300X printed."""
    return int(164.76 * GIB)


def test_the_seed_case():
    line = (FIXTURES / "rocm-free-memory.txt").read_text()
    free, total, utilization, needed = re.search(
        r"\(([\d.]+)/([\d.]+) GiB\).*utilization \(([\d.]+), ([\d.]+) GiB\)", line
    ).groups()
    verdict = gpu_memory.fit([gpu_memory.GpuMemory(3, MI300X, seed_free(), [TRAINER])], float(utilization))
    assert not verdict.ok
    assert gpu_memory.gib(verdict.total) == total
    assert gpu_memory.gib(verdict.free) == free
    assert gpu_memory.gib(verdict.needed) == needed
    assert gpu_memory.gib(verdict.taken) == "27.22"
    assert verdict.highest == 0.85
    assert verdict.sentence == (
        "GPU 3 has 164.76 of 191.98 GiB free, but gpu-memory-utilization 0.9 needs 172.79 GiB: 27.22 GiB are taken by"
        " pid 4711 (python3 train.py) in container trainer with 26.00 GiB. The highest that fits now is 0.85:"
        " set gpu-memory-utilization to 0.85 or lower, or stop that process."
    )


@pytest.mark.parametrize(
    ("holders", "words"),
    [
        ([], ["without a process that the node names", "fuser"]),
        ([ORPHAN], ["pid 31337 in container cdcdcdcdcdcd", "stop that process"]),
        ([ORPHAN, TRAINER], ["by pid 4711", ", pid 31337", "stop those processes"]),
    ],
)
def test_sentence_names_the_holders(holders, words):
    sentence = gpu_memory.fit([(0, MI300X, seed_free(), holders)], 0.9).sentence
    for word in words:
        assert word in sentence


def test_nothing_fits():
    verdict = gpu_memory.fit([(0, MI300X, GIB, [TRAINER])], 0.9)
    assert (verdict.ok, verdict.highest) == (False, 0.0)
    assert "Not even 0.01 fits: stop that process." in verdict.sentence


def test_bytes_decide_not_rounded_figures():
    needed = math.ceil(MI300X * 0.9)
    for free, ok in ((needed, True), (needed - 1, False), (needed + 1, True)):
        assert gpu_memory.fit([(0, MI300X, free, [])], 0.9).ok is ok
    # One byte short of 0.9 prints the same GiB, so the advice must be 0.89.
    assert gpu_memory.fit([(0, MI300X, needed - 1, [])], 0.9).highest == 0.89
    assert gpu_memory.fit([(0, MI300X, needed, [])], 0.9).highest == 0.9


def test_the_tightest_gpu_decides():
    gpus = [(index, MI300X, MI300X - taken * GIB, []) for index, taken in enumerate((1, 27, 3))]
    verdict = gpu_memory.fit(gpus, 0.9)
    assert (verdict.index, verdict.ok, verdict.highest) == (1, False, 0.85)


def test_mixed_sizes_compare_by_what_is_missing():
    small, large = (0, 64 * GIB, 60 * GIB, []), (1, 256 * GIB, 200 * GIB, [])
    assert gpu_memory.fit([small, large], 0.9).index == 1


@pytest.mark.parametrize(
    ("mine", "ok"), [(0, False), (170 * GIB, True), ({0: 170 * GIB}, True), ({1: 170 * GIB}, False)]
)
def test_memory_of_the_old_server_comes_back(mine, ok):
    verdict = gpu_memory.fit([(0, MI300X, 20 * GIB, [])], 0.9, mine)
    assert verdict.ok is ok
    assert verdict.free <= MI300X


def test_given_back_more_than_there_is():
    assert gpu_memory.fit([(0, MI300X, MI300X, [])], 1, mine=GIB).free == MI300X


@pytest.mark.parametrize("utilization", [0, -0.1, 1.01, float("nan")])
def test_utilization_out_of_range(utilization):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        gpu_memory.fit([(0, MI300X, MI300X, [])], utilization)


def test_no_gpu_and_no_memory():
    with pytest.raises(ValueError, match="no GPU"):
        gpu_memory.fit([], 0.9)
    with pytest.raises(ValueError, match="0 bytes"):
        gpu_memory.fit([(2, 0, 0, [])], 0.9)


def test_highest_is_what_vllm_accepts_and_the_next_is_not():
    """For any size: the highest is accepted, and one hundredth more would not be."""
    dice = random.Random(20261122)  # noqa: S311 - reproducible figures, no secret
    totals = [MI300X, 309220868096, 262128 << 20, 1, 99, 100, 101, 1 << 40]
    for _ in range(20000):
        total = dice.choice(totals) if dice.random() < 0.5 else dice.randrange(1, 1 << 39)
        if dice.random() < 0.5:  # right at the edge of some percentage
            free = max(0, min(total, math.ceil(total * dice.randrange(101) / 100) + dice.randrange(-2, 3)))
        else:
            free = dice.randrange(total + 1)
        highest = gpu_memory.highest_utilization(total, free)
        assert 0 <= highest <= 1
        assert highest == 0 or math.ceil(total * highest) <= free
        following = round(highest + 0.01, 2)
        assert following > 1 or math.ceil(total * following) > free
        assert highest == float(f"{highest:.2f}")


@pytest.mark.parametrize(
    ("policy", "free", "utilization", "expected"),
    [
        ("strict", MI300X, 0.9, (0.9, False, False)),
        ("strict", seed_free(), 0.9, (0.9, False, True)),
        ("strict", seed_free(), 0.85, (0.85, False, False)),
        ("fit", seed_free(), 0.9, (0.85, True, False)),
        ("fit", MI300X, 0.5, (0.5, False, False)),  # never raised
        ("fit", seed_free(), 0.85, (0.85, False, False)),
        ("fit", int(0.05 * MI300X), 0.9, (0.9, False, True)),  # nothing useful left
        ("off", 0, 0.9, (0.9, False, False)),
    ],
)
def test_policies(policy, free, utilization, expected):
    verdict = gpu_memory.fit([(0, MI300X, free, [TRAINER])], utilization)
    decision = gpu_memory.apply_policy(policy, verdict, utilization)
    assert (decision.utilization, decision.lowered, decision.refuse) == expected
    assert bool(decision.message) == (decision.lowered or decision.refuse)


def test_fit_stops_where_the_weights_no_longer_fit():
    verdict = gpu_memory.fit([(0, MI300X, 80 * GIB, [])], 0.9)
    lowest = gpu_memory.lowest_for_weights(85 * GIB, MI300X)
    assert lowest == 0.45
    decision = gpu_memory.apply_policy("fit", verdict, 0.9, lowest)
    assert decision.refuse
    assert "Lowering stops at 0.45" in decision.message


def test_lowered_message_has_the_numbers():
    verdict = gpu_memory.fit([(0, MI300X, seed_free(), [])], 0.9)
    assert gpu_memory.apply_policy("fit", verdict, 0.9).message == (
        "gpu-memory-utilization lowered from 0.9 to 0.85: GPU 0 has 164.76 of 191.98 GiB free and 27.22 GiB are taken"
        " by others."
    )


def test_unknown_policy():
    with pytest.raises(ValueError, match="strict, fit, off"):
        gpu_memory.apply_policy("loose", gpu_memory.fit([(0, MI300X, MI300X, [])], 0.9), 0.9)


def test_readable_splits_off_what_cannot_be_known():
    link = gpu.Link(None, None, None, None, None)
    known, unknown = (
        gpu.Gpu(index, None, None, None, None, None, 10, used, free, None, 0, link, [], [])
        for index, used, free in ((0, 4, 6), (1, None, None))
    )
    assert gpu_memory.readable([known, unknown]) == ([gpu_memory.GpuMemory(0, 10, 6, [])], [1])


@pytest.mark.parametrize(
    ("total", "split", "heads", "expected"),
    [
        (689 * GIB, (8, 1, 1), 128, (True, 4)),  # DeepSeek-V3.1 in FP8 on eight MI300X; four would just hold it
        (689 * GIB, (2, 1, 1), 128, (False, 4)),
        (1400 * GIB, (8, 1, 1), 128, (False, 16)),
        (1400 * GIB, (8, 2, 1), 128, (True, 8)),
        (1400 * GIB, (8, 1, 2), 128, (True, 8)),
        (400 * GIB, (1, 1, 1), 9, (False, 3)),  # nine heads split by three
        (40000 * GIB, (8, 1, 1), 64, (False, None)),
        (0, (1, 1, 1), None, (True, 1)),
    ],
)
def test_weights(total, split, heads, expected):
    tp, pp, ep = split
    verdict = gpu_memory.weights_fit(total, tp, pp, MI300X, 0.9, expert_parallel=ep, attention_heads=heads)
    assert (verdict.ok, verdict.least_tensor_parallel) == expected
    assert verdict.per_gpu == math.ceil(total / (tp * pp * ep))
    if verdict.ok:
        return
    advice = f"tensor-parallel-size to {expected[1]}" if expected[1] else "smaller model"
    assert advice in verdict.sentence


def test_weights_sentence_has_the_numbers():
    assert gpu_memory.weights_fit(689 * GIB, 2, 1, MI300X, 0.9, attention_heads=128).sentence == (
        "The weights take at least 689.00 GiB, 344.50 GiB on each of 2 GPUs, but 0.9 of 191.98 GiB is 172.79 GiB."
        " Set tensor-parallel-size to 4 or more, use a quantised model, or more nodes."
    )


def test_weights_at_the_edge():
    budget = math.ceil(MI300X * 0.9)
    assert gpu_memory.weights_fit(budget, 1, 1, MI300X, 0.9).ok
    assert not gpu_memory.weights_fit(budget + 1, 1, 1, MI300X, 0.9).ok


def test_weights_need_real_sizes():
    with pytest.raises(ValueError, match="1 or more"):
        gpu_memory.weights_fit(1, 0, 1, MI300X, 0.9)


@pytest.mark.parametrize(
    ("heads", "gpus", "shared", "sizes"),
    [
        (128, 8, None, [1, 2, 4, 8]),
        (9, 8, None, [1, 3]),
        (64, 1, None, [1]),
        (12, 8, None, [1, 2, 3, 4, 6]),
        (40, 16, 10, [1, 2, 5, 10]),  # Phi 3 medium: vLLM divides 10 KV heads among 4 or 8 ranks in no way
        (64, 16, 8, [1, 2, 4, 8, 16]),
        (64, 16, 4, [1, 2, 4, 8, 16]),
        (12, 12, 1, [1, 2, 3, 4, 6, 12]),
    ],
)
def test_tensor_parallel_sizes(heads, gpus, shared, sizes):
    assert gpu_memory.tensor_parallel_sizes(heads, gpus, shared) == sizes


SMOLLM2 = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "torch_dtype": "bfloat16",
}
DEEPSEEK_V31 = {
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "torch_dtype": "bfloat16",
}
LLAMA_70B = {
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_size": 8192,
    "torch_dtype": "bfloat16",
}


def test_kv_size_as_vllm_logged_it():
    """Recorded: 1 GiB of KV cache for SmolLM2-135M is 46,592 tokens (CPU blocks of 128)."""
    log = (FIXTURES / "ready.log").read_text(errors="replace")
    tokens = int(re.search(r"KV cache size: ([\d,]+) tokens", log)[1].replace(",", ""))
    assert gpu_memory.largest_context(GIB, gpu_memory.kv_cost(SMOLLM2), block_size=128) == tokens


@pytest.mark.parametrize(
    ("config", "options", "bytes_per_token"),
    [
        (SMOLLM2, {}, 30 * 2 * 3 * 64 * 2),
        (SMOLLM2, {"dtype": "float32"}, 30 * 2 * 3 * 64 * 4),
        (SMOLLM2 | {"torch_dtype": "float32"}, {}, 30 * 2 * 3 * 64 * 2),
        (LLAMA_70B, {}, 80 * 2 * 8 * 128 * 2),
        (LLAMA_70B, {"tensor_parallel": 8}, 80 * 2 * 1 * 128 * 2),
        (LLAMA_70B, {"tensor_parallel": 16}, 80 * 2 * 1 * 128 * 2),  # at least one KV head a rank
        (LLAMA_70B, {"tensor_parallel": 8, "kv_cache_dtype": "fp8_e4m3"}, 80 * 2 * 128),
        (LLAMA_70B, {"pipeline_parallel": 3}, 27 * 2 * 8 * 128 * 2),
        (DEEPSEEK_V31, {}, 61 * (512 + 64) * 2),
        (DEEPSEEK_V31, {"tensor_parallel": 8}, 61 * (512 + 64) * 2),  # the latent is whole on every rank
        ({"text_config": LLAMA_70B, "model_type": "multimodal"}, {}, 80 * 2 * 8 * 128 * 2),
        ({"dtype": "bfloat16", "text_config": {**LLAMA_70B, "head_dim": 64}}, {}, 80 * 2 * 8 * 64 * 2),
    ],
)
def test_kv_cost(config, options, bytes_per_token):
    cost = gpu_memory.kv_cost(config, **options)
    assert (cost.bytes_per_token, cost.exact) == (bytes_per_token, True)
    assert "layers x" in cost.formula


def test_kv_cost_with_windowed_layers_is_a_lower_bound():
    kinds = ["sliding_attention", "full_attention"] * 40
    cost = gpu_memory.kv_cost(LLAMA_70B | {"layer_types": kinds})
    assert (cost.exact, cost.layers, cost.bytes_per_token) == (False, 40, 40 * 2 * 8 * 128 * 2)


@pytest.mark.parametrize(
    ("more", "layers"),
    [
        # Granite 4: attention and mamba.
        ({"layer_types": ["mamba"] * 72 + ["attention"] * 8}, 8),
        ({"layer_types": ["attention"] * 80}, 80),
        # Gemma 3, Cohere 2, Qwen3-Next: every so many layers one.
        ({"sliding_window": 1024, "sliding_window_pattern": 6}, 13),
        ({"full_attention_interval": 4}, 20),
        # Qwen 2.5 and Qwen 3 have a window and do not use it; Phi 3.5's is as long as its context.
        ({"sliding_window": 4096, "use_sliding_window": False}, 80),
        ({"sliding_window": 262144, "max_position_embeddings": 131072}, 80),
        ({"sliding_window": None}, 80),
    ],
)
def test_layers_that_keep_the_whole_context(more, layers):
    cost = gpu_memory.kv_cost(LLAMA_70B | more)
    assert (cost.layers, cost.exact) == (layers, layers == 80)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"sliding_window": 1024}, "sliding_window"),  # Gemma 3's 12B: neither pattern nor layer_types
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 70}, "sliding_window"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size"),  # Llama 4 Scout
        ({"hybrid_override_pattern": "M-M-M*-"}, "hybrid_override_pattern"),
        ({"attn_layer_period": 8, "attn_layer_offset": 4}, "attn_layer_period"),
        ({"layer_types": ["full_attention"] * 79}, "layer_types"),
        ({"layer_types": ["something_new"] * 80}, "layer_types"),
        ({"layer_types": ["full_attention"] * 80, "num_kv_shared_layers": 10}, "num_kv_shared_layers"),
    ],
)
def test_layers_that_keep_less_without_saying_which_are_not_counted_as_whole(more, field):
    with pytest.raises(ValueError, match=f"by {field} in config.json some layers keep less"):
        gpu_memory.kv_cost(LLAMA_70B | more)


@pytest.mark.parametrize(
    ("config", "options", "match"),
    [
        ({}, {}, "num_hidden_layers = None"),
        (LLAMA_70B | {"num_hidden_layers": 0}, {}, "num_hidden_layers = 0"),
        (DEEPSEEK_V31 | {"qk_rope_head_dim": None}, {}, "qk_rope_head_dim"),
        (LLAMA_70B, {"kv_cache_dtype": "int3"}, "int3"),
    ],
)
def test_kv_cost_names_what_is_missing(config, options, match):
    with pytest.raises(ValueError, match=match):
        gpu_memory.kv_cost(config, **options)


def test_context_that_fits():
    cost = gpu_memory.kv_cost(LLAMA_70B, tensor_parallel=8)
    room = gpu_memory.kv_budget(MI300X, 0.9, weights_per_gpu=18 * GIB, other=5 * GIB)
    assert room == math.ceil(MI300X * 0.9) - 23 * GIB
    context = gpu_memory.largest_context(room, cost)
    assert context % 16 == 0
    assert context * cost.bytes_per_token <= room < (context + 16) * cost.bytes_per_token
    assert gpu_memory.largest_context(cost.bytes_per_token * 15, cost) == 0
    assert gpu_memory.kv_budget(MI300X, 0.1, weights_per_gpu=100 * GIB) == 0


def test_windowed_model_without_any_whole_layer():
    cost = gpu_memory.kv_cost(LLAMA_70B | {"layer_types": ["sliding_attention"] * 80})
    assert gpu_memory.largest_context(GIB, cost) is None
