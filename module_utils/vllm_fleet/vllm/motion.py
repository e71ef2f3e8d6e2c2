# SPDX-License-Identifier: Apache-2.0
"""Whether an engine gets on while a request has no answer: busy, hung, or broken.

A hung vLLM answers /health and /v1/models with 200 for ever, because its HTTP process lives. The series of its engines
stand still then. A long prefill moves only the use of the KV cache, so all that a step changes is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus

from . import metrics, pooling
from .chat_request import ChatError, ChatRequest, ChatResult, Expectation
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
    """One reading of /metrics: what each step of an engine changes (None: no such series), or that it was ``late``."""

    signature: tuple[object, ...] | None = None
    late: bool = False


def worth_a_look(error: ChatError | None) -> bool:
    """Return whether a failed request may mean that the engine hangs or is broken.

    With 503 vLLM says that it is busy (--max-num-queued-reqs), and a status below 500 that the request is wrong.
    """
    if error is None or error.kind not in UNANSWERED or error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return False
    return error.status is None or error.status // 100 == 5


def look(request: ChatRequest, chat: Callable[[ChatRequest], ChatResult]) -> str:
    """Ask for one token, and return what the server is: `answers`, `busy`, `hung`, `failing`; empty where unknown.

    The second request is a plain one: what is wrong with the first may be the request.
    """
    before = _page(request)
    plain = replace(
        request,
        messages=(),
        image="",
        prompt="" if request.pools else "Hi",
        max_tokens=1,
        endpoints=(),
        max_ttft=None,
        expect=Expectation(),
        timeout=min(SECOND, request.timeout),
        **(pooling.plain(request.api) if request.pools else {}),
    )
    second = chat(plain)
    return judge(before, second.error, _page(request))


def judge(before: Page, second: ChatError | None, after: Page) -> str:
    """Return what two pages and the request between them say. Pure."""
    if second is None:
        return "answers"
    moved = None not in (before.signature, after.signature) and before.signature != after.signature
    if second.kind not in _LATE:
        return ("busy" if moved else "failing") if worth_a_look(second) else ""
    if before.late and after.late:
        return "hung"
    if before.signature is None or after.signature is None:
        return ""
    return "busy" if moved else "hung"


def _page(request: ChatRequest) -> Page:
    try:
        seconds = min(PAGE, request.timeout)
        with Connection(request.url, seconds, request.api_key, request.headers, time.monotonic) as connection:
            response = connection.send("GET", "/metrics")
            text = b"".join(connection.chunks(response)).decode("utf-8", "replace")
    except ChatError as error:
        return Page(late=error.kind in _LATE)
    loads = metrics.engines(text) if response.status == HTTPStatus.OK else {}
    return Page(tuple(sorted((name, load.signature) for name, load in loads.items())) or None)
