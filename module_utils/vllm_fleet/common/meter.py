# SPDX-License-Identifier: Apache-2.0
"""Progress of a piece of work in bytes: counted by its threads, passed to a function that shows it."""

from __future__ import annotations

from collections.abc import Callable


class Meter:
    """Counts the bytes of one step after the other. Without `show`, nothing is shown."""

    def __init__(self, show: Callable[[str, int, int], None] | None = None) -> None:
        """Call `show(step, done, total)` at each count; how often it prints is its own decision."""
        self._show = show
        self._step, self._done, self._total = "", 0, 0

    def begin(self, step: str, total: int = 0) -> None:
        """Begin a step of `total` bytes; 0 where nothing is counted. `step` is a participle, such as hashing."""
        self._step, self._done, self._total = step, 0, total
        self._say()

    def add(self, count: int) -> None:
        """Count bytes. Threads may lose a count to each other: that is nothing in what is shown."""
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        """Set the count."""
        self._done = max(0, done)
        self._say()

    def _say(self) -> None:
        if self._show:
            self._show(self._step, min(self._done, self._total), self._total)
