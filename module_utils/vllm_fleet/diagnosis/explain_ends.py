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
        f"vLLM's API server waited {waited} s for its engine and gave up, though the engine may only have been slow",
        f"Set {variable(VLLM_ENGINE_READY_TIMEOUT_S=max(3600, 2 * waited))}",
    )


def stopped(*, ready: bool, how: str = "SIGTERM") -> Words:
    """Explain that the server was stopped from outside, ``how`` being the signal."""
    when = "it served" if ready else "it was still starting"
    cause = f"Somebody stopped the server ({how}) while {when}, it did not fail by itself"
    if how == "SIGKILL":
        return cause, (
            "Look who did with `docker events --since 1h`, and with `dmesg -T | grep -i oom` whether the kernel did "
            "for lack of RAM, and start again"
        )
    return (
        cause,
        "Look who did with `docker events --since 1h` (or whether Docker or the node restarted), and start again",
    )


def engine_died(what: str, *, ready: bool) -> Words:
    """Explain that the engine's process ended, ``what`` being its last words if it had any."""
    cause = f"The engine process died while it {'served' if ready else 'started'}"
    cause += f": {what.strip()[:200].rstrip('.')}" if what else ""
    if "out of memory" in what:
        return cause, "Lower gpu-memory-utilization by 0.03 or max-num-seqs in `vllm_server_args`, and deploy again"
    return cause, (
        "Look into `dmesg -T` for GPU faults and killed processes and at the end of the log, and start again if the "
        "restart policy has not"
    )


def last_words(case: Case) -> Words:
    return engine_died(case.get("what"), ready=case.run.ready)


def too_slow(run: Run, exit: ExitFacts, context: Context) -> Words:
    detail = f" ({exit.detail.rstrip('.')})" if exit.detail else ""
    if run.ready:
        return (
            f"The server says that it is ready, but did not answer on port {context.port or '?'} within "
            f"{exit.seconds:.0f} s{detail}",
            "Compare `vllm_server_port` and `vllm_server_bind` with the port that the log names, and look for a "
            "firewall in between",
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
    cause = f"The start has stood still at '{at}'{detail}, with nothing logged, loaded or computed any more"
    tail = "\n".join(run.lines[-50:])
    lock = re.search(r"waiting for baton release at (\S+)", tail)
    if lock:
        path = lock.group(1)
        where = (
            f"Remove the container (`docker rm {context.container}` on the node), whose {path} it is"
            if path.startswith("/tmp/")  # noqa: S108  read in a log
            else f"Remove {path} in the engine's cache folder"
        )
        return f"{cause}, for AITER waits for a lock ({path}) whose owner is gone", f"{where}, and run again"
    if at.startswith(("starting", "configuring")) and re.search(r"NCCL|init_method|distributed_init", tail):
        return (
            f"{cause}, where the processes of the GPUs look for each other",
            f"Start again with {variable(NCCL_DEBUG='INFO')} and, over several nodes, NCCL_SOCKET_IFNAME and "
            "GLOO_SOCKET_IFNAME that name the network between them",
        )
    if at.startswith("downloading"):
        return cause, (
            f"Stage the weights beforehand with {STAGE}, and where that stands still too set "
            f"{variable(HF_HUB_DISABLE_XET=1)}"
        )
    return cause, (
        "Look into `dmesg -T` for GPU resets and at the process with `py-spy dump`, or raise "
        "`vllm_server_stall_timeout` where a silence this long is normal"
    )
