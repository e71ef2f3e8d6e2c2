# SPDX-License-Identifier: Apache-2.0
"""Prometheus text -> how busy a vLLM server is. Pure: text in, counts out.

Names as vLLM 0.32.0 exports them (vllm/v1/metrics/loggers.py). Every engine of a server with data parallelism has
series of its own, with the label `engine`; what is asked here is the whole server's, so series are summed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
# Grow while the engine works, whatever it works on: a long prefill yields no token for many steps.
PROGRESS = ("vllm:iteration_tokens_total_count", "vllm:generation_tokens_total", "vllm:prompt_tokens_total")

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
        match = _SAMPLE.fullmatch(line.strip())
        if match is None:
            continue
        try:
            yield match["name"], float(match["value"])
        except ValueError:
            continue


def load(text: str) -> Load:
    """The load in a /metrics page; raises ValueError for a page without vLLM's two gauges."""
    sums: dict[str, float] = {}
    for name, value in samples(text):
        if math.isfinite(value):
            sums[name] = sums.get(name, 0.0) + value
    missing = [name for name in (RUNNING, WAITING) if name not in sums]
    if missing:
        raise ValueError(f"no {' and no '.join(missing)} among {len(sums)} metrics")
    return Load(
        math.ceil(sums[RUNNING]), math.ceil(sums[WAITING]), sum(sums[name] for name in PROGRESS if name in sums)
    )
