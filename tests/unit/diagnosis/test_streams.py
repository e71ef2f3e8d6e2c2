# SPDX-License-Identifier: Apache-2.0
"""A failure has one name, however a container's two output streams came to be mixed.

Docker reads stdout and stderr each by itself. Under load the lines of one overtake those of the other, by as much as a
server writes in its last moments; within a stream, and between two starts of a container, the order stays.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from test_diagnose import CASES, context, read

from ansible.module_utils.vllm_fleet.diagnosis import reading
from ansible.module_utils.vllm_fleet.diagnosis.diagnose import ExitFacts, diagnose
from ansible.module_utils.vllm_fleet.vllm import log as logtext

#: vLLM's logger writes to stdout, everything else goes to stderr; lines of the API server's access log go either way.
LOGGED = re.compile(r"(?:\([\w.-]+ pid=\d+[^)]*\) )?(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d ")
#: What a container prints before the failure that is recorded, in the integration tests: a start of its own.
HEAD = "(APIServer pid=1) INFO 11-22 09:14:00 [api_utils.py:286] non-default args: {'model': 'acme/tiny'}"

Mix = Callable[[list[str], list[str]], list[str]]


def at_random(seed: int) -> Mix:
    """Mix two lists into one, keeping the order of each."""

    def mix(out: list[str], err: list[str]) -> list[str]:
        chosen = random.Random(seed)  # noqa: S311  to be repeatable, not secret
        marks = [True] * len(out) + [False] * len(err)
        chosen.shuffle(marks)
        lines = {True: iter(out), False: iter(err)}
        return [next(lines[mark]) for mark in marks]

    return mix


MIXES: dict[str, Mix] = {
    "stdout first": lambda out, err: out + err,
    "stderr first": lambda out, err: err + out,
    **{f"shuffled {seed}": at_random(seed) for seed in range(4)},
}


def mixed(lines: Sequence[str], mix: Mix) -> list[str]:
    """Mix the streams of each start by itself: Docker starts again when both have ended."""
    cuts = [0, *reading.starts(lines)[1:], len(lines)]
    out: list[str] = []
    for begin, end in itertools.pairwise(cuts):
        start = lines[begin:end]
        out += mix([x for x in start if LOGGED.match(x)], [x for x in start if not LOGGED.match(x)])
    return out


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("case", [c for c in CASES if c["log"]], ids=lambda c: f"{c['class']}: {c['name']}")
def test_the_streams_may_overtake_each_other(case: dict[str, Any], mix: str) -> None:
    lines = logtext.split(read(case["log"]))
    exit, known = ExitFacts(**case["exit"]), context(case)
    wanted = diagnose("\n".join(lines), exit, known)
    found = diagnose("\n".join(mixed(lines, MIXES[mix])), exit, known)
    assert found.class_ == wanted.class_
    if exit.verdict not in ("stalled", "ready_timeout"):  # they tell the last stage, of a log that had time to settle
        assert (found.cause, found.remedy) == (wanted.cause, wanted.remedy)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("log", ["model_not_found_on_hub.log", "gpu_permission.log", "unknown.log"])
def test_of_one_start_nothing_is_left_out(log: str, mix: str) -> None:
    """What came before the line that begins a start may be of that start too: its stderr."""
    text = read(log)
    wanted = diagnose(text, ExitFacts(1), context({}))
    lines = [HEAD, *logtext.split(text)]
    shuffled = MIXES[mix]([x for x in lines if LOGGED.match(x)], [x for x in lines if not LOGGED.match(x)])
    assert diagnose("\n".join(shuffled), ExitFacts(1), context({}), one_start=True) == wanted
