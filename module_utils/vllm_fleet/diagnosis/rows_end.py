# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of known failures: arguments, and how a start or a server ended. Pure.

Fragments are vLLM 0.32.0's unless said otherwise; the file is named at the pattern.
"""

from __future__ import annotations

from ..common.failure import FailureClass
from . import explain_ends, explain_kernels, explain_node, explain_options
from .row import Row, on

ROWS: tuple[Row, ...] = (
    Row(
        FailureClass.BAD_ARGUMENT,
        "A flag, its value, or the container's command is wrong.",
        (
            # argparse, exit code 2: the program stands before it (a compiler puts file, line and column there)
            on(explain_options.unknown_flag, r": error: unrecognized arguments: (?P<unknown>[^\n]+)"),
            on(explain_options.refused_value, r": error: argument (?P<flag>[^:\s]+): (?P<why>[^\n]+)"),
            on(explain_options.refused_arguments, r"(?<!:\d)(?<!\d\d): error: (?P<why>[^\n]+)"),
            on(
                explain_options.no_program,
                r'exec: "(?P<program>[^"]+)":',  # Docker
                r"\A(?:\S*/)?(?:ba|da)?sh: (?:line )?(?:\d+: )?(?P<program>[^:\n]+): (?:command not found|not "
                r"found|No such"
                r"|[^\n]*cannot execute)",
            ),
            on(explain_options.no_mount, r"bind source path does not exist: (?P<path>\S+)"),
            on(
                explain_options.two_lists,  # platforms/rocm.py
                r"HIP_VISIBLE_DEVICES='(?P<hip>[^']*)' vs CUDA_VISIBLE_DEVICES='(?P<cuda>[^']*)'",
            ),
            on(
                explain_options.no_parser,  # entrypoints/launchers/launcher.py
                r"invalid (?P<what>tool call|reasoning) parser: (?P<parser>\S+) \(chose from \{(?P<choices>[^}]*)",
                r"(?P<what>tool|reasoning) parser '(?P<parser>[^']+)' not found"
                r"(?:[^\n]*?parsers?: (?P<choices>[^\n\"]*))?",
            ),
            on(
                explain_kernels.no_backend,  # platforms/rocm.py
                r"Selected backend (?:\w+\.)?(?P<backend>\w+) is not valid for this configuration\. Reason: "
                r"\[(?P<why>[^\n]*)\]",
            ),
            on(
                explain_options.no_attention,
                r"No valid attention backend found[^\n]*?Reasons?: (?P<why>[^\n]+)",
            ),
            # libnuma, in the CPU build of 0.9.2, which ends without another word
            on(explain_options.cpu_binding, r"libnuma: Warning: unparseable cpu description [`'](?P<value>[^'\n]*)'"),
            on(
                explain_options.dtype,  # config/vllm.py
                r"torch\.(?P<dtype>\w+) is not supported for quantization method (?P<method>\w+)\. Supported dtypes: "
                r"\[(?P<fits>[^\]]*)",
            ),
            on(
                explain_options.refused_arguments,
                r"(?P<why>Quantization method specified in the model config \(\w+\) does not match[^\n]*)",
                r"(?P<why>The supplied chat template string \([^)]+\) appears path-like, but doesn't exist)",
                # pydantic
                r"validation errors? for \w+\n\s*(?:Value error|Assertion failed), (?P<why>[^\n]+?)(?: \[type=|$)",
            ),
            on(explain_options.refused_value, r"validation errors? for \w+\n(?P<flag>[\w.]+)\n\s*(?P<why>[^\n\[]+)"),
        ),
        rank=1,
    ),
    Row(
        FailureClass.READY_TIMEOUT,
        "The server was not ready in time.",
        (
            on(
                explain_ends.gave_up,  # v1/engine/core_client.py
                r"Timed out waiting for (?:new )?engine core processes to start(?:[^\n]*?Waited (?P<waited>\d+)s)?",
                r"Timed out waiting for engines to send initial message",
            ),
        ),
        rank=1,
    ),
    Row(FailureClass.STALLED, "The start made no progress: no log, no download, no computing."),
    Row(FailureClass.WRONG_MODEL_SERVED, "A server answers on the port, but serves another model."),
    Row(
        FailureClass.STOPPED_BY_SIGNAL,
        "The server was stopped from outside; it did not fail.",
        (
            on(
                lambda case: explain_ends.stopped(ready=case.run.ready),
                r"KeyboardInterrupt: terminated",  # entrypoints/launchers/api_server/entry.py: SIGTERM during a start
            ),
        ),
    ),
    Row(
        FailureClass.COLLECTIVE_INIT,
        "The processes of a server over several GPUs or nodes cannot reach each other.",
        (
            on(
                explain_node.collective,
                # distributed/device_communicators/pynccl_wrapper.py; RCCL reports as NCCL
                r"NCCL error:? ?(?:in: )?(?P<what>[^\n(]{0,120})",
                # PyTorch
                r"(?P<what>nccl(?:System|UnhandledCuda|Internal|Remote)Error)",
                r"(?P<what>Timed out after \d+ seconds waiting for clients|Timed out initializing process group"
                r"|[Tt]he client socket has (?:failed|timed out)[^\n]{0,100}|wait timeout after \d+ms"
                r"|is setting up NCCL communicator[^\n]{0,80}"
                r"|Connection closed by peer[^\n]{0,60}|recvValue failed[^\n]{0,60}"
                r"|[Cc]onnectFullMesh failed|Watchdog caught collective operation timeout)",
                r"DistStoreError|DistNetworkError",
                # not memory that may not be locked: see host_limits
                r"NCCL WARN (?![^\n]*\bibv_\w+[^\n]*annot allocate)(?P<what>[^\n]{0,120})",
            ),
        ),
        rank=2,
        serving=True,
    ),
    Row(
        FailureClass.ENGINE_DIED,
        "The engine's process died.",
        (
            on(
                explain_ends.last_words,
                r"(?P<what>(?:HIP|CUDA) out of memory)",
                r"(?P<what>RPC call to \w+ timed out)",  # v1/executor/multiproc_executor.py
            ),
            on(
                explain_kernels.fault,
                # ROCm's runtime
                r"(?P<what>Memory access fault by GPU node-\d+[^\n.]{0,120}|HSA_STATUS_ERROR\w+)",
                r"(?P<what>HW Exception by GPU[^\n]{0,120})",
                # PyTorch, Triton
                r"(?P<what>HIP error: [^\n.]{0,80}|Triton Error \[HIP\][^\n]{0,100})",
                r"(?P<what>Segmentation fault|Segfault encountered)",
                r"(?P<what>Fatal Python error[^\n]{0,80})",
            ),
            on(
                explain_ends.last_words,
                # v1/executor/multiproc_executor.py, v1/engine/utils.py
                r"(?P<what>Worker proc \S+ died unexpectedly \(exit code: -?\d+\))",
                r"Failed core proc\(s\): \{[^}]*(?P<what>'\w+': -\d+)",
            ),
        ),
        rank=2,
        serving=True,
    ),
    Row(FailureClass.UNKNOWN, "No known failure; the message has the earliest error of the log."),
)
