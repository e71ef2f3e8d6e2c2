# SPDX-License-Identifier: Apache-2.0
"""What the watchdog writes down: the present state, and events that outlive it. A full disk stops no restart."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common import durable
from .counts import COUNTS, FOLDER, file_name, page

#: Bytes of events.jsonl after which it is put aside; one older file is kept.
ROTATE = 1_000_000
#: Folders of evidence that are kept.
KEPT = 5
EVENTS = "events.jsonl"


class Journal:
    """Events of one server: lines of JSON in ``<state_dir>/<name>/events``, readable by root alone, and their counts.

    The counts go to ``textfiles``, where node_exporter reads them, if there is such a folder.
    """

    def __init__(self, state_dir: str, name: str, textfiles: Path = Path(FOLDER)) -> None:
        """Remember where; nothing is made yet."""
        self.name, self.textfiles = name, textfiles
        self.folder = Path(state_dir) / name / "events"
        #: Why the latest event could not be kept; empty where it was.
        self.trouble = ""

    def event(self, kind: str, why: str, **more: Any) -> dict[str, Any]:
        """Keep an event and return it: at (UTC), server, kind, why, and ``more`` as it is asked for."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        made = {"at": stamp, "server": self.name, "kind": kind, "why": why}
        made.update({key: value for key, value in more.items() if value not in (None, "")})
        line = json.dumps(made, ensure_ascii=True) + "\n"
        print(line, end="", file=sys.stderr, flush=True)  # for the unit's journal, whatever the disk says
        try:
            self._append(line.encode())
            self.trouble = ""
            self.count(kind)
        except OSError as exc:
            self.trouble = f"events cannot be kept in {self.folder}: {exc.strerror or exc}"
            print(self.trouble, file=sys.stderr, flush=True)
        return made

    def _append(self, line: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / EVENTS
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size + len(line) > ROTATE:
                path.replace(path.with_suffix(".jsonl.1"))
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One write, so that a process that is killed leaves a whole line or none; a disk may take only half of it.
            if os.write(handle, line) < len(line):
                os.ftruncate(handle, os.fstat(handle).st_size)
                os.write(handle, b"\n")
        finally:
            os.close(handle)

    def count(self, kind: str = "") -> None:
        """Count one event more, or none, and write all counts for node_exporter. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A run and the two halves of the watchdog write here.
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            counts = read(self.folder / COUNTS)
            if kind:
                counts[kind] = int(counts.get(kind) or 0) + 1
                write_whole(self.folder / COUNTS, counts)
            if self.textfiles.is_dir():
                # node_exporter is not root, and reads no other ending than `.prom`.
                durable.write(self.textfiles / file_name(self.name), page(self.name, counts).encode(), 0o644)
        finally:
            os.close(handle)

    def new_evidence(self) -> Path:
        """Make a folder for evidence, and drop the oldest ones. Raises OSError."""
        import shutil  # noqa: PLC0415  the half that stays needs neither, and is to be small
        import tempfile  # noqa: PLC0415

        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(prefix=f"{stamp}-", dir=self.folder))
        old = sorted((path for path in self.folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        for path in old[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)
        return made


def boottime() -> float:
    """Seconds since the node's boot, which no clock that is set can change."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write_whole(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all. Raises OSError."""
    durable.make_folders(path.parent)
    durable.write(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", 0o644)


def read(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds; empty where it is not there or is broken."""
    with contextlib.suppress(durable.Unreadable):
        return durable.read(path) or {}
    return {}
