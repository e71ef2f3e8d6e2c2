# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where the node lacks memory or disk, or does not reach the others. Pure."""

from __future__ import annotations

from .case import Case
from .phrases import Words, variable


def shared_memory() -> Words:
    """Explain a lack of shared memory."""
    return (
        "The server's processes ran out of shared memory (/dev/shm, 64 MB by default in Docker)",
        "Set `vllm_server_shm_size: 32g`, or the option `ipc_mode: host`",
    )


def host_memory(process: str = "", *, limit: bool = False) -> Words:
    """Explain a process that was killed for lack of main memory. ``limit``: the container reached its own limit."""
    why = "the container reached its memory limit" if limit else "the node was out of main memory"
    return (
        f"{f'The process {process}' if process else 'A process of the server'} was killed because {why} (RAM, "
        "not GPU memory)",
        "Stop other programs on the node or raise the container's limit, and remove cpu-offload-gb and "
        "prefetching from `vllm_server_args` (`dmesg -T | grep -i oom` shows what was killed)",
    )


def collective(case: Case) -> Words:
    what = case.get("what").strip().rstrip(".")
    cause = f"The processes of the GPUs could not form one group{f' ({what})' if what else ''}"
    look = f"run again with {variable(NCCL_DEBUG='INFO')} and read the first NCCL WARN line"
    if case.context.size("nnodes") > 1 or case.context.arg("master-addr"):
        head = case.context.arg("master-addr") or "the head node"
        return (
            cause,
            f"Check that every node reaches {head} on the master port and that NCCL_SOCKET_IFNAME and "
            f"GLOO_SOCKET_IFNAME in `vllm_server_env` name the network between them, or {look}",
        )
    return cause, f"Check that the container has `ipc_mode: host` and all of /dev/dri, or {look}"


def disk(case: Case) -> Words:
    place = f"for {case.get('path')}" if case.get("path") else "for the model's cache, Docker or /tmp"
    return (
        f"The node's disk has no space left {place}",
        "Make room (`df -h` and `docker system df` show where), or move `hf_cache_path` to a larger disk",
    )
