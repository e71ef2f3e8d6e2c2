# SPDX-License-Identifier: Apache-2.0
"""Commands that outlive the connection that started them.

A job has a folder on the node. Each run in it has an id, a lock that its processes hold for as long as any of them
lives, a pid file and, when it ends by itself, an exit code; these alone show whether
the run goes on, has ended, or was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: The exit code is moved into place: a reader never sees half of it. $0 is the folder and run id, the rest the command.
_SUPERVISOR = 'echo $$ >"$0.pid"; "$@"; rc=$?; echo $rc >"$0.rc.part"; mv "$0.rc.part" "$0.rc"'

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
_TAIL_BYTES = 65536
#: Seconds between SIGTERM and SIGKILL when a run is over its time.
_GRACE = 10.0


class JobError(Exception):
    """The job cannot be started or joined; the text is one sentence for the operator."""


def fingerprint(argv: Sequence[str], chdir: str | None, environment: Mapping[str, str]) -> str:
    """Return the identity of a command: 16 hex digits that differ when what would run differs."""
    text = json.dumps([list(argv), chdir, sorted(environment.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tail_lines(data: bytes, count: int) -> list[str]:
    """Return the last ``count`` non-empty lines; a progress bar's carriage return ends a line as a newline does."""
    text = _ESCAPES.sub("", data.decode("utf-8", "replace"))
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    return [line for line in lines if line.strip()][-count:]


def progress_line(lines: Sequence[str], pattern: str | None) -> str:
    """Return the newest line, or the newest match of ``pattern``: its group ``progress`` if it has one."""
    if not pattern:
        return lines[-1] if lines else ""
    compiled = re.compile(pattern)
    for line in reversed(lines):
        match = compiled.search(line)
        if match:
            named = match.groupdict().get("progress")
            return named if named is not None else match.group(0)
    return ""


def short_of_space(wanted: Mapping[str, int], free: Mapping[str, int], what: str, variable: str = "") -> str | None:
    """Return a sentence about the folder with too little room (bytes wanted and free by path), or None.

    ``variable`` is where the figure can be changed.
    """
    for path, need in wanted.items():
        if free[path] < need:
            return (
                f"{what} needs {need / 2**30:.1f} GiB free under {path}, which has {free[path] / 2**30:.1f} GiB: "
                "free space there or use a larger disk" + (f", or set {variable} (GiB)" if variable else "")
            )
    return None


def free_bytes(path: str) -> int:
    """Bytes an unprivileged process may still write under ``path``, or under its nearest folder that exists."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    stat = os.statvfs(place)
    return stat.f_bavail * stat.f_frsize


@dataclass(frozen=True)
class State:
    """What is known of a run: ``rc`` is None while it runs and when it was killed from outside."""

    run_id: str
    running: bool
    rc: int | None
    elapsed: float
    tail: list[str]


class Job:
    """One job folder."""

    def __init__(self, folder: Path, log: Path | None = None) -> None:
        """Use ``folder`` (made if missing, mode 0700) and ``log`` (default: ``log`` in the folder)."""
        self._folder = folder
        self.log = log or folder / "log"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(
        self,
        argv: Sequence[str],
        chdir: str | None,
        environment: Mapping[str, str],
        identity: Sequence[str] | None = None,
    ) -> tuple[str, bool]:
        """Start the command, or join the run of it that is going on: (run id, joined). Raises JobError.

        `identity` stands for `argv` where not all of that makes the command what it is.
        """

        def start(run_id: str) -> None:
            self._start(run_id, argv, chdir, environment)

        return self._begin(fingerprint(identity or argv, chdir, environment), start)

    def running(self) -> tuple[str, str] | None:
        """Return run id and fingerprint of the command that is going on, None when there is none."""
        run = self._read()
        return (str(run["id"]), str(run["fingerprint"])) if run and self._alive(str(run["id"])) else None

    def _begin(self, identity: str, start: Callable[[str], None]) -> tuple[str, bool]:
        with self._mutex():
            run = self._read()
            if run and self._alive(str(run["id"])):
                if run["fingerprint"] != identity:
                    raise JobError(
                        f"job {self._folder.name} is already running another command (pid {self._pid(str(run['id']))}, "
                        f"log {run['log']}): wait for it to end or stop it, then run again"
                    )
                return str(run["id"]), True
            for old in self._folder.glob("run-*"):
                old.unlink()
            run_id = f"run-{os.getpid()}-{time.time_ns()}"
            # Written before the start: if this process dies in between, the lock shows whether anything came of it.
            self._write(
                {
                    "id": run_id,
                    "fingerprint": identity,
                    "log": str(self.log),
                    "boot": _boot_id(),
                    "started": time.monotonic(),
                }
            )
            start(run_id)
            return run_id, False

    def _start(self, run_id: str, argv: Sequence[str], chdir: str | None, environment: Mapping[str, str]) -> None:
        lock = os.open(self._folder / f"{run_id}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb") as log:
                subprocess.Popen(
                    ["/bin/sh", "-c", _SUPERVISOR, str(self._folder / run_id), *argv],
                    cwd=chdir,
                    env={**os.environ, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        except OSError as exc:
            raise JobError(f"cannot start {argv[0]} in {chdir or Path.cwd()}: {exc.strerror} ({exc.filename})") from exc
        finally:
            os.close(lock)

    def wait(self, run_id: str, seconds: float, tail: int = 20) -> State:
        """Wait until the run ends, at most ``seconds``, and return its state."""
        deadline = time.monotonic() + seconds
        while self._alive(run_id) and (left := deadline - time.monotonic()) > 0:
            if not _process_ends(self._pid(run_id), left):
                # No supervisor to wait for: it is just starting, or it was killed and left children behind.
                time.sleep(min(0.1, left))
        return self.state(run_id, tail)

    def stop(self, run_id: str) -> None:
        """End the run's processes: SIGTERM, and SIGKILL for what is left after ten seconds."""
        pid = self._pid(run_id)
        while pid is None and self._alive(run_id):  # the shell that writes it is just starting
            time.sleep(0.02)
            pid = self._pid(run_id)
        for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            if pid is None or not self._alive(run_id):
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
            self.wait(run_id, patience)

    def state(self, run_id: str, tail: int = 20) -> State:
        """Return the run's state now. Raises JobError for a run that the folder does not know."""
        run = self._read()
        if not run or run["id"] != run_id:
            raise JobError(f"run {run_id} of job {self._folder.name} was replaced by another: someone else started it")
        running = self._alive(run_id)
        started = float(str(run["started"])) if run["boot"] == _boot_id() else time.monotonic()
        return State(run_id, running, self._rc(run_id), time.monotonic() - started, self._tail(tail))

    # -- the folder's files ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _mutex(self) -> Iterator[None]:
        with (self._folder / "mutex").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, object] | None:
        try:
            found: dict[str, object] = json.loads((self._folder / "current.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found

    def _write(self, run: Mapping[str, object]) -> None:
        part = self._folder / "current.json.part"
        part.write_text(json.dumps(run), encoding="utf-8")
        part.replace(self._folder / "current.json")

    def _rc(self, run_id: str) -> int | None:
        try:
            return int((self._folder / f"{run_id}.rc").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _pid(self, run_id: str) -> int | None:
        try:
            return int((self._folder / f"{run_id}.pid").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _alive(self, run_id: str) -> bool:
        if self._rc(run_id) is not None:
            return False  # a daemon that the command left behind may hold the lock on; the command itself has ended
        try:
            with (self._folder / f"{run_id}.lock").open("r+") as handle:
                # Shared: two callers that ask at the same moment must not take each other for the job.
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _tail(self, count: int) -> list[str]:
        try:
            with self.log.open("rb") as handle:
                handle.seek(max(0, handle.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return tail_lines(handle.read(), count)
        except FileNotFoundError:
            return []


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _process_ends(pid: int | None, seconds: float) -> bool:
    """Wait for a process that need not be a child; False when there is none to wait for."""
    if pid is None:
        return False
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        poller.poll(seconds * 1000)
    finally:
        os.close(handle)
    return True
