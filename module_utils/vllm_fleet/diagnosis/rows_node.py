# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of known failures: the node, the image and the container. Pure.

Fragments are vLLM 0.32.0's unless said otherwise; the file is named at the pattern.
"""

from __future__ import annotations

from ..common.failure import FailureClass
from . import explain_image, explain_node, explain_options
from .row import Row, on

ROWS: tuple[Row, ...] = (
    Row(
        FailureClass.PORT_TAKEN,
        "Another process listens on the server's port.",
        (
            on(
                explain_options.port,
                # Docker: `Bind for 0.0.0.0:8000 failed: port is already allocated`, `listen tcp4 0.0.0.0:8000: bind:
                # address already in use`, `failed to bind host port 0.0.0.0:8000/tcp: address already in use`
                r"(?:Bind for|bind host port(?: for)?|listen tcp[46]?) \S*?:(?P<port>\d+)(?!\d|\.)\S*?(?: failed)?:? "
                r"(?:port is already allocated|(?:bind: )?address already in use)",
                r"failed to (?:bind to|listen on)[^\n]*?:(?P<port>\d+) \(errno: 98",  # PyTorch TCPStore
                r"port: (?P<port>\d+)[^\n]*EADDRINUSE",
                r"port is already allocated|\[Errno 98\]|[Aa]ddress already in use|EADDRINUSE",
            ),
        ),
    ),
    Row(
        FailureClass.IMAGE_MISSING,
        "The image is not on the node.",
        (
            on(
                explain_options.image,
                r"[Nn]o such image: (?P<image>\S+)",
                r"pull access denied for (?P<image>[^,\s]+)",
                r"manifest for (?P<image>\S+) not found",
                r"manifest unknown|repository does not exist",
            ),
        ),
    ),
    Row(
        FailureClass.SHARED_MEMORY,
        "Shared memory (/dev/shm) is too small.",
        (
            on(
                lambda _: explain_node.shared_memory(),
                r"Error while creating shared memory segment",  # NCCL, RCCL
                r"No space left on device[^\n]*/dev/shm|(?:/dev/shm|shared memory)[^\n]*No space left on device",
                r"unable to (?:write to|allocate|open)[^\n]*(?:</torch_|shared memory)",  # PyTorch
                # vLLM 0.32.0, recorded: a container with Docker's 64 MiB
                r"Insufficient space in /dev/shm|insufficient shared memory|Bus error|SIGBUS",
                # v1/executor/multiproc_executor.py, v1/utils.py, v1/engine/utils.py: killed by signal 7
                r"died unexpectedly \(exit code: -7\)|died with exit code -7\b|Failed core proc[^\n]*': -7\b",
            ),
        ),
        serving=True,
    ),
    Row(
        FailureClass.HOST_MEMORY,
        "The node, or the container's limit, ran out of main memory.",
        (
            on(
                lambda case: explain_node.host_memory(case.get("process")),
                # killed by signal 9, as above
                r"Worker proc (?P<process>\S+) died unexpectedly \(exit code: -9\)",
                r"Worker (?P<process>\S+) pid \d+ died, exit code: -9\b",  # 0.5 to 0.8
                r"Process (?P<process>\S+) \(PID: \d+\) died with exit code -9\b",
                r"Failed core proc\(s\): \{[^}]*'(?P<process>\w+)': -9\b",
                r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|\[Errno 12\]",
                r"^(?![^\n]*\bibv_)[^\n]*[Cc]annot allocate memory",
                r"^MemoryError|ray\.exceptions\.OutOfMemoryError|node running low on memory",
            ),
        ),
        serving=True,
    ),
    Row(
        FailureClass.DISK_FULL,
        "The node's disk is full.",
        (
            on(
                explain_node.disk,
                r"\[Errno 28\][^\n']*'(?P<path>/[^']+)'",
                r"[Nn]o space left on device|[Dd]isk quota exceeded|\[Errno 28\]|\[Errno 122\]",
            ),
        ),
        serving=True,
    ),
    Row(
        FailureClass.FILE_PERMISSION,
        "The container's user may not read or write a file.",
        (
            on(
                explain_node.file_permission,
                r"PermissionError: (?P<what>[^\n]*)",
                r"\A(?:\S*/)?(?:ba|da)?sh: (?:line )?(?:\d+: )?(?P<what>[^:\n]+: Permission denied)",
            ),
        ),
        rank=1.5,
    ),
    Row(
        FailureClass.HOST_LIMITS,
        "A limit of the node or the container on threads, processes or open files was reached.",
        (
            on(
                explain_node.host_limits,
                # RDMA: memory that may not be locked
                r"(?P<what>(?:Call to )?ibv_\w+[^\n]*[Cc]annot allocate memory)",
                r"(?P<what>can't start new thread|^[^\n]*pthread_create failed[^\n]*|Too many open files)",
                # vLLM 0.8 on a CPU with several workers
                r"^RuntimeError: (?P<what>numa_migrate_pages failed[^\n]*)",
            ),
        ),
        rank=1.4,
    ),
    Row(
        FailureClass.BROKEN_IMAGE,
        "The image lacks a part, or its parts do not fit each other.",
        (
            on(
                explain_image.broken,
                r"(?P<what>exec format error)",
                r"^(?:[\w.]+: )?(?:ImportError|ModuleNotFoundError): (?P<what>[^\n]*)",
            ),
        ),
        rank=1.5,
    ),
    Row(
        FailureClass.COMPILE_CACHE,
        "What the compiler kept of an earlier start cannot be used.",
        (
            on(explain_image.compile_cache, r"^(?:\w+: )?(?P<what>[^\n.]*)\.[^\n]*corrupted compilation artifact"),
        ),  # vLLM
    ),
)
