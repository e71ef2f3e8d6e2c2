# SPDX-License-Identifier: Apache-2.0
"""HTTP exchanges that end: one deadline for the connection, the request and every byte of the answer.

A socket's own timeout is one of each single wait, and begins anew with each byte: a server that drips its headers, or
says 100 Continue for ever, keeps its client for ever. Here each wait is as long as what is left until the deadline.
"""

from __future__ import annotations

import http.client
import io
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any


class Deadline:
    """A moment after which nothing is waited for any more."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``seconds`` from now on, by ``clock``."""
        self._clock, self._end = clock, clock() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError where there are none."""
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


def addresses(host: str, port: int | None, deadline: Deadline, family: int = 0) -> list[Any]:
    """Return what `getaddrinfo` says of a host for TCP, before the deadline. Raises OSError, UnicodeError.

    The resolver has limits of its own (resolv.conf: by default 5 s for each server and try) and cannot be ended: it is
    asked in a thread, which is left behind.
    """
    try:
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name, then
    answer: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(list(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)))
        except Exception as exc:  # noqa: BLE001 - it is raised below
            answer.put(exc)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=deadline.left())
    except queue.Empty:
        raise socket.gaierror(socket.EAI_AGAIN, "the resolver did not answer in time") from None
    if isinstance(found, Exception):
        raise found
    return found


class _Reader(io.RawIOBase):
    """The bytes that come over a socket, each wait of which ends at the deadline."""

    def __init__(self, made: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._socket, self._deadline = made, deadline
        # It keeps the socket open until it is closed itself, as http.client expects of the files that it makes.
        self._raw: Any = made.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._deadline.left())
        found: int | None = self._raw.readinto(buffer)
        return found

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Timed:
    """As much of a socket as http.client uses."""

    def __init__(self, made: socket.socket, deadline: Deadline) -> None:
        self._socket, self._deadline = made, deadline

    def sendall(self, data: Any) -> None:
        self._socket.settimeout(self._deadline.left())
        self._socket.sendall(data)  # here the timeout is that of the whole

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._socket, self._deadline))

    def close(self) -> None:
        self._socket.close()


class Connection(http.client.HTTPConnection):
    """A connection for one exchange, not yet made, which ends at ``deadline`` whatever the other side does.

    ``connect_timeout``: seconds for the connection alone, to each address of the host. ``context``: that of TLS.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        deadline: Deadline,
        *,
        connect_timeout: float = 10.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Connect to nothing yet."""
        self._deadline, self._longest, self._context = deadline, connect_timeout, context
        if context is not None:
            self.default_port = http.client.HTTPS_PORT
        super().__init__(host, port, timeout=connect_timeout)

    def connect(self) -> None:
        """Connect, within what is left. Raises OSError."""
        made = self._connected()
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                made.settimeout(self._deadline.left())  # of the whole handshake
                made = self._context.wrap_socket(made, server_hostname=self.host)
        except BaseException:
            made.close()
            raise
        self.sock = _Timed(made, self._deadline)

    def _connected(self) -> socket.socket:
        failure: OSError = OSError(f"no address for {self.host}")
        for family, kind, protocol, _, address in addresses(self.host, self.port, self._deadline):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(min(self._longest, self._deadline.left()))
                made.connect(address)
            except OSError as exc:
                made.close()
                failure = exc
            else:
                return made
        raise failure
