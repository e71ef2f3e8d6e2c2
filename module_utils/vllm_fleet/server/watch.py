# SPDX-License-Identifier: Apache-2.0
"""Watches a start until there is a verdict, from three sides at once: the container, its log, and HTTP.

Three threads report into one queue and a loop judges; it sleeps only on that queue. A watch may be cut into slices:
all it must remember fits into a small token, and everything else is read again from Docker.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from ..container.engine import ENGINE_RETRY_TIMEOUT, EngineError
from ..vllm import readiness
from ..vllm.endpoint import Endpoint
from ..vllm.log import LogReader
from ..vllm.startup import Progress
from .outcome import Limits, News, Outcome, Token

#: Seconds between two HTTP probes: the larger half of what passes between the first 200 and the verdict.
PROBE_INTERVAL = 0.1
#: Seconds between two looks at CPU, I/O and the cache; they only matter against ``stall_timeout``.
PULSE_INTERVAL = 10.0
#: A container that uses less than this share of one core is not computing: answering the probes takes about 0.01.
BUSY_CORES = 0.05
#: What the server's access log says of the probes themselves; it is no sign of life.
PROBE_ECHOES = (b"GET /health", b"GET /v1/models")
#: Seconds; a queue cannot wait for a year, which is what a user may write for "never".
LONGEST_SLEEP = 60.0
#: Seconds to wait for the rest of the log after a death; Docker closes the stream when the process is gone.
LOG_GRACE = 2.0
#: Seconds between two looks whether the Docker engine is back (growing).
ENGINE_POLL = 0.2
#: Seconds without a line after which a log that is read again has come to its present end.
LOG_QUIET = 0.05
#: Seconds that a slice goes on after news, so that two quick stages come in one call.
NEWS_GRACE = 0.5
#: Seconds for which a watch waits for its first answer though ready_timeout is over. A probe ends within twice its own
#: limit; what may take longer is the look-up of a name.
ANSWER_GRACE = 15.0
#: Characters of lines that a slice keeps to be shown; of more the latest.
MAX_SHOWN = 4 << 20

_STAMP = re.compile(rb"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d) ?")


class Source(Protocol):
    """What the watch needs of Docker."""

    def container(self, name: str) -> Mapping[str, Any] | None:
        """Inspect."""

    def follow(
        self,
        container: str,
        since: int,
        sink: queue.SimpleQueue[tuple[str, Any]],
        streams: Sequence[str] = ("event", "log"),
    ) -> None:
        """Stream log and events."""

    def usage(self, container: str) -> tuple[int, int] | None:
        """Return CPU nanoseconds and bytes moved."""


class Watch:
    """One start, watched."""

    def __init__(
        self,
        source: Source,
        container: str,
        endpoint: Endpoint | None,
        limits: Limits,
        *,
        token: Token | None = None,
        cache: Path | None = None,
        idle: bool = False,
        run_age: float = math.inf,
        offline: bool = False,
        wake: Path | None = None,
        alarm: bytes = b"",
        partners_idle: float | None = None,
        feed: Callable[[Sequence[News]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        ask: Callable[[Endpoint], readiness.Answer] = readiness.ask,
    ) -> None:
        """Prepare to watch ``container`` (an id).

        ``endpoint`` None: a server without a port (a headless rank). ``idle``: nothing was started in this run, so a
        server that answers at once is just confirmed. ``run_age``: seconds since the run began, from where
        ``ready_timeout`` counts for a container that is older: its age says nothing of how long it took. ``offline``:
        weights are only read, never downloaded. ``wake``: a file whose appearance ends the slice, because there is
        news from elsewhere; ``alarm``: a text in the log that does so, too. ``partners_idle``: seconds since the last
        sign of life of the other nodes of the same server; none stalls while another gets on. ``feed``: takes all news
        of the slice so far whenever there are more; without it a slice ends with its news, and the watch pauses until
        the next one.
        """
        self._feed_news, self._fed = feed, 0
        self._latest = -1.0  # of the lines that are in the news
        self._idle, self._wake, self._partners_idle = idle, wake, partners_idle
        self._run_age = run_age
        self._alarm, self._alarmed = alarm, False
        self._source, self._id, self._endpoint, self._limits = source, container, endpoint, limits
        self._cache, self._clock, self._ask = cache, clock, ask
        self._token = token
        self._sink: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._done = threading.Event()
        self._reader, self._progress = LogReader(), Progress(offline=offline)
        self._stages: list[dict[str, Any]] = [{"stage": "starting", "at": 0.0}]
        self._news: list[News] = []
        self._lines: collections.deque[str] = collections.deque()
        self._length = 0
        self._whole: set[str] = set()
        self._heard_before = token.heard if token and token.container == container else -1.0
        self._read_before = -1.0  # of a log that is read again: up to where it was read
        self._broken: set[str] = set()
        self._breaks = 0
        self._answer: readiness.Answer | None = None
        self._started = self._age_at_begin = 0.0
        self._oom = False
        self._died_at: float | None = None

    def run(self) -> Outcome:
        """Watch until a verdict, or until the slice is over."""
        info = self._source.container(self._id)
        if info is None:
            return Outcome("exited", 0.0, detail="the container is gone")
        state = info["State"]
        started_at = str(state["StartedAt"])
        self._started = epoch(started_at)
        fresh = self._token is None or self._token.container != self._id
        if not fresh and self._token is not None and self._token.started_at != started_at:
            # Docker's restart policy was quicker than the next slice: the start that was watched has failed.
            return self._died(info, "restarting")
        age = process_age(int(state.get("Pid") or 0))
        if age is None:
            age = max(0.0, time.time() - self._started)
        token = self._token
        if token is None or fresh:
            token = Token(self._id, started_at, active=age, since=max(0.0, age - self._run_age))
        self._token = token
        if self._partners_idle is not None:
            token.active = max(token.active, age - self._partners_idle)
        if not state.get("Running"):
            return self._died(info, "exited")
        if fresh:
            self._news.append(News(0.0, "starting", f"container {self._id[:12]}"))
        begin = self._clock()
        if self._idle and fresh and self._endpoint and self._asked(self._endpoint).ready:
            # Nothing was started and it answers: there is no news, and its log need not be read.
            return Outcome("ready", round(age, 3), stage="ready", describe="ready", token=token)
        self._source.follow(self._id, int(self._started), self._sink)
        workers: list[Callable[[], None]] = [self._pulse]
        if self._endpoint:
            workers.append(self._probe)
        if self._wake:
            workers.append(self._listen)
        for worker in workers:
            threading.Thread(target=worker, daemon=True).start()
        try:
            return self._loop(token, age, begin)
        finally:
            self._done.set()

    def _loop(self, token: Token, age0: float, begin: float) -> Outcome:
        news_at: float | None = None
        self._age_at_begin = age0
        while True:
            now = self._clock()
            age = age0 + now - begin
            over = self._over(token, age)
            if over:
                return over
            left = [self._limits.ready_timeout - (age - token.since), self._limits.stall_timeout - (age - token.active)]
            if self._feed_news and news_at is not None and now >= news_at + NEWS_GRACE:
                self._feed_news(self._news)
                self._fed, news_at = len(self._news), None
            if self._limits.slice is not None:
                rest = begin + self._limits.slice - now
                news_left = news_at + NEWS_GRACE - now if news_at is not None else rest
                if rest <= 0 or (news_left <= 0 and not self._feed_news):
                    return self._outcome("pending", age)
                left += [rest, news_left]
            try:
                kind, item = self._sink.get(timeout=max(0.005, min(LONGEST_SLEEP, *left)))
            except queue.Empty:
                continue
            age = age0 + self._clock() - begin
            if kind == "log":
                if self._feed(item, age) and news_at is None:
                    news_at = self._clock()
                if self._alarmed and self._limits.slice is not None:
                    return self._outcome("pending", age)
                continue
            outcome = self._hear(token, kind, item, age)
            if outcome:
                return outcome

    def _over(self, token: Token, age: float) -> Outcome | None:
        """Return the outcome where one of the two timeouts is over."""
        over = age - token.since >= self._limits.ready_timeout
        # Whatever the limit, a server is asked before it is judged.
        if over and (self._answer or not self._endpoint or age - self._age_at_begin >= ANSWER_GRACE):
            before = f"it was {token.since:.0f} s old when this run began" if token.since >= 1 else ""
            said = self._answer.detail if self._answer else "no probe has ended" if self._endpoint else ""
            return self._outcome("ready_timeout", age, detail="; ".join(filter(None, (said, before))))
        if age - token.active >= self._limits.stall_timeout:
            return self._outcome("stalled", age, detail=f"nothing moved for {age - token.active:.0f} s")
        return None

    def _hear(self, token: Token, kind: str, item: Any, age: float) -> Outcome | None:
        if kind == "http":
            return self._judge(item, age)
        if kind == "wake":
            return self._outcome("pending", age)
        if kind == "pulse":
            self._activity(token, item, age)
            return None
        if kind == "engine":
            return self._engine_answers(token, item)
        return self._ended(kind, item)

    # -- the three sides ---------------------------------------------------------------------------------------

    def _probe(self) -> None:
        assert self._endpoint is not None  # noqa: S101  started only with one
        while not self._done.is_set():
            self._sink.put(("http", self._asked(self._endpoint)))
            self._done.wait(PROBE_INTERVAL)

    def _asked(self, endpoint: Endpoint) -> readiness.Answer:
        """Ask, and take whatever goes wrong for an answer: a thread that dies would be a server that says nothing."""
        try:
            return self._ask(endpoint)
        except Exception as exc:  # noqa: BLE001  what the server sends decides which it is
            return readiness.Answer(detail=f"the answer cannot be read ({type(exc).__name__})")

    def _listen(self) -> None:
        while not self._done.is_set():
            there = False
            with contextlib.suppress(OSError):  # a folder that cannot be read has no news
                there = self._wake is not None and self._wake.exists()
            if there:
                self._sink.put(("wake", None))
                return
            self._done.wait(PROBE_INTERVAL)

    def _pulse(self) -> None:
        interval = min(PULSE_INTERVAL, self._limits.stall_timeout / 4)
        while not self._done.is_set():
            usage, cache = None, 0
            with contextlib.suppress(Exception):  # no pulse is no sign of life; the next one is
                usage, cache = self._source.usage(self._id), folder_bytes(self._cache)
            self._sink.put(("pulse", (usage, cache)))
            self._done.wait(interval)

    def _feed(self, chunk: bytes, age: float | None = None) -> bool:
        """Take a piece of the log; True when the stage changed.

        Each slice reads the log from the container's start, so that progress is known whole; only lines that no slice
        before has heard are shown, and are signs of life at ``age``.
        """
        match = _STAMP.match(chunk)
        at = epoch(chunk[: match.end()].decode().strip()) - self._started if match else 0.0
        if match and at < 0:
            return False  # of an earlier run of the same container
        if at <= self._read_before:
            return False
        unheard = at > self._heard_before
        self._alarmed |= bool(self._alarm) and unheard and self._alarm in chunk
        if self._token is not None and unheard:
            self._token.heard = max(self._token.heard, at)
            if age is not None and not any(echo in chunk for echo in PROBE_ECHOES):
                self._token.active = age
        news = False
        for line in self._reader.feed(chunk[match.end() :] if match else chunk):
            event = self._progress.feed_line(line, at)
            if unheard:
                self._keep(line)
            if event is None or event.stage == "ready":
                # Ready is what HTTP says; a log that says so comes a moment earlier.
                continue
            if self._stages[-1]["stage"] != event.stage:
                self._stages.append({"stage": event.stage, "at": round(at, 3)})
            first_whole = _whole(event.detail) and event.stage not in self._whole
            if first_whole:
                self._whole.add(event.stage)
            if self._token is None or at <= self._token.shown:
                continue
            if len(self._news) > self._fed and self._news[-1].stage == event.stage:
                # The same stage gets on: one line, with the latest of it.
                self._news[-1] = replace(self._news[-1], detail=event.detail)
                self._latest = at
            elif self._stages[-1]["at"] == round(at, 3) or first_whole:
                self._news.append(News(at, event.stage, event.detail))
                news = True
        return news

    def _keep(self, line: str) -> None:
        """Keep a line to be shown; of too many the latest."""
        self._lines.append(line)
        self._length += len(line)
        while self._length > MAX_SHOWN and len(self._lines) > 1:
            self._length -= len(self._lines.popleft())

    def _judge(self, answer: readiness.Answer, age: float) -> Outcome | None:
        self._answer = answer
        if answer.ready:
            self._catch_up(age)
            self._stages.append({"stage": "ready", "at": round(age, 3)})
            self._news.append(News(age, "ready", ""))
            return self._outcome("ready", age)
        if answer.wrong:
            return self._outcome("wrong_model_served", age, detail=answer.detail)
        if answer.locked:
            return self._outcome("locked", age, detail=answer.detail)
        return None

    def _catch_up(self, age: float) -> None:
        """Read what the log has by now: where a slice begins, HTTP may answer before Docker hands out any of it."""
        if self._heard_before < 0 or age - self._age_at_begin >= LOG_GRACE:
            return
        deadline, heard = self._clock() + LOG_GRACE, False
        while (left := deadline - self._clock()) > 0:
            try:
                kind, item = self._sink.get(timeout=min(LOG_QUIET, left) if heard else left)
            except queue.Empty:
                return
            if kind == "log":
                self._feed(item)
                heard = True
            elif kind == "log_end":
                return

    def _activity(self, token: Token, item: tuple[tuple[int, int] | None, int], age: float) -> None:
        usage, cache = item
        cpu, moved = usage or (token.cpu_ns, token.io_bytes)
        span = max(1e-3, age - token.pulse)
        busy = (cpu - token.cpu_ns) / 1e9 / span >= BUSY_CORES
        if busy or moved > token.io_bytes or cache > token.cache_bytes:
            token.active = age
        if cache > token.cache_bytes > 0:
            self._progress.feed_download(cache, None, age)  # the server itself says nothing while it downloads
        token.cpu_ns, token.io_bytes, token.cache_bytes, token.pulse = cpu, moved, cache, age

    # -- ends --------------------------------------------------------------------------------------------------

    def _ended(self, kind: str, item: Any) -> Outcome | None:
        """The container died, or a stream of it ended (which also happens when only the engine went away)."""
        code: int | None = None
        if kind == "event":
            code = self._exit_code(item)
            if code is None:
                return None
            if "log" not in self._broken:  # its end may have come before the death was known
                self._drain("log_end")
        try:
            info = self._source.container(self._id)
        except EngineError:
            if kind == "event":
                raise
            self._lost(kind)
            return None
        if kind != "event" and self._runs_on(info):
            self._lost(kind)  # the stream broke, the server did not
            return None
        if kind == "log_end" and info is not None and info["State"].get("Running"):
            # Restarted already by Docker's policy: how the start ended stands only in the event.
            code = self._drain("event")
        return self._died(info, "exited", code)

    def _runs_on(self, info: Mapping[str, Any] | None) -> bool:
        """Return whether a container still is in the start that is watched."""
        state = info["State"] if info else {}
        return bool(state.get("Running")) and self._token is not None and state["StartedAt"] == self._token.started_at

    def _lost(self, kind: str) -> None:
        """A stream broke; a thread asks until the engine answers, which may just be restarting (live-restore)."""
        waiting = bool(self._broken)
        self._broken.add(kind.removesuffix("_end"))
        if not waiting:
            self._breaks += 1
            threading.Thread(target=self._await_engine, daemon=True).start()

    def _await_engine(self) -> None:
        pause = min(PULSE_INTERVAL, ENGINE_POLL * 2.0 ** min(self._breaks, 10))
        deadline = time.monotonic() + ENGINE_RETRY_TIMEOUT
        while not self._done.wait(pause):
            try:
                self._source.container(self._id)
            except EngineError as exc:
                if time.monotonic() < deadline:
                    continue
                self._sink.put(("engine", exc))
            else:
                self._sink.put(("engine", None))
            return

    def _engine_answers(self, token: Token, error: EngineError | None) -> Outcome | None:
        """The engine is back, or it is not after all patience (raises EngineError)."""
        if error:
            raise error
        streams, self._broken = sorted(self._broken), set()
        info = self._source.container(self._id)
        if not self._runs_on(info):
            return self._died(info, "exited")
        if "log" in streams:
            self._read_before, self._reader = token.heard, LogReader()
        self._source.follow(self._id, int(self._started), self._sink, streams)
        return None

    def _exit_code(self, event: Mapping[str, Any]) -> int | None:
        """Read an event of this start; None for what is no death, or the death of an earlier start."""
        at = float(event.get("timeNano") or 0) / 1e9
        if at and at < self._started:
            return None
        action = event.get("Action", event.get("status"))
        if action == "oom":
            # The inspected flag is that of the latest start, which may be a newer one.
            self._oom = True
        if action == "die":
            self._died_at = at or None
        return int(event.get("Actor", {}).get("Attributes", {}).get("exitCode", -1)) if action == "die" else None

    def _drain(self, last: str) -> int | None:
        """Take what is left after a death until ``last`` has come: the log's last lines hold the reason.

        Returns the exit code where an event has it.
        """
        code: int | None = None
        deadline = self._clock() + LOG_GRACE
        while (left := deadline - self._clock()) > 0:
            try:
                kind, item = self._sink.get(timeout=left)
            except queue.Empty:
                break
            if kind == "log":
                self._feed(item)
            elif kind == "event":
                code = self._exit_code(item) if code is None else code
            if kind == last and (kind != "event" or code is not None):
                break
        return code

    def _died(self, info: Mapping[str, Any] | None, verdict: str, code: int | None = None) -> Outcome:
        state = info["State"] if info else {}
        finished = epoch(str(state.get("FinishedAt") or "")) if info else 0.0
        begun = epoch(self._token.started_at) if self._token else self._started
        if code is None and state.get("Status") == "exited":
            code = state.get("ExitCode")
        outcome = self._outcome(verdict, max(0.0, finished - begun), detail=str(state.get("Error") or ""))
        outcome.exit_code = code
        outcome.died_at = self._died_at
        outcome.oom_killed = self._oom or bool(state.get("OOMKilled"))
        return outcome

    def _outcome(self, verdict: str, age: float, detail: str = "") -> Outcome:
        token = self._token
        if token is not None:
            token.shown = max([token.shown, self._latest, *(n.at for n in self._news)])
        return Outcome(
            verdict,
            round(age, 3),
            detail=detail,
            stages=self._stages,
            news=self._news,
            stage=self._progress.stage,
            describe=self._progress.describe(),
            estimate=self._progress.estimate(),
            last_line=self._progress.last_line,
            new_lines=list(self._lines),
            idle=round(max(0.0, age - token.active), 3) if token else 0.0,
            alarmed=self._alarmed,
            token=token,
        )


def _whole(detail: str) -> bool:
    """Return whether a count such as 163/163 is complete."""
    done, slash, total = detail.partition("/")
    return bool(slash) and done == total


def epoch(stamp: str) -> float:
    """Read Docker's RFC 3339 time with nanoseconds into seconds since 1970; 0.0 for its zero time or nonsense."""
    match = _STAMP.match(stamp.encode())
    if not match or stamp.startswith("0001"):
        return 0.0
    whole, fraction, zone = (g.decode() if g else "" for g in match.groups())
    moment = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone))
    return moment.astimezone(timezone.utc).timestamp() + float(fraction or 0)


def process_age(pid: int) -> float | None:
    """Seconds since a process started, by a clock that cannot be set (field 22 of /proc/<pid>/stat)."""
    if pid <= 0:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return None


def folder_bytes(folder: Path | None) -> int:
    """Sum of the sizes of the files of one repo folder's blobs (a download grows there); 0 when there is none."""
    total = 0
    if folder is not None:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat().st_size
    return total
