# SPDX-License-Identifier: Apache-2.0
"""Which lines of a container's log show that an engine works. Pure.

No series moves while an engine loads an adapter, reloads weights or compiles, but its processes write lines. Warnings
and errors show nothing: a process that waits for a hung one warns again and again ("No available shared memory
broadcast block found in 60 seconds"), and so do the watchdogs of collective operations. Neither do lines of the API
server.
"""

from __future__ import annotations

import re

from ..common.terminal import plain
from ..vllm.prefix import parse

#: Processes of an engine, in all releases: EngineCore_DP0, Worker_DP1_TP0, VllmWorker-0, RayWorkerWrapper, Core, rank3.
_ENGINE = r"(?:EngineCore|CoreEngine|Worker|VllmWorker|RayWorker|rank\d)"
_RANK = r"_DP(\d+)"
#: What a library or a bar writes without a level. AITER names each module that it builds.
_WORK = r"\[aiter\]|[^|]{3,80}:\s+\d+%"
#: Text of warnings that older releases wrote with level INFO, or without one.
_WAITING = r"(?i)shared memory broadcast block|watchdog|heartbeat|timed? ?out|waiting for"


def newest(text: str) -> dict[str | None, str]:
    """Return the time stamp of the last line that shows work, by the number of the engine; None: no line says which.

    ``text`` is a log with Docker's time stamps before each line.
    """
    found: dict[str | None, str] = {}
    for line in text.splitlines():
        stamp, _, rest = line.partition(" ")
        if stamp[4:5] != "-" or not stamp.startswith("2"):
            continue
        who, _, level, _, said = parse(plain(rest))
        if not re.match(_ENGINE, who) or re.search(_WAITING, said):
            continue
        if level in ("INFO", "DEBUG") or (not level and re.match(_WORK, said)):
            rank = re.search(_RANK, who)
            found[rank[1] if rank else None] = stamp
    return found
