# SPDX-License-Identifier: Apache-2.0
"""Model x machine: what weights and KV cache take, and what fits. Pure: figures in, figures and findings out.

The figures of a model come from its ``config.json`` and weight index, or from its preset. Figures of memory are what
vLLM may use at the very most: activations, graphs and RCCL's buffers come on top and are known only to the running
engine. So a refusal here is certain (not even the best case fits), while a row without one is not a promise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..common.finding import Finding
from ..host import gpu_memory
from ..vllm import releases
from ..vllm.cli import CommandError, normalise_args
from .checkpoint import (
    contexts,
    kv_heads,
    lessened,
    loaded,
    overridden,
    plain_config,
    whole,
)
from .placement import Ranks, count, visible
from .placement import ranks as spread

#: Bytes of VRAM that the driver reports. MI300X: rocm-smi, 196592 MiB. MI355X: amd-smi, 294896 MiB. MI325X: derived,
#: 256 GiB less the 16 MiB by which the MI300X stays under its 192 GiB.
VRAM: Mapping[str, int] = {"MI300X": 196592 << 20, "MI325X": 262128 << 20, "MI355X": 294896 << 20}

#: Tensor parallel sizes that are named for a CPU, where a rank is a NUMA node.
CPU_RANKS = 8

#: Name of the finding of too few.
GPUS_FOR_THE_MODEL = "GPUs for the model"

_KIND = re.compile(r"\bMI\d{2,3}[A-Z]?", re.IGNORECASE)
#: vLLM 0.32.0 utils: 32k is 32000, 32K is 32768.
_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Facts:
    """What is known of a model. ``config`` has config.json's names and may be empty; ``weights_bytes`` is on disk.

    ``source`` says where the figures are from. ``min_vllm`` is "" where no version is named.
    """

    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    weights_bytes: int | None = None
    source: str = ""
    min_vllm: str = ""


@dataclass(frozen=True)
class Machine:
    """What the server may use: ``gpus`` GPUs of ``vram`` bytes each (None: not known). Without GPUs it is a CPU."""

    kind: str
    gpus: int = 0
    vram: int | None = None


@dataclass(frozen=True)
class Sizing:
    """The verdict. Bytes and tokens; None where it is not known. ``lines`` is the arithmetic, for people.

    ``context`` is the longest that fits and that the model has, ``context_asked`` what max-model-len says,
    ``requests`` how many of the one that will be used fit at once, ``sizes`` the tensor parallel sizes that divide the
    heads. ``at_most``: KV cache and context are upper bounds.
    """

    model: str
    source: str
    machine: str
    tensor: int
    sizes: tuple[int, ...] | None
    weights_per_gpu: int | None
    kv_per_gpu: int | None
    context: int | None
    context_asked: int | None
    requests: float | None
    disk: int | None
    at_most: bool
    heads: int | None
    context_limit: int | None
    lines: tuple[str, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Case:
    """One model on one machine; ``lines`` grows with the arithmetic."""

    facts: Facts
    config: Mapping[str, Any]
    machine: Machine
    flags: Mapping[str, Any]
    env: Mapping[str, Any]
    ranks: Ranks
    tag: str = ""
    lines: list[str] = field(default_factory=list)


def gpu_kind(name: str) -> str:
    """Return the kind in a product's name (``AMD Instinct MI300X OAM`` is an MI300X); the name itself without one."""
    found = _KIND.search(name)
    return found.group(0).upper() if found else name.strip()


def of_gpus(
    gpus: Sequence[Mapping[str, Any]], env: Mapping[str, Any] | None = None, devices: Sequence[str] | None = None
) -> Machine:
    """Return the machine of the GPUs that rocm_info returned; the server's environment and devices leave some out."""
    places, _ = visible([gpu.get("render") for gpu in gpus], env or {}, devices)
    totals = [gpus[place].get("vram_total") for place in places]
    known = [total for total in totals if isinstance(total, int)]
    kind = gpu_kind(str(gpus[0].get("name") or "GPU")) if gpus else "no GPU"
    return Machine(kind, len(places), min(known) if known else None)


def wants(
    gpus: Sequence[Mapping[str, Any]],
    args: Mapping[str, Any],
    env: Mapping[str, Any],
    devices: Sequence[str] | None = None,
) -> tuple[float, list[int]]:
    """Return what a server started with these flags takes of a node: its share of each GPU, and the GPUs' indices.

    ``gpus`` as rocm_info returns them; no index where it is not certain which they are. Raises ValueError, CommandError
    for flags that make no sense.
    """
    flags = normalise_args(args)
    places, certain = visible([gpu.get("render") for gpu in gpus], env, devices)
    used = places[: spread(flags).local] if certain else []
    return _share(flags), [int(gpus[place]["index"]) for place in used]


def named(kind: str, gpus: int, vram: int | None = None) -> Machine:
    """Return a machine of a GPU kind by name. Raises ValueError for a kind whose memory is neither known nor given."""
    short = gpu_kind(kind)
    if vram is None and short not in VRAM:
        known = ", ".join(VRAM)
        raise ValueError(f"GPU kind is {kind!r}; expected one of {known}, or one with its GiB, such as MI210=64")
    if gpus < 1:
        raise ValueError(f"number of GPUs is {gpus}; 1 or more is expected")
    return Machine(short, gpus, VRAM[short] if vram is None else vram)


def size(
    facts: Facts,
    machine: Machine,
    args: Mapping[str, Any],
    env: Mapping[str, Any] | None = None,
    *,
    image_version: str = "",
) -> Sizing:
    """Do the arithmetic of one model on one machine with the arguments of ``vllm serve`` and its environment.

    ``image_version`` is the image's tag; where it is no version it is not compared. Raises ValueError for arguments
    that are no numbers where vLLM wants numbers.
    """
    flags = normalise_args(args)
    config = plain_config(overridden(facts.config, flags))
    case = _Case(facts, config, machine, flags, env or {}, spread(flags), image_version)
    ranks, lines, nodes = case.ranks, case.lines, count(flags, "nnodes")
    found: list[Finding] = []
    heads, shared = whole(config.get("num_attention_heads")), kv_heads(config)
    sizes = None
    if heads is not None:
        sizes = tuple(gpu_memory.tensor_parallel_sizes(heads, (machine.gpus or CPU_RANKS) * nodes, shared))
        lines.append(f"{_heads_text(heads, shared)}: tensor-parallel-size may be {_words(sizes)}")
        found += _heads(heads, shared, ranks.tensor)
    found += _gpus(case)
    per_gpu, least = _weights(case)
    budget, kv, exact = _room(case, per_gpu)
    if sizes and least is not None and budget is not None:
        lines[0] += f"; the weights fit with {_words(_holding(case, sizes, least, budget))}"
    if least is not None and budget is not None and least > budget:
        found.append(_too_large(case, heads, least, budget))
        kv = 0
    usual, limit = contexts(config)
    asked = tokens_of(flags.get("max-model-len"))
    tokens, cost = _tokens(case, kv)
    # Where something else is refused, the context is not the first thing to mend.
    if not any(one.level == "refused" for one in found):
        found += _context(tokens, asked, usual, exact) or _beyond(case, asked, limit)
    found += _version(facts.min_vllm, image_version) + _flags(flags, image_version)
    used = asked or usual
    return Sizing(
        model=facts.model,
        source=facts.source,
        machine=(f"{nodes} x " if nodes > 1 else "")
        + (f"{machine.gpus} x {machine.kind}" if machine.gpus else machine.kind),
        tensor=ranks.tensor,
        sizes=sizes,
        weights_per_gpu=per_gpu,
        kv_per_gpu=kv,
        context=min(tokens, limit) if tokens is not None and limit is not None else tokens,
        context_asked=asked,
        requests=tokens / used if tokens is not None and used else None,
        disk=facts.weights_bytes,
        at_most=not exact or (cost is not None and not cost.exact),
        heads=heads,
        context_limit=limit,
        lines=tuple(lines),
        findings=tuple(found),
    )


def tokens_of(value: object) -> int | None:
    """Return max-model-len in tokens, as vLLM reads it: 32768, 32k (32000), 32K (32768). None for ``auto`` and -1."""
    if value is None or value is False:
        return None
    text = str(value).strip()
    if text.isdigit():
        return int(text)
    if text[:-1].replace(".", "", 1).isdigit() and text[-1] in _SUFFIXES:
        return int(float(text[:-1]) * _SUFFIXES[text[-1]])
    if text in ("-1", "auto"):
        return None
    raise CommandError(f"max-model-len is {text!r}; expected a number of tokens such as 32768 or 32K")


def _gpus(case: _Case) -> list[Finding]:
    machine, needed = case.machine, case.ranks.local
    if not machine.gpus or needed <= machine.gpus:
        return []
    remedy = "lower tensor-parallel-size or its like in vllm_server_args"
    return [Finding("refused", GPUS_FOR_THE_MODEL, str(needed), f"{machine.gpus} x {machine.kind}", remedy)]


def _weights(case: _Case) -> tuple[int | None, int | None]:
    """Return the bytes on each GPU, and those that are certain at the least."""
    on_disk, config, flags, lines = case.facts.weights_bytes, case.config, case.flags, case.lines
    if on_disk is None:
        lines.append("weights: their size is not known before they are there")
        return None, None
    line = f"weights: {gpu_memory.gib(on_disk)} GiB on disk"
    taken = loaded(on_disk, config, flags)
    if taken is None:
        lines.append(f"{line}, less in memory: {lessened(config, flags)}, how much is not known")
        return None, None
    line += taken.note
    ranks = case.ranks.weights
    per_gpu = -(-taken.bytes // ranks)
    over = f" / {ranks} GPUs" if ranks > 1 else ""
    if case.machine.gpus:
        line += f"; {gpu_memory.gib(taken.bytes)} GiB{over} = {gpu_memory.gib(per_gpu)} GiB per GPU, split evenly"
    lines.append(line)
    return per_gpu, -(-taken.certain // ranks)


def _room(case: _Case, per_gpu: int | None) -> tuple[int | None, int | None, bool]:
    """Return the budget of a GPU, what of it is left for the KV cache, and whether that is exact."""
    machine, lines = case.machine, case.lines
    if not machine.gpus:
        space = str(case.env.get("VLLM_CPU_KVCACHE_SPACE") or "")
        if not space.replace(".", "", 1).isdigit() or float(space) <= 0:
            lines.append("KV cache: vLLM's own choice of RAM; VLLM_CPU_KVCACHE_SPACE (GiB) sets it")
            return None, None, True
        lines.append(f"KV cache: VLLM_CPU_KVCACHE_SPACE = {space} GiB")
        return None, int(float(space) * gpu_memory.GIB), True
    fixed = str(case.flags.get("kv-cache-memory-bytes") or case.flags.get("kv-cache-memory") or "")
    if fixed.isdigit():
        lines.append(f"KV cache: kv-cache-memory-bytes = {gpu_memory.gib(int(fixed))} GiB per GPU")
        return None, int(fixed), True
    if machine.vram is None:
        lines.append("KV cache: the GPUs' memory is not known")
        return None, None, False
    share = _share(case.flags, case.tag)
    budget = gpu_memory.requested(machine.vram, share)
    whole = f"{share:g} x {gpu_memory.gib(machine.vram)} GiB ({machine.kind}) = {gpu_memory.gib(budget)} GiB"
    if per_gpu is None:
        lines.append(f"budget: {whole} per GPU for weights, activations and KV cache")
        return budget, None, False
    kv = gpu_memory.kv_budget(machine.vram, share, per_gpu)
    lines.append(
        f"KV cache: {whole}; less {gpu_memory.gib(per_gpu)} GiB of weights = {gpu_memory.gib(kv)} GiB per GPU at most"
        " (activations and graphs take their part)"
    )
    return budget, kv, False


def _share(flags: Mapping[str, Any], tag: str = "") -> float:
    value = flags.get("gpu-memory-utilization")
    if value is None:
        return float(releases.default_of("gpu-memory-utilization", tag))
    try:
        share = float(str(value))
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise CommandError(f"gpu-memory-utilization is {value}; expected a number above 0 and at most 1")
    return share


def _tokens(case: _Case, kv: int | None) -> tuple[int | None, gpu_memory.KvCost | None]:
    flags, ranks, lines = case.flags, case.ranks, case.lines
    try:
        cost = gpu_memory.kv_cost(
            case.config,
            tensor_parallel=ranks.tensor,
            pipeline_parallel=ranks.pipeline,
            dtype=str(flags.get("dtype") or "auto"),
            kv_cache_dtype=str(flags.get("kv-cache-dtype") or "auto"),
        )
    except ValueError as error:
        lines.append(f"context: what a token takes is not known: {error}")
        return None, None
    where = " per GPU" if case.machine.gpus else ""
    part = "" if cost.exact else ", without the layers that keep a window or a state"
    line = f"one token: {cost.formula} = {cost.bytes_per_token} bytes{where}{part}"
    if kv is None:
        lines.append(line)
        return None, cost
    block = str(flags.get("block-size"))
    tokens = gpu_memory.largest_context(kv, cost, int(block) if block.isdigit() else 16)
    if tokens is None:
        lines.append(f"{line}: the context's length costs nothing")
        return None, cost
    parts = count(flags, "decode-context-parallel-size")
    tokens *= parts
    split = f" x {parts} GPUs (decode-context-parallel-size)" if parts > 1 else ""
    at_most = "" if cost.exact else " at most"
    lines.append(f"{line}; {gpu_memory.gib(kv)} GiB{split} / {cost.bytes_per_token} bytes = {tokens} tokens{at_most}")
    return tokens, cost


def _heads_text(heads: int, shared: int | None) -> str:
    return f"{heads} attention heads" + (f", {shared} KV heads" if shared and shared != heads else "")


def _heads(heads: int, shared: int | None, tensor: int) -> list[Finding]:
    if gpu_memory.splits(tensor, heads, shared):
        return []
    sizes = gpu_memory.tensor_parallel_sizes(heads, 64, shared)
    wanted = f"a divisor of {heads} attention heads"
    if heads % tensor == 0:
        wanted += f" that divides the {shared} KV heads or is a multiple of them"
    remedy = f"set it in vllm_server_args to one of {', '.join(map(str, sizes))}"
    return [Finding("refused", "tensor-parallel-size", wanted, str(tensor), remedy)]


def _too_large(case: _Case, heads: int | None, least: int, budget: int) -> Finding:
    machine, nodes = case.machine, count(case.flags, "nnodes")
    gpus = machine.gpus * nodes
    sizes = gpu_memory.tensor_parallel_sizes(heads or gpus, gpus, kv_heads(case.config))
    fitting = [one for one in _holding(case, sizes, least, budget) if one > case.ranks.tensor and _spreads(case, one)]
    remedy = "use a quantised or smaller model, or spread it over more GPUs"
    if fitting:
        remedy = f"set tensor-parallel-size in vllm_server_args to {fitting[0]}"
    share, whole = _share(case.flags, case.tag), gpu_memory.gib(machine.vram or 0)
    wanted = f"at most {gpu_memory.gib(budget)} GiB per GPU ({share:g} of {whole})"
    return Finding(
        "refused", "size of the model", wanted, f"at least {gpu_memory.gib(least)} GiB of weights per GPU", remedy
    )


def _spreads(case: _Case, tensor: int) -> bool:
    """Return whether this tensor parallel size, all else alike, has a GPU for each rank and as many on every node."""
    ranks = spread({**case.flags, "tensor-parallel-size": str(tensor)})
    engine = ranks.tensor * ranks.pipeline * ranks.data
    return ranks.local <= case.machine.gpus and engine % count(case.flags, "nnodes") == 0


def _holding(case: _Case, sizes: Sequence[int], least: int, budget: int) -> list[int]:
    """Return the tensor parallel sizes that spread the weights so thin that each GPU has room for its share."""
    others = case.ranks.pipeline * case.ranks.experts
    return [one for one in sizes if least * case.ranks.weights <= budget * one * others]


def _context(tokens: int | None, asked: int | None, usual: int | None, exact: bool) -> list[Finding]:
    if tokens is None:
        return []
    most = "" if exact else "at most "
    if asked is not None and asked > tokens:
        remedy = "lower max-model-len in vllm_server_args, raise tensor-parallel-size, or set kv-cache-dtype: fp8"
        return [Finding("refused", "context", f"{most}{tokens} tokens", f"max-model-len {asked}", remedy)]
    if asked is None and usual is not None and usual > tokens:
        # Not certain: a tokenizer's own limit may lower what vLLM derives from config.json.
        remedy = f"set max-model-len in vllm_server_args to {tokens} or less, or raise tensor-parallel-size"
        return [Finding("warning", "context", f"{most}{tokens} tokens", f"the model's own {usual}", remedy)]
    return []


def _beyond(case: _Case, asked: int | None, limit: int | None) -> list[Finding]:
    if asked is not None and limit is not None and asked > limit:
        remedy = "lower it: vLLM refuses more than the model's own unless VLLM_ALLOW_LONG_MAX_MODEL_LEN is set"
        allowed = str(case.env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "")).strip().lower() in ("1", "true")
        # What scales RoPE is read here as vLLM reads it, but not all kinds of it are known.
        scaled = any(case.flags.get(name) is not None for name in ("hf-overrides", "rope-scaling", "rope-theta"))
        scaled = scaled or any(config.get("rope_scaling") for config in (case.config, case.facts.config))
        level = "warning" if allowed or scaled else "refused"
        return [Finding(level, "context", f"the model's own {limit}", f"max-model-len {asked}", remedy)]
    return []


def _version(wanted: str, tag: str) -> list[Finding]:
    if not releases.older(tag, wanted):
        return []
    remedy = "choose a newer image (vllm_image_tag)"
    return [Finding("refused", "vLLM version", f"{wanted} or newer", tag, remedy)]


def _flags(flags: Mapping[str, Any], tag: str) -> list[Finding]:
    """Return warnings for what a vLLM of this version does not know, or not for long; a node with the image asks it."""
    given = {flag for flag, value in flags.items() if value is not None}
    old = releases.deprecated(given, tag)
    found = []
    if old:
        got = ", ".join(f"--{flag} ({end})" for flag, end in old.items())
        found.append(Finding("warning", "vLLM flags", "no deprecated ones", got, "leave them out of vllm_server_args"))
    newer = releases.newer_flags(given, tag)
    if not newer:
        return found
    got = ", ".join(f"--{flag} (since {since})" for flag, since in newer.items())
    remedy = "leave out of vllm_server_args what this release does not have, or choose a newer image (vllm_image_tag)"
    return [*found, Finding("warning", "vLLM flags", f"flags of vLLM {tag}", got, remedy)]


def _words(numbers: Iterable[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else "none"
