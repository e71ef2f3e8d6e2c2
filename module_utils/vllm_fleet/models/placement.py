# SPDX-License-Identifier: Apache-2.0
"""How the flags of ``vllm serve`` spread a model over GPUs and cores, and which of a node's GPUs it sees. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: ROCr hides GPUs first; HIP counts those that are left, and takes CUDA's variable for its own where that is not set
#: (ROCm's page on GPU isolation).
_ISOLATION = (("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))
_DRI = "/dev/dri"
_RENDER = re.compile(r"/dev/dri/(renderD\d+)")
_CARD = re.compile(r"/dev/dri/card\d+")


@dataclass(frozen=True)
class Ranks:
    """How the arguments spread the model. ``experts`` data parallel ranks share it; ``local`` GPUs of this node."""

    tensor: int
    pipeline: int
    data: int
    experts: int
    local: int

    @property
    def weights(self) -> int:
        """GPUs over which the weights are spread at best."""
        return self.tensor * self.pipeline * self.experts


def ranks(flags: Mapping[str, Any]) -> Ranks:
    """Return the sizes in flags of one spelling, as vLLM's create_engine_config does. Raises ValueError."""
    tensor, pipeline = count(flags, "tensor-parallel-size"), count(flags, "pipeline-parallel-size")
    data, nodes = count(flags, "data-parallel-size"), count(flags, "nnodes")
    prefill = count(flags, "prefill-context-parallel-size")
    engine = tensor * pipeline * prefill
    experts = data * prefill if flags.get("enable-expert-parallel") is True else 1
    local = max(1, engine * data // nodes) if nodes > 1 else engine * _engines_here(flags, data)
    return Ranks(tensor, pipeline, data, experts, local)


def _engines_here(flags: Mapping[str, Any], data: int) -> int:
    """Data parallel ranks that one node without ``nnodes`` starts: others may run elsewhere."""
    if flags.get("data-parallel-rank") is not None or flags.get("data-parallel-external-lb") is True:
        return 1  # another balancer's: a server for each rank
    if flags.get("data-parallel-size-local") is not None:
        return count(flags, "data-parallel-size-local", least=0)
    # Ray may spread the ranks over its nodes; one is certain.
    return 1 if flags.get("data-parallel-backend") == "ray" else data


def count(flags: Mapping[str, Any], name: str, least: int = 1) -> int:
    """Return a flag that counts something, 1 where it is not set. Raises ValueError."""
    value = flags.get(name)
    if value is None:
        return 1
    if not str(value).isdigit() or int(str(value)) < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number, {least} or more")
    return int(str(value))


def omp_binding(cores: Sequence[Sequence[int]], ranks: int) -> str:
    """Return VLLM_CPU_OMP_THREADS_BIND for a server that has ``cores``, each with its threads: a set for each rank.

    As vLLM itself does it for a whole machine (0.32.0 utils/ompmultiprocessing.py): one thread of each core computes,
    and one core is left to the scheduler where there are more than ranks. Raises ValueError for too few.
    """
    if len(cores) < ranks:
        raise ValueError(f"expected a core for each of {ranks} ranks, got {len(cores)}")
    computing = [max(threads) for threads in (cores[:-1] if len(cores) > ranks else cores)]
    each, more = divmod(len(computing), ranks)
    sets, at = [], 0
    for rank in range(ranks):
        size = each + (rank < more)
        sets.append(",".join(map(str, sorted(computing[at : at + size]))))
        at += size
    return "|".join(sets)


def visible(
    renders: Sequence[str | None], env: Mapping[str, Any], devices: Sequence[str] | None = None
) -> tuple[list[int], bool]:
    """Return the positions of the GPUs that a server sees, in its order, and whether it is certain which they are.

    ``renders`` are the render nodes (``renderD128``) of the node's GPUs, ``devices`` those given to the container
    (None: all). Where a variable names a GPU by its UUID, the positions say how many there are at most.
    """
    seen, certain = _given(renders, devices)
    for names in _ISOLATION:
        text = next((str(env[name]) for name in names if env.get(name) not in (None, "")), "")
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not words:
            continue
        if not all(word.lstrip("-").isdigit() for word in words):
            seen, certain = seen[: len(words)], False
            continue
        chosen: list[int] = []
        for number in map(int, words):
            if not 0 <= number < len(seen):
                break  # HIP discards what stands behind an index that is none
            chosen.append(seen[number])
        seen = chosen
    return seen, certain


def _given(renders: Sequence[str | None], devices: Sequence[str] | None) -> tuple[list[int], bool]:
    # A path in the container and permissions, behind colons, do not identify the GPU.
    paths = [device.partition(":")[0].rstrip("/") for device in devices or ()]
    inside = [path for path in paths if path.startswith(_DRI)]
    named = [found[1] for device in inside if (found := _RENDER.fullmatch(device))]
    everything = list(range(len(renders)))
    if not inside or _DRI in inside:
        return everything, True
    if len(named) < sum(1 for device in inside if not _CARD.fullmatch(device)) or None in renders:
        return everything, False  # a link such as by-path/..., or a GPU whose render node is not known
    return [place for place in everything if renders[place] in named], True
