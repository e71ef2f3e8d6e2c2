# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where the node lacks memory or disk, or does not reach the others. Pure."""

from __future__ import annotations

import re

from .case import Case
from .phrases import STAGE, Words, cut, setting, variable


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
    what = cut(case.said())
    cause = f"The processes of the GPUs could not form one group{f' ({what})' if what else ''}"
    if any("/ray/" in frame for frame in case.stack[-3:]):
        return (
            f"Ray's cluster cannot be reached ({what})",
            "Check `ray status` in the container of the head node, the address in RAY_ADDRESS, and that the nodes "
            "reach its port, or leave distributed-executor-backend out of `vllm_server_args` for one node",
        )
    look = f"run again with {variable(NCCL_DEBUG='INFO')} and read the first NCCL WARN line"
    if any("/custom_all_reduce.py" in frame for frame in case.stack):
        return cause, f"Set {setting(disable_custom_all_reduce='true')}, or {look}"
    if case.context.size("nnodes") > 1 or case.context.arg("master-addr"):
        head = case.context.arg("master-addr") or "the head node"
        return (
            cause,
            f"Check that every node reaches {head} on the master port and that NCCL_SOCKET_IFNAME and "
            f"GLOO_SOCKET_IFNAME in `vllm_server_env` name the network between them, or {look}",
        )
    if re.search(r"(?i)gloo|connectFullMesh", case.text):
        return cause, (
            "Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in `vllm_server_env` to the name of the network interface "
            "between the processes (`ip -br address` shows it, and `lo` is enough on one node)"
        )
    return cause, f"Check that the container has `ipc_mode: host` and all of /dev/dri, or {look}"


def disk(case: Case) -> Words:
    place = f"for {case.get('path')}" if case.get("path") else "for the model's cache, Docker or /tmp"
    return (
        f"The node's disk has no space left {place}",
        "Make room (`df -h` and `docker system df` show where), or move `hf_cache_path` to a larger disk",
    )


_REFUSED = re.compile(
    r"(?P<why>Permission denied|PermissionError at|Read-only file system|Operation not permitted)"
    r"[^\n/]*'?(?P<path>/[^\s'\"]+)"
)
#: A folder that every user of a container may write to.
_ANY = "/tmp/vllm"  # noqa: S108  in the container


def file_permission(case: Case) -> Words:
    found = _REFUSED.search(case.text)
    path = found["path"] if found else ""
    place = path or "a file that it needs"
    elsewhere = variable(VLLM_CACHE_ROOT=_ANY, HOME=_ANY)
    if found and found["why"].startswith("Read-only") and re.search(r"huggingface|/hub/|/snapshots/", path):
        return (
            f"{place} is on a file system that the container can only read",
            f"Stage the model with {STAGE}, so that the server needs to write nothing there",
        )
    if found and found["why"].startswith("Read-only"):
        return (
            f"{place} is on a file system that the container can only read",
            f"Mount it without `ro` (`vllm_server_volumes`), or let vLLM write elsewhere with {elsewhere}",
        )
    cause = f"The container's user may not read or write {place}"
    if re.search(r"/\.?cache|/\.config|/\.triton|/tmp|/\.local", path):
        return cause, (
            "Give the folder on the node that is mounted there to the container's user (`ls -ln` on the node and "
            f"`docker exec {case.context.container} id` show both), or let vLLM write elsewhere with {elsewhere}"
        )
    return cause, (
        "Give the file on the node to the container's user (`ls -ln` shows whose it is), or let the container run as "
        "its owner"
    )


def unreadable(case: Case) -> Words:
    """Explain a file that the disk or the file server does not give."""
    return (
        f"A file cannot be read from its disk or file server ({cut(case.said())})",
        "Read `dmesg -T` on the node for errors of the disk or of NFS, mount the file system again, and start again "
        "(the files themselves may be whole)",
    )


def host_limits(case: Case) -> Words:
    what = cut(case.said())
    if re.search(r"Errno 2[34]|open files", case.text):
        return (
            f"The container has too many files open ({what})",
            "Raise the limit with the option `ulimits` or `default-ulimits` in Docker's daemon.json, and run again",
        )
    if re.search(r"\bibv_\w+|memlock", case.text):
        return (
            f"The container may not lock enough memory for RDMA ({what})",
            "Raise the limit with the option `ulimits` (`memlock=-1`), or set `vllm_server_env: {NCCL_IB_DISABLE: 1}` "
            "where the server needs no RDMA",
        )
    if "numa_migrate_pages" in case.text:
        return (
            f"The container may not move its memory to the cores that VLLM_CPU_OMP_THREADS_BIND names ({what})",
            "Allow it with the option `security_opts` (`seccomp=unconfined`), or bind no cores with "
            f"{variable(VLLM_CPU_OMP_THREADS_BIND='all')}",
        )
    return (
        f"The container may not start more threads or processes ({what})",
        "Raise the limit of processes (`docker inspect` shows PidsLimit, `ulimit -u` the user's), and update Docker if "
        "it is older than 20.10.10, whose seccomp profile refuses new threads to newer images",
    )


def placement(line: str, wanted: int) -> Words:
    """Explain Ray's wait for GPUs that its cluster does not have."""
    node = re.search(r"'node:(?P<ip>[\d.]+)'", line)
    there = f" and for node {node['ip']}" if node else ""
    return (
        f"Ray waits for {wanted} GPUs{there}, that its cluster does not have, so more time does not help",
        "Compare with `ray status` and `ray list nodes`, and set VLLM_HOST_IP in `vllm_server_env` to the address by "
        "which Ray knows the node",
    )
