# SPDX-License-Identifier: Apache-2.0
"""The beginning and the end of a log, whatever its length. Pure.

A start says what it is in its first lines and why it failed in its last ones. A server that has served for weeks, or
one that repeats its complaint, has a log of any size, and a node has better use for its memory.
"""

from __future__ import annotations

import collections

#: Bytes that are kept of the beginning and of the end. A start of eight GPUs prints a tenth of a MiB.
HEAD, TAIL = 1 << 20, 4 << 20
#: Lines of which the end may consist at most; it is what Docker is asked for.
TAIL_LINES = 50_000
#: What stands between the two. No word of it is one that a diagnosis looks for.
GAP = b"\n(the middle of this log is not shown)\n"
#: Bytes that a piece takes beside its own, when it is kept with its time.
_OBJECTS = 250


class Ends:
    """What was kept of a log, piece by piece: its first HEAD bytes and its last TAIL bytes."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._head, self._tail = bytearray(), bytearray()
        self.gap = False

    @property
    def full(self) -> bool:
        """Whether the beginning is whole, and what comes is the end."""
        return len(self._head) >= HEAD

    def add(self, text: bytes) -> None:
        """Take the next piece."""
        if not self.full:
            self._head += text
            return
        self._tail += text
        if len(self._tail) > 2 * TAIL:
            self._cut()

    def _cut(self) -> None:
        if len(self._tail) > TAIL:
            del self._tail[: len(self._tail) - TAIL]
            del self._tail[: self._tail.find(b"\n") + 1]  # half a line would be read as a whole one
            self.gap = True

    def text(self) -> bytes:
        """Return what was kept."""
        self._cut()
        return bytes(self._head) + (GAP if self.gap else b"") + bytes(self._tail)


class Latest:
    """The last pieces of a log, each with its time, of TAIL bytes in all."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self.pieces: collections.deque[tuple[bytes, bytes]] = collections.deque()
        self._size = 0

    def add(self, stamp: bytes, text: bytes) -> None:
        """Take the next piece."""
        self.pieces.append((stamp, text))
        self._size += len(text) + _OBJECTS
        while self._size > TAIL and len(self.pieces) > 1:
            self._size -= len(self.pieces.popleft()[1]) + _OBJECTS
