# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where the way a start or a server ended is all there is to go by. Pure."""

from __future__ import annotations

import math
import re

from .case import Case, Context, ExitFacts, Run
from .phrases import STAGE, Words, variable


def gave_up(case: Case) -> Words:
    waited = int(case.get("waited") or 600)
    return (
        f"vLLM's API server waited {waited} s for its engine and gave up, but the engine may only be slow",
        f"Set {variable(VLLM_ENGINE_READY_TIMEOUT_S=max(3600, 2 * waited))}",
    )


def stopped(*, ready: bool, how: str = "SIGTERM") -> Words:
    """Explain that the server was stopped from outside, ``how`` being the signal."""
    when = "it served" if ready else "it was still starting"
    cause = f"The server was stopped from outside ({how}) while {when}, and did not fail by itself"
    if how == "SIGKILL":
        return cause, (
            "Find out who did it with `docker events --since 1h` (`dmesg -T | grep -i oom` shows whether the kernel "
            "did it for lack of RAM), and start again"
        )
    return (
        cause,
        "Find out who did it with `docker events --since 1h` (Docker or the node may have restarted), and start again",
    )


def engine_died(what: str, *, ready: bool) -> Words:
    """Explain that the engine's process ended, ``what`` being its last words if it had any."""
    cause = f"The engine process died while it {'served' if ready else 'started'}"
    cause += f": {what.strip()[:200].rstrip('.')}" if what else ""
    if "out of memory" in what:
        return cause, "Lower gpu-memory-utilization by 0.03 or max-num-seqs in `vllm_server_args`, and deploy again"
    return cause, (
        "Check `dmesg -T` for GPU faults and killed processes, read the end of the log, and start the server again if "
        "the restart policy has not"
    )


def last_words(case: Case) -> Words:
    return engine_died(case.get("what"), ready=case.run.ready)


def too_slow(run: Run, exit: ExitFacts, context: Context) -> Words:
    detail = f" ({exit.detail.rstrip('.')})" if exit.detail else ""
    if run.ready:
        return (
            f"The server says that it is ready, but did not answer on port {context.port or '?'} within "
            f"{exit.seconds:.0f} s{detail}",
            "Compare `vllm_server_port` and `vllm_server_bind` with the port that the log names, and check for a "
            "firewall between them",
        )
    progress = run.progress()
    pace = ""
    timeout = max(3600, 2 * math.ceil(exit.seconds / 600) * 600)
    if progress.stage == "loading weights" and progress.done and progress.total and exit.seconds:
        whole = exit.seconds * progress.total / progress.done
        pace = f", at a pace that takes {whole / 60:.0f} min for the weights alone"
        timeout = math.ceil(1.5 * whole / 600) * 600
    return (
        f"The server was still at '{progress.describe()}' after {exit.seconds:.0f} s{pace}{detail}",
        f"Give it more time with `vllm_server_ready_timeout: {timeout}`, or put the weights on a faster disk",
    )


def stalled(run: Run, exit: ExitFacts, context: Context) -> Words:
    at = run.progress().describe()
    detail = f" ({exit.detail.rstrip('.')})" if exit.detail else ""
    cause = f"The start makes no progress at '{at}'{detail}: the server logs, loads and computes nothing"
    tail = "\n".join(run.lines[-50:])
    lock = re.search(r"waiting for baton release at (\S+)", tail)
    if lock:
        path = lock.group(1)
        where = (
            f"Remove the container (`docker rm {context.container}` on the node), and with it its {path}"
            if path.startswith("/tmp/")  # noqa: S108  read in a log
            else f"Remove {path} in the engine's cache folder"
        )
        return f"{cause}, because AITER waits for a lock ({path}) whose owner is gone", f"{where}, and run again"
    if at.startswith(("starting", "configuring")) and re.search(r"(?i)nccl|init_method", tail):
        if context.size("nnodes") == 1 and not context.arg("master-addr"):
            return (
                f"{cause} while the GPUs of the node look for each other",
                "Check that the kernel's command line has `iommu=pt` (`cat /proc/cmdline`), or start again with "
                f"{variable(NCCL_P2P_DISABLE=1)}, or with `vllm_server_args: {{disable-custom-all-reduce: true}}`",
            )
        return (
            f"{cause} while the processes of the GPUs look for each other",
            f"Start again with {variable(NCCL_DEBUG='INFO')} and, for several nodes, set NCCL_SOCKET_IFNAME "
            "and GLOO_SOCKET_IFNAME to the network between them",
        )
    if at.startswith("downloading"):
        return cause, (
            f"Stage the weights first with {STAGE}, and if that makes no progress either, set "
            f"{variable(HF_HUB_DISABLE_XET=1)}"
        )
    return cause, (
        "Check `dmesg -T` for GPU resets and the process with `py-spy dump`, or raise `vllm_server_stall_timeout` if "
        "such a long silence is normal"
    )
