# SPDX-License-Identifier: Apache-2.0
"""Prometheus text -> how busy a vLLM server is. Pure: text in, counts out.

Names as vLLM 0.32.0 exports them (vllm/v1/metrics/loggers.py). Every engine of a server with data parallelism has
series of its own, with the label `engine`: `load` sums them up, `engines` keeps them apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
# Grow with each step that yields a token. The steps of a long prefill yield none (IterationStats, 0.8.5 to 0.32.0).
PROGRESS = ("vllm:iteration_tokens_total_count", "vllm:generation_tokens_total", "vllm:prompt_tokens_total")

#: What moves only when an engine hands out the result of a step: vLLM's API server sets all of these where it reads an
#: engine's outputs, and nowhere else (v1/engine/async_llm.py, `output_handler`; read in 0.9.2 to 0.32.0), so they stand
#: still when the engine does: the numbers of requests, too. Some names of older releases have `gpu_` in them.
ENGINE_SERIES = (
    RUNNING,
    WAITING,
    *PROGRESS,
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_queries_total",
)
SLEEP = "vllm:engine_sleep_state"
_WANTED = (*ENGINE_SERIES, SLEEP)

#: What is read of a server: characters of a line, engines, the largest value. With a line of 15 MB the pattern below
#: takes 2 GB.
LONGEST_LINE, MOST_ENGINES, LARGEST = 16_384, 1024, 1e18

# name{labels} value [timestamp]; a label's value may hold any character, quotes and backslashes escaped.
_SAMPLE = re.compile(
    r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*'
)


@dataclass(frozen=True)
class Load:
    """Requests of a server: being computed, waiting for a place; `progress` grows whenever the engine does a step."""

    running: int
    waiting: int
    progress: float = 0.0

    @property
    def requests(self) -> int:
        """Everything that would be lost if the server stopped now."""
        return self.running + self.waiting


def samples(text: str) -> Iterator[tuple[str, float]]:
    """Name and value of every sample; comments, labels and timestamps are dropped, unreadable lines passed over."""
    for line in text.splitlines():
        if (found := _sample(line)) is not None:
            yield found


def _sample(line: str) -> tuple[str, float] | None:
    match = _SAMPLE.fullmatch(line.strip()) if len(line) <= LONGEST_LINE else None
    if match is None:
        return None
    try:
        return match["name"], float(match["value"])
    except ValueError:
        return None


def _counts(value: float) -> bool:
    """Return whether a value can be a number of something; sums of such are finite."""
    return 0 <= value <= LARGEST


@dataclass(frozen=True)
class EngineLoad:
    """One engine: its requests, whether it was put to sleep, and a `signature` that each of its steps changes."""

    running: int
    waiting: int
    asleep: bool
    signature: tuple[tuple[str, float], ...]

    @property
    def fresh(self) -> bool:
        """Whether it has not done a single step since its start, as far as its counters show."""
        steps = [value for name, value in self.signature if name in PROGRESS]
        return bool(steps) and not any(steps)

    @property
    def requests(self) -> int:
        """Everything that waits for an answer, as far as the engine has said so."""
        return self.running + self.waiting


def engines(text: str) -> dict[str, EngineLoad]:
    """Return what a /metrics page says of each engine by its label `engine`; empty for a page without vLLM's gauges."""
    sums: dict[str, dict[str, float]] = {}
    asleep: set[str] = set()
    for line in text.splitlines():
        # A page has a thousand lines and is read every few seconds for ever; nearly all of them are of no interest.
        if not line.startswith(_WANTED):
            continue
        sample = _sample(line)
        if sample is None or sample[0] not in _WANTED:
            continue
        name, value = sample
        found = re.search(r'[{,]engine="((?:[^"\\]|\\.)*)"', line)
        engine = found[1] if found else ""
        if name == SLEEP:
            if 'sleep_state="awake"' in line and value == 0:
                asleep.add(engine)
        elif _counts(value) and (engine in sums or len(sums) < MOST_ENGINES):
            own = sums.setdefault(engine, {})
            own[name] = own.get(name, 0.0) + value
    return {
        engine: EngineLoad(
            math.ceil(own[RUNNING]), math.ceil(own.get(WAITING, 0.0)), engine in asleep, tuple(sorted(own.items()))
        )
        for engine, own in sums.items()
        if RUNNING in own
    }


def load(text: str) -> Load:
    """The load in a /metrics page; raises ValueError for a page without vLLM's two gauges."""
    sums: dict[str, float] = {}
    for name, value in samples(text):
        if _counts(value):
            sums[name] = sums.get(name, 0.0) + value
    missing = [name for name in (RUNNING, WAITING) if name not in sums]
    if missing:
        raise ValueError(f"no {' and no '.join(missing)} among {len(sums)} metrics")
    return Load(
        math.ceil(sums[RUNNING]), math.ceil(sums[WAITING]), sum(sums[name] for name in PROGRESS if name in sums)
    )
