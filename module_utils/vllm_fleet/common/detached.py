# SPDX-License-Identifier: Apache-2.0
"""Work of a module that goes on when its connection ends, and reports how far it is.

The module forks; what it has forked is a job like any other, so the next run that asks for the same joins it, and what
was asked for (a token among it) stays in memory. Its log has one line of JSON for each report: step, bytes done,
bytes in all. Its answer is beside the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .job import Job, JobError, fingerprint
from .meter import Meter

JOBS = "~/.cache/vllm-fleet/jobs"
"""Where jobs are kept, as long_command does."""

PAUSE = 0.5
"""Seconds between two lines of the same step."""

Work = Callable[[Meter], dict[str, Any]]


class Detached(Job):
    """A job that is a function of this process instead of a command."""

    def begin_work(self, identity: str, work: Work) -> tuple[str, bool]:
        """Start the work, or join the run of it that is going on: (run id, joined). Raises JobError."""
        return self._begin(identity, lambda run_id: self._fork(run_id, work))

    def _fork(self, run_id: str, work: Work) -> None:
        lock = os.open(self._folder / f"{run_id}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.log.write_bytes(b"")
        # Written by the parent, so that no reader finds a run without a process to wait for.
        child = os.fork()
        if child:
            (self._folder / f"{run_id}.pid").write_text(str(child), encoding="utf-8")
            os.close(lock)
            return
        code = 1
        try:
            os.setsid()
            _let_go(lock)
            self._work(run_id, work)
            code = 0
        finally:
            os._exit(code)

    def _work(self, run_id: str, work: Work) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            shown: tuple[str, float] = ("", 0.0)

            def show(step: str, done: int, total: int) -> None:
                nonlocal shown
                now = time.monotonic()
                if step != shown[0] or now - shown[1] >= PAUSE:
                    shown = (step, now)
                    log.write(json.dumps([step, done, total]) + "\n")
                    log.flush()

            try:
                answer = work(Meter(show))
            except Exception as error:  # noqa: BLE001 - what it is has to reach the one who follows
                text = f"{type(error).__name__}: {error}"
                answer = {"failed": True, "msg": text, "exception": traceback.format_exc()}
        (self._folder / f"{run_id}.answer").write_text(json.dumps(answer), encoding="utf-8")
        part = self._folder / f"{run_id}.rc.part"
        part.write_text("0", encoding="utf-8")
        part.replace(self._folder / f"{run_id}.rc")

    def answer(self, run_id: str) -> dict[str, Any] | None:
        """Return what the work returned, None when it was killed."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self._folder / f"{run_id}.answer").read_text(encoding="utf-8"))
            return found
        return None


def _let_go(keep: int) -> None:
    """Close what was inherited: the connection ends, and the job's mutex is free, when no process holds them."""
    for handle in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if handle > 2 and handle != keep:
            with contextlib.suppress(OSError):
                os.close(handle)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def perform(name: str, options: Mapping[str, Any], work: Work, secrets: tuple[str, ...] = ()) -> dict[str, Any]:
    """Do `work` the way the options `wait` and `follow` of a module ask.

    Without `wait` it is done here and now. With it, it is started as a job, or followed, for at most so many seconds:
    a dict with `running` and how far it is, until it is the work's own answer. `secrets` are options that must not be
    written down anywhere; everything else in `options` makes the work what it is.
    """
    if options["wait"] is None:
        return work(Meter())
    wish = {key: str(value) for key, value in options.items() if key not in ("wait", "follow", *secrets)}
    identity = fingerprint([name], None, wish)
    job = Detached(Path(JOBS).expanduser() / f"{name}-{identity}")
    joined = False
    try:
        run_id = options["follow"]
        if not run_id:
            run_id, joined = job.begin_work(identity, work)
        state = job.wait(run_id, options["wait"])
    except JobError as error:
        return {"failed": True, "msg": str(error)}
    if not state.running:
        lost = f"{name} was killed from outside after {state.elapsed:.0f} s; run again: what is whole is kept"
        return job.answer(run_id) or {"failed": True, "msg": lost}
    moving = {**_newest(state.tail), "elapsed": round(state.elapsed, 2)}
    return {"changed": False, "running": True, "joined": joined, "run_id": run_id, **moving}


def _newest(lines: list[str]) -> dict[str, Any]:
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # the last line may be half written
            step, done, total = json.loads(line)
            return {"step": step, "done": done, "total": total}
    return {"step": "starting", "done": 0, "total": 0}
