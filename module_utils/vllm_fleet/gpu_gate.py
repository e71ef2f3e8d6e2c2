"""GPU memory at the gate: enough for the new server before the old one stops, and really back after it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.vllm_fleet import command, gpu, memory, snapshot
from ansible.module_utils.vllm_fleet.preconditions import Refused
from ansible.module_utils.vllm_fleet.spec import LABEL_ASKED_UTILIZATION, Spec, utilization_of, with_utilization

#: Seconds to wait for a stopped server's VRAM; the driver frees it after the process is gone, usually within seconds.
RELEASE_TIMEOUT = 120.0
#: sysfs sends no events, so its figures are read again after so many seconds.
RELEASE_POLL = 0.5


@dataclass
class Verdict:
    """What the gate decided: the spec to start (perhaps with a lowered utilization) and what to tell."""

    spec: Spec
    notes: list[str] = field(default_factory=list)


def utilization(options: Mapping[str, Any]) -> float | None:
    """Give the --gpu-memory-utilization that the server will use; None without GPUs."""
    if options.get("accelerator") != "rocm":
        return None
    value = command.normalise_args(options.get("args") or {}).get("gpu-memory-utilization")
    return memory.DEFAULT_UTILIZATION if value is None else float(str(value))


def lowered_before(options: Mapping[str, Any], made: Spec, container: Mapping[str, Any] | None) -> Spec:
    """Give the desired container with the share that policy ``fit`` lowered it to, where ``container`` is the result.

    It stays with that share until something else is asked for: a server is not restarted because memory came free.
    """
    if options.get("accelerator") != "rocm" or options.get("gpu_memory_policy") != "fit" or container is None:
        return made
    config = container.get("Config") or {}
    if (config.get("Labels") or {}).get(LABEL_ASKED_UTILIZATION) != utilization_of(made.command):
        return made
    has = utilization_of(config.get("Cmd") or [])
    return made if has in ("default", utilization_of(made.command)) else with_utilization(made, float(has))


def gpus(options: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[gpu.Gpu]:
    """Read the GPUs that the server may see, in its order (HIP_VISIBLE_DEVICES counts)."""
    found = gpu.read(Path(str(options["sysfs_root"])), container_names=names or {}).gpus
    visible = str((options.get("env") or {}).get("HIP_VISIBLE_DEVICES") or "").strip()
    if not visible:
        return found
    wanted = [word.strip() for word in visible.split(",")]
    return [found[int(word)] for word in wanted if word.isdigit() and int(word) < len(found)]


def gpus_as_dicts(options: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Give the GPUs as rocm_info does; empty where the server uses none."""
    return [asdict(g) for g in gpus(options, names)] if options.get("accelerator") == "rocm" else []


def local_ranks(options: Mapping[str, Any]) -> tuple[int, int, int]:
    """Give (tensor parallel, pipeline parallel, GPUs on this node) as the arguments ask for them."""
    args = command.normalise_args(options.get("args") or {})

    def number(name: str) -> int:
        value = args.get(name)
        return int(value) if isinstance(value, str) and value.isdigit() else 1

    tensor, pipeline = number("tensor-parallel-size"), number("pipeline-parallel-size")
    return tensor, pipeline, max(1, tensor * pipeline * number("data-parallel-size") // number("nnodes"))


def before_stop(options: Mapping[str, Any], made: Spec, own_pids: frozenset[int], names: Mapping[str, str]) -> Verdict:
    """Judge while the old server still runs; its own memory (``own_pids``) counts as free. Raises Refused."""
    missing = [d for d in made.devices if not Path(d).exists()]
    if missing:
        raise Refused(
            "driver_missing",
            f"this node has no {' and no '.join(missing)}: the amdgpu driver is not loaded",
            "load or install it (role rocm; `modprobe amdgpu`, `dkms status`), or set vllm_server_accelerator: cpu",
        )
    policy = str(options["gpu_memory_policy"])
    if policy == "off":
        return Verdict(made)
    found = gpus(options, names)
    _, _, needed = local_ranks(options)
    if not found:
        raise Refused(
            "no_gpu",
            f"no GPU in {options['sysfs_root']}/class/kfd/kfd/topology that the server could see",
            "check `dmesg | grep amdgpu` and HIP_VISIBLE_DEVICES; gpu_memory_policy: off starts without looking",
        )
    if needed > len(found):
        raise Refused(
            "not_enough_gpus",
            f"the arguments ask for {needed} GPUs on this node and there are {len(found)}",
            "lower tensor-parallel-size or its like in vllm_server_args, or widen HIP_VISIBLE_DEVICES",
        )
    used = found[:needed]
    known, unknown = memory.readable(used)
    verdict = Verdict(made)
    if unknown:
        verdict.notes.append(f"VRAM of GPU {', '.join(map(str, unknown))} cannot be read; it was not checked")
    wanted = _share(made)
    if not known:
        return verdict
    lowest = _weights(options, min(g.total for g in known), wanted)
    own = {g.index: sum(h.bytes or 0 for h in g.holders if h.pid in own_pids) for g in used}
    others = [g._replace(holders=[h for h in g.holders if h.pid not in own_pids]) for g in known]
    fit = memory.fit(others, wanted, own)
    decision = memory.apply_policy(policy, fit, wanted, lowest)
    if decision.refuse:
        raise _taken(decision.message)
    if decision.lowered:
        verdict.spec = with_utilization(made, decision.utilization)
        verdict.notes.append(decision.message)
    return verdict


def after_stop(
    options: Mapping[str, Any],
    made: Spec,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the stopped server's VRAM is back. Raises Refused (``gpu_memory_taken``) when it does not come."""
    if str(options["gpu_memory_policy"]) == "off":
        return
    wanted = _share(made)
    _, _, needed = local_ranks(options)
    deadline = clock() + RELEASE_TIMEOUT
    while True:
        known, _ = memory.readable(gpus(options)[:needed])
        if not known:
            return
        fit = memory.fit(known, wanted)
        if fit.ok:
            return
        if clock() >= deadline:
            raise _taken(f"{fit.sentence} It was waited {RELEASE_TIMEOUT:.0f} s for the old server's memory.")
        pause(RELEASE_POLL)


def check_parallelism(options: Mapping[str, Any]) -> None:
    """Refuse a tensor-parallel size that does not divide the model's attention heads, where the config is cached."""
    weights = _cached(options)
    tensor, _, _ = local_ranks(options)
    if weights is None or tensor == 1:
        return
    config = weights.config.get("text_config") or weights.config
    heads = config.get("num_attention_heads")
    if isinstance(heads, int) and heads % tensor:
        divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise Refused(
            "bad_parallelism",
            f"{options['model']} has {heads} attention heads, which tensor-parallel-size {tensor} does not divide",
            f"set tensor-parallel-size in vllm_server_args to one of {divisors}",
        )


def _share(made: Spec) -> float:
    text = utilization_of(made.command)
    return memory.DEFAULT_UTILIZATION if text == "default" else float(text)


def _taken(message: str) -> Refused:
    head, _, tail = message.partition(". ")
    return Refused("gpu_memory_taken", head, tail.rstrip(".") or "stop the processes that hold it")


def _cached(options: Mapping[str, Any]) -> snapshot.Weights | None:
    cache, model = options.get("hf_cache"), str(options["model"])
    if not cache or model.startswith("/"):
        return None
    try:
        commit, _ = snapshot.resolve(Path(str(cache)), model, str(options.get("revision") or "main"))
        return snapshot.weights(Path(str(cache)), model, commit) if commit else None
    except snapshot.SnapshotError:
        return None  # whether the snapshot is whole is another check's question


def _weights(options: Mapping[str, Any], vram_total: int, wanted: float) -> float:
    """Refuse weights that cannot fit (``model_too_large``); else give the lowest utilization that still holds them."""
    weights = _cached(options)
    args = command.normalise_args(options.get("args") or {})
    if weights is None or args.get("quantization"):
        # Quantised while loading, weights take less than their files; by how much only the engine knows.
        return memory.LOWEST_UTILIZATION
    tensor, pipeline, _ = local_ranks(options)
    data = args.get("data-parallel-size")
    expert = int(data) if args.get("enable-expert-parallel") is True and isinstance(data, str) and data.isdigit() else 1
    heads = (weights.config.get("text_config") or weights.config).get("num_attention_heads")
    fit = memory.weights_fit(
        weights.total_bytes,
        tensor,
        pipeline,
        vram_total,
        wanted,
        expert_parallel=expert,
        attention_heads=heads if isinstance(heads, int) else None,
    )
    if not fit.ok:
        head, _, tail = fit.sentence.partition(". ")
        raise Refused(
            "model_too_large", head, tail.rstrip(".") or "use more GPUs (tensor-parallel-size) or a smaller model"
        )
    return memory.lowest_for_weights(fit.per_gpu, vram_total)
