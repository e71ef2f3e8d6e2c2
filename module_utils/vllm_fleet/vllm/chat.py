# SPDX-License-Identifier: Apache-2.0
"""One chat request on its way to a result: asks an OpenAI-compatible server, times the answer, has it checked."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..common.received import parsed
from ..common.secrets import cleaned, scrub_words
from ..common.terminal import plain
from . import motion
from .chat_options import build_message, build_result
from .chat_request import (
    NOT_OPENAI,
    PATHS,
    ChatError,
    ChatRequest,
    ChatResult,
    Check,
    check_answer,
    error_text,
    shorten,
)
from .chat_wire import Connection, SSEParser

MODELS_PATH = "/v1/models"
# A list of models or a page of documentation comes at once or not at all.
GET_TIMEOUT = 10.0
# Further requests to the same server would meet the same wall.
HOPELESS = frozenset(("dns", "refused", "unreachable", "timeout_connect", "timeout_idle", "tls", "unauthorized"))


class _Exchange:
    """One ChatRequest on its way to a ChatResult."""

    def __init__(self, request: ChatRequest, clock: Callable[[], float]) -> None:
        self.request = request
        self.clock = clock
        self.result = ChatResult(url=request.url, model=request.model, api=request.api, name=request.name)
        self._begun = clock()
        self._first: float | None = None
        self._last = self._begun

    def run(self) -> ChatResult:
        result, request = self.result, self.request
        try:
            if not result.model:
                result.model = self.first_served()
            self.ask()
            self._measure()
            # Before the checks of the answer, as they rest on it.
            result.checks.append(Check("status", True, "HTTP 200", "HTTP 200"))
            result.checks.append(self._check_model())
            result.checks.extend(check_answer(request, result))
        except ChatError as error:
            self._measure()
            result.error = error
            result.status = error.status or result.status
            name = "status" if error.status else "answer"
            expected = "HTTP 200" if error.status else "a whole answer"
            got = self._redacted(error.message)
            result.checks.append(Check(name, False, expected, got, self._redacted(error.remedy)))
        if result.error is None or result.error.kind not in HOPELESS:
            result.checks.extend(self._check_endpoint(path) for path in request.endpoints)
            result.checks.extend(self._check_listed(request.listed))
        return result

    def ask(self) -> None:
        """POST the request and read the answer into the result."""
        request, result = self.request, self.result
        body = {"model": result.model, **request.body}
        self._begun = self.clock()
        with self._connection(request.timeout) as connection:
            response = connection.send("POST", PATHS[request.api], body)
            result.status = response.status
            result.headers = {name.lower(): value for name, value in response.headers.items()}
            if response.status != 200:
                raise self._refusal(response, b"".join(connection.chunks(response)), PATHS[request.api])
            kind = response.headers.get_content_type()
            if kind == "text/event-stream":
                self._read_stream(connection.chunks(response))
                return
            data = self._json(b"".join(connection.chunks(response)), kind)
            if request.pools:
                result.answer.pool(request, data)
            else:
                result.answer.add(data)

    def _read_stream(self, chunks: Iterator[bytes]) -> None:
        parser, answer = SSEParser(), self.result.answer
        for chunk in chunks:
            now = self.clock()
            for data in parser.feed(chunk):
                if data == "[DONE]":
                    return
                if answer.add(self._json(data.encode(), "text/event-stream")):
                    self._first = now if self._first is None else self._first
                    self._last = now
        raise ChatError(
            "truncated",
            f"a stream that ended without [DONE] after {len(answer.content)} characters",
            "The server died or was stopped while it answered: look at its log and exit code.",
        )

    def _measure(self) -> None:
        """Times of the answer: seconds to the first token, and tokens per second from the first to the last."""
        result = self.result
        result.elapsed = self.clock() - self._begun
        if self._first is not None:
            result.ttft = self._first - self._begun
        count = result.answer.usage.get("completion_tokens")
        if not isinstance(count, int) or count < 1:
            return
        if self._first is not None and self._last > self._first and count > 1:
            result.tokens_per_second = (count - 1) / (self._last - self._first)
        else:
            # Whole, or all of it in one piece: all that is known is that it took no longer than the whole request.
            result.tokens_per_second = count / max(result.elapsed, 1e-9)

    def _connection(self, timeout: float) -> Connection:
        return Connection(self.request.url, timeout, self.request.api_key, self.request.headers, self.clock)

    def _get(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body of a GET; raises ChatError when there is no answer."""
        with self._connection(min(GET_TIMEOUT, self.request.timeout)) as connection:
            response = connection.send("GET", path)
            body = b"".join(connection.chunks(response))
            if response.status == 401:
                raise self._refusal(response, body, path)
            return response.status, response.headers.get_content_type(), body

    def served(self) -> list[str]:
        """The names that /v1/models lists; raises ChatError."""
        status, kind, body = self._get(MODELS_PATH)
        if status != 200:
            message = f"HTTP {status} from {MODELS_PATH}"
            raise ChatError("http_status", message, NOT_OPENAI, status)
        data = self._json(body, kind).get("data")
        if not isinstance(data, list):
            raise ChatError("bad_response", f"no list of models from {MODELS_PATH}", NOT_OPENAI)
        return [str(card["id"]) for card in data if isinstance(card, dict) and "id" in card]

    def first_served(self) -> str:
        """The name that vLLM answers under."""
        names = self.served()
        if not names:
            raise ChatError("model_not_served", f"an empty list from {MODELS_PATH}", "Name the model in the request.")
        return names[0]

    def _json(self, raw: bytes, kind: str) -> dict[str, Any]:
        try:
            data, why = parsed(raw), "no JSON object"
        except ValueError as error:
            # Python's own words of what is no JSON at all say nothing that the text itself does not.
            data, why = None, "no JSON object" if isinstance(error, json.JSONDecodeError) else f"refused: {error}"
        if not isinstance(data, dict):
            text = shorten(raw.decode("utf-8", "replace"))
            raise ChatError("bad_response", f"{kind} that is {why}: {text}", NOT_OPENAI)
        return data

    def _refusal(self, response: http.client.HTTPResponse, raw: bytes, path: str) -> ChatError:
        """The ChatError for a status other than 200, with the server's own words."""
        try:
            words = error_text(parsed(raw))
        except ValueError:
            words = raw.decode("utf-8", "replace")
        words = shorten(words, 400) if words.strip() else "no explanation"
        status, got = response.status, f"HTTP {response.status} {response.reason} from {path}: {words}"
        if status == 401:
            what = (
                "The key sent is not the server's" if self.request.api_key else "The server wants a key, none was sent"
            )
            remedy = f"{what}: set api_key to the value of the server's VLLM_API_KEY (or --api-key)."
            return ChatError("unauthorized", got, remedy, status)
        if status == 404:
            try:
                names = self.served()
            except ChatError:
                return ChatError("http_status", got, NOT_OPENAI, status)
            if self.result.model in names:
                return ChatError("http_status", got, "The model is served, but not through this api.", status)
            remedy = f"The server serves {', '.join(names) or 'nothing'}: ask for that, or set served-model-name."
            return ChatError("model_not_served", got, remedy, status)
        if status // 100 == 3:
            remedy = f"Give the URL that it redirects to: {response.headers.get('Location', 'none named')}."
        elif status // 100 == 4:
            remedy = "Correct the request as the server says."
        else:
            remedy = "Look for the cause in the server's log; 503 is a dead engine or a gateway without a server."
        return ChatError("http_status", got, remedy, status)

    def _redacted(self, text: str) -> str:
        return plain(scrub_words(text, self.request.secrets))

    def _check_model(self) -> Check:
        """The answer's model must be the one asked for, or another name of the same server.

        vLLM answers under its first served name whichever alias was asked for.
        """
        wanted, got = self.result.model, self.result.answer.model
        ok = wanted == got
        if not ok and got:
            try:
                names = self.served()
                ok = wanted in names and got in names
            except ChatError:
                ok = False
        remedy = "Another server than the expected one answers on this port: compare the container's model and port."
        return Check("model", ok, f"model {wanted!r}", f"model {got!r}" if got else "no model named", remedy)

    def _check_listed(self, names: Sequence[str]) -> list[Check]:
        """Whether /v1/models lists the adapters."""
        if not names:
            return []
        expected = f"{', '.join(names)} in {MODELS_PATH}"
        try:
            there = self.served()
        except ChatError as error:
            return [Check("adapters", False, expected, self._redacted(error.message), self._redacted(error.remedy))]
        lost = [name for name in names if name not in there]
        remedy = "A server loads its adapters at its start: restart it (`deploy.yml` does, or `playbooks/restart.yml`)."
        return [Check("adapters", not lost, expected, f"not {', '.join(lost)}" if lost else "all of them", remedy)]

    def _check_endpoint(self, path: str) -> Check:
        name, expected = f"endpoint {path}", "HTTP 200"
        is_models = path.rstrip("/").endswith(MODELS_PATH)
        if is_models:
            expected += f" and {self.result.model!r} in the list"
        try:
            status, kind, body = self._get(path)
            if status == 200 and is_models:
                names = [str(card.get("id")) for card in self._json(body, kind).get("data") or []]
                listed = self.result.model in names
                remedy = "Set served-model-name, or ask for what is served."
                return Check(name, listed, expected, f"HTTP 200 listing {', '.join(names) or 'nothing'}", remedy)
        except ChatError as error:
            return Check(name, False, expected, self._redacted(error.message), self._redacted(error.remedy))
        return Check(name, status == 200, expected, f"HTTP {status}", "Correct the path, or see the routes in the log.")


def chat(request: ChatRequest, clock: Callable[[], float] = time.monotonic) -> ChatResult:
    """Send one request, read its answer and check it.

    Never raises for what a server or network does: that is in the result's `checks`, and its kind in `error`.
    """
    return _Exchange(request, clock).run()


def probe(requests: Sequence[ChatRequest], *, many: bool) -> dict[str, Any]:
    """Send the requests and return the module's result, of a failure too. ``many``: each check names its request.

    A server that gave no answer is asked once more, for one token, and its counters are looked at (see motion).
    """
    results = chat_all(requests)
    # A server may send back what it was sent.
    known = {text for one in requests for text in one.secrets}
    result: dict[str, Any] = cleaned(build_result(results, many=many), known)
    message = plain(scrub_words(build_message(results, len(requests)), known))
    if not message:
        return result
    silent = next((n for n, one in enumerate(results) if motion.worth_a_look(one.error)), None)
    engine = motion.look(requests[silent], chat) if silent is not None else ""
    return {**result, "failed": True, "msg": f"{message} {motion.SAYS.get(engine, '')}".rstrip(), "engine": engine}


def chat_all(requests: Sequence[ChatRequest]) -> list[ChatResult]:
    """Send the requests one after the other; stops after one that shows that the others cannot succeed either."""
    results: list[ChatResult] = []
    for request in requests:
        results.append(chat(request))
        error = results[-1].error
        if error is not None and error.kind in HOPELESS:
            break
    return results
