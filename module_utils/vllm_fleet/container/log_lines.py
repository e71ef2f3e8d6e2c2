# SPDX-License-Identifier: Apache-2.0
"""The last lines of a container's log, by time and class, without secrets and in bounded memory."""

from __future__ import annotations

import calendar
import time
from collections import deque
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

from ..common import secrets, terminal
from ..vllm import log_level
from . import api

#: Lines that are kept whatever is asked for, characters of one, and of all.
MOST_LINES, LONGEST, MOST = 10_000, 4000, 4 << 20
#: Bytes of a line without an end that are kept.
_HALF = 1 << 16
#: Seconds of silence after which what was said is given out.
QUIET = 2.0


@dataclass(frozen=True)
class Wanted:
    """What is read: at most ``lines`` of a ``level`` and above; ``after`` is a time stamp of Docker's, or empty."""

    lines: int = 50
    level: str = "debug"
    after: str = ""
    hidden: Set[str] = frozenset()


@dataclass
class Kept:
    """Lines as (time stamp, level, text), how many were left out at their beginning, and the newest stamp seen."""

    lines: deque[tuple[str, str, str]] = field(default_factory=deque)
    left_out: int = 0
    newest: str = ""
    size: int = 0

    def add(self, line: tuple[str, str, str], most: int) -> None:
        """Keep a line, and let the oldest go where there are too many."""
        self.lines.append(line)
        self.size += len(line[2])
        while len(self.lines) > most or self.size > MOST:
            self.size -= len(self.lines.popleft()[2])
            self.left_out += 1


def whole(pieces: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Put the pieces of lines together that Docker cut (16 KiB); yields stamp and text."""
    first, half = "", b""
    for piece in pieces:
        stamp, _, text = piece.partition(b" ")
        first = first or stamp.decode("ascii", "replace")
        half = (half + text)[:_HALF]
        if text.endswith(b"\n"):
            yield first, half.decode("utf-8", "replace").rstrip("\r\n")
            first, half = "", b""
    if first:
        yield first, half.decode("utf-8", "replace")


def collect(pieces: Iterable[bytes], wanted: Wanted, kept: Kept, until: float = 0.0) -> None:
    """Add the lines that are wanted to ``kept``; ends early at ``until`` (monotonic) once there are some."""
    levels = log_level.Levels()
    for stamp, text in whole(pieces):
        kept.newest = max(kept.newest, stamp)
        # A progress bar writes over itself: its last state counts.
        shown = terminal.shown(text.rpartition("\r")[2]).strip("\n")
        level = levels.of(shown)
        if stamp > wanted.after and shown.strip() and log_level.wanted(level, wanted.level):
            # A secret that the end of a line would cut is hidden before.
            clean = secrets.scrub(shown[: 2 * LONGEST], wanted.hidden)[:LONGEST]
            kept.add((stamp, level, clean), min(wanted.lines, MOST_LINES))
        if until and kept.lines and time.monotonic() > until:
            return


def read(name: str, wanted: Wanted, since: float = 0.0) -> Kept:
    """Return the last lines of a container; those after ``since`` (seconds since 1970) where it is given.

    Raises DockerRefused, DockerUnavailable.
    """
    # Of one class an unknown number of lines has to be read.
    every = bool(since) or wanted.level != "debug"
    query = {"tail": "all" if every else wanted.lines, **({"since": int(since)} if since else {})}
    kept = Kept()
    collect(api.DockerApi().log_pieces(name, **query), wanted, kept)
    return kept


def follow(name: str, wanted: Wanted, seconds: float) -> Kept:
    """Wait at most ``seconds`` for new lines, those after ``wanted.after``; returns soon after the first ones.

    Raises DockerRefused, DockerUnavailable.
    """
    kept, end = Kept(newest=wanted.after), time.monotonic() + seconds
    while not kept.lines and time.monotonic() < end:
        since = calendar.timegm(time.strptime(wanted.after[:19], "%Y-%m-%dT%H:%M:%S")) if wanted.after else time.time()
        docker = api.DockerApi(timeout=QUIET)
        began = time.monotonic()
        try:
            pieces = docker.log_pieces(name, follow=1, tail=MOST_LINES, since=int(since))
            collect(pieces, wanted, kept, until=time.monotonic() + QUIET)
            # The log of a container that does not run ends at once, and no event says that it goes on.
            time.sleep(max(0.0, QUIET - (time.monotonic() - began)))
        except api.DockerUnavailable as exc:
            if not isinstance(exc.__cause__, TimeoutError):
                raise
    return kept
