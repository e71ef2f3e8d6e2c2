# SPDX-License-Identifier: Apache-2.0
"""What a watch needs to know, leaves to the next slice, and comes to. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Seconds. ``slice``: return ``pending`` after so long (None: watch to the end)."""

    ready_timeout: float
    stall_timeout: float
    slice: float | None = None


@dataclass
class Token:
    """What one slice leaves to the next.

    Times are seconds after the container's start: ``shown`` of the last news, ``heard`` of the last line, ``active``
    of the last sign of life, ``pulse`` of the last look at CPU, I/O and cache, ``since`` from where ``ready_timeout``
    counts.
    """

    container: str
    started_at: str
    shown: float = -1.0
    heard: float = -1.0
    active: float = 0.0
    cpu_ns: int = 0
    io_bytes: int = 0
    cache_bytes: int = 0
    pulse: float = 0.0
    since: float = 0.0


@dataclass(frozen=True)
class News:
    """One line for the terminal: a change of stage at ``at`` seconds after the container's start."""

    at: float
    stage: str
    detail: str


@dataclass
class Outcome:
    """What a watch (or a slice of one) came to.

    verdict: ready | exited | restarting | stalled | ready_timeout | wrong_model_served | locked | pending.
    """

    verdict: str
    elapsed: float
    detail: str = ""
    exit_code: int | None = None
    oom_killed: bool = False
    died_at: float | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    news: list[News] = field(default_factory=list)
    stage: str = "starting"
    describe: str = "starting"
    estimate: float | None = None
    last_line: str = ""
    new_lines: list[str] = field(default_factory=list)
    idle: float = 0.0  # seconds since the last sign of life
    alarmed: bool = False  # the log has the text that was to be watched for
    token: Token | None = None

    def token_dict(self) -> dict[str, Any]:
        """Return the token in a form that travels as JSON."""
        return asdict(self.token) if self.token else {}
