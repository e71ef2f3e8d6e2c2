# SPDX-License-Identifier: Apache-2.0
"""Waiting until a server has nothing to do, asked of the server itself or of the gateway in front of it.

Clock and questions are given, so that a test can let time pass.
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..common import exchange
from ..vllm import metrics
from . import haproxy

# A busy event loop may be late with /metrics; one that is silent for longer is no answer.
METRICS_TIMEOUT = 10.0
METRICS_LIMIT = 16 * 1024 * 1024
POLL_FIRST, POLL_MOST = 0.1, 1.0


@dataclass(frozen=True)
class Look:
    """One look: how many requests, said how, and a number that grows while they are worked on (None: not known)."""

    requests: int
    says: str
    progress: float | None = None
    gone: bool = False
    #: Nobody can tell: it answers, but not with vLLM's counts. `requests` says nothing then.
    unknown: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a wait ended. `drained` is False while requests are left, or it is unknown; `stalled` when no server works on
    them.
    """

    drained: bool
    look: Look
    elapsed: float
    unchanged: float
    stalled: bool = False


def look_at_server(url: str) -> Look:
    """Ask a vLLM server's /metrics. A server that is not there has nothing to lose.

    One that has no counts (an error there, `disable-log-stats`, another program) is not known to be idle, and never
    will be.
    """
    target = urlsplit(url)
    context = ssl.create_default_context() if target.scheme == "https" else None
    deadline = exchange.Deadline(METRICS_TIMEOUT)
    connection = exchange.Connection(target.hostname or "", target.port, deadline, context=context)
    try:
        connection.request("GET", f"{target.path.rstrip('/').removesuffix('/v1')}/metrics")
        response = connection.getresponse()
        text = response.read(METRICS_LIMIT).decode("utf-8", "replace")
    except TimeoutError:
        # Running, but too busy or too stuck to say how much it has: not the same as gone.
        return Look(1, f"no answer from /metrics within {METRICS_TIMEOUT:g} s", 0.0)
    except (OSError, http.client.HTTPException) as error:
        return Look(0, f"the server does not answer ({getattr(error, 'strerror', None) or error})", gone=True)
    finally:
        connection.close()
    if response.status != 200:
        return Look(0, f"{url}/metrics answered HTTP {response.status}", unknown=True)
    try:
        load = metrics.load(text)
    except ValueError as error:
        return Look(0, f"{url}/metrics is not vLLM's: {error}", unknown=True)
    return Look(load.requests, f"{load.running} running, {load.waiting} waiting", load.progress)


def look_at_gateway(socket: str, backend: str, server: str) -> Look:
    """Ask HAProxy for the sessions of a server; one that it does not know has none. Raises haproxy.SocketError."""
    found = [
        entry
        for entry in haproxy.servers(haproxy.ask(socket, "show stat"))
        if (entry.backend, entry.name) == (backend, server)
    ]
    if not found:
        return Look(0, "not a server of this gateway", gone=True)
    sessions = found[0].sessions + found[0].queue
    return Look(sessions, f"{sessions} session{'' if sessions == 1 else 's'}")


def wait(
    look: Callable[[], Look],
    timeout: float,
    stall: float,
    *,
    unchanged: float = 0.0,
    progress: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Look again and again until nothing is left, nothing has moved for `stall` seconds, or `timeout` is over.

    Seconds. `unchanged` and `progress` carry on from an earlier wait. A timeout of 0 looks once. Of a gateway's
    sessions it is unknown whether they move (progress None), so these never stall.
    """
    start = clock()
    moved_at, pause = start - unchanged, POLL_FIRST
    while True:
        seen = look()
        now = clock()
        if seen.progress != progress:
            moved_at, progress = now, seen.progress
        idle = 0.0 if seen.progress is None else now - moved_at
        if seen.unknown:
            return Outcome(False, seen, now - start, idle)
        if seen.requests == 0:
            return Outcome(True, seen, now - start, idle)
        if seen.progress is not None and idle >= stall:
            return Outcome(False, seen, now - start, idle, stalled=True)
        left = timeout - (now - start)
        if left <= 0:
            return Outcome(False, seen, now - start, idle)
        sleep(min(pause, left))
        pause = min(2 * pause, POLL_MOST)


def result(outcome: Outcome) -> dict[str, Any]:
    """What a module returns of it."""
    return {
        "changed": False,
        "drained": outcome.drained,
        "gone": outcome.look.gone,
        "unknown": outcome.look.unknown,
        "stalled": outcome.stalled,
        "requests": outcome.look.requests,
        "says": outcome.look.says,
        "elapsed": outcome.elapsed,
        "unchanged": outcome.unchanged,
        "progress": outcome.look.progress,
    }
