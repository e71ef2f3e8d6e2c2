# SPDX-License-Identifier: Apache-2.0
"""What stands before a line of a vLLM server's output: process, rank, level, source. Pure.

Each release line has its own; tests/unit/vllm/test_prefix.py has a sample of each. A worker under Ray has two of them,
the engine's and its own; its own counts. What Docker, Compose or the journal put before a line is taken off whole logs
by :func:`unwrapped`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

#: `(EngineCore_DP0 pid=7) `, `(VllmWorker rank=1 pid=7) `, `(VllmWorker TP1 pid=7) `, `(RayWorkerWrapper pid=7,
#: ip=…) `, and `[EngineCore_DP0 pid=7] ` of some builds.
_WHO = r"[(\[]{}(?: [\w=]{{1,20}})? pid={}(?:, ip=[\w.:]{{1,45}})?[)\]] ?"
_OUTER = _WHO.format(r"[A-Za-z][\w.-]{0,60}", r"\d{1,9}")
_INNER = _WHO.format(r"(?P<process>[A-Za-z][\w.-]{0,60})", r"(?P<pid>\d{1,9})")

_HEAD = (
    rf"(?:{_OUTER}(?=\([A-Za-z][^()]{{0,80}} pid=))?(?:{_INNER})?"
    # PyTorch's own prefix of a rank's last traceback, and of its C++ log lines.
    r"(?:\[(?P<rank>rank\d+)\]:\s?)?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? "
    # Since 2025 the source is in brackets; releases of 2024 wrote `file.py:12] text`.
    r"(?:\[(?P<source>[^\]\s]+:\d+)\]|(?P<older>[\w./-]+:\d+)\]) ?)?"
)

#: What other programs put before each line: Compose; `docker logs -t`, kubectl and programs that log; the journal.
_WRAPPED = (
    r"(?:\[[\w.-]{1,60}\]|[\w.-]{1,60}) *\| ?",
    r"\[pod/[^\]\s]{1,200}\] ",
    # Kubernetes' own files have the stream behind the time, and whether the line is whole.
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?[ \t](?:std(?:out|err) [FP] )?(?:\[\w+\] )?"
    r"(?:\([A-Z]\w+\) (?!pid))?",
    r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]{1,60} [\w./@-]{1,60}(?:\[\d+\])?: ",
)
#: Lines that are looked at, and the share of them that must have such a prefix.
_SAMPLED, _MOSTLY = 200, 0.8


class Line(NamedTuple):
    """One line without its prefix. ``process`` is ``APIServer``, ``EngineCore_DP1``, ``rank0``, or empty."""

    process: str
    pid: str
    level: str
    source: str
    text: str


def parse(line: str) -> Line:
    """Split a line into its prefix and its text; what is missing is an empty string."""
    match = re.match(_HEAD, line)
    if match is None or match.end() == 0:
        return Line("", "", "", "", line)
    process, pid, rank, level, source, older = match.group("process", "pid", "rank", "level", "source", "older")
    return Line(process or rank or "", pid or "", level or "", source or older or "", line[match.end() :])


def unwrapped(lines: Sequence[str]) -> list[str]:
    """Lines without what another program put before nearly all of them, such as a time stamp."""
    found = list(lines)
    for _ in range(2):
        sample = [line for line in found[:_SAMPLED] if line.strip()]
        for pattern in _WRAPPED:
            fits = sum(re.match(pattern, line) is not None for line in sample)
            if sample and fits >= _MOSTLY * len(sample):
                found = [re.sub(rf"^{pattern}", "", line, count=1) for line in found]
                break
        else:
            break
    return found
