# SPDX-License-Identifier: Apache-2.0
"""What goes on while a call to a node is under way: partners are listened to, and the node's news are shown."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]

#: Seconds between two looks at what partners publish while a node is watched.
LISTEN = 0.1
#: Seconds between two looks at the node's own news meanwhile: a round trip each, for the eye alone.
LOOK = 1.0


class Shown:
    """What of a slice's news is on the terminal: they are shown while it goes on, and its answer has them all again."""

    def __init__(self, show: Callable[[Answer, bool], None]) -> None:
        """Nothing was shown yet."""
        self._show, self._count, self._lock = show, 0, threading.Lock()

    def more(self, progress: Answer | None) -> None:
        """Show what has come."""
        news = list((progress or {}).get("news") or [])
        with self._lock:
            if progress and len(news) > self._count:
                self._show({"progress": {**progress, "news": news[self._count :]}}, False)
                self._count = len(news)

    def last(self, answer: Answer, *, quiet: bool) -> None:
        """Show the rest; where the start stands, too, when all was ``quiet``."""
        progress = answer.get("progress")
        with self._lock:
            if progress:
                rest = list(progress.get("news") or [])[self._count :]
                answer = {**answer, "progress": {**progress, "news": rest}}
            self._show(answer, quiet and not self._count)
            self._count = sys.maxsize


class Listener:
    """Looks for news while a call to the node is under way: of partners, to wake it once; its own, to show them."""

    def __init__(self, news: Callable[[], bool], wake: Callable[[], None], look: Callable[[], None]) -> None:
        """Nothing runs until the block is entered."""
        self._news, self._wake, self._look, self._over = news, wake, look, threading.Event()
        self._listener, self._watcher = (threading.Thread(target=t, daemon=True) for t in (self._listen, self._watch))

    def _listen(self) -> None:
        while not self._over.wait(LISTEN):
            if self._news():
                self._wake()
                return

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            self._look()

    def __enter__(self) -> Listener:
        """Begin."""
        self._listener.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; a wake that is under way is let go, as the connection is one. A look is not waited for."""
        self._over.set()
        self._listener.join()
