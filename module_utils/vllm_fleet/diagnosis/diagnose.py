# SPDX-License-Identifier: Apache-2.0
"""Why a vLLM server did not start, or stopped. Its log and its end go in, a named failure comes out. Pure.

The known failures are the table of patterns.py. The root cause is the earliest traceback that is no wrapper. A worker
that fails makes its engine fail, and the engine makes its API server fail. The tracebacks of these two only say that
the other failed; they are wrappers and never the reason. Warnings are not read. Of a server that was ready, only what
came after that is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from ..common.failure import Failure, FailureClass
from ..common.secrets import scrub
from ..common.terminal import plain
from ..vllm.log import Error, parse, split
from . import explain_ends, explain_model, explain_node, explain_unknown, families, reading
from .case import Case, Context, ExitFacts, Gpu, Holder, Run
from .patterns import CLASSES, ROWS
from .phrases import Explain, Words
from .row import Row

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
]

#: What container/engine.py says where Docker did not answer at all.
_NO_ANSWER = "the Docker engine did not answer"

#: Different errors that are looked at, from the beginning of a log and from its end.
_FIRST_ERRORS, _LAST_ERRORS = 300, 100

_STOPS_HEADLESS = "[shutdown] Executor: waiting for worker exit"
#: How Python ends at Ctrl-C, a worker of Ray at SIGTERM, and a job of Slurm.
_INTERRUPTED = re.compile(r"\b(?:KeyboardInterrupt|SystemExit: 15)\s*$|^slurmstepd: error: .*CANCELLED")
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
        evidence = [*reading.last(lines), f"OOMKilled: true, exit code {exit.exit_code}"]
        return _failure(FailureClass.HOST_MEMORY, explain_node.host_memory(limit=True), evidence, exit, context)
    run = reading.run(lines) if one_start else reading.last_run(lines)
    found = _by_run(run, exit, context)
    if (
        found is None
        and not one_start
        and not run.ready
        and not run.errors
        and exit.verdict in ("exited", "restarting")
    ):
        # The last start ended before it logged anything. The starts before it ended in the same way.
        found = next(filter(None, (_by_run(earlier, exit, context) for earlier in reading.earlier_runs(lines))), None)
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
    """What an error was found to be, the lines that prove it, and how strong it is: the lowest ``weight`` wins."""

    class_: FailureClass
    words: Callable[[], Words]
    weight: float
    proof: list[str]


#: Weights beside a row's rank (0 a cause, 1 a complaint, 2 a consequence). A raw line stands after a traceback, a
#: wrapper after both, and what a logger wrote after everything else: a start may live on after it.
_RAW, _CARRIED, _LOGGED = 0.5, 0.25, 10.0


def _by_run(run: Run, exit: ExitFacts, context: Context) -> Failure | None:
    if run.stop is None or exit.verdict not in ("exited", "restarting"):
        return _by_table(run, exit, context)
    # Errors after the signal to stop are caused by the stop.
    stop = {True: run.stop, False: reading.first(run.lines, (reading.STOPS_STDERR,), run.stop)}
    errors_before = [error for error in run.errors if error.index < stop[error.logged]]
    before = Run(run.lines, errors_before, run.ready, None)
    found = _by_table(before, exit, context)
    return found or _failure(
        FailureClass.STOPPED_BY_SIGNAL, explain_ends.stopped(ready=run.ready), [run.lines[run.stop]], exit, context
    )


def _by_table(run: Run, exit: ExitFacts, context: Context) -> Failure | None:
    """Return the best match: causes before consequences, tracebacks before single lines, the earliest first."""
    best: _Hit | None = None
    words_count = _words_count(run, exit)
    for error, texts in _different(run.errors):
        if error.logged and error.kind == "line" and not (words_count or _killed(texts)):
            continue
        hit = _hit(error, texts, run, context)
        if hit is not None and (best is None or hit.weight < best.weight):
            best = hit
            if hit.weight == 0:
                break
    return None if best is None else _failure(best.class_, best.words(), best.proof, exit, context)


def _words_count(run: Run, exit: ExitFacts) -> bool:
    """Say whether a logger's line may name the reason: not beside a traceback, and not of a start that did not fail."""
    if exit.verdict not in ("exited", "restarting") or (exit.exit_code or 0) - 128 in _SIGNALS:
        return False
    return not any(reading.is_root(error) and not _of_a_request(run, error) for error in run.errors)


def _killed(texts: Sequence[str]) -> bool:
    return any(reading.KILLED.search(text) for text in texts)


def _of_a_request(run: Run, error: Error) -> bool:
    """Of a server that was ready the API server's errors are mostly about single requests."""
    return run.ready and error.process in ("", "APIServer")


def _different(found: Sequence[Error]) -> Iterable[tuple[Error, list[str]]]:
    """Errors with the texts of their exceptions, each text once: a crash loop says the same a thousand times."""
    seen: dict[str, tuple[Error, list[str]]] = {}
    for error in found:
        texts = [
            "\n".join(line[: reading.SEARCHED] for line in lines)[: reading.SEARCHED_TEXT] for lines in error.exceptions
        ]
        seen.setdefault("\n".join(texts), (error, texts))
    once = list(seen.values())
    if len(once) > _FIRST_ERRORS + _LAST_ERRORS:
        once = once[:_FIRST_ERRORS] + once[-_LAST_ERRORS:]
    return once


def _hit(error: Error, texts: Sequence[str], run: Run, context: Context) -> _Hit | None:
    """Return what the table says of an error, else what its kind says."""
    base = 0.0 if error.kind == "traceback" else _LOGGED if error.logged and not _killed(texts) else _RAW
    kept: list[tuple[int, str, float]] = []
    for number, text in enumerate(texts):
        carried = reading.CARRIES.search(text)
        if carried:
            kept.append((number, carried["what"], base + _CARRIED))
        elif not reading.WRAPPER.search(text):
            kept.append((number, text, base))
        elif reading.KILLED.search(text):
            kept.append((number, text, base + _CARRIED))
    family = _family(error, kept, run, context)
    if family is not None and family.weight < 1:
        return family
    row = _row_hit(error, kept, run, context)
    if row is None or (family is not None and family.weight < row.weight):
        return family
    return row


def _row_hit(error: Error, kept: Sequence[tuple[int, str, float]], run: Run, context: Context) -> _Hit | None:
    for row, patterns in _patterns():
        if run.ready and not row.serving:
            continue
        for pattern, explain in patterns:
            for number, text, weight in kept:
                match = pattern.search(text)
                if match is not None:
                    case = Case(match, text, run, context, error, number)
                    return _Hit(row.class_, partial(explain, case), row.rank + weight, _proof(error, number, match))
    return None


def _family(error: Error, kept: Sequence[tuple[int, str, float]], run: Run, context: Context) -> _Hit | None:
    if error.kind != "traceback" or _of_a_request(run, error):
        return None
    for number, text, weight in reversed(kept):
        found = families.of(error, number, text, run, context)
        if found is not None:
            proof = [*reading.root_lines(error, number), *found.frames]
            return _Hit(found.class_, found.words, weight + found.weight, proof)
    return None


def _proof(error: Error, number: int, match: re.Match[str]) -> list[str]:
    """The exception's first line and the one that matched, as they stand in the log."""
    raw = error.raw[number]
    at = min(match.string.count("\n", 0, match.end()), len(raw) - 1)
    if at == 0 or "validation error" in raw[0]:
        return [raw[at]]
    return [raw[0], raw[at]]


# By how it ended -------------------------------------------------------------------------------------------------


def _by_end(run: Run, exit: ExitFacts, context: Context) -> Failure:
    """Return the failure where the log names none: by the verdict, the signal, or as unknown."""
    root = reading.root(run)
    waiting = _waits_for_ray(run)
    if waiting:
        words = explain_node.placement(waiting[0], context.world)
        return _failure(FailureClass.NOT_ENOUGH_GPUS, words, waiting, exit, context)
    if exit.verdict == "stalled":
        return _failure(
            FailureClass.STALLED,
            explain_ends.stalled(run, exit, context),
            [*root, *reading.last(run.lines)],
            exit,
            context,
        )
    if exit.verdict == "ready_timeout":
        return _failure(
            FailureClass.READY_TIMEOUT,
            explain_ends.too_slow(run, exit, context),
            [*root, *reading.last(run.lines)],
            exit,
            context,
        )
    found = _by_signal(run, root, exit)
    if found is None and not root and not reading.gone(run) and any(map(_INTERRUPTED.search, run.lines)):
        found = (FailureClass.STOPPED_BY_SIGNAL, explain_ends.stopped(ready=run.ready, how="by a signal or Ctrl-C"), [])
    if found is None and (run.ready or (not root and reading.gone(run))):
        found = _vanished(run, root)
    if found is None and not root and any(_STOPS_HEADLESS in line for line in run.lines):
        # A rank without an API server never says that it is ready, and ends when the head node's server does.
        found = (
            FailureClass.STOPPED_BY_SIGNAL,
            explain_ends.stopped(ready=True, how="by a signal, or with its head node"),
            [],
        )
    if found is None:
        found = (FailureClass.UNKNOWN, explain_unknown.unknown(run, root, exit, context), root)
    class_, words, proof = found
    return _failure(class_, words, [*(proof or reading.last(run.lines)), f"exit code {exit.exit_code}"], exit, context)


def _waits_for_ray(run: Run) -> list[str]:
    """The line with which Ray still waits for GPUs at the end of a log."""
    last = next((line for line in reversed(run.lines) if parse(line).level), "")
    return [last] if not run.ready and "Waiting for creating a placement group" in last else []


def _by_signal(run: Run, root: list[str], exit: ExitFacts) -> tuple[FailureClass, Words, list[str]] | None:
    """A shell's and Docker's exit code of a process that a signal ended is 128 more than the signal's number."""
    number = (exit.exit_code or 0) - 128
    if number in (2, 15) or (number == 9 and not root):
        return FailureClass.STOPPED_BY_SIGNAL, explain_ends.stopped(ready=run.ready, how=_SIGNALS[number]), root
    if number == 7:
        return FailureClass.SHARED_MEMORY, explain_node.shared_memory(), root
    if number == 4:
        return FailureClass.UNSUPPORTED_ARCHITECTURE, explain_model.other_processor(), root
    if number in (6, 11):
        what = f"{_SIGNALS[number]}, a crash in native code"
        return FailureClass.ENGINE_DIED, explain_ends.engine_died(what, ready=run.ready), root
    return None


def _vanished(run: Run, root: list[str]) -> tuple[FailureClass, Words, list[str]]:
    """A server that was ready and is gone; vLLM ends with code 0 then (its watchdog shuts the API server down)."""
    dead = reading.gone(run)
    what = explain_unknown.said(root[0]) if root else "it was killed, or crashed without a message" if dead else ""
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
    def clean(text: str) -> str:
        return scrub(plain(text), context.secrets)

    cause, remedy = (clean(text).strip().rstrip(".") for text in words)
    # Secrets go before the cut: half of one would not be known as such.
    shown = list(dict.fromkeys(reading.short(clean(line[: reading.SEARCHED])) for line in evidence))
    return Failure(class_, cause, shown, remedy, exit.exit_code)
