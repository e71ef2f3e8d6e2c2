# SPDX-License-Identifier: Apache-2.0
"""Logs as they come in the wild: cut, interleaved, drawn over by bars, doubled by restarts, drowned in noise.

Whatever is done to a log, its failure keeps its name or becomes unknown; it never gets another one.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_diagnose import CASES, HEALTHY, context, read
from test_reports import REPORTS

from ansible.module_utils.vllm_fleet.diagnosis.diagnose import Context, ExitFacts, diagnose
from ansible.module_utils.vllm_fleet.vllm import log as logtext

#: Causes are read in these logs; how the others ended is told by more than their text.
LOGS = [
    case for case in CASES if case["log"] and case["exit"].get("exit_code") == 1 and not case["exit"].get("verdict")
]
#: What is left once the cause was cut off: a consequence, or a complaint whose remedy names the cause among others.
LESS = {"unknown", "engine_died", "collective_init"}
COMPLAINTS = {"gpu_permission": "no_gpu", "gated_model": "model_not_found"}

NOISE = (
    "(APIServer pid=1) INFO 11-22 09:15:00 [loggers.py:257] Engine 000: Avg prompt throughput: 12.1 tokens/s",
    "(Worker_TP0 pid=300) WARNING 11-22 09:15:00 [fused_moe.py:1071] Using default MoE config. Error: none",
    "[aiter] import [module_moe_sorting] under /opt/aiter/jit/module_moe_sorting.so",
    "Loading safetensors checkpoint shards:  33% Completed | 54/163 [01:00<02:00,  1.11s/it]",
)


def cuts(lines: list[str]) -> Iterator[list[str]]:
    """The end of a log, begun at every tenth line."""
    for begin in range(10, len(lines), 10):
        yield lines[begin:]


def interleaved(lines: list[str]) -> Iterator[list[str]]:
    """Lines of the processes, mixed; each keeps the order of its own."""
    queues: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        head = logtext.parse(line)
        queues[f"{head.process} {head.pid} {bool(head.level)}"].append(line)
    chosen = random.Random(7)  # noqa: S311  to be repeatable, not secret
    names = [name for name, queue in queues.items() for _ in queue]
    chosen.shuffle(names)
    left = {name: iter(queue) for name, queue in queues.items()}
    yield [next(left[name]) for name in names]


def with_bars(lines: list[str]) -> Iterator[list[str]]:
    """A bar that is drawn over itself before every line of standard error."""
    bar = "\rLoading safetensors checkpoint shards:  25% Completed | 41/163 [03:25<10:10,  5.02s/it]\r"
    yield [bar + line for line in lines]
    # The next line may follow without a line end.
    yield [bar.rstrip("\r") + line if line.startswith("(") else line for line in lines]


def restarted(lines: list[str]) -> Iterator[list[str]]:
    """The same start twice, and a third one that has only begun."""
    yield [*lines, *lines]
    yield [*lines, *lines, *lines[:3]]


HARD: dict[str, Callable[[list[str]], Iterator[list[str]]]] = {
    "cut at every tenth line": cuts,
    "interleaved by process": interleaved,
    "with progress bars": with_bars,
    "doubled by restarts": restarted,
}


@pytest.mark.parametrize("how", HARD)
def test_a_hard_log_has_the_same_name_or_none(how: str) -> None:
    others = []
    for case in LOGS:
        exit, known = ExitFacts(**case["exit"]), context(case)
        lines = logtext.split(read(case["log"]))
        less = {*LESS, COMPLAINTS.get(case["class"], "")} if how.startswith("cut") else {"unknown"}
        for number, changed in enumerate(HARD[how](lines)):
            found = diagnose("\n".join(changed), exit, known)
            if found.class_ not in {case["class"], *less}:
                others.append((case["name"], number, str(found.class_)))
    assert not others


@pytest.mark.parametrize("how", HARD)
def test_a_hard_report_has_the_same_name_or_none(how: str) -> None:
    others = []
    for report in REPORTS:
        exit, lines = ExitFacts(report["exit_code"]), logtext.split(report["log"])
        wanted = diagnose("\n".join(lines), exit, Context()).class_
        less = LESS if how.startswith("cut") else {"unknown"}
        for number, changed in enumerate(HARD[how](lines)):
            found = diagnose("\n".join(changed), exit, Context()).class_
            if found not in {wanted, *less}:
                others.append((report["source"], number, str(wanted), str(found)))
    assert not others


@pytest.mark.parametrize("how", sorted(set(HARD) - {"cut at every tenth line"}))
@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_a_hard_log_of_a_healthy_start_names_no_cause(name: str, how: str) -> None:
    """One that was ready and is gone is `engine_died`, without a reason."""
    for changed in HARD[how](logtext.split(read(name))):
        assert diagnose("\n".join(changed), ExitFacts(1), Context()).class_ in ("unknown", "engine_died")


@pytest.mark.parametrize(
    "name", ["kernel_mla.log", "weights_mismatch.log", "gpu_memory_taken.log", "engine_died_aiter.log"]
)
def test_a_hundred_thousand_lines_of_noise_change_nothing(name: str) -> None:
    case: dict[str, Any] = next(case for case in LOGS if case["log"] == name)
    lines = logtext.split(read(name))
    begin = next(index for index, line in enumerate(lines) if re.search("ERROR|fault", line))
    noisy = [*lines[:begin], *(NOISE * 25_000), *lines[begin:]]
    assert diagnose("\n".join(noisy), ExitFacts(**case["exit"]), context(case)).class_ == case["class"]
