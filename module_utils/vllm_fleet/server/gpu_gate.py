# SPDX-License-Identifier: Apache-2.0
"""GPU memory at the gate: enough for the new server before the old one stops, and really back after it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container.inspected import Inspected, command_line, environment
from ..container.spec import UTILIZATION, Spec, utilization_of, with_utilization
from ..host import gpu, gpu_memory
from ..models import checkpoint, placement
from ..vllm import cli
from ..weights import snapshot
from ..weights.layout import Repository, SnapshotError
from .options import ServerOptions

#: Seconds to wait for a stopped server's VRAM; the driver frees it after the process is gone, usually within seconds.
RELEASE_TIMEOUT = 120.0
#: sysfs sends no events, so its figures are read again after so many seconds.
RELEASE_POLL = 0.5


@dataclass
class Verdict:
    """What the gate decided: the spec to start (perhaps with a lowered utilization), and notes for the user."""

    spec: Spec
    notes: list[str] = field(default_factory=list)


def utilization(options: ServerOptions) -> float | None:
    """Return the --gpu-memory-utilization that the server will use; None without GPUs."""
    if not options.rocm:
        return None
    value = options.flags.get(UTILIZATION)
    return gpu_memory.DEFAULT_UTILIZATION if value is None else float(str(value))


def gpus(options: ServerOptions, names: Mapping[str, str] | None = None) -> tuple[list[gpu.Gpu], bool]:
    """Return the GPUs that the server sees, in its order, and whether it is certain which they are.

    Its devices and the variables that hide GPUs count.
    """
    found = gpu.read(Path(options.sysfs_root), container_names=names or {}).gpus
    places, certain = placement.visible([g.render for g in found], options.env, options.devices)
    return [found[place] for place in places], certain


def gpus_as_dicts(options: ServerOptions, names: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return the GPUs as rocm_info does; empty where the server uses none."""
    return [asdict(g) for g in gpus(options, names)[0]] if options.rocm else []


def ranks(options: ServerOptions) -> placement.Ranks:
    """Return how the arguments spread the model. Raises Refused for a size that is no number."""
    try:
        return placement.ranks(options.flags)
    except ValueError as error:
        raise Refused(FailureClass.BAD_ARGUMENT, str(error), "correct it in vllm_server_args") from None


def before_stop(options: ServerOptions, made: Spec, own_pids: frozenset[int], names: Mapping[str, str]) -> Verdict:
    """Return the spec to start, judged while the old server still runs. Raises Refused.

    Memory of the processes ``own_pids`` counts as free; ``names`` are those of the running containers, by id.
    """
    policy = options.gpu_memory_policy
    if policy == "off":
        return Verdict(made)
    (found, certain), needed = gpus(options, names), ranks(options).local
    if not found:
        raise Refused(
            FailureClass.NO_GPU,
            f"no GPU in {options.sysfs_root}/class/kfd/kfd/topology that the server could see",
            "check `dmesg | grep amdgpu`, HIP_VISIBLE_DEVICES and its like, vllm_server_devices; "
            "gpu_memory_policy: off starts without looking",
        )
    if needed > len(found):
        raise Refused(
            FailureClass.NOT_ENOUGH_GPUS,
            f"the arguments ask for {needed} GPUs on this node and there are {len(found)}",
            "lower tensor-parallel-size or its like in vllm_server_args, or let the server see more of them "
            "(HIP_VISIBLE_DEVICES and its like in vllm_server_env, vllm_server_devices)",
        )
    used = found[:needed]
    known, unknown = gpu_memory.readable(used)
    verdict = Verdict(made)
    if unknown:
        verdict.notes.append(f"VRAM of GPU {', '.join(map(str, unknown))} cannot be read; it was not checked")
    wanted = _share(made.command)
    if not known:
        return verdict
    lowest = _weights(options, min(g.total for g in known), wanted)
    if not certain:
        verdict.notes.append("which GPUs the server sees is not known here; their free memory was not checked")
        return verdict
    own = {g.index: sum(h.bytes or 0 for h in g.holders if h.pid in own_pids) for g in used}
    others = [g._replace(holders=[h for h in g.holders if h.pid not in own_pids]) for g in known]
    fit = gpu_memory.fit(others, wanted, own)
    decision = gpu_memory.apply_policy(policy, fit, wanted, lowest)
    if decision.refuse:
        raise _taken(decision.message)
    if decision.lowered:
        verdict.spec = with_utilization(made, decision.utilization)
        verdict.notes.append(decision.message)
    return verdict


def after_stop(
    options: ServerOptions,
    words: Sequence[str],
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the stopped server's VRAM is back, for one with the command ``words``.

    Raises Refused (``gpu_memory_taken``) when it does not come.
    """
    if options.gpu_memory_policy == "off":
        return
    wanted = _share(words)
    needed = ranks(options).local
    deadline = clock() + RELEASE_TIMEOUT
    while True:
        found, certain = gpus(options)
        known, _ = gpu_memory.readable(found[:needed])
        if not known or not certain:
            return
        fit = gpu_memory.fit(known, wanted)
        if fit.ok:
            return
        if clock() >= deadline:
            raise _taken(f"{fit.sentence} It was waited {RELEASE_TIMEOUT:.0f} s for the old server's memory.")
        pause(RELEASE_POLL)


def check_parallelism(options: ServerOptions) -> None:
    """Refuse a tensor-parallel size that does not divide the model's heads, where the config is cached."""
    weights = _cached(options)
    tensor = ranks(options).tensor
    if weights is None or tensor == 1:
        return
    config = checkpoint.plain_config(weights.config)
    heads, shared = checkpoint.whole(config.get("num_attention_heads")), checkpoint.kv_heads(config)
    if heads is not None and not gpu_memory.splits(tensor, heads, shared):
        has = f"{heads} attention heads" if heads % tensor else f"{shared} KV heads"
        sizes = ", ".join(map(str, gpu_memory.tensor_parallel_sizes(heads, heads, shared)))
        raise Refused(
            FailureClass.BAD_PARALLELISM,
            f"{options.model} has {has}, which tensor-parallel-size {tensor} does not divide",
            f"set tensor-parallel-size in vllm_server_args to one of {sizes}",
        )


def demand_of(container: Inspected, options: ServerOptions) -> tuple[ServerOptions, list[str]]:
    """Return what an existing container takes of the GPUs: ``options`` with its own values, and its arguments."""
    host = container.get("HostConfig") or {}
    words = cli.split_entrypoint(command_line(container))[1]
    flags = {name: value for name, value in cli.parse(words).flags.items() if name not in cli.RESERVED_FLAGS}
    devices = tuple(str(device.get("PathOnHost")) for device in host.get("Devices") or [])
    uses_gpus = devices or host.get("Privileged") or host.get("DeviceRequests")
    policy = options.gpu_memory_policy if uses_gpus else "off"
    env = environment(container)
    return replace(options, flags=flags, env=env, devices=devices, gpu_memory_policy=policy), words


def _share(words: Sequence[str]) -> float:
    text = utilization_of(words)
    return gpu_memory.DEFAULT_UTILIZATION if text == "default" else float(text)


def _taken(message: str) -> Refused:
    head, _, tail = message.partition(". ")
    return Refused(FailureClass.GPU_MEMORY_TAKEN, head, tail.rstrip(".") or "stop the processes that hold it")


def _cached(options: ServerOptions) -> snapshot.Weights | None:
    cache, model = options.hf_cache, options.model
    if not cache or model.startswith("/"):
        return None
    try:
        repository = Repository(Path(cache), model)
        commit, _ = snapshot.resolve(repository, options.revision or "main")
        return snapshot.weights(repository, commit) if commit else None
    except SnapshotError:
        return None  # whether the snapshot is whole is another check's question


def _weights(options: ServerOptions, vram_total: int, wanted: float) -> float:
    """Refuse weights that cannot fit (``model_too_large``); else give the lowest utilization that still holds them."""
    weights = _cached(options)
    if weights is None:
        return gpu_memory.LOWEST_UTILIZATION
    config = checkpoint.plain_config(weights.config)
    loaded = checkpoint.loaded(weights.total_bytes, config, options.flags)
    if loaded is None:
        # Quantised while loading, or offloaded, they take less than their files; by how much only the engine knows.
        return gpu_memory.LOWEST_UTILIZATION
    spread = ranks(options)
    fit = gpu_memory.weights_fit(
        loaded.certain,
        spread.tensor,
        spread.pipeline,
        vram_total,
        wanted,
        expert_parallel=spread.experts,
        attention_heads=checkpoint.whole(config.get("num_attention_heads")),
        kv_heads=checkpoint.kv_heads(config),
    )
    if not fit.ok:
        head, _, tail = fit.sentence.partition(". ")
        raise Refused(
            FailureClass.MODEL_TOO_LARGE,
            head,
            tail.rstrip(".") or "use more GPUs (tensor-parallel-size) or a smaller model",
        )
    return gpu_memory.lowest_for_weights(fit.per_gpu, vram_total)
