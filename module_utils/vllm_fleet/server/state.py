# SPDX-License-Identifier: Apache-2.0
"""What the node remembers between runs: which container was good, failed logs, the flags an image knows, a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common import durable
from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container.plan import Trust
from ..vllm.cli import Known

#: Logs of failed starts that are kept for each container name.
KEPT_LOGS = 10
KEY_BYTES = 32
#: As RECORD of host/place.py, which a run on a node of one server does not import.
PLACE = "place.json"
TRIAL = "trial.json"


class LockTaken(Exception):
    """Another run works on the same container on this node; the text says which process."""


class NodeState:
    """The folder ``<state_dir>/<name>`` on the node. Reading never creates anything."""

    def __init__(self, state_dir: str, name: str) -> None:
        """Remember where; nothing is touched yet."""
        self.root = Path(state_dir)
        self.folder = self.root / name

    @property
    def place(self) -> Path | None:
        """Return the record of the server's place on a node that it shares (host/place.py); None without one."""
        path = self.folder / PLACE
        return path if path.exists() else None

    # -- trust -------------------------------------------------------------------------------------------------

    def damage(self) -> durable.Unreadable | None:
        """Return why it cannot be read how good the containers are; None where it can, or nothing was noted yet."""
        try:
            _ranks(durable.read(self._file) or {}, self._file)
        except durable.Unreadable as error:
            return error
        return None

    def trust(self, container: str) -> Trust:
        """Return how good a container is known to be; nodes have it as `ranks` in a file."""
        ranks = self._memory().get("ranks")
        number = ranks.get(container, 0) if isinstance(ranks, dict) else 0
        return Trust(number) if number in list(Trust) else Trust.UNKNOWN

    def note_trust(self, container: str, trust: Trust, existing: tuple[str, ...]) -> None:
        """Note how good a container is (that only rises), and forget those that are not in ``existing`` any more.

        What cannot be read is written anew only where nothing is lost by it: with one container, or with one that is
        now known to be as good as any. Raises Unreadable.
        """
        try:
            state = durable.read(self._file) or {}
            old = _ranks(state, self._file)
        except durable.Unreadable:
            if len(set(existing)) > 1 and trust is not Trust.CONFIRMED:
                raise
            state, old = {}, None
        ranks = {k: v for k, v in (old or {}).items() if k in existing}
        # One that failed is below one of which nothing is known, so only what was noted counts.
        ranks[container] = max(int(trust), int(self.trust(container))) if container in ranks else int(trust)
        if ranks != old:  # nearly every run has nothing new to note
            self.write(self._file, {**state, "ranks": ranks})

    def restoring(self) -> str | None:
        """Which container an interrupted ``state: restored`` was to bring back; None when there is none."""
        found = self._memory().get("restoring")
        return str(found) if found else None

    def note_restoring(self, container: str | None) -> None:
        """Note the beginning of a restore on request, or (None) its end."""
        if self.restoring() != container:
            self._note("restoring", container)

    # -- a release whose rollout is not finished ----------------------------------------------------------------------

    def trial(self, container: str) -> bool:
        """Return whether a container has a release whose rollout has not come to its end."""
        return self.trial_since(container) is not None

    def trial_since(self, container: str) -> float | None:
        """Return since when a container has such a release, in seconds since 1970; None where it has none."""
        since = self.trial_note(container).get("since")
        return float(since) if isinstance(since, (int, float)) else None

    def trial_note(self, container: str) -> Mapping[str, Any]:
        """Return what is noted of such a release; empty where it has none.

        `since`; `before`, the number of the release that it came after; what its soak found, `first` and `wrong`.
        """
        found = self._read(self.folder / TRIAL)
        return found if found.get("container") == container else {}

    def note_trial(self, container: str, since: float, before: int | None = None) -> None:
        """Note that the rollout of a container's release goes on; ``since`` is the time in seconds since 1970.

        ``before``: the number of the release that ran until then. The role rollout removes the file.
        """
        if not self.trial(container):
            self.write(self.folder / TRIAL, {"container": container, "since": since, "before": before})

    def note_soak(self, container: str, found: Mapping[str, Any], *, since: float | None = None) -> None:
        """Note what the soak of a release on trial has found, or (``since``) that its time begins then.

        What the first look counted is then no beginning any more; that it did not pass stays. Of a release that is not
        on trial nothing is noted.
        """
        if not self.trial(container):
            return
        note = {**self.trial_note(container)}
        if since is not None:
            note.pop("first", None)
            note["since"] = since
        self.write(self.folder / TRIAL, {**note, **found})

    # -- a server that is stopped to be replaced -------------------------------------------------------------------

    def stopping(self) -> tuple[str, str] | None:
        """Return which container a run stopped whose end was not seen: its id, and when Docker had started it."""
        found = self._memory().get("stopping")
        return (str(found[0]), str(found[1])) if isinstance(found, list) and len(found) == 2 else None

    def note_stopping(self, container: tuple[str, str] | None) -> None:
        """Note that a container is about to be stopped for another one, or (None) that the run came to its end."""
        if self.stopping() != container:
            self._note("stopping", [*container] if container else None)

    # -- secrets' fingerprints ---------------------------------------------------------------------------------

    def fingerprint_key(self, *, create: bool) -> bytes:
        """Return the node's key for fingerprints; without ``create`` an ephemeral one when there is none yet."""
        path = self.root / "fingerprint.key"
        with contextlib.suppress(FileNotFoundError):
            if len(key := path.read_bytes()) != KEY_BYTES:
                raise Refused(
                    FailureClass.UNKNOWN,
                    f"{path} has {len(key)} bytes, expected {KEY_BYTES}: secrets could be guessed from what it makes",
                    "remove it; the next run makes a new one, and takes secrets of recorded releases for changed",
                )
            return key
        key = secrets.token_bytes(KEY_BYTES)
        if create:
            self._write_bytes(path, key)
        return key

    # -- flags of an image -------------------------------------------------------------------------------------

    def flags(self, image_id: str) -> Known | None:
        """What an image's server knows; empty when it could not be asked, None when it never was."""
        found = self._read(self._flags_file(image_id))
        flags, choices, numbers = (found.get(key) for key in ("flags", "choices", "numbers"))
        if not (isinstance(flags, list) and isinstance(choices, dict) and isinstance(numbers, list)):
            return None  # an earlier version asked for the flags alone
        return Known(frozenset(flags), {name: tuple(of) for name, of in choices.items()}, frozenset(numbers))

    def note_flags(self, image_id: str, known: Known) -> None:
        """Keep what an image answered; its id names the bytes, so the answer never grows old."""
        choices = {name: list(of) for name, of in sorted(known.choices.items())}
        answer = {"flags": sorted(known.flags), "choices": choices, "numbers": sorted(known.numbers)}
        self.write(self._flags_file(image_id), answer)

    def _flags_file(self, image_id: str) -> Path:
        return self.root / "flags" / f"{image_id.removeprefix('sha256:')[:24]}.json"

    # -- engine caches and logs --------------------------------------------------------------------------------

    @property
    def engine_caches(self) -> Path:
        """Folder of the compile caches of all servers of the node."""
        return self.root / "engine-cache"

    def engine_cache(self, image_id: str, model: str) -> Path:
        """Folder for the engine's compile caches: one for each image and model, since neither fits another."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "--", model).strip("-")
        return self.engine_caches / f"{image_id.removeprefix('sha256:')[:12]}-{slug}"

    def save_log(self, data: bytes, container: str) -> Path:
        """Keep the full log of a failed start, readable by root alone, and drop the oldest ones."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self.folder / "logs" / f"{stamp}-{container[:12]}.log"
        self._write_bytes(path, data)
        # Not this one, whose time may be the oldest: clocks are set back.
        others = sorted(old for old in path.parent.glob("*.log") if old != path)
        for old in others[: max(0, len(others) - KEPT_LOGS + 1)]:
            old.unlink(missing_ok=True)
        return path

    # -- a failed start whose answer may get lost ------------------------------------------------------------------

    def note_failure(self, container: str, found: Mapping[str, Any]) -> None:
        """Keep what was found out of a container whose start failed, before the one that ran before it comes back."""
        self.write(self.folder / "failure.json", {**found, "container": container})

    def failure(self, container: str) -> Mapping[str, Any] | None:
        """Return what was noted of a container; None where it is not the latest that failed."""
        found = self._read(self.folder / "failure.json")
        return found if found.get("container") == container else None

    # -- lock --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, wait: float) -> Iterator[None]:
        """Hold the node's lock for this container, waiting up to ``wait`` seconds. Raises LockTaken.

        The kernel drops it with the process, so a killed run leaves none behind.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "lock").open("a+") as handle:
            deadline = time.monotonic() + wait
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() >= deadline:
                        handle.seek(0)
                        raise LockTaken(
                            f"another run holds {self.folder}/lock ({handle.read().strip() or 'unknown'})"
                        ) from None
                    time.sleep(0.2)  # flock has no timed wait; a signal would end the module
            with contextlib.suppress(OSError):  # who holds it is a help to the reader; a full disk is no reason to stop
                os.ftruncate(handle.fileno(), 0)
                os.write(handle.fileno(), f"pid {os.getpid()}".encode())
            yield

    # -- files -------------------------------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        return self.folder / "state.json"

    def _memory(self) -> Mapping[str, Any]:
        """Return what is noted, nothing where that cannot be read: who would remove something asks for `damage`."""
        with contextlib.suppress(durable.Unreadable):
            return durable.read(self._file) or {}
        return {}

    def _note(self, key: str, value: object) -> None:
        """Note a value beside the rest, or (None) forget it. Raises Unreadable."""
        state = {k: v for k, v in (durable.read(self._file) or {}).items() if k != key}
        self.write(self._file, {**state, **({key: value} if value else {})})

    @staticmethod
    def _read(path: Path) -> Mapping[str, Any]:
        """Return what a file holds that is asked for again where it is lost."""
        with contextlib.suppress(durable.Unreadable):
            return durable.read(path) or {}
        return {}

    def write(self, path: Path, value: Mapping[str, Any]) -> None:
        """Write JSON whole or not at all, readable by its owner alone."""
        self._write_bytes(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")

    @staticmethod
    def _write_bytes(path: Path, data: bytes) -> None:
        durable.make_folders(path.parent, 0o700)
        durable.write(path, data)


def _ranks(state: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """Return how good containers were noted to be, None where nothing was. Raises Unreadable."""
    ranks = state.get("ranks")
    if ranks is not None and not isinstance(ranks, dict):
        raise durable.Unreadable(errno.EBADMSG, "is damaged", str(path))
    return ranks


def unwritable(error: OSError, folder: str) -> Refused:
    """Return why a file of the project's ``folder`` on the node cannot be written, and what to do."""
    path = str(error.filename or folder)
    if isinstance(error, durable.Unreadable):
        return Refused(
            FailureClass.UNKNOWN,
            f"{path} cannot be read ({error.strerror})",
            "see what is wrong with it and its disk, then move it away and run again",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused(
            FailureClass.DISK_FULL, f"there is no space left to write {path}", "free space on that disk, then run again"
        )
    return Refused(
        FailureClass.UNKNOWN,
        f"{path} cannot be written ({error.strerror or error})",
        "run as root (become: true), or set state_dir (vllm_server_state_dir) to a folder that this user may write",
    )
