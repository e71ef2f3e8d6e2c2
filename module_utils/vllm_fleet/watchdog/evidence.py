# SPDX-License-Identifier: Apache-2.0
"""What a hung server does, kept before it is ended: nobody can ask it afterwards.

Everything is bounded in time and size, and what cannot be had is passed over. Values of secrets are taken out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..common.secrets import scrub
from ..container.api import DockerApi, DockerRefused, DockerUnavailable
from ..container.inspected import Inspected, command_line, ident, secrets_of
from ..server import endpoint, gpu_gate
from ..server.options import ServerOptions
from ..vllm import cli, readiness

#: Bytes and lines of the log's end, and bytes of any other file.
LOG_BYTES, LOG_LINES, FILE_BYTES = 1_000_000, 20_000, 1_000_000
#: Seconds for a page, for all stacks together, and between the two looks at the processes.
PAGE_TIMEOUT, STACKS_TIMEOUT, BETWEEN = 3.0, 10.0, 1.0
GPUS_TIMEOUT = 10.0
#: Processes that are looked at; a server has some tens.
PROCESSES = 200
#: Files of vLLM's own watchdog that are kept, the newest ones.
DUMPS = 8


def collect(docker: DockerApi, container: Inspected, folder: Path) -> list[str]:
    """Keep what there is in ``folder``; return the names of the files. Raises OSError where nothing can be kept."""
    secrets = secrets_of(container)
    lost: list[OSError] = []

    def keep(name: str, make: Callable[[], str]) -> None:
        text = ""
        with contextlib.suppress(OSError, ValueError, KeyError, DockerRefused, DockerUnavailable):
            text = make()
        try:
            if text:
                _write(folder / name, scrub(text, secrets))
        except OSError as exc:
            (folder / name).unlink(missing_ok=True)
            lost.append(exc)

    place = endpoint.of_container(container)
    pids = docker.processes(ident(container))[:PROCESSES]

    def page() -> str:
        return readiness.page(place, "/metrics", PAGE_TIMEOUT) if place else ""

    def log() -> str:
        return docker.log_tail(ident(container), LOG_LINES, LOG_BYTES).decode(errors="replace")

    keep("metrics-1.txt", page)
    begun = time.monotonic()
    keep("processes-1.txt", lambda: _processes(pids))
    keep("log.txt", log)
    keep("container.json", lambda: json.dumps({**container["State"], "pids": pids}, indent=1))
    keep("gpus.json", lambda: _within(GPUS_TIMEOUT, lambda: _gpus(container)))
    keep("stacks.txt", lambda: _stacks(pids))
    for number, dump in enumerate(_dumps(container, pids)):
        keep(f"vllm-watchdog-{number}.txt", lambda dump=dump: dump)  # type: ignore[misc]
    # The difference of the two shows who computes and who waits; there is no event to wait for.
    time.sleep(max(0.0, BETWEEN - (time.monotonic() - begun)))
    keep("processes-2.txt", lambda: _processes(pids))
    keep("metrics-2.txt", page)
    kept = sorted(path.name for path in folder.iterdir())
    if lost and not kept:
        raise lost[0]
    return kept


def _within(seconds: float, make: Callable[[], str]) -> str:
    """Return what ``make`` returns, empty where that takes longer: a driver that is being reset may never answer."""
    found: list[str] = []

    def work() -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(make())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else ""


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as out:
        out.write(text)


def _processes(pids: Sequence[int]) -> str:
    """Return a paragraph for each process: its name, state, what it waits for in the kernel, and its CPU time."""
    tick = os.sysconf("SC_CLK_TCK")
    parts = []
    for pid in pids:
        place = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError, ValueError, IndexError):
            name, _, rest = (place / "stat").read_text().rpartition(")")
            fields = rest.split()
            cpu = (int(fields[11]) + int(fields[12])) / tick
            lines = [f"pid {pid} {name.partition('(')[2]}: state {fields[0]}, {cpu:.2f} s of CPU, {fields[17]} threads"]
            for what in ("wchan", "syscall", "stack"):
                found = _read(place / what, 4096).strip()
                lines += [f"  {what}: {line}" for line in found.splitlines()]
            parts.append("\n".join(lines))
    return "\n".join(parts) + "\n" if parts else ""


def _stacks(pids: Sequence[int]) -> str:
    """Return what `py-spy dump` says of each process of Python, where the node has py-spy."""
    program = shutil.which("py-spy")
    if not program:
        return ""
    deadline, parts = time.monotonic() + STACKS_TIMEOUT, []
    for pid in pids:
        left = deadline - time.monotonic()
        if left <= 0:
            parts.append("there was no time for the others\n")
            break
        command = [program, "dump", "--nonblocking", "--pid", str(pid)]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, timeout=left, check=False)
            if done.returncode == 0:
                parts.append(done.stdout[:FILE_BYTES].decode(errors="replace"))
    return "\n".join(parts)


def _dumps(container: Inspected, pids: Sequence[int]) -> list[str]:
    """Return the newest files that vLLM's own watchdog left (--watchdog-config with dump_dir, vLLM since 0.33)."""
    flags = cli.started(command_line(container)).command.flags
    folder: Any = cli.first(flags.get("watchdog-config.dump_dir"))
    if not folder:
        with contextlib.suppress(ValueError, AttributeError):
            folder = json.loads(cli.first(flags.get("watchdog-config")) or "{}").get("dump_dir")
    if not isinstance(folder, str) or not folder.startswith("/") or not pids:
        return []
    with contextlib.suppress(OSError):
        return newest_files(Path(f"/proc/{min(pids)}/root"), folder)
    return []


def newest_files(root: Path, folder: str) -> list[str]:
    """Return the ends of the newest files of a folder below ``root``, the oldest of them first. Raises OSError.

    Each part of the path is opened from the one before and is no link, so that nothing that a container changes
    meanwhile leads out of it.
    """
    parts = Path(folder).parts[1:]
    if ".." in parts:
        return []
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts:
            inside = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inside
        with os.scandir(here) as entries:
            files = [(one.stat(follow_symlinks=False).st_mtime, one.name) for one in entries if not one.is_dir()]
        texts = []
        for _, name in sorted(files)[-DUMPS:]:
            with contextlib.suppress(OSError):
                texts.append(_read(Path(name), FILE_BYTES, here))
        return texts
    finally:
        os.close(here)


def _gpus(container: Inspected) -> str:
    options, _ = gpu_gate.demand_of(container, ServerOptions.from_params({}))
    found = gpu_gate.gpus_as_dicts(options)
    return json.dumps(found, indent=1, default=str) if found else ""


def _read(path: Path, limit: int, folder: int | None = None) -> str:
    """Return the end of a file, of an opened ``folder``; a link is not followed, it could lead anywhere."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with os.fdopen(handle, "rb") as file:
        if folder is not None and not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        size = os.fstat(handle).st_size
        if size > limit:
            file.seek(size - limit)
        return file.read(limit).decode(errors="replace")
