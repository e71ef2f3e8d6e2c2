# SPDX-License-Identifier: Apache-2.0
"""Where a starting vLLM server stands, from what it prints. Pure: lines in, events out, the caller has the clock.

Line formats are vLLM 0.32.0's, each named at its row, with those of older releases where they differ. What a server
prints is not a protocol: an unknown line changes nothing, and nothing is estimated that the log does not carry.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..common.secrets import scrub
from .log import Line, LogReader, parse

__all__ = ["STAGES", "Event", "Facts", "LogReader", "Progress"]

#: Stages of a start, in order. A stage never goes back, except where the engine itself starts again.
STAGES = (
    "starting",
    "configuring",
    "downloading weights",
    "loading weights",
    "compiling",
    "allocating kv cache",
    "capturing graphs",
    "starting api",
    "ready",
)
_RANK = {stage: rank for rank, stage in enumerate(STAGES)}


@dataclass(frozen=True)
class Event:
    """A change of stage or of its detail.

    ``detail`` is a count such as ``41/163`` or empty, ``at`` seconds since the start, ``line`` what said so (without
    its prefix, secrets taken out).
    """

    stage: str
    detail: str
    at: float
    line: str


@dataclass
class Facts:
    """Sizes in GiB of one GPU's share; None where the server has not said so (yet).

    ``weights_gib`` is that of the first rank that speaks, for all load the same; ``kv_cache_gib`` the smallest.
    """

    weights_gib: float | None = None
    kv_cache_gib: float | None = None


#: A tqdm bar: vLLM's own `_BAR_FORMAT` (model_loader/weight_utils.py: `shards: 25% Completed | 41/163 [01:02<03:04, …`)
#: and tqdm's own, which graph capture uses (`graphs (decode, FULL): 50%|█████ | 26/51 [00:03<00:03, …]`).
_BAR = (
    r"(?P<what>[A-Z][^|%]*?):\s+\d+%(?: Completed \||\|[^|]*\|) *(?P<done>[\d.]+)(?P<unit>[kKMGT]?)B?/"
    r"(?P<total>[\d.]+[kKMGT]?)B? \[[\d:?]+<(?P<left>[\d:?]+)"
)
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

#: Lines that say nothing about the start: the banner's art, warnings and the source line under them, routes, requests.
_NOISE = (
    r"[\s▀▄█]*$|[\s▀▄█]*[▀▄█]|\s*warnings\.warn\(|\S+\.py:\d+: \w*Warning:|\[?W\d{3,4} |Route: |Available routes"
    r'|\s{2,}\S|INFO:\s+[\d.a-f:\[\]]+:\d+ - "|Traceback |\t'
)
#: The one warning that counts: a rank waits for the others, mostly while they compile (shm_broadcast.py).
_TELLING_WARNING = "No available shared memory broadcast block"

_NUMBER = r"(-?[\d,]+(?:\.\d+)?)"

#: Characters of a line that are read; what counts stands at the beginning.
_LONGEST = 2000
#: Characters of a line that are shown.
_SHOWN = 500


class Progress:
    """The state of one start, fed line by line."""

    def __init__(self, *, offline: bool = False) -> None:
        """Start at ``starting``.

        ``offline`` says that the server cannot download (weights are staged, HF_HUB_OFFLINE): then nothing is called a
        download. vLLM prints nothing while it downloads, so see :meth:`feed_download` for the watcher's own figures.
        """
        self._offline = offline
        self._reset()
        self.last_line = ""

    def _reset(self) -> None:
        self.stage = STAGES[0]
        self.detail = ""
        self.done: float | None = None
        self.total: float | None = None
        self.facts = Facts()
        self._what = ""
        self._left: float | None = None
        self._left_at = 0.0
        self._first: tuple[float, float] | None = None
        self._prefetcher = ""

    def feed_line(self, line: str, at: float) -> Event | None:
        """Take one line, ``at`` seconds after the start; return what changed, or None.

        Bars are drawn again and again: only a change of count is an event.
        """
        head = parse(line)
        text = head.text
        if len(text) > _LONGEST:
            head = head._replace(text=text[:_LONGEST])
            text = head.text
        if not _noise(head):
            self.last_line = _shown(text)
        if "%" in text:
            bar = re.search(_BAR, text)
            if bar is not None:
                return self._bar(bar, at, text)
        for word, pattern, act in _LINES:
            if word in text:
                match = re.search(pattern, text)
                if match is not None:
                    return act(self, match, head, at)
        return None

    def feed_download(self, done: int, total: int | None, at: float) -> Event | None:
        """Take the watcher's own figures of a download, in bytes: the server is silent while it downloads.

        Counts only until the server says that it loads.
        """
        if _RANK[self.stage] > _RANK["downloading weights"]:
            return None
        detail = f"{done / 2**30:.1f} GiB" if total is None else f"{done / 2**30:.1f}/{total / 2**30:.1f} GiB"
        event = self._move("downloading weights", detail, at, "")
        if event is not None:
            self._count(float(done), None if total is None else float(total), at)
        return event

    def describe(self) -> str:
        """Return stage and detail as a person reads them: ``loading weights 41/163``."""
        return f"{self.stage} {self.detail}".strip()

    def estimate(self, at: float | None = None) -> float | None:
        """Return the seconds that are left of what is being counted, or None where nothing says so.

        The bar's own estimate where it has one, else the pace since its first count. ``at`` (seconds since the start)
        takes off what has passed since the last line. Covers the bar, not the stages after it.
        """
        if self.done is None or self.total is None:
            return None
        left = self._left
        if left is None:
            if self._first is None or self.done <= self._first[1] or self._left_at <= self._first[0]:
                return None
            pace = (self.done - self._first[1]) / (self._left_at - self._first[0])
            left = (self.total - self.done) / pace
        return left if at is None else max(0.0, left - (at - self._left_at))

    def _move(self, stage: str, detail: str, at: float, text: str) -> Event | None:
        if _RANK[stage] < _RANK[self.stage] or (stage == self.stage and detail in ("", self.detail)):
            return None
        if stage != self.stage:
            self.done = self.total = self._left = self._first = None
            self._what = ""
        self.stage, self.detail = stage, detail
        return Event(stage, detail, at, _shown(text))

    def _count(self, done: float, total: float | None, at: float) -> None:
        if self._first is None:
            self._first = (at, done)
        self.done, self.total, self._left_at = done, total, at

    def _bar(self, bar: re.Match[str], at: float, text: str) -> Event | None:
        what, done, unit, total, left = bar.group("what", "done", "unit", "total", "left")
        if "Loading" in what or "loading" in what:
            stage = "loading weights"
        elif what.startswith("Capturing") and "graph" in what:
            stage = "capturing graphs"
        else:
            return None
        event = self._move(stage, f"{done}{unit}/{total}", at, text)
        if event is None:
            return None
        if what != self._what:
            self._what, self._first = what, None
        self._count(float(done) * _UNITS[unit.replace("K", "k")], _amount(total), at)
        self._left = _clock(left)
        return event

    # What single lines do: each takes the match, the line and the time, and returns the event if there is one. ------

    def _banner(self, match: re.Match[str], head: Line, at: float) -> Event | None:
        if _RANK[self.stage] > _RANK["configuring"]:
            self._reset()
        return self._move("configuring", "", at, head.text)

    def _load(self, match: re.Match[str], head: Line, at: float) -> Event | None:
        model = match.group(1)
        online = not self._offline and not model.startswith((".", "/"))
        return self._move("downloading weights" if online else "loading weights", "", at, head.text)

    def _prefetch(self, match: re.Match[str], head: Line, at: float) -> Event | None:
        # Every rank reads its own share in the background: one of them stands for all, and only until shards count.
        self._prefetcher = self._prefetcher or head.pid
        if head.pid != self._prefetcher or (self.stage == "loading weights" and self.done):
            return None
        return self._move("loading weights", f"prefetching {match.group(1)}/{match.group(2)}", at, head.text)

    def _loaded(self, match: re.Match[str], head: Line, at: float) -> Event | None:
        if self.facts.weights_gib is None:
            self.facts.weights_gib = _number(match.group(1))
        return self._move("loading weights", "", at, head.text)

    def _kv_memory(self, match: re.Match[str], head: Line, at: float) -> Event | None:
        gib = _number(match.group(1))
        # Ranks differ by what else is on their GPU; the smallest bounds them all (kv_cache_utils.py).
        if self.facts.kv_cache_gib is None or gib < self.facts.kv_cache_gib:
            self.facts.kv_cache_gib = gib
        return self._move("allocating kv cache", "", at, head.text)


_Act = Callable[[Progress, "re.Match[str]", Line, float], "Event | None"]


def _stage(stage: str) -> _Act:
    """Return an act that moves to ``stage``."""

    def act(progress: Progress, match: re.Match[str], head: Line, at: float) -> Event | None:
        return progress._move(stage, "", at, head.text)

    return act


#: (a word that the line must hold, the pattern, what it does); the word is looked for first because that is quick.
#: Patterns are compiled when they are first needed, by the re module's cache: a run that changes nothing needs none,
#: and compiling them all would cost it more than all else that is imported here.
_LINES: tuple[tuple[str, str, _Act], ...] = (
    # entrypoints/serve/utils/api_utils.py log_version_and_model: the banner, or one line where it is switched off.
    ("version ", r"█  version \S", Progress._banner),
    ("vLLM server version ", r"vLLM server version \S+, serving model ", Progress._banner),
    ("vLLM API server version ", r"vLLM API server version ", Progress._banner),  # to about v0.15
    ("non-default args: ", r"non-default args: ", Progress._banner),
    ("headless", r"Launching vLLM \(v[^)]+\) headless", Progress._banner),  # cli/serve.py, ranks without an API
    ("Resolved architecture: ", r"Resolved architecture: ", _stage("configuring")),
    ("max model len ", r"Using max model len \d", _stage("configuring")),
    ("LLM engine (v", r"Initializing a V\d LLM engine \(v", _stage("configuring")),  # v1/engine/core.py
    # worker/gpu_model_runner.py; the download, if any, happens after this line and says nothing until it is over.
    ("Starting to load model ", r"Starting to load model (.+?)\.\.\.", Progress._load),
    (
        "downloading weights",
        r"Time spent downloading weights for .+: [\d.]+ s",
        _stage("loading weights"),
    ),
    ("Filesystem type for checkpoints", r"Filesystem type", _stage("loading weights")),
    ("Prefetching checkpoint files: ", r"Prefetching checkpoint files: \d+% \((\d+)/(\d+)\)", Progress._prefetch),
    ("Loading weights took ", r"Loading weights took [\d.]+ s", _stage("loading weights")),
    ("Model loading took ", r"Model loading took ([\d.]+) (?:GiB|GB)(?: memory)? and [\d.]+ s", Progress._loaded),
    # compilation/: monitor.py, backends.py, decorators.py
    ("torch.compile", r"Starting torch\.compile|vLLM's torch\.compile", _stage("compiling")),
    ("torch.compile ", r"torch\.compile (?:took|takes) [\d.]+ s in total", _stage("compiling")),
    # v1/worker/cpu_model_runner.py: on a CPU compilation is announced by its caller alone
    ("Warming up model for", r"Warming up model for the compilation", _stage("compiling")),
    ("Dynamo bytecode", r"Dynamo bytecode transform time", _stage("compiling")),
    ("Compiling a graph", r"Compiling a graph for", _stage("compiling")),
    ("Directly load ", r"Directly load (?:the compiled graph|AOT compilation)", _stage("compiling")),
    ("[aiter] ", r"\[aiter\] (?:start build|waiting for baton|finish build)", _stage("compiling")),  # AITER's JIT
    ("KV cache memory: ", rf"Available KV cache memory: {_NUMBER} GiB", Progress._kv_memory),  # worker/gpu_worker.py
    ("for KV cache on node", r"set \(([\d.]+)/[\d.]+\) GiB for KV cache", Progress._kv_memory),  # worker/cpu_worker.py
    # v1/core/kv_cache_utils.py: one line; to about v0.20 two, of which the second holds the concurrency alone.
    (
        "KV cache size: ",
        r"KV cache size: [\d,]+ tokens",
        _stage("allocating kv cache"),
    ),
    (
        "Maximum concurrency for ",
        r"Maximum concurrency for [\d,]+ tokens per request: ",
        _stage("allocating kv cache"),
    ),
    ("Graph capturing finished", r"Graph capturing finished in \d+ s", _stage("capturing graphs")),
    ("init engine (", r"init engine \(.*?\) took [\d.]+ s", _stage("allocating kv cache")),
    ("Starting vLLM ", r"Starting vLLM (?:API )?server (?:\d+ )?on ", _stage("starting api")),
    ("Started server process", r"Started server process", _stage("starting api")),
    ("Application startup complete", r"Application startup complete", _stage("ready")),
    ("Uvicorn running on", r"Uvicorn running on", _stage("ready")),
)


def _noise(head: Line) -> bool:
    if head.level in ("WARNING", "DEBUG"):
        return _TELLING_WARNING not in head.text
    return re.match(_NOISE, head.text) is not None


def _shown(text: str) -> str:
    """A line for the terminal. Secrets go before the cut: half of one would not be known as such."""
    return scrub(text.strip(" \t▀▄█"))[:_SHOWN]


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _amount(text: str) -> float:
    unit = text[-1] if text[-1].isalpha() else ""
    return float(text.rstrip("kKMGT")) * _UNITS[unit.replace("K", "k")]


def _clock(text: str) -> float | None:
    """Seconds of tqdm's ``03:04`` or ``1:03:04``; None for ``?``."""
    if "?" in text:
        return None
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + int(part or 0)
    return seconds
