# SPDX-License-Identifier: Apache-2.0
"""Does it fit? The arithmetic of GPU memory, in bytes, with a sentence for what does not fit.

Pure: takes figures, gives verdicts. The rules are vLLM's (0.32.0):

* ``worker/utils.py`` request_memory: the budget is ``ceil(total * gpu_memory_utilization)`` bytes, and the start is
  refused when less than that is free. It is a share of the *total*, whatever others hold.
* ``v1/core/kv_cache_utils.py``: what weights and activations leave of the budget holds the KV cache, in whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

GIB = 1 << 30

# vLLM 0.32.0 config/cache.py. Also the most that is recommended on an empty GPU: above it vLLM leaves nothing for
# what it does not count itself (RCCL buffers, HIP graphs, the context).
DEFAULT_UTILIZATION = 0.92

# Below this share no useful server starts, so `fit` refuses rather than squeeze into what others left over.
LOWEST_UTILIZATION = 0.1

POLICIES = ("strict", "fit", "off")


class HolderLike(Protocol):
    """A process on a GPU, as gpu.Holder."""

    @property
    def pid(self) -> int: ...  # noqa: D102
    @property
    def command(self) -> str | None: ...  # noqa: D102
    @property
    def container(self) -> str | None: ...  # noqa: D102
    @property
    def container_name(self) -> str | None: ...  # noqa: D102
    @property
    def bytes(self) -> int | None: ...  # noqa: D102


class GpuLike(Protocol):
    """A GPU with its memory, as gpu.Gpu."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def vram_total(self) -> int | None: ...  # noqa: D102
    @property
    def vram_free(self) -> int | None: ...  # noqa: D102
    @property
    def holders(self) -> Sequence[HolderLike]: ...  # noqa: D102


class GpuMemory(NamedTuple):
    """One GPU's memory in bytes and who holds it. A plain tuple of the same order does as well."""

    number: int
    total: int
    free: int
    holders: Sequence[HolderLike] = ()


@dataclass(frozen=True)
class Fit:
    """Whether a utilization fits on every GPU, judged by the tightest one. Sizes in bytes.

    ``free`` counts what the old server gives back; ``taken`` is what others hold. ``highest`` is the largest
    utilization with two digits that vLLM would accept now (0.0 when not even 0.01 fits). ``sentence`` is complete.
    """

    ok: bool
    index: int
    total: int
    needed: int
    free: int
    taken: int
    highest: float
    sentence: str


@dataclass(frozen=True)
class Decision:
    """What a policy makes of a Fit: the utilization to start with, and a message where one is needed."""

    utilization: float
    lowered: bool
    refuse: bool
    message: str


@dataclass(frozen=True)
class WeightsFit:
    """Whether weights alone fit. Sizes in bytes; ``least_tensor_parallel`` is None when no size helps."""

    ok: bool
    per_gpu: int
    budget: int
    least_tensor_parallel: int | None
    sentence: str


@dataclass(frozen=True)
class KvCost:
    """What one token of context costs in the KV cache of one GPU.

    ``exact`` is False where part of the layers keeps a window or a state instead of the whole context: then the figure
    is a lower bound that leaves those layers out.
    """

    bytes_per_token: int
    layers: int
    exact: bool
    formula: str


def readable(gpus: Iterable[GpuLike]) -> tuple[list[GpuMemory], list[int]]:
    """Split GPUs into those whose memory is known and the indices of those where it is not."""
    known, unknown = [], []
    for gpu in gpus:
        if gpu.vram_total is None or gpu.vram_free is None:
            unknown.append(gpu.index)
        else:
            known.append(GpuMemory(gpu.index, gpu.vram_total, gpu.vram_free, gpu.holders))
    return known, unknown


def requested(total: int, utilization: float) -> int:
    """Return the bytes that vLLM asks for, in its own float arithmetic (worker/utils.py request_memory)."""
    return math.ceil(total * utilization)


def highest_utilization(total: int, free: int) -> float:
    """Return the largest utilization of two digits whose request fits into ``free``; at most 1.0."""
    percent = min(100, free * 100 // total)
    # Float multiplication may round the request up by a byte where it just fits in integers.
    while percent > 0 and requested(total, percent / 100) > free:
        percent -= 1
    return percent / 100


def fit(
    gpus: Sequence[tuple[int, int, int, Sequence[HolderLike]]],
    utilization: float,
    mine: int | Mapping[int, int] = 0,
) -> Fit:
    """Return whether ``utilization`` of every GPU is free.

    ``gpus`` are (index, total, free, holders); ``mine`` is what the server that is about to be replaced holds and will
    give back, in bytes per GPU or by index (leave its processes out of the holders). Raises ValueError for no GPU, a
    total of 0 or a utilization outside (0, 1].
    """
    if not 0 < utilization <= 1:
        raise ValueError(f"gpu-memory-utilization is {utilization}; a number above 0 and at most 1 is expected")
    if not gpus:
        raise ValueError("no GPU whose memory is known: nothing to compare with")
    worst: tuple[float, GpuMemory] | None = None
    for index, total, free, holders in gpus:
        if total <= 0:
            raise ValueError(f"GPU {index} reports {total} bytes of VRAM")
        own = mine.get(index, 0) if isinstance(mine, Mapping) else mine
        available = min(total, free + own)
        spare = (available - requested(total, utilization)) / total
        if worst is None or spare < worst[0]:
            worst = spare, GpuMemory(index, total, available, holders)
    assert worst is not None  # noqa: S101 - gpus is not empty
    tightest = worst[1]
    needed = requested(tightest.total, utilization)
    highest = highest_utilization(tightest.total, tightest.free)
    return Fit(
        ok=tightest.free >= needed,
        index=tightest.number,
        total=tightest.total,
        needed=needed,
        free=tightest.free,
        taken=tightest.total - tightest.free,
        highest=highest,
        sentence=_fit_sentence(tightest, utilization, needed, highest),
    )


def _fit_sentence(gpu: GpuMemory, utilization: float, needed: int, highest: float) -> str:
    where = f"GPU {gpu.number} has {gib(gpu.free)} of {gib(gpu.total)} GiB free"
    if gpu.free >= needed:
        return f"{where}; gpu-memory-utilization {utilization:g} needs {gib(needed)} GiB."
    if gpu.holders:
        by = f"by {holders_text(gpu.holders)}"
        stop = "stop that process" if len(gpu.holders) == 1 else "stop those processes"
    else:
        by = "without a process that the node names (the driver itself keeps about 0.3 GiB)"
        stop = "find what holds it with `fuser -v /dev/kfd`"
    setting = f"set gpu-memory-utilization to {highest:g} or lower, or " if highest > 0 else ""
    fits = f"The highest that fits now is {highest:g}" if highest > 0 else "Not even 0.01 fits"
    return (
        f"{where}, but gpu-memory-utilization {utilization:g} needs {gib(needed)} GiB:"
        f" {gib(gpu.total - gpu.free)} GiB are taken {by}. {fits}: {setting}{stop}."
    )


def gib(size: int) -> str:
    """Return bytes in GiB with two digits, as vLLM prints them."""
    return f"{size / GIB:.2f}"


def holders_text(holders: Iterable[HolderLike]) -> str:
    """Return the holders of a GPU in words, the largest first: pid, command, container, GiB."""
    parts = []
    for holder in sorted(holders, key=lambda one: -(one.bytes or 0)):
        container = holder.container_name or (holder.container or "")[:12]
        text = f"pid {holder.pid}"
        text += f" ({holder.command})" if holder.command else ""
        text += f" in container {container}" if container else ""
        text += f" with {gib(holder.bytes)} GiB" if holder.bytes is not None else ""
        parts.append(text)
    return ", ".join(parts)


def apply_policy(policy: str, verdict: Fit, utilization: float, lowest: float = LOWEST_UTILIZATION) -> Decision:
    """Return what to do about a verdict.

    ``strict`` starts with the wanted utilization or refuses; ``fit`` lowers it to what fits, never raises it, and
    refuses below ``lowest`` (give :func:`lowest_for_weights` where the weights are known); ``off`` does not look.
    Raises ValueError for an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"GPU memory policy is {policy!r}; one of {', '.join(POLICIES)} is expected")
    if policy == "off" or verdict.ok:
        return Decision(utilization, lowered=False, refuse=False, message="")
    if policy == "strict":
        return Decision(utilization, lowered=False, refuse=True, message=verdict.sentence)
    if verdict.highest < lowest:
        message = f"{verdict.sentence} Lowering stops at {lowest:g}, below which this server cannot work."
        return Decision(utilization, lowered=False, refuse=True, message=message)
    message = (
        f"gpu-memory-utilization lowered from {utilization:g} to {verdict.highest:g}: GPU {verdict.index} has"
        f" {gib(verdict.free)} of {gib(verdict.total)} GiB free and {gib(verdict.taken)} GiB are taken by others."
    )
    return Decision(verdict.highest, lowered=True, refuse=False, message=message)


def lowest_for_weights(weights_per_gpu: int, vram_total: int) -> float:
    """Return the two-digit utilization below which not even the weights have room; at least LOWEST_UTILIZATION."""
    return max(LOWEST_UTILIZATION, math.ceil(weights_per_gpu / vram_total * 100) / 100)


def weights_fit(
    total_weight_bytes: int,
    tensor_parallel: int,
    pipeline_parallel: int,
    vram_total: int,
    utilization: float,
    *,
    expert_parallel: int = 1,
    attention_heads: int | None = None,
    kv_heads: int | None = None,
) -> WeightsFit:
    """Return whether weights of ``total_weight_bytes`` (at least, see checkpoint.py) fit into the budget of each GPU.

    Assumes the most even split there is, over ``tensor_parallel`` x ``pipeline_parallel`` x ``expert_parallel`` (the
    data parallel ranks that share the experts), so a refusal is certain while an "ok" is not: activations, the KV
    cache and what is held twice come on top. The heads limit the advice to sizes that vLLM accepts. Online quantisation
    makes weights smaller than their files; do not ask then.
    """
    ranks = tensor_parallel * pipeline_parallel * expert_parallel
    if ranks < 1 or min(tensor_parallel, pipeline_parallel, expert_parallel) < 1:
        raise ValueError(
            f"parallel sizes are {tensor_parallel} x {pipeline_parallel} x {expert_parallel}; 1 or more is expected"
        )
    budget = requested(vram_total, utilization)
    per_gpu = -(-total_weight_bytes // ranks)
    ok = per_gpu <= budget
    least = None
    for size in _usual_sizes(attention_heads, kv_heads):
        if total_weight_bytes <= budget * size * pipeline_parallel * expert_parallel:
            least = size
            break
    sentence = (
        f"The weights take at least {gib(total_weight_bytes)} GiB, {gib(per_gpu)} GiB on each of {ranks}"
        f" GPU{'s' if ranks > 1 else ''}"
    )
    room = f"{utilization:g} of {gib(vram_total)} GiB is {gib(budget)} GiB"
    if ok:
        return WeightsFit(True, per_gpu, budget, least, f"{sentence}; {room}.")
    if least is not None and least > tensor_parallel:
        advice = f"Set tensor-parallel-size to {least} or more, use a quantised model, or more nodes."
    else:
        advice = "Use a quantised or smaller model, or spread it over more nodes."
    return WeightsFit(False, per_gpu, budget, least, f"{sentence}, but {room}. {advice}")


def _usual_sizes(attention_heads: int | None, kv_heads: int | None) -> list[int]:
    if attention_heads is None:
        return [1 << power for power in range(8)]
    return tensor_parallel_sizes(attention_heads, 128, kv_heads)


def tensor_parallel_sizes(attention_heads: int, gpus: int, kv_heads: int | None = None) -> list[int]:
    """Return the tensor parallel sizes up to ``gpus`` that vLLM accepts, see :func:`splits`."""
    most = min(attention_heads, gpus)
    return [size for size in range(1, most + 1) if splits(size, attention_heads, kv_heads)]


def splits(size: int, attention_heads: int, kv_heads: int | None = None) -> bool:
    """Return whether so many ranks share the heads evenly.

    vLLM wants the attention heads divided, and each KV head on as many ranks as another, or as many on each
    (QKVParallelLinear, model_executor/layers/linear.py).
    """
    return attention_heads % size == 0 and not (kv_heads and kv_heads % size and size % kv_heads)


#: Kinds in layer_types that keep the whole context, and those that keep a window, a chunk or a state
#: (transformers' ALLOWED_LAYER_TYPES; Granite's are ``attention`` and ``mamba``).
_WHOLE = ("full_attention", "attention")
_BOUNDED = ("sliding_attention", "chunked_attention", "linear_attention", "mamba", "conv")
#: Every so many layers one keeps the whole context: Gemma 3 and Cohere 2, Qwen3-Next.
_INTERVALS = ("sliding_window_pattern", "full_attention_interval")
#: Fields of models in which some layers keep less, or share what they keep, without saying here which.
_PARTIAL = (
    "attention_chunk_size", "hybrid_override_pattern", "attn_layer_period", "attn_layer_indices", "attn_type_list",
    "layers_block_type", "block_types", "block_configs", "full_attn_idxs", "linear_attn_config", "compress_ratios",
)  # fmt: skip
_SHARED = ("num_kv_shared_layers", "use_cla")

_DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


def kv_cost(
    config: Mapping[str, Any],
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    dtype: str = "auto",
    kv_cache_dtype: str = "auto",
) -> KvCost:
    """Return the KV cache cost of one token on one GPU from a model's ``config.json``.

    Multi-head and grouped-query attention keep K and V of every KV head, split over the tensor parallel ranks but at
    least one head each. Multi-head latent attention (DeepSeek: ``kv_lora_rank``) keeps one compressed vector of
    ``kv_lora_rank + qk_rope_head_dim`` per layer, whole on every rank. Raises ValueError naming a missing field, and
    one that says that some layers keep less without saying which: to count them all would be too much.
    """
    nested = config.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
    size = _element_bytes(text if "torch_dtype" in text or "dtype" in text else config, dtype, kv_cache_dtype)
    layers, exact = _whole_layers(text)
    per_stage = -(-layers // pipeline_parallel)
    rank = text.get("kv_lora_rank")
    if isinstance(rank, int) and rank > 0:
        width = rank + _field(text, "qk_rope_head_dim")
        formula = f"{per_stage} layers x ({rank} + {width - rank}) x {size} bytes"
    else:
        heads = _field(text, "num_attention_heads")
        kv_heads = text.get("num_key_value_heads") or heads
        head_dim = text.get("head_dim") or _field(text, "hidden_size") // heads
        local = max(1, int(kv_heads) // tensor_parallel)
        width = 2 * local * int(head_dim)
        formula = f"{per_stage} layers x 2 x {local} KV heads x {head_dim} x {size} bytes"
    return KvCost(per_stage * width * size, per_stage, exact, formula)


def _whole_layers(config: Mapping[str, Any]) -> tuple[int, bool]:
    """Return how many layers keep the whole context, at the least, and whether these are all that there are."""
    layers = _field(config, "num_hidden_layers")
    vague = [name for name in _SHARED if config.get(name)]
    kinds = config.get("layer_types")
    if isinstance(kinds, Sequence) and not isinstance(kinds, str) and len(kinds) == layers and not vague:
        whole = sum(1 for kind in kinds if kind in _WHOLE)
        if whole or all(kind in _BOUNDED for kind in kinds):
            return whole, whole == layers
        vague = ["layer_types"]
    every = next((config[name] for name in _INTERVALS if isinstance(config.get(name), int)), 0)
    if every > 0 and not vague:
        return layers // every, every == 1
    vague += [name for name in ("layer_types", *_PARTIAL) if config.get(name)]
    window, most = config.get("sliding_window"), config.get("max_position_embeddings")
    narrow = isinstance(window, int) and window > 0 and not (isinstance(most, int) and window >= most)
    if narrow and config.get("use_sliding_window") is not False:
        vague.append("sliding_window")
    if vague:
        raise ValueError(
            f"by {vague[0]} in config.json some layers keep less than the whole context, or share it, and not all of "
            "that is written there"
        )
    return layers, True


def _field(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value <= 0:
        raise ValueError(f"config.json has {name} = {value!r}; a whole number above 0 is expected")
    return value


def _element_bytes(config: Mapping[str, Any], dtype: str, kv_cache_dtype: str) -> int:
    if kv_cache_dtype.startswith("fp8"):
        return 1
    wanted = kv_cache_dtype if kv_cache_dtype != "auto" else dtype
    if wanted == "auto":
        wanted = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
        if wanted == "float32" and dtype == "auto":
            wanted = "bfloat16"  # vLLM serves float32 checkpoints in 16 bits unless a flag says otherwise
    try:
        return _DTYPE_BYTES[wanted.removeprefix("torch.")]
    except KeyError:
        raise ValueError(f"KV cache type is {wanted!r}; one of {', '.join(_DTYPE_BYTES)} or fp8 is expected") from None


def largest_context(kv_bytes: int, cost: KvCost, block_size: int = 16) -> int | None:
    """Return how many tokens ``kv_bytes`` of KV cache hold on each GPU, in whole blocks.

    0 when not one block fits; None when no layer keeps the whole context, so that its length costs nothing.
    """
    if cost.bytes_per_token == 0:
        return None
    return max(0, kv_bytes) // (cost.bytes_per_token * block_size) * block_size


def kv_budget(vram_total: int, utilization: float, weights_per_gpu: int, other: int = 0) -> int:
    """Return the bytes left for the KV cache at the very most; ``other`` is what activations and graphs take."""
    return max(0, requested(vram_total, utilization) - weights_per_gpu - other)
