# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where GPU memory, or the KV cache in it, is too small or taken. Pure."""

from __future__ import annotations

import re

from .case import Case, Gpu, Holder
from .phrases import Words, floored, listed, setting, variable

GIB = 2**30


def _whole(number: str) -> int:
    return int(float(number.replace(",", "")))


def _named(holder: Holder) -> str:
    command = f" `{holder.command}`" if holder.command else ""
    place = f" in container `{holder.container}`" if holder.container else ""
    return f"pid {holder.pid}{command}{place}" + (f" with {holder.size / GIB:.2f} GiB" if holder.size else "")


def memory_taken(case: Case) -> Words:
    free, total, need = (float(case.get(name)) for name in ("free", "total", "need"))
    cpu = case.get("kind") == "CPU"
    gpus = [] if cpu else [Gpu(*gpu) for gpu in case.context.gpus or ()]
    # The number in vLLM's line counts within the process (ranks, HIP_VISIBLE_DEVICES); free memory shows which it is.
    gpu = min(gpus, key=lambda gpu: abs(gpu.free / GIB - free), default=None)
    holders = sorted((Holder(*h) for h in gpu.holders), key=lambda h: -(h.size or 0)) if gpu else []
    others = f" ({listed([*map(_named, holders[:3]), *(['others'] if len(holders) > 3 else [])])})" if holders else ""
    device = f" {case.get('device')}" if case.get("device") else ""
    memory = f"memory of NUMA node{device}" if cpu else "GPU memory" + (f" on{device}" if device else "")
    cause = (
        f"Other processes hold {total - free:.2f} of {total:.2f} GiB of {memory}{others}, and {free:.2f} GiB are "
        f"free, but gpu-memory-utilization {case.get('want')} needs {need:.2f} GiB"
    )
    share = free / total
    if gpus and case.context.world >= len(gpus):
        share = min([share, *(gpu.free / gpu.total for gpu in gpus if gpu.total)])
    fits = floored(share)
    if len(holders) == 1:
        stop = f"Stop pid {holders[0].pid}" + (
            f" (`docker stop {holders[0].container}`)" if holders[0].container else ""
        )
    elif holders:
        stop = "Stop those processes"
    elif cpu:
        stop = "Stop other programs on the node"
    else:
        stop = f"Stop what holds it (`ansible {case.context.host or 'HOST'} -m rocm_info` names the processes)"
    if fits < float(case.get("want")) / 2:
        return cause, f"{stop}: the memory that is free now allows at most gpu-memory-utilization {fits:.2f}"
    lower = setting(gpu_memory_utilization=f"{fits:.2f}")
    remedy = f"{stop}, or set {lower}, the highest that fits now ({fits * total:.2f} GiB)"
    return cause, remedy if cpu else f"{remedy}, or set `vllm_server_gpu_memory_policy: fit`"


def memory_moved(case: Case) -> Words:
    return (
        f"Another process released GPU memory while vLLM measured it ({case.get('before')} GiB were free, then "
        f"{case.get('after')} GiB), so the measurement is not reliable",
        f"Make sure that no other process uses these GPUs (`ansible {case.context.host or 'HOST'} -m rocm_info` names "
        "the processes), and run again",
    )


def _gib(size: str) -> float:
    """Return PyTorch's `12.95 GiB` as a number."""
    number, unit = size.split()
    return float(number) * {"KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0, "TiB": 2**10}.get(unit, 0.0)


#: Functions in which a model computes, or gets its KV cache: its weights are there already.
_COMPUTES = re.compile(
    r" in (?:_?dummy_run|profile\w*|determine_available_memory|capture\w*|execute_model|compile_or_warm_up_model"
    r"|_?(?:initialize|allocate)_kv_cache\w*)$"
)
#: What ROCm and RCCL themselves take of a GPU beside PyTorch's memory, in GiB.
_BESIDE_PYTORCH = 4.0


def _held_by_others(case: Case) -> float:
    """GiB of the GPU that are neither free nor this process's, by PyTorch's words; 0 where it does not say."""
    own = re.search(
        r"Of the allocated memory ([\d.]+ \w+) is allocated by PyTorch, and ([\d.]+ \w+) is reserved", case.text
    )
    if not own or not case.get("total"):
        return 0.0
    others = _gib(case.get("total")) - _gib(case.get("left")) - _gib(own[1]) - _gib(own[2])
    return others if others > max(_BESIDE_PYTORCH, _gib(case.get("total")) / 4) else 0.0


def out_of_memory(case: Case) -> Words:
    reached = case.run.progress()
    room, limited = "", False
    if case.get("asked"):
        room = f" (vLLM asked for {case.get('asked')} more, and GPU {case.get('gpu')} had {case.get('left')} of its "
        room += f"{case.get('total')} free)"
        limited = _gib(case.get("asked")) < _gib(case.get("left"))
        if limited:
            room += ", but not in one piece, or the driver allows less (an APU shares main memory up to a limit)"
    other = re.search(r"Process (\d+) has ([\d.]+ \wiB) memory in use", case.text)
    if other:
        room += f", and process {other.group(1)} holds {other.group(2)}"
    taken = 0.0 if other else _held_by_others(case)
    if taken:
        return (
            f"The model does not fit into what is left of the GPU memory{room}, for about {taken:.0f} GiB of it are "
            "not this process's",
            f"Stop what holds it (`ansible {case.context.host or 'HOST'} -m rocm_info` names the processes), and give "
            "each server its own GPUs",
        )
    warming = "warming up" in case.text or any(map(_COMPUTES.search, case.stack))
    if (
        warming
        or reached.facts.weights_gib is not None
        or reached.stage
        in (
            "compiling",
            "allocating kv cache",
            "capturing graphs",
        )
    ):
        less = floored(case.context.share - 0.05)
        if re.search(r"vit_attn|/vision|_encoder\b|embed_multimodal", "\n".join(case.stack)):
            return (
                f"The weights fit into GPU memory, but the largest images that vLLM has to expect do not{room}",
                "Choose another backend for images with `vllm_server_args: {mm-encoder-attn-backend: ...}`, limit them "
                "with limit-mm-per-prompt or mm-processor-kwargs there, or choose a newer image (`vllm_image_tag`)",
            )
        return (
            f"The weights fit into GPU memory, but the working memory beside them does not{room}",
            f"Compute less at once with {setting(max_num_seqs=128, max_num_batched_tokens=4096)}, or keep more memory "
            f"free with {setting(gpu_memory_utilization=f'{less:.2f}')}",
        )
    size, count = case.context.size("tensor-parallel-size"), len(case.context.gpus or ())
    if count and size * 2 > count:
        remedy = (
            f"Serve a quantised version of it, or spread it over several nodes (tensor-parallel-size is {size}, and "
            f"this node has {count} GPU{'s' if count > 1 else ''})"
        )
    elif limited and not count:  # such as an APU, beside which there is seldom another one
        remedy = "Serve a quantised version of it, let the driver give more of main memory to an APU, or, if the node "
        remedy += f"has more GPUs, spread it with {setting(tensor_parallel_size=size * 2)} (now {size})"
    else:
        remedy = f"Spread it over more GPUs with {setting(tensor_parallel_size=size * 2)} (now {size}), or serve a "
        remedy += "quantised version of it"
    return f"The weights of {case.context.model_name} do not fit into GPU memory{room}", remedy


def _raise_budget(case: Case) -> str:
    size = case.context.size("tensor-parallel-size")
    return f"raise gpu-memory-utilization (now {case.context.share:g}) or tensor-parallel-size (now {size})"


def cache_below_context(case: Case) -> Words:
    wanted = _whole(case.get("wanted"))
    needs = "does not fit into the KV cache"
    if case.get("need"):
        needs = f"needs {case.get('need')} GiB of KV cache, and {case.get('have')} GiB are left next to the weights"
    cause = f"One request of the full context of {wanted} tokens {needs}"
    longest = case.get("longest")
    if not longest:
        return cause, f"Lower max-model-len (now {wanted}) in `vllm_server_args`, or {_raise_budget(case)} there"
    return cause, f"Set {setting(max_model_len=_whole(longest))}, the longest that fits, or {_raise_budget(case)}"


def no_cache(case: Case) -> Words:
    facts = case.run.progress().facts
    known = [
        f"the weights take {facts.weights_gib:g} GiB per GPU" if facts.weights_gib is not None else "",
        f"{facts.kv_cache_gib:g} GiB are left" if facts.kv_cache_gib is not None else "",
    ]
    numbers = " and ".join(number for number in known if number)
    remedy = _raise_budget(case)
    return (
        f"Weights and working memory use all of gpu-memory-utilization {case.context.share:g}, so no memory is left "
        "for the KV cache" + (f" ({numbers})" if numbers else ""),
        f"{remedy[0].upper()}{remedy[1:]} in `vllm_server_args`, or lower max-num-batched-tokens there",
    )


def cpu_cache(case: Case) -> Words:
    free = float(case.get("free"))
    return (
        f"The KV cache needs {case.get('need')} GiB of CPU memory, but only {free:.2f} GiB are available",
        f"Set {variable(VLLM_CPU_KVCACHE_SPACE=max(1, int(free) - 1))} (GiB), or free memory on the node",
    )


def context_too_long(case: Case) -> Words:
    longest = _whole(case.get("longest"))
    return (
        f"max-model-len {_whole(case.get('wanted'))} is more than the {longest} tokens that "
        f"{case.context.model_name} supports",
        f"Set {setting(max_model_len=longest)} or less, or leave it out",
    )
