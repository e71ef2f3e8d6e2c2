# SPDX-License-Identifier: Apache-2.0
"""What of a log counts as a reason: the last start's errors, less those that it survived. Pure.

Three kinds of evidence, the stronger one first: a traceback that ended a process, a native fault (what the ROCm
runtime, the kernel or a crash handler prints), and a line that a logger wrote. A wrapper says only that another process
failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..vllm.log import Error, errors, parse
from ..vllm.startup import Progress
from .case import Run

#: Characters of a line and of an exception's text that are searched, and of a line that are shown.
SEARCHED, SEARCHED_TEXT = 4000, 12_000
EVIDENCE_CHARS = 600

#: Lines that only say that another process failed (v1/engine/utils.py, core.py and exceptions.py, v1/utils.py,
#: v1/executor/multiproc_executor.py and ray_executor_v2.py), and ends of processes that got a signal.
WRAPPER = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|EngineCore failed to start|WorkerProc failed"
    r"|WorkerProc hit an exception|EngineCore encountered (?:an issue|a fatal error)|EngineDeadError"
    r"|AsyncLLM output_handler failed|(?:Engine core process|Worker proc) \S+ died unexpectedly"
    r"|Frontend process failed during engine core"
    r"|Process \S+ \(PID: \d+\) died with exit code|Exception occurred while running API servers"
    r"|RuntimeError: cancelled$|Worker failed with error '|died unexpectedly \(exit code: None\)|ActorDiedError"
    r"|Error executing method|Invocation of \S+ method failed|RayWorkerProc|Engine process failed to start"
    r"|Engine loop has died|MQLLMEngine|ChildProcessError: worker died|RuntimeError: Executor failed\.|\A\d+\Z"
    r"|RuntimeError: Worker processes are not running|^slurmstepd: "
    r"|^SystemExit|^(?:asyncio\.exceptions\.)?CancelledError|^KeyboardInterrupt$"
)
#: A wrapper counts all the same if it has the signal that ended a process: such a process could not log a reason.
KILLED = re.compile(r"exit code:? -\d+|'\w+': -\d+")
#: So does one that carries another process's reason, where that process's own words are not in the log.
CARRIES = re.compile(r"Worker failed with error '(?P<what>[^\n]+?)', please check")

STARTED = ("non-default args: ", " headless multiproc executor", " in headless mode")
#: Uvicorn says the first on stderr; where only stdout was kept, the first answer to a request says the same.
READY = ("Application startup complete", ' HTTP/1.1" 200')
#: What stands on stdout at that moment (0.32.0 entrypoints/serve/entry.py; api_server.py before).
READY_STDOUT = ("Starting vLLM server on ", "Starting vLLM API server", ' HTTP/1.1" 200')
#: What uvicorn writes when a server is told to stop, and what vLLM does.
STOPS = "API server: shutdown triggered"
STOPS_STDERR = "INFO:     Shutting down"

#: How a server's process notices that another one is gone.
_VANISHED = ("engine core exited unexpectedly", " died unexpectedly", " died, exit code: ")

#: Files whose logged tracebacks end their process: executors, engines and workers.
_FATAL_SOURCES = (
    "core.py:",
    "multiproc_executor.py:",
    "multiproc_worker_utils.py:",
    "worker_base.py:",
    "engine.py:",
    "async_llm.py:",
    "async_llm_engine.py:",
    "ray_distributed_executor.py:",
    "core_client.py:",
)
#: What a process logs while it ends: no sign that it lived on.
_ENDING = re.compile(r"(?i)shut(?:ting)? ?down|terminat|exit|closing|stopp|clean(?:ing)? ?up|destroy|died|abort")
#: Advice of NCCL and RCCL at every start; their warnings count where a process failed in such a library.
_NCCL = re.compile(r"(?i)n?r?ccl|ProcessGroup|torch\.distributed|watchdog")


def starts(lines: Sequence[str]) -> list[int]:
    """Return the numbers of the lines with which a start begins."""
    arguments, joined, headless = STARTED
    return [i for i, line in enumerate(lines) if arguments in line or joined in line or headless in line]


def last_run(lines: Sequence[str]) -> Run:
    """Return the last start of a log."""
    begins = starts(lines)
    # What stands before the first start (an import that fails, argparse) belongs to the only run that there is.
    return run(lines[begins[-1] if len(begins) > 1 else 0 :])


def earlier_runs(lines: Sequence[str]) -> Iterable[Run]:
    """Return the starts before the last one, the latest first."""
    begins = starts(lines)
    for number in range(len(begins) - 2, -1, -1):
        yield run(lines[begins[number] if number else 0 : begins[number + 1]])


def run(lines: Sequence[str]) -> Run:
    """Return one start: its lines, and its errors that count."""
    ready = first(lines, READY, -1)
    stop = first(lines, (STOPS,), -1)
    found = errors(lines)
    if ready >= 0:
        # Of each stream what came after its own word of readiness: a line of one may overtake those of the other.
        since = {False: ready, True: first(lines, READY_STDOUT, ready)}
        found = [error for error in found if error.index > since[error.logged]]
    kept = counted(lines, found)
    return Run(lines, kept, ready >= 0, stop if stop >= 0 else None, survived=len(kept) < len(found))


def counted(lines: Sequence[str], found: Sequence[Error]) -> list[Error]:
    """Return the errors that the start did not survive.

    A process that logs about something else after its error lived on. Only a logger's lines are compared with each
    other: the order of the two streams says nothing.
    """
    doubtful = [error for error in found if error.logged and _survivable(error)]
    left_out: set[int] = set()
    if doubtful:
        lived = _lived_until(lines, {(error.process, error.pid) for error in doubtful}, doubtful[0].index)
        left_out = {id(e) for e in doubtful if lived.get((e.process, e.pid) if e.process else ("", ""), -1) > e.index}
    kept = [error for error in found if id(error) not in left_out and not _while_ending(error)]
    if any("NCCL WARN" in error.exceptions[0][0] for error in kept if error.kind == "line"):
        collective = any(_NCCL.search("\n".join([*e.exceptions[-1], *e.stacks[-1][-3:]])) for e in kept if is_root(e))
        kept = [e for e in kept if collective or e.kind != "line" or "NCCL WARN" not in e.exceptions[0][0]]
    return kept


def _while_ending(error: Error) -> bool:
    """Say whether this happened while a process cleaned up: something else had ended it before."""
    stack = error.stacks[-1] if error.stacks else []
    return any(
        frame.endswith((" in _exitfunc", " in _run_exitfuncs", " in __del__", " in shutdown")) for frame in stack
    )


def _survivable(error: Error) -> bool:
    if error.source.startswith(_FATAL_SOURCES):
        return False
    # Where lines have no prefix, the one that lives on may be another process.
    return error.kind == "line" or bool(error.process)


def _lived_until(lines: Sequence[str], processes: set[tuple[str, str]], begin: int) -> dict[tuple[str, str], int]:
    """The last line of each process that says something and not its end; ("", "") stands for any process."""
    lived: dict[tuple[str, str], int] = {}
    for index in range(len(lines) - 1, begin, -1):
        if "INFO " not in lines[index][:120]:
            continue
        process, pid, level, _, text = parse(lines[index])
        if level != "INFO" or _ENDING.search(text[:200]):
            continue
        lived.setdefault(("", ""), index)
        lived.setdefault((process, pid), index)
        if processes <= lived.keys():
            break
    return lived


def is_root(error: Error) -> bool:
    """Say whether this is a traceback with an exception that is no wrapper."""
    return error.kind == "traceback" and any(not WRAPPER.search("\n".join(texts)) for texts in error.exceptions)


def first(lines: Sequence[str], words: Sequence[str], default: int) -> int:
    """Return the number of the first line that holds one of the words."""
    return next((index for index, line in enumerate(lines) if any(word in line for word in words)), default)


def root(start: Run) -> list[str]:
    """Return the line that names the reason: of the earliest traceback that is no wrapper, else of an error line.

    Of a server that was ready only its engine's errors count: the API server's are mostly about single requests.
    """
    for kind in ("traceback", "line"):
        for error in start.errors:
            if error.kind != kind or (start.ready and error.process in ("", "APIServer")):
                continue
            for number in range(len(error.exceptions) - 1, -1, -1):
                if not WRAPPER.search("\n".join(error.exceptions[number])):
                    return root_lines(error, number)
    return []


def root_lines(error: Error, number: int) -> list[str]:
    """Return the exception's line or pydantic's reason, and the frame where there is no message."""
    texts, raw, frame = error.exceptions[number], error.raw[number], error.frames[number]
    reason = next(
        (
            index
            for index, text in enumerate(texts)
            if text.lstrip().startswith(("Value error, ", "Assertion failed, "))
        ),
        0,
    )
    return [raw[reason], *([frame] if frame and ":" not in texts[0] else [])]


def short(line: str) -> str:
    """A line without pydantic's dump of the input, and not longer than a few lines of a terminal."""
    line = re.sub(r" \[type=\w+, input_value=.*", "", line.strip())
    return line if len(line) <= EVIDENCE_CHARS else line[: EVIDENCE_CHARS - 1] + "…"


def last(lines: Sequence[str]) -> list[str]:
    """Return the last line that says something and is no wrapper."""
    for line in reversed(lines[-200:]):
        progress = Progress()
        progress.feed_line(line, 0.0)
        if progress.last_line and not WRAPPER.search(line):
            return [line]
    return []


def gone(run: Run) -> list[str]:
    """Return the line by which a server's process noticed that another one is gone."""
    return [line for line in run.lines if any(words in line for words in _VANISHED)][:1]
