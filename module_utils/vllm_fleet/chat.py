"""One request to an OpenAI-compatible server, and what is to be said about its answer.

A server that answers HTTP 200 may still serve nonsense: SmolLM2-135M in bfloat16 on a CPU returns fluent French to a
question about France, with a finish_reason and a usage block (measured with vLLM 0.32.0). So the content is checked
against a pattern, and everything around it for consistency.

The standard library alone: this file is sent to every node. Proxies of the environment are not used, a server on
loopback is never behind one.
"""

from __future__ import annotations

import codecs
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
MODELS_PATH = "/v1/models"
FINISH_REASONS = ("stop", "length", "tool_calls")

# A host that does not answer a SYN within this is not there; the wait for the answer itself may be long.
CONNECT_TIMEOUT = 10.0
# A list of models or a page of documentation comes at once or not at all.
GET_TIMEOUT = 10.0
# Nothing that is asked for here is larger; a server that never ends its body must not fill the node's memory.
BODY_LIMIT = 16 * 1024 * 1024
HEADER_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # RFC 9110, token
# Set here, by what is sent and by api_key.
OWN_HEADERS = frozenset(("authorization", "connection", "content-length", "content-type", "host", "transfer-encoding"))
NOT_OPENAI = "Check that the URL is the root of an OpenAI-compatible server and not of something else on that port."
SHORT = 160  # characters of content or of a body shown in a message


# --- what is asked ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expectation:
    """What the answer must be like. `pattern` is searched as a regular expression with the case as given.

    `headers` are headers of the response by name, in any case, and the value that each must have.
    """

    pattern: str = ""
    min_chars: int = 1
    finish_reason: tuple[str, ...] = FINISH_REASONS
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatRequest:
    """One request. Times in seconds; `url` is the server's root, a closing `/v1` is allowed.

    An empty `model` means the first one that the server lists. `timeout` is for the whole request, its body included.
    `endpoints` are paths that must answer a GET with 200 besides; `/v1/models` must list the model, too.
    `headers` are sent with everything, besides those that HTTP and `api_key` need.
    """

    url: str
    model: str = ""
    api: str = "chat"
    messages: Sequence[Mapping[str, Any]] = ()
    prompt: str = ""
    max_tokens: int = 128
    temperature: float = 0.0
    stream: bool = True
    api_key: str = field(default="", repr=False)
    timeout: float = 120.0
    expect: Expectation = Expectation()
    max_ttft: float | None = None
    min_tokens_per_second: float | None = None
    endpoints: tuple[str, ...] = ()
    name: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be sent or measured: ValueError, one sentence, never with the key in it."""
        _target(self.url)
        if self.api not in PATHS:
            raise ValueError(f"api must be one of {', '.join(PATHS)}, got {self.api!r}.")
        if bool(self.messages) == bool(self.prompt):
            raise ValueError("Exactly one of messages and prompt must be given.")
        if self.messages and self.api == "completions":
            raise ValueError("messages are for api chat; give a prompt to api completions.")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {self.timeout:g}.")
        if self.max_ttft is not None and not self.stream:
            raise ValueError("max_ttft needs stream: true, a whole answer has no first token to time.")
        if not re.fullmatch(r"[\x21-\x7e]*", self.api_key):
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

    @property
    def body(self) -> dict[str, Any]:
        """The request as JSON, without the model's name."""
        body: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": self.stream,
        }
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.api == "chat":
            body["messages"] = list(self.messages) or [{"role": "user", "content": self.prompt}]
        else:
            body["prompt"] = self.prompt
        return body


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


# Further requests to the same server would meet the same wall.
HOPELESS = frozenset(("dns", "refused", "unreachable", "timeout_connect", "timeout_idle", "tls", "unauthorized"))


@dataclass
class Answer:
    """The content of an answer as it is put together. `usage` as sent by the server, `reasoning` counts apart."""

    content: str = ""
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


# --- reading ----------------------------------------------------------------------------------------------------


class SSEParser:
    """Server-sent events, fed with bytes cut anywhere: inside a line, a CR LF pair or a character.

    Follows the WHATWG description of text/event-stream as far as `data` goes: comments and other fields are dropped,
    several data lines of one event are joined by newlines.
    """

    def __init__(self) -> None:
        """Nothing read yet."""
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._line = ""
        self._data: list[str] = []
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of every event that `chunk` completes."""
        text = self._decoder.decode(chunk)
        if self._after_cr and text:
            # The LF of a CR LF whose CR ended the chunk before.
            text = text[1:] if text[0] == "\n" else text
            self._after_cr = False
        self._after_cr = self._after_cr or text.endswith("\r")
        *lines, self._line = re.split(r"\r\n|\r|\n", self._line + text)
        for line in lines:
            if not line:
                if any(self._data):
                    yield "\n".join(self._data)
                self._data = []
                continue
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value[1:] if value.startswith(" ") else value)


def shorten(text: str, limit: int = SHORT) -> str:
    """The text in quotes, on one line, cut after `limit` characters with its full length told."""
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


# What the standard library raises, in the order of looking: the class, and kind, message and next step for it.
_Trouble = tuple[type[Exception], tuple[str, str, str]]
_NOT_LISTENING = (
    "Behind a published container port this is a server that does not listen yet; otherwise look at the server's log."
)
_DIED = "The server died or was stopped while it answered: look at its log and exit code."
BEFORE_ANSWER: tuple[_Trouble, ...] = (
    (
        socket.gaierror,
        ("dns", "no address for the host of {where} ({reason})", "Correct the name in the URL or give the address."),
    ),
    (
        ssl.SSLCertVerificationError,
        (
            "tls",
            "a certificate of {where} that this machine does not trust ({reason})",
            "Install the issuing CA in the machine's trust store, or name the host as the certificate does.",
        ),
    ),
    (
        ssl.SSLError,
        (
            "tls",
            "no TLS handshake with {where} ({reason})",
            "If the server speaks plain HTTP, write http:// in the URL.",
        ),
    ),
    (
        ConnectionRefusedError,
        (
            "refused",
            "connection refused by {where}",
            "Nothing listens there: vLLM opens its port only when the model is loaded, so look at the container's "
            "state and log, then at the port.",
        ),
    ),
    (
        http.client.RemoteDisconnected,
        ("closed", "the connection closed by {where} without an answer", _NOT_LISTENING),
    ),
    (ConnectionError, ("reset", "the connection reset by {where} before an answer", _NOT_LISTENING)),
    (
        http.client.HTTPException,
        (
            "bad_response",
            "something from {where} that is not HTTP",
            f"{NOT_OPENAI} A port with TLS wants https:// in the URL.",
        ),
    ),
    (OSError, ("unreachable", "{where} unreachable ({reason})", "Check the address and the routes to it.")),
)
INSIDE_ANSWER: tuple[_Trouble, ...] = (
    (ConnectionError, ("reset", "the connection reset by {where} in the middle of the answer", _DIED)),
    (Exception, ("truncated", "the connection closed by {where} in the middle of the answer", _DIED)),
)


class _Connection:
    """One exchange with the server, every wait of which ends `timeout` seconds after this was made."""

    def __init__(
        self, url: str, timeout: float, api_key: str, extra: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        self._target, self._root = _target(url)
        self._timeout = timeout
        self._key = api_key
        self._extra = extra
        self._clock = clock
        self._deadline = clock() + timeout
        # The time of the last sign of an answer; None before the first.
        self._heard: float | None = None
        https = self._target.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        self._http = kind(
            self._target.hostname or "",
            self._target.port or (443 if https else 80),
            timeout=min(CONNECT_TIMEOUT, timeout),
        )
        self._socket: socket.socket | None = None
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._response is not None:
            self._response.close()
        self._http.close()

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> http.client.HTTPResponse:
        """Connect, send, and return the response at its headers; raises ChatError."""
        headers = {"Accept": "*/*", "User-Agent": "vllm-fleet", **self._extra, "Connection": "close"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        self._connect()
        try:
            self._arm()
            self._http.request(method, self._root + path, body=payload, headers=headers)
            self._arm()
            self._response = self._http.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._named(error) from error
        self._heard = self._clock()
        return self._response

    def chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The body as it arrives; raises ChatError when it ends before its end."""
        # Counted here: up to Python 3.11 read1 neither counts the body down nor stops at its end.
        left = response.length
        size = 0
        while left is None or left > 0:
            try:
                self._arm()
                chunk = response.read1(65536)
                if not chunk and left:
                    raise http.client.IncompleteRead(b"", left)
            except (OSError, http.client.HTTPException) as error:
                raise self._named(error) from error
            if not chunk:
                return
            self._heard = self._clock()
            left = None if left is None else left - len(chunk)
            size += len(chunk)
            if size > BODY_LIMIT:
                raise ChatError("bad_response", f"more than {BODY_LIMIT >> 20} MiB without an end", NOT_OPENAI)
            yield chunk

    def _connect(self) -> None:
        try:
            self._http.connect()
        except TimeoutError as error:
            raise ChatError(
                "timeout_connect",
                f"no connection to {self._target.netloc} within {min(CONNECT_TIMEOUT, self._timeout):g} s",
                "Check address and port, and that no packet filter drops what goes there.",
            ) from error
        except OSError as error:
            raise self._named(error) from error
        # http.client forgets its socket when the server will close the connection; the waits need it to the end.
        self._socket = self._http.sock

    def _arm(self) -> None:
        """Let the next wait on the socket end at the deadline."""
        left = self._deadline - self._clock()
        if left <= 0 or self._socket is None:
            raise TimeoutError
        self._socket.settimeout(left)

    def _named(self, error: Exception) -> ChatError:
        """The ChatError for what the standard library raised."""
        if isinstance(error, TimeoutError):
            return self._timed_out()
        reason = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)
        table = BEFORE_ANSWER if self._heard is None else INSIDE_ANSWER
        kind, message, remedy = next(row for raised, row in table if isinstance(error, raised))
        return ChatError(kind, message.format(where=self._target.netloc, reason=reason), remedy)

    def _timed_out(self) -> ChatError:
        if self._heard is None:
            return ChatError(
                "timeout_idle",
                f"no byte of an answer within {self._timeout:g} s",
                "The server took the request and is silent: see vllm:num_requests_waiting and num_requests_running in "
                "/metrics; a hung engine still answers /health with 200.",
            )
        silent = self._clock() - self._heard
        if silent >= self._timeout / 2:
            return ChatError(
                "timeout_idle",
                f"an answer that fell silent {silent:.1f} s before the timeout of {self._timeout:g} s",
                "The engine hangs in the middle of a request: look at its log, then restart the container.",
            )
        return ChatError(
            "timeout_total",
            f"an answer still arriving at the timeout of {self._timeout:g} s",
            "Raise timeout or lower max_tokens.",
        )


def _target(url: str) -> tuple[SplitResult, str]:
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


# --- asking -----------------------------------------------------------------------------------------------------


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
            raw = b"".join(connection.chunks(response))
            result.answer.add(self._json(raw, kind))

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

    def _connection(self, timeout: float) -> _Connection:
        return _Connection(self.request.url, timeout, self.request.api_key, self.request.headers, self.clock)

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
            data = json.loads(raw)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            text = shorten(raw.decode("utf-8", "replace"))
            raise ChatError("bad_response", f"{kind} that is no JSON object: {text}", NOT_OPENAI)
        return data

    def _refusal(self, response: http.client.HTTPResponse, raw: bytes, path: str) -> ChatError:
        """The ChatError for a status other than 200, with the server's own words."""
        try:
            words = error_text(json.loads(raw))
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
        return text.replace(self.request.api_key, "********") if self.request.api_key else text

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


def check_answer(request: ChatRequest, result: ChatResult) -> list[Check]:
    """Everything that can be said about an answer without asking again; times as measured in `result`."""
    expect, answer = request.expect, result.answer
    content = answer.content
    shown = f"{shorten(content)} (finish_reason {answer.finish_reason})"
    checks = [
        Check(
            "finish_reason",
            answer.finish_reason in expect.finish_reason,
            " or ".join(expect.finish_reason),
            str(answer.finish_reason or "none"),
            "Raise max_tokens: it cut the answer."
            if answer.finish_reason == "length"
            else "Look for the request in the server's log: it did not end as a request does.",
        ),
        _check_usage(answer.usage, request.max_tokens),
    ]
    for name, wanted in expect.headers.items():
        sent = result.headers.get(name.lower())
        got = f"no header {name}" if sent is None else f"{name}: {shorten(sent)}"
        remedy = "Another server than the one that was meant has answered, or what stands between is set up otherwise."
        checks.append(Check(f"header {name}", sent == wanted, f"{name}: {shorten(wanted)}", got, remedy))
    if len(content.strip()) < expect.min_chars:
        thinking = f", and {len(answer.reasoning)} characters of reasoning" if answer.reasoning else ""
        remedy = (
            "The model spent its tokens on thinking: raise max_tokens."
            if answer.reasoning
            else "Compare chat template, dtype and quantization with the model's card."
        )
        got = f"{len(content.strip())} characters{thinking}"
        checks.append(Check("min_chars", False, f"at least {expect.min_chars} characters", got, remedy))
    else:
        got = f"{len(content.strip())} characters"
        checks.append(Check("min_chars", True, f"at least {expect.min_chars} characters", got))
    if expect.pattern:
        checks.append(
            Check(
                "pattern",
                re.search(expect.pattern, content) is not None,
                f"a match of /{expect.pattern}/",
                shown,
                "The answer was cut: raise max_tokens and ask again."
                if answer.finish_reason == "length"
                else "The server runs but answers wrongly: compare dtype, quantization, chat template and the revision "
                "of the weights with the model's card.",
            )
        )
    if request.max_ttft is not None:
        checks.append(
            Check(
                "max_ttft",
                result.ttft is not None and result.ttft <= request.max_ttft,
                f"the first token within {request.max_ttft:g} s",
                "no token" if result.ttft is None else f"{result.ttft:.3f} s",
                "Ask again: the first request after a start may compile kernels; then look for load in /metrics.",
            )
        )
    if request.min_tokens_per_second is not None:
        rate = result.tokens_per_second
        checks.append(
            Check(
                "min_tokens_per_second",
                rate is not None and rate >= request.min_tokens_per_second,
                f"at least {request.min_tokens_per_second:g} tokens/s",
                "no token to measure" if rate is None else f"{rate:.1f} tokens/s",
                "Look for other requests in /metrics, for clocks and power caps of the GPUs, and for a missing kernel "
                "in the server's log.",
            )
        )
    return checks


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


def chat(request: ChatRequest, clock: Callable[[], float] = time.monotonic) -> ChatResult:
    """Send one request, read its answer and check it.

    Never raises for what a server or network does: that is in the result's `checks`, and its kind in `error`.
    """
    return _Exchange(request, clock).run()


def chat_all(requests: Sequence[ChatRequest]) -> list[ChatResult]:
    """Send the requests one after the other; stops after one that shows that the others cannot succeed either."""
    results: list[ChatResult] = []
    for request in requests:
        results.append(chat(request))
        error = results[-1].error
        if error is not None and error.kind in HOPELESS:
            break
    return results
