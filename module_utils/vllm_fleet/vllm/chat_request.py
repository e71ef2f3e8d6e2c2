# SPDX-License-Identifier: Apache-2.0
"""One request to an OpenAI-compatible server, what came back, and what is to be said about that.

A server that answers HTTP 200 may still serve nonsense: SmolLM2-135M in bfloat16 on a CPU returns fluent French to a
question about France, with a finish_reason and a usage block (measured with vLLM 0.32.0). So the content is checked
against a pattern, and everything around it for consistency.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ..common.secrets import is_secret, unsendable
from . import picture, pooling

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", **pooling.PATHS}
FINISH_REASONS = ("stop", "length", "tool_calls")

HEADER_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # RFC 9110, token
# Set here, by what is sent and by api_key.
OWN_HEADERS = frozenset(("authorization", "connection", "content-length", "content-type", "host", "transfer-encoding"))
NOT_OPENAI = "Check that the URL is the root of an OpenAI-compatible server and not of something else on that port."
LONG_HEADER = 16  # characters of a value that may be a secret whatever its header is called
SHORT = 160  # characters of content or of a body shown in a message


# --- what is asked ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expectation:
    """What the answer must be like. `pattern` is searched as a regular expression with the case as given.

    `headers` are headers of the response by name, in any case, and the value that each must have. `first` is the
    document that must be the nearest to the query, counted from 1; 0 asks for none.
    """

    pattern: str = ""
    min_chars: int = 1
    finish_reason: tuple[str, ...] = FINISH_REASONS
    headers: Mapping[str, str] = field(default_factory=dict)
    first: int = 0


@dataclass(frozen=True)
class ChatRequest:
    """One request. Times in seconds; `url` is the server's root, a closing `/v1` is allowed.

    An empty `model` means the first one that the server lists. `timeout` is for the whole request, its body included.
    `endpoints` are paths that must answer a GET with 200 besides; `/v1/models` must list the model, too. `listed` are
    further names that it must list, those of adapters.
    `headers` are sent with everything, besides those that HTTP and `api_key` need. `ignore_eos` has the answer go on to
    `max_tokens`.
    """

    url: str
    model: str = ""
    api: str = "chat"
    messages: Sequence[Mapping[str, Any]] = ()
    prompt: str = ""
    image: str = ""
    query: str = ""
    documents: tuple[str, ...] = ()
    max_tokens: int = 128
    temperature: float = 0.0
    stream: bool = True
    api_key: str = field(default="", repr=False)
    timeout: float = 120.0
    expect: Expectation = Expectation()
    max_ttft: float | None = None
    min_tokens_per_second: float | None = None
    endpoints: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    name: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be sent or measured: ValueError, one sentence, never with the key in it."""
        target_of(self.url)
        if self.api not in PATHS:
            raise ValueError(f"api must be one of {', '.join(PATHS)}, got {self.api!r}.")
        self._check_asked()
        if self.messages and self.api == "completions":
            raise ValueError("messages are for api chat; give a prompt to api completions.")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {self.timeout:g}.")
        if self.max_ttft is not None and (not self.stream or self.pools):
            raise ValueError("max_ttft needs stream: true, a whole answer has no first token to time.")
        if unsendable(self.api_key):
            # http.client would refuse it as well, with the key in its message.
            raise ValueError("api_key must be printable ASCII without spaces; look for a line break at its end.")
        try:
            re.compile(self.expect.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.expect.pattern!r} is no regular expression: {error}.") from None
        for path in self.endpoints:
            if not re.fullmatch(r"/[\x21-\x7e]*", path):
                raise ValueError(f"endpoints are paths that begin with a slash, without spaces; got {path!r}.")
        _check_headers(self.headers)

    def _check_asked(self) -> None:
        """ValueError where what is asked does not belong to the api."""
        if self.pools:
            if self.messages or self.prompt or self.image:
                raise ValueError(f"api {self.api} takes a query and documents, no messages, prompt or image.")
            if wrong := pooling.fault(self.api, self.query, self.documents, self.expect.first):
                raise ValueError(wrong)
            return
        if self.query or self.documents or self.expect.first:
            raise ValueError(f"query, documents and expect.first are for api {' and '.join(pooling.PATHS)}.")
        if bool(self.messages) == bool(self.prompt):
            raise ValueError("Exactly one of messages and prompt must be given.")
        if self.image and (self.api != "chat" or not self.prompt):
            raise ValueError("image goes with a prompt of api chat.")
        if self.image and self.image not in picture.COLOURS:
            raise ValueError(f"image must be one of {', '.join(picture.COLOURS)}, got {self.image!r}.")

    @property
    def pools(self) -> bool:
        """Whether the model gives vectors or scores, and no text."""
        return self.api in pooling.PATHS

    @property
    def secrets(self) -> set[str]:
        """What is sent and must not come back in a result."""
        return opening(self.headers) | {self.api_key}

    @property
    def body(self) -> dict[str, Any]:
        """The request as JSON, without the model's name."""
        if self.pools:
            return pooling.body(self.api, self.query, self.documents)
        body: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": self.stream,
        }
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.api == "chat":
            content = picture.content(self.prompt, self.image) if self.image else self.prompt
            body["messages"] = list(self.messages) or [{"role": "user", "content": content}]
        else:
            body["prompt"] = self.prompt
        return body


def opening(headers: Mapping[str, str]) -> set[str]:
    """Return the values of headers that may open a door: of one with a plain name a short word does not."""
    return {value for name, value in headers.items() if is_secret(name) or len(value) >= LONG_HEADER}


def _check_headers(headers: Mapping[str, str]) -> None:
    """ValueError for headers that cannot be sent besides the request's own."""
    for name, value in headers.items():
        if not re.fullmatch(HEADER_NAME, name) or name.lower() in OWN_HEADERS:
            raise ValueError(
                f"headers: {name!r} cannot be set; expected a name of letters, digits and dashes other than "
                f"{', '.join(sorted(OWN_HEADERS))}."
            )
        if not re.fullmatch(r"[\x20-\x7e]*", value):
            raise ValueError(f"headers: the value of {name!r} must be printable ASCII on one line.")


def target_of(url: str) -> tuple[SplitResult, str]:
    """The parts of a URL and the path before /v1; ValueError when it is none that a request can go to."""
    try:
        target = urlsplit(url)
        port_ok = target.port != 0
        (target.hostname or "").encode("idna")
    except ValueError as error:
        raise ValueError(f"url {url!r} cannot be read: {error}.") from None
    if target.username is not None or target.password is not None:
        raise ValueError("url must not carry a user or password; give the key as api_key.")
    if target.scheme not in ("http", "https") or not target.hostname or not port_ok or target.query or target.fragment:
        raise ValueError(f"url must look like http://host:8000, got {url!r}.")
    return target, target.path.rstrip("/").removesuffix("/v1")


# --- what comes back --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `remedy` is the next step when it is not ok."""

    name: str
    ok: bool
    expected: str
    got: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The four fields that a module returns."""
        return {"name": self.name, "ok": self.ok, "expected": self.expected, "got": self.got}


class ChatError(Exception):
    """The request did not lead to an answer.

    `kind` is one of: dns, refused, unreachable, timeout_connect, timeout_idle, timeout_total, tls, reset, closed,
    http_status, unauthorized, model_not_served, truncated, stream_error, bad_response.
    """

    def __init__(self, kind: str, message: str, remedy: str, status: int | None = None) -> None:
        """`message` completes "got ...", `remedy` is a whole next step, `status` the HTTP status where one came."""
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.remedy = remedy
        self.status = status


@dataclass
class Answer:
    """The content of an answer as it is put together. `usage` as sent by the server, `reasoning` counts apart.

    Of vectors and scores: `scores` of the documents, `fault` what is wrong with them.
    """

    content: str = ""
    scores: tuple[float, ...] = ()
    fault: str = ""
    reasoning: str = ""
    model: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def add(self, data: Mapping[str, Any]) -> bool:
        """Take in a whole answer or one chunk of a stream; True when it brought text.

        Raises ChatError (stream_error) for an error object, (bad_response) for what is no completion at all.
        """
        if "error" in data or data.get("object") == "error":
            raise ChatError(
                "stream_error",
                f"an error inside the answer: {error_text(data)}",
                "Look for the cause in the server's log.",
            )
        choices = data.get("choices")
        if not isinstance(choices, list):
            raise ChatError("bad_response", f"JSON without choices: {shorten(json.dumps(data))}", NOT_OPENAI)
        self.model = str(data.get("model") or self.model)
        if isinstance(data.get("usage"), dict):
            self.usage = dict(data["usage"])
        text = False
        for choice in filter(_is_object, choices):
            part = next(filter(_is_object, (choice.get("delta"), choice.get("message"))), choice)
            content = _text(part.get("content")) or _text(part.get("text"))
            # vLLM has called it both; it is where a thinking model's tokens go before the answer.
            reasoning = _text(part.get("reasoning")) or _text(part.get("reasoning_content"))
            self.content += content
            self.reasoning += reasoning
            text = text or bool(content or reasoning)
            self.finish_reason = _text(choice.get("finish_reason")) or self.finish_reason
        return text

    def pool(self, request: ChatRequest, data: Mapping[str, Any]) -> None:
        """Take in vectors or scores. Raises ChatError (bad_response) for what is neither."""
        try:
            found, told, self.fault = pooling.scores(request.api, request.documents, data)
        except pooling.Unreadable as error:
            raise ChatError("bad_response", str(error), NOT_OPENAI) from None
        self.scores, self.model = tuple(found), str(data.get("model") or "")
        self.usage = dict(data["usage"]) if isinstance(data.get("usage"), dict) else {}
        self.content = f"{told}; the nearest first: {pooling.words(found)}" if found else told


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@dataclass
class ChatResult:
    """What one request showed. Seconds; `ttft` is None without a stream, `tokens_per_second` without two tokens."""

    url: str
    model: str
    api: str
    name: str = ""
    answer: Answer = field(default_factory=Answer)
    ttft: float | None = None
    tokens_per_second: float | None = None
    elapsed: float = 0.0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    error: ChatError | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(check.ok for check in self.checks)

    @property
    def message(self) -> str:
        """One sentence about the first check that failed, and the next step; empty when all is well."""
        failed = [check for check in self.checks if not check.ok]
        if not failed:
            return ""
        first = failed[0]
        others = ", ".join(f"'{check.name}'" for check in failed[1:])
        more = f" (and {others} failed)" if others else ""
        what = f" for {self.name!r}" if self.name else ""
        model = repr(self.model) if self.model else "(first served)"
        return (
            f"Verification of model {model} at {self.url}{what} failed in check '{first.name}': "
            f"expected {first.expected}, got {first.got}{more}. {first.remedy}"
        ).rstrip()

    def as_dict(self) -> dict[str, Any]:
        """Everything that a module returns, in JSON's types."""
        return {
            "name": self.name,
            "url": self.url,
            "model": self.model,
            "api": self.api,
            "content": self.answer.content,
            "finish_reason": self.answer.finish_reason,
            "usage": self.answer.usage,
            "ttft": self.ttft,
            "tokens_per_second": self.tokens_per_second,
            "elapsed": self.elapsed,
            "status": self.status,
            "headers": self.headers,
            "error": self.error.kind if self.error else None,
            "checks": [check.as_dict() for check in self.checks],
        }


def shorten(text: str, limit: int = SHORT) -> str:
    """The text in quotes, on one line, cut after `limit` characters with its full length behind it."""
    flat = " ".join(text.split())
    quoted = json.dumps(flat[:limit], ensure_ascii=False)
    return quoted if len(flat) <= limit else f"{quoted}... ({len(text)} characters)"


def error_text(body: Any) -> str:
    """The server's own words: OpenAI's {error: {message}}, vLLM's {error: text} of a 401, FastAPI's {detail}."""
    if isinstance(body, dict):
        for key in ("error", "message", "detail"):
            if body.get(key):
                return error_text(body[key])
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


# --- what is to be said about it --------------------------------------------------------------------------------


def check_answer(request: ChatRequest, result: ChatResult) -> list[Check]:
    """Return everything that can be said about an answer without asking again; times as measured in `result`."""
    expect, answer = request.expect, result.answer
    if request.pools:
        checks = [_check_pooled_usage(answer.usage), _check_pooled(answer)]
        checks += [_check_header(name, wanted, result) for name, wanted in expect.headers.items()]
        return checks + ([_check_first(expect.first, answer)] if expect.first and answer.scores else [])
    checks = [_check_finish(expect, answer), _check_usage(answer.usage, request.max_tokens)]
    checks += [_check_header(name, wanted, result) for name, wanted in expect.headers.items()]
    checks.append(_check_length(expect, answer))
    if expect.pattern:
        checks.append(_check_pattern(expect.pattern, answer))
    if request.max_ttft is not None:
        checks.append(_check_ttft(request.max_ttft, result.ttft))
    if request.min_tokens_per_second is not None:
        checks.append(_check_rate(request.min_tokens_per_second, result.tokens_per_second))
    return checks


def _check_pooled(answer: Answer) -> Check:
    return Check(
        "vectors", not answer.fault, "finite numbers that differ", answer.fault or answer.content, pooling.WRONG
    )


def _check_first(wanted: int, answer: Answer) -> Check:
    right = pooling.order(answer.scores)[0] == wanted
    return Check("first", right, f"document {wanted} first", pooling.words(answer.scores), pooling.WRONG)


def _check_pooled_usage(usage: Mapping[str, Any]) -> Check:
    wrong = pooling.usage_fault(usage)
    remedy = "Ask vLLM itself: something between client and server may rewrite answers."
    got = wrong or f"{usage.get('prompt_tokens')} = {usage.get('total_tokens')}"
    return Check("usage", not wrong, "prompt_tokens = total_tokens, 1 or more", got, remedy)


def _check_finish(expect: Expectation, answer: Answer) -> Check:
    return Check(
        "finish_reason",
        answer.finish_reason in expect.finish_reason,
        " or ".join(expect.finish_reason),
        str(answer.finish_reason or "none"),
        "Raise max_tokens: it cut the answer."
        if answer.finish_reason == "length"
        else "Look for the request in the server's log: it did not end as a request does.",
    )


def _check_header(name: str, wanted: str, result: ChatResult) -> Check:
    sent = result.headers.get(name.lower())
    got = f"no header {name}" if sent is None else f"{name}: {shorten(sent)}"
    remedy = "Another server than the one that was meant has answered, or what stands between is set up otherwise."
    return Check(f"header {name}", sent == wanted, f"{name}: {shorten(wanted)}", got, remedy)


def _check_length(expect: Expectation, answer: Answer) -> Check:
    length = len(answer.content.strip())
    expected, got = f"at least {expect.min_chars} characters", f"{length} characters"
    if length >= expect.min_chars:
        return Check("min_chars", True, expected, got)
    if answer.reasoning:
        got += f", and {len(answer.reasoning)} characters of reasoning"
        return Check("min_chars", False, expected, got, "The model spent its tokens on thinking: raise max_tokens.")
    remedy = "Compare chat template, dtype and quantization with the model's card."
    return Check("min_chars", False, expected, got, remedy)


def _check_pattern(pattern: str, answer: Answer) -> Check:
    return Check(
        "pattern",
        re.search(pattern, answer.content) is not None,
        f"a match of /{pattern}/",
        f"{shorten(answer.content)} (finish_reason {answer.finish_reason})",
        "The answer was cut: raise max_tokens and ask again."
        if answer.finish_reason == "length"
        else "The server runs but answers wrongly: compare dtype, quantization, chat template and the revision "
        "of the weights with the model's card.",
    )


def _check_ttft(limit: float, ttft: float | None) -> Check:
    return Check(
        "max_ttft",
        ttft is not None and ttft <= limit,
        f"the first token within {limit:g} s",
        "no token" if ttft is None else f"{ttft:.3f} s",
        "Ask again: the first request after a start may compile kernels; then look for load in /metrics.",
    )


def _check_rate(wanted: float, rate: float | None) -> Check:
    return Check(
        "min_tokens_per_second",
        rate is not None and rate >= wanted,
        f"at least {wanted:g} tokens/s",
        "no token to measure" if rate is None else f"{rate:.1f} tokens/s",
        "Look for other requests in /metrics, for clocks and power caps of the GPUs, and for a missing kernel "
        "in the server's log.",
    )


def _check_usage(usage: Mapping[str, Any], max_tokens: int) -> Check:
    """The counts must be there and add up; completion_tokens within max_tokens."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    prompt, completion, total = (usage.get(name) for name in names)
    if isinstance(prompt, int) and isinstance(completion, int) and isinstance(total, int):
        ok = prompt >= 1 and 1 <= completion <= max_tokens and total == prompt + completion
        got = f"{prompt} + {completion} = {total}"
    else:
        ok, got = False, shorten(json.dumps(usage)) if usage else "no usage"
    expected = f"prompt_tokens + completion_tokens = total_tokens, completion_tokens in 1..{max_tokens}"
    remedy = "Ask vLLM itself: something between client and server may rewrite answers."
    return Check("usage", ok, expected, got, remedy)
