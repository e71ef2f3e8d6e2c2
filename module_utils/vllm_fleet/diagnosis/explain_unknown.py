# SPDX-License-Identifier: Apache-2.0
"""What can be said of a failure that is not known. Pure."""

from __future__ import annotations

import re

from . import reading
from .case import Context, ExitFacts, Run
from .phrases import Words, variable


def unknown(run: Run, root: list[str], exit: ExitFacts, context: Context) -> Words:
    log = context.log_file or "the container's log"
    if root:
        return (
            f'This failure is not known, and the first error in the log is "{said(root[0])}"',
            f"Read {log} from that line on, and search vLLM's issues for it",
        )
    if run.lines:
        why = "the container ended without an error in its log"
        if run.errors:
            why = "the log says that something failed, but not why"
        elif run.survived:
            why = "the start went on after the errors in its log, and ended without another"
        return (
            f"This failure is not known: {why}",
            f"Read the end of {log}, look for killed processes in `dmesg -T`, and start again with "
            f"{variable(VLLM_LOGGING_LEVEL='DEBUG')}",
        )
    if exit.error:
        return (
            f'This failure is not known: the container ended without any output, and Docker says "{said(exit.error)}"',
            "Find out who stopped or removed it with `docker events --since 1h` and `journalctl -u docker`",
        )
    return (
        "This failure is not known: the container ended without any output",
        "Check the image's entrypoint with `docker inspect` (an image that starts a shell needs "
        "`vllm_server_entrypoint: [vllm, serve]`)",
    )


def said(line: str) -> str:
    """Return a line's text without its prefix, as part of a sentence."""
    text = re.sub(r"^\([\w.-]+ pid=\d+[^)]*\) ?", "", reading.short(line))
    text = re.sub(r"^(?:ERROR|CRITICAL) \d\d-\d\d [\d:.]+ \[?\S+\] ?", "", text)
    return text.strip().rstrip(".")[:300]
