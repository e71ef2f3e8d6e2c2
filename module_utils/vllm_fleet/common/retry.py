# SPDX-License-Identifier: Apache-2.0
"""Retry a call to a node that does not answer for a moment: the work that it began goes on there meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

RETRY_TIMEOUT = 120.0
"""Seconds after which a node that does not answer counts as unreachable."""


def retry(
    call: Callable[[], Answer],
    lost: type[Exception],
    reset: Callable[[], None],
    *,
    timeout: float = RETRY_TIMEOUT,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Return what `call` returns; repeat it, with growing pauses and a `reset` before, while it raises `lost`.

    Raises the last of these after `timeout` seconds; 0 for no second attempt.
    """
    deadline, pause = clock() + timeout, 1.0
    while True:
        try:
            return call()
        except lost:
            if clock() + pause > deadline:
                raise
            sleep(pause)  # nothing on this side could announce that a node is back
            pause = min(2 * pause, 15.0)
            reset()
