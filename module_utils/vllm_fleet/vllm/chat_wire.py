# SPDX-License-Identifier: Apache-2.0
"""The bytes of one exchange with an OpenAI-compatible server, and what goes wrong with them, in words.

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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..common import exchange
from .chat_request import NOT_OPENAI, ChatError, target_of

# A host that does not answer a SYN within this is not there; the wait for the answer itself may be long.
CONNECT_TIMEOUT = 10.0
# Nothing that is asked for here is larger; a server that never ends its body must not fill the node's memory.
BODY_LIMIT = 16 * 1024 * 1024


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


class Connection:
    """One exchange with the server, which ends `timeout` seconds after this was made, whatever the server does."""

    def __init__(
        self, url: str, timeout: float, api_key: str, extra: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        """`timeout` in seconds; `extra` are headers to send; raises ValueError for a URL that is none."""
        self._target, self._root = target_of(url)
        self._timeout = timeout
        self._key = api_key
        self._extra = extra
        self._clock = clock
        # The time of the last sign of an answer; None before the first.
        self._heard: float | None = None
        self._http = exchange.Connection(
            self._target.hostname or "",
            self._target.port,
            exchange.Deadline(timeout, clock),
            connect_timeout=CONNECT_TIMEOUT,
            context=ssl.create_default_context() if self._target.scheme == "https" else None,
        )
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> Connection:
        """Itself; nothing is connected yet."""
        return self

    def __exit__(self, *_unused: object) -> None:
        """Close what was opened."""
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
            self._http.request(method, self._root + path, body=payload, headers=headers)
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
