# SPDX-License-Identifier: Apache-2.0
"""A server that answers as none should: bytes by hand, over a real connection."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator

#: Seconds between two drops: less than any limit of a single wait.
PAUSE = 0.05


def answer(body: bytes, kind: str = "application/json") -> list[bytes]:
    """A whole answer."""
    return [b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind.encode(), len(body)), body]


def dripped(*before: bytes) -> Iterator[bytes]:
    """These bytes, and then one header line that never ends."""
    yield from before
    for _ in itertools.count():
        time.sleep(PAUSE)
        yield b"x"


def continued() -> Iterator[bytes]:
    """A server that is about to answer, for ever and at once."""
    return itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def _asked(link: socket.socket) -> str:
    """Read a whole request and return its path: one that is left unread makes the end of an answer a reset."""
    with link.makefile("rb") as request:
        path, length = request.readline().decode().split(" ")[1], 0
        while (line := request.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        request.read(length)
    return path


@contextlib.contextmanager
def server(says: Callable[[str], Iterable[bytes]]) -> Iterator[int]:
    """Give ``says(path)`` to each request, on a port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(link: socket.socket) -> None:
            with contextlib.suppress(OSError), link:
                for piece in says(_asked(link)):
                    link.sendall(piece)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
