# SPDX-License-Identifier: Apache-2.0
"""Why a vLLM server did not start, or stopped. Its log and its end go in, a named failure comes out. Pure.

The known failures are the table of patterns.py. The root cause is the earliest traceback that is no wrapper. A worker
that fails makes its engine fail, and the engine makes its API server fail. The tracebacks of these two only say that
the other failed; they are wrappers and never the reason. Warnings are not read. Of a server that was ready, only what
came after that is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..common.failure import Failure, FailureClass
from ..vllm.log import Error, errors, scrub, split
from ..vllm.startup import Progress
from . import explain_ends, explain_node
from .case import Case, Context, ExitFacts, Gpu, Holder, Run
from .patterns import CLASSES, ROWS, Row
from .phrases import Explain, Words, variable

__all__ = [
    "CLASSES",
    "ROWS",
    "Context",
    "ExitFacts",
    "Failure",
    "Gpu",
    "Holder",
    "diagnose",
    "gpus_from_info",
    "message",
    "scrub",
]

#: What container/engine.py says where Docker did not answer at all.
_NO_ANSWER = "the Docker engine did not answer"

#: Characters of a line that are searched, and of one that are shown.
_SEARCHED = 4000
_EVIDENCE_CHARS = 600

#: Different errors that are looked at, from the beginning of a log and from its end.
_FIRST_ERRORS, _LAST_ERRORS = 300, 100

#: Lines that only say that another process failed (v1/engine/utils.py, core.py and exceptions.py, v1/utils.py,
#: v1/executor/multiproc_executor.py and ray_executor_v2.py), and ends of processes that got a signal.
_WRAPPER = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|EngineCore failed to start|WorkerProc failed"
    r"|WorkerProc hit an exception|EngineCore encountered (?:an issue|a fatal error)|EngineDeadError"
    r"|AsyncLLM output_handler failed|(?:Engine core process|Worker proc) \S+ died unexpectedly"
    r"|Frontend process failed during engine core"
    r"|Process \S+ \(PID: \d+\) died with exit code|Exception occurred while running API servers"
    r"|Invocation of \S+ method failed|RayWorkerProc|Engine process failed to start|Engine loop has died|MQLLMEngine"
    r"|^SystemExit|^(?:asyncio\.exceptions\.)?CancelledError|^KeyboardInterrupt$"
)
#: A wrapper counts all the same if it has the signal that ended a process: such a process could not log a reason.
_KILLED = re.compile(r"exit code:? -\d+|'\w+': -\d+")

_STARTED = ("non-default args: ", " headless multiproc executor", " in headless mode")
#: Uvicorn says the first on stderr; where only stdout was kept, the first answer to a request says the same.
_READY = ("Application startup complete", ' HTTP/1.1" 200')
#: What stands on stdout at that moment (0.32.0 entrypoints/serve/entry.py; api_server.py before).
_READY_STDOUT = ("Starting vLLM server on ", "Starting vLLM API server", ' HTTP/1.1" 200')
_STOPS = "API server: shutdown triggered"
#: What uvicorn writes to stderr then.
_STOPS_STDERR = "INFO:     Shutting down"
_STOPS_HEADLESS = "[shutdown] Executor: waiting for worker exit"
_VANISHED = "engine core exited unexpectedly"
_SIGNALS = {2: "Ctrl-C", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


def gpus_from_info(gpus: Iterable[Mapping[str, object]]) -> list[Gpu]:
    """Turn the ``gpus`` of ``rocm_info`` into the context's; those whose memory is not known are left out."""
    found: list[Gpu] = []
    for gpu in gpus:
        total, free, holders = gpu.get("vram_total"), gpu.get("vram_free"), gpu.get("holders")
        if isinstance(total, int) and isinstance(free, int):
            entries = [_holder(entry) for entry in holders] if isinstance(holders, list) else []
            found.append(Gpu(int(str(gpu.get("index", len(found)))), total, free, entries))
    return found


def _holder(entry: Mapping[str, object]) -> Holder:
    command, size = entry.get("command"), entry.get("bytes")
    container = entry.get("container_name") or entry.get("container")
    return Holder(
        int(str(entry["pid"])),
        str(command) if command else None,
        str(container) if container else None,
        size if isinstance(size, int) else None,
    )


def diagnose(log: str, exit: ExitFacts, context: Context, *, one_start: bool = False) -> Failure:
    """Return the named failure.

    ``log`` is the container's output: both streams, whole or its end. With ``one_start`` it holds only the start that
    failed. Lines of the two streams may be out of order, because Docker reads each stream on its own. If no row of the
    table fits, the class is ``unknown``, with the earliest root-cause line.
    """
    if exit.error:
        docker = Error(0, "", "traceback", [[exit.error]], [[exit.error]], [""])
        known = _by_table(Run((), [docker], ready=False, stop=None), exit, context)
        if known is not None or exit.verdict == "not_started":
            return known or _docker_unknown(exit, context)
    if exit.verdict == "wrong_model_served":
        return _wrong_model(exit, context)
    if exit.verdict == "locked":
        return _locked(exit, context)
    lines = split(log)
    if exit.oom_killed:
        evidence = [*_last(lines), f"OOMKilled: true, exit code {exit.exit_code}"]
        return _failure(FailureClass.HOST_MEMORY, explain_node.host_memory(limit=True), evidence, exit, context)
    run = _run(lines) if one_start else _last_run(lines)
    found = _by_run(run, exit, context)
    if (
        found is None
        and not one_start
        and not run.ready
        and not run.errors
        and exit.verdict in ("exited", "restarting")
    ):
        # The last start ended before it logged anything. The starts before it ended in the same way.
        found = next(filter(None, (_by_run(earlier, exit, context) for earlier in _earlier_runs(lines))), None)
    return found or _by_end(run, exit, context)


def message(failure: Failure, context: Context) -> str:
    """Return the one sentence that a person reads first: where, which class, why, and what to do."""
    where = f"Container {context.container}" + (f" on {context.host}" if context.host else "")
    remedy = failure.remedy[:1].lower() + failure.remedy[1:]
    return scrub(f"{where} failed with {failure.class_}: {failure.cause}; {remedy}.", context.secrets)


# By the table ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[Row, tuple[tuple[re.Pattern[str], Explain], ...]], ...]:
    """Compiled at the first failure: a module that finds nothing to do does not pay for them."""
    return tuple(
        (row, tuple((re.compile(text, re.M), rule.explain) for rule in row.rules for text in rule.patterns))
        for row in ROWS
        if row.rules
    )


@dataclass(frozen=True)
class _Hit:
    """A row whose pattern matched in an error's exception ``number``."""

    row: Row
    explain: Explain
    match: re.Match[str]
    error: Error
    number: int


def _by_run(run: Run, exit: ExitFacts, context: Context) -> Failure | None:
    if run.stop is None or exit.verdict not in ("exited", "restarting"):
        return _by_table(run, exit, context)
    # Errors after the signal to stop are caused by the stop.
    stop = {True: run.stop, False: _first(run.lines, (_STOPS_STDERR,), run.stop)}
    errors_before = [error for error in run.errors if error.index < stop[error.logged]]
    before = Run(run.lines, errors_before, run.ready, None)
    found = _by_table(before, exit, context)
    return found or _failure(
        FailureClass.STOPPED_BY_SIGNAL, explain_ends.stopped(ready=run.ready), [run.lines[run.stop]], exit, context
    )


def _by_table(run: Run, exit: ExitFacts, context: Context) -> Failure | None:
    """Return the best match: causes before consequences, tracebacks before single lines, the earliest first."""
    best: _Hit | None = None
    lowest = math.inf
    for error, texts in _different(run.errors):
        hit = _first_hit(error, texts, run.ready)
        if hit is None:
            continue
        # A logger's line may be a complaint that the server got over; a traceback that ended a process is not.
        rank = hit.row.rank + (0.0 if error.kind == "traceback" else 0.5)
        if _WRAPPER.search(hit.match.string):
            rank += 0.25
        if rank < lowest:
            best, lowest = hit, rank
        if rank == 0:
            break
    if best is None:
        return None
    case = Case(best.match, best.match.string, run, context)
    return _failure(best.row.class_, best.explain(case), _proof(best), exit, context)


def _different(found: Sequence[Error]) -> Iterable[tuple[Error, list[str]]]:
    """Errors with the texts of their exceptions, each text once: a crash loop says the same a thousand times."""
    seen: dict[str, tuple[Error, list[str]]] = {}
    for error in found:
        texts = ["\n".join(line[:_SEARCHED] for line in lines) for lines in error.exceptions]
        seen.setdefault("\n".join(texts), (error, texts))
    once = list(seen.values())
    if len(once) > _FIRST_ERRORS + _LAST_ERRORS:
        once = once[:_FIRST_ERRORS] + once[-_LAST_ERRORS:]
    return once


def _first_hit(error: Error, texts: Sequence[str], ready: bool) -> _Hit | None:
    kept = [(number, text) for number, text in enumerate(texts) if not _WRAPPER.search(text) or _KILLED.search(text)]
    for row, patterns in _patterns():
        if ready and not row.serving:
            continue
        for pattern, explain in patterns:
            for number, text in kept:
                match = pattern.search(text)
                if match is not None:
                    return _Hit(row, explain, match, error, number)
    return None


def _proof(hit: _Hit) -> list[str]:
    """The exception's first line and the one that matched, as they stand in the log."""
    raw = hit.error.raw[hit.number]
    at = min(hit.match.string.count("\n", 0, hit.match.end()), len(raw) - 1)
    if at == 0 or "validation error" in raw[0]:
        return [raw[at]]
    return [raw[0], raw[at]]


# By how it ended -------------------------------------------------------------------------------------------------


def _by_end(run: Run, exit: ExitFacts, context: Context) -> Failure:
    """Return the failure where the log names none: by the verdict, the signal, or as unknown."""
    root = _root(run)
    if exit.verdict == "stalled":
        return _failure(
            FailureClass.STALLED, explain_ends.stalled(run, exit, context), [*root, *_last(run.lines)], exit, context
        )
    if exit.verdict == "ready_timeout":
        return _failure(
            FailureClass.READY_TIMEOUT,
            explain_ends.too_slow(run, exit, context),
            [*root, *_last(run.lines)],
            exit,
            context,
        )
    found = _by_signal(run, root, exit)
    if found is None and (run.ready or (not root and any(_VANISHED in line for line in run.lines))):
        found = _vanished(run, root)
    if found is None and not root and any(_STOPS_HEADLESS in line for line in run.lines):
        # A rank without an API server never says that it is ready, and ends when the head node's server does.
        found = (
            FailureClass.STOPPED_BY_SIGNAL,
            explain_ends.stopped(ready=True, how="by a signal, or with its head node"),
            [],
        )
    if found is None:
        found = (FailureClass.UNKNOWN, _unknown(run, root, exit, context), root)
    class_, words, proof = found
    return _failure(class_, words, [*(proof or _last(run.lines)), f"exit code {exit.exit_code}"], exit, context)


def _by_signal(run: Run, root: list[str], exit: ExitFacts) -> tuple[FailureClass, Words, list[str]] | None:
    """A shell's and Docker's exit code of a process that a signal ended is 128 more than the signal's number."""
    number = (exit.exit_code or 0) - 128
    if number in (2, 15) or (number == 9 and not root):
        return FailureClass.STOPPED_BY_SIGNAL, explain_ends.stopped(ready=run.ready, how=_SIGNALS[number]), root
    if number == 7:
        return FailureClass.SHARED_MEMORY, explain_node.shared_memory(), root
    if number == 4:
        words = (
            "The node's processor lacks an instruction that the image uses (SIGILL)",
            "Choose an image for this processor (vLLM's CPU builds need AVX2 or AVX-512)",
        )
        return FailureClass.UNSUPPORTED_ARCHITECTURE, words, root
    if number in (6, 11):
        what = f"{_SIGNALS[number]}, a crash in native code"
        return FailureClass.ENGINE_DIED, explain_ends.engine_died(what, ready=run.ready), root
    return None


def _vanished(run: Run, root: list[str]) -> tuple[FailureClass, Words, list[str]]:
    """A server that was ready and is gone; vLLM ends with code 0 then (its watchdog shuts the API server down)."""
    dead = [line for line in run.lines if _VANISHED in line][:1]
    what = _said(root[0]) if root else "it was killed, or crashed without a message" if dead else ""
    return FailureClass.ENGINE_DIED, explain_ends.engine_died(what, ready=run.ready), root or dead


def _wrong_model(exit: ExitFacts, context: Context) -> Failure:
    port = f" on port {context.port}" if context.port else ""
    served = context.arg("served-model-name") or context.model_name
    name = served[0] if isinstance(served, list) and served else served
    words = (
        f"A server answers{port}, but it does not serve {name}"
        + (f" ({exit.detail.rstrip('.')})" if exit.detail else ""),
        "Stop the other program there (`docker ps`, `ss -ltnp`), or correct served-model-name in `vllm_server_args`",
    )
    return _failure(FailureClass.WRONG_MODEL_SERVED, words, [exit.detail] if exit.detail else [], exit, context)


def _locked(exit: ExitFacts, context: Context) -> Failure:
    words = (
        f"The server is up, but refuses the key of the request ({exit.detail.rstrip('.')})",
        "Put its key into `vllm_server_api_key`, and remove it from the file of `--config` and from the image",
    )
    return _failure(FailureClass.BAD_ARGUMENT, words, [exit.detail], exit, context)


def _unknown(run: Run, root: list[str], exit: ExitFacts, context: Context) -> Words:
    log = context.log_file or "the container's log"
    if root:
        return (
            f'This failure is not known, and the first error in the log is "{_said(root[0])}"',
            f"Read {log} from that line on, and search vLLM's issues for it",
        )
    if run.lines:
        return (
            "This failure is not known: the container ended without an error in its log",
            f"Read the end of {log}, and start again with {variable(VLLM_LOGGING_LEVEL='DEBUG')}",
        )
    if exit.error:
        return (
            f'This failure is not known: the container ended without any output, and Docker says "{_said(exit.error)}"',
            "Find out who stopped or removed it with `docker events --since 1h` and `journalctl -u docker`",
        )
    return (
        "This failure is not known: the container ended without any output",
        "Check the image's entrypoint with `docker inspect` (an image that starts a shell needs "
        "`vllm_server_entrypoint: [vllm, serve]`)",
    )


def _docker_unknown(exit: ExitFacts, context: Context) -> Failure:
    if _NO_ANSWER in exit.error:
        words = (
            f'The Docker engine ended in the middle of an action ("{exit.error.strip().rstrip(".")[:300]}")',
            "Read the reason in `journalctl -u docker` on the node, and run again (the next run completes this one)",
        )
        return _failure(FailureClass.UNKNOWN, words, [exit.error], exit, context)
    words = (
        "This failure is not known: Docker could not start the container and says "
        f'"{exit.error.strip().rstrip(".")[:300]}"',
        "Read `journalctl -u docker` on the node",
    )
    return _failure(FailureClass.UNKNOWN, words, [exit.error], exit, context)


def _failure(class_: FailureClass, words: Words, evidence: Sequence[str], exit: ExitFacts, context: Context) -> Failure:
    cause, remedy = (scrub(text, context.secrets).strip().rstrip(".") for text in words)
    # Secrets go before the cut: half of one would not be known as such.
    shown = list(dict.fromkeys(_short(scrub(line[:_SEARCHED], context.secrets)) for line in evidence))
    return Failure(class_, cause, shown, remedy, exit.exit_code)


# How a log is read -----------------------------------------------------------------------------------------------


def _starts(lines: Sequence[str]) -> list[int]:
    arguments, joined, headless = _STARTED
    return [i for i, line in enumerate(lines) if arguments in line or joined in line or headless in line]


def _last_run(lines: Sequence[str]) -> Run:
    starts = _starts(lines)
    # What stands before the first start (an import that fails, argparse) belongs to the only run that there is.
    return _run(lines[starts[-1] if len(starts) > 1 else 0 :])


def _earlier_runs(lines: Sequence[str]) -> Iterable[Run]:
    starts = _starts(lines)
    for number in range(len(starts) - 2, -1, -1):
        yield _run(lines[starts[number] if number else 0 : starts[number + 1]])


def _run(lines: Sequence[str]) -> Run:
    ready = _first(lines, _READY, -1)
    stop = _first(lines, (_STOPS,), -1)
    found = errors(lines)
    if ready >= 0:
        # Of each stream what came after its own word of readiness: a line of one may overtake those of the other.
        since = {False: ready, True: _first(lines, _READY_STDOUT, ready)}
        found = [error for error in found if error.index > since[error.logged]]
    return Run(lines, found, ready >= 0, stop if stop >= 0 else None)


def _first(lines: Sequence[str], words: Sequence[str], default: int) -> int:
    return next((index for index, line in enumerate(lines) if any(word in line for word in words)), default)


def _root(run: Run) -> list[str]:
    """Return the line that names the reason: of the earliest traceback that is no wrapper, else of an error line.

    Of a server that was ready only its engine's errors count: the API server's are mostly about single requests.
    """
    for kind in ("traceback", "line"):
        for error in run.errors:
            if error.kind != kind or (run.ready and error.process in ("", "APIServer")):
                continue
            for number in range(len(error.exceptions) - 1, -1, -1):
                if not _WRAPPER.search("\n".join(error.exceptions[number])):
                    return _root_lines(error, number)
    return []


def _root_lines(error: Error, number: int) -> list[str]:
    """The exception's line, pydantic's reason instead of its heading, and the frame where there is no message."""
    texts, raw, frame = error.exceptions[number], error.raw[number], error.frames[number]
    reason = next((index for index, text in enumerate(texts) if text.lstrip().startswith("Value error, ")), 0)
    return [raw[reason], *([frame] if frame and ":" not in texts[0] else [])]


def _short(line: str) -> str:
    """A line without pydantic's dump of the input, and not longer than a few lines of a terminal."""
    line = re.sub(r" \[type=\w+, input_value=.*", "", line.strip())
    return line if len(line) <= _EVIDENCE_CHARS else line[: _EVIDENCE_CHARS - 1] + "…"


def _said(line: str) -> str:
    """A line's text without its prefix, as part of a sentence."""
    text = re.sub(r"^\([\w.-]+ pid=\d+[^)]*\) ?", "", _short(line))
    text = re.sub(r"^(?:ERROR|CRITICAL) \d\d-\d\d [\d:.]+ \[?\S+\] ?", "", text)
    return text.strip().rstrip(".")[:300]


def _last(lines: Sequence[str]) -> list[str]:
    """Return the last line that says something and is no wrapper."""
    for line in reversed(lines[-200:]):
        progress = Progress()
        progress.feed_line(line, 0.0)
        if progress.last_line and not _WRAPPER.search(line):
            return [line]
    return []
