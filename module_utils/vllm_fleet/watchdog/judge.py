# SPDX-License-Identifier: Apache-2.0
"""Does the server work, or does it hang? Pure: times come in as seconds of one monotonic clock.

A hung engine answers /health with 200 for ever, and the numbers of running and waiting requests stay what they were
when it stopped: requests that come later are not among them. So a silent engine is asked for one token, whatever the
page says. Its answer moves the same series as any other step. Under a long queue the request waits like all others,
and there the queue moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..vllm.metrics import EngineLoad

#: Part of the silence after which an engine is asked for a token, and the container's log is read.
DOUBT = 0.5
#: An engine's first step after its start may take so many silences: it compiles kernels, on AMD's GPUs for minutes.
FIRST = 5.0


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of a server now, and what would help to know more.

    ``kind`` is ``moving``, ``silent`` or ``hung``; ``why`` is one sentence without the full stop, of a hung one.
    ``ask`` is the engine that is to be asked for one token, None for nobody; ``look``: whether the log is to be read.
    ``blind``: the engine has no series (--disable-log-stats), so that a long queue looks just the same.
    """

    kind: str
    why: str = ""
    ask: str | None = None
    look: bool = False
    blind: bool = False


@dataclass
class _Engine:
    """One engine: its load, its last sign of life, since when it is asked, and whether a request is on its way."""

    load: EngineLoad | None
    sign: float
    asked: float | None = None
    open: bool = False
    alive: bool = False

    def moved(self, now: float) -> None:
        self.sign, self.asked, self.open, self.alive = max(self.sign, now), None, False, True


class Judge:
    """Judges one start of one server. ``silence``: seconds without a sign of life after which it counts as hung."""

    def __init__(self, silence: float, now: float) -> None:
        """Begin at ``now``: what was before counts for nothing."""
        self.silence = silence
        self._engines: dict[str, _Engine] = {}
        self._page = now
        self._missed: float | None = None  # since when pages do not come

    @property
    def several(self) -> bool:
        """Whether the server has several engines (data parallelism), so that a request must name one."""
        return len(self._engines) > 1

    @property
    def alive(self) -> bool:
        """Whether each engine has given a sign of life since the beginning."""
        return bool(self._engines) and all(engine.alive for engine in self._engines.values())

    @property
    def asleep(self) -> bool:
        """Whether somebody put an engine to sleep."""
        return any(engine.load is not None and engine.load.asleep for engine in self._engines.values())

    def page(self, now: float, engines: Mapping[str, EngineLoad] | None) -> None:
        """Take in a /metrics page; None where none came, empty where it has no series of vLLM (--disable-log-stats)."""
        if engines is None:
            if self._missed is None:
                # However long the watchdog itself was kept from looking: a server has its time to answer.
                self._missed = self._page if now - self._page <= self.silence * DOUBT else now
            return
        self._page, self._missed = now, None
        for label in self._engines.keys() - set(engines or [""]):
            del self._engines[label]
        for label, load in engines.items():
            known = self._engines.get(label)
            if known is None:
                self._engines[label] = _Engine(load, now)
                continue
            if known.load is None or known.load.signature != load.signature:
                known.moved(now)
            known.load = load
        if not engines:
            self._engines.setdefault("", _Engine(None, now))

    def asking(self, now: float, label: str) -> None:
        """Note that an engine is asked for a token."""
        engine = self._engines.get(label)
        if engine:
            engine.open = True
            engine.asked = now if engine.asked is None else engine.asked

    def answer(self, now: float, label: str, answer: str) -> None:
        """Note what became of the request: ``token``, ``refused`` or ``none``.

        With several engines a token counts for one without requests alone: which of them gave it, the page shows, for
        releases before 0.11.1 let a request not choose. One that the server turns away (a model without completions, a
        full queue) reached no engine, and an idle one cannot be judged then.
        """
        engine = self._engines.get(label)
        if engine is None:
            return
        if answer == "none":
            engine.open = False  # it is asked once more
        elif not _busy(engine) or (answer == "token" and not self.several):
            engine.moved(now)

    def logged(self, at: float, label: str | None) -> None:
        """Note that a process of an engine wrote a line at ``at``; None where the line does not say which engine."""
        for name, engine in self._engines.items():
            if label in (None, name) and at > engine.sign:
                engine.moved(at)

    def verdict(self, now: float) -> Verdict:
        """Return what is to be thought of the server at ``now``."""
        if self._missed is not None:
            if now - self._missed >= self.silence:
                why = f"/metrics has not answered for {now - self._missed:.0f} s, while the container runs"
                return Verdict("hung", why)
            return Verdict("silent")
        ask, look = None, False
        for label, engine in sorted(self._engines.items(), key=lambda pair: pair[1].sign):
            quiet = now - engine.sign
            if quiet < self.silence * DOUBT:
                continue
            # However long the watchdog itself was kept from looking: an engine has its time to answer.
            if (
                quiet >= self._silence(engine)
                and engine.asked is not None
                and now - engine.asked >= self.silence * DOUBT
            ):
                return Verdict("hung", self._why(label, engine, now), blind=engine.load is None)
            look = look or _busy(engine) or engine.asked is not None
            if ask is None and not engine.open:
                ask = label
        return Verdict("silent" if ask is not None or look else "moving", ask=ask, look=look)

    def due(self, now: float) -> float:
        """Seconds until the verdict may be another one although nothing moves."""
        half, moments = self.silence * DOUBT, [(self._missed or self._page) + self.silence]
        for engine in self._engines.values():
            moments += [engine.sign + half, engine.sign + self._silence(engine)]
            moments += [engine.asked + half] if engine.asked is not None else []
        return min((at - now for at in moments if at > now), default=self.silence)

    def _silence(self, engine: _Engine) -> float:
        fresh = engine.load is not None and engine.load.fresh
        return self.silence * (FIRST if fresh else 1.0)

    def _why(self, label: str, engine: _Engine, now: float) -> str:
        who = f"engine {label}" if self.several else "the engine"
        load, quiet = engine.load, now - engine.sign
        asked = f"a request for one token got no answer in {now - (engine.asked or now):.0f} s"
        if load is not None and load.requests:
            asked = f"while {load.running} requests ran and {load.waiting} waited, and {asked}"
            return f"{who} did nothing for {quiet:.0f} s {asked}"
        return f"{who} did nothing for {quiet:.0f} s, and {asked}"


def _busy(engine: _Engine) -> bool:
    return engine.load is not None and engine.load.requests > 0
