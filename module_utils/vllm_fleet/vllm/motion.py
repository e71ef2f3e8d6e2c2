# SPDX-License-Identifier: Apache-2.0
"""Whether an engine gets on while a request has no answer: busy, hung, or broken.

A hung vLLM answers /health and /v1/models with 200 for ever, because its HTTP process lives. Its counters of steps and
tokens come from the engine, and stand still (vLLM 0.32.0, vllm/v1/metrics/loggers.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import metrics
from .chat_request import ChatError, ChatRequest, ChatResult
from .chat_wire import Connection

#: Seconds that the second request may take, one token long. Its counters are read before and after.
SECOND = 20.0
#: Seconds for one page of metrics.
PAGE = 10.0
#: Kinds of a ChatError after which a second look is worth while: a server took the request. One that still loads behind
#: a port of Docker's closes or resets the connection.
UNANSWERED = frozenset(("timeout_idle", "timeout_total", "truncated", "http_status"))
#: What a run says of a server, by the word that ``look`` returns.
SAYS = {
    "answers": "Asked once more, for one token, it answered.",
    "busy": "It is busy: asked once more, for one token, it was late again, but its engine gets on.",
    "hung": "It hangs: asked once more, for one token, it was silent again, and its engine did no step.",
    "failing": "Asked once more, for one token, it failed again.",
}
_LATE = ("timeout_idle", "timeout_total", "timeout_connect")


@dataclass(frozen=True)
class Page:
    """One reading of /metrics: a number that grows with each step, or that none came in time (``late``)."""

    progress: float | None = None
    late: bool = False


def worth_a_look(error: ChatError | None) -> bool:
    """Return whether a failed request may mean that the engine hangs or is broken."""
    return error is not None and error.kind in UNANSWERED and (error.status is None or error.status // 100 == 5)


def look(request: ChatRequest, chat: Callable[[ChatRequest], ChatResult]) -> str:
    """Ask for one token, and return what the server is: `answers`, `busy`, `hung`, `failing`; empty where unknown."""
    before = _page(request)
    second = chat(replace(request, max_tokens=1, timeout=min(SECOND, request.timeout), endpoints=(), max_ttft=None))
    return judge(before, second.error, _page(request))


def judge(before: Page, second: ChatError | None, after: Page) -> str:
    """Return what two pages and the request between them say. Pure."""
    if second is None:
        return "answers"
    if second.kind not in _LATE:
        return "failing" if worth_a_look(second) else ""
    if before.late and after.late:
        return "hung"
    if before.progress is None or after.progress is None:
        return ""
    return "hung" if before.progress == after.progress else "busy"


def _page(request: ChatRequest) -> Page:
    try:
        with Connection(request.url, PAGE, request.api_key, request.headers, time.monotonic) as connection:
            response = connection.send("GET", "/metrics")
            text = b"".join(connection.chunks(response)).decode("utf-8", "replace")
        return Page(metrics.load(text).progress) if response.status == 200 else Page()
    except ChatError as error:
        return Page(late=error.kind in _LATE)
    except ValueError:
        return Page()
