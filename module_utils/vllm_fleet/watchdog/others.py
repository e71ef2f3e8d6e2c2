# SPDX-License-Identifier: Apache-2.0
"""Who else has a hand in a server, so that the watchdog leaves it alone: an operator, a module, a rollout, Docker."""

from __future__ import annotations

import contextlib
import fcntl
import time
from pathlib import Path

from ..common import maintenance
from ..container.inspected import Inspected
from .places import Places
from .settings import Settings
from .standing import HOUR


class Others:
    """Looks for their traces; changes nothing."""

    def __init__(self, settings: Settings, where: Places) -> None:
        """Nothing is looked at yet."""
        self._lock = Path(settings.state_dir) / settings.name / "lock"
        self._maintenance = maintenance.path(settings.state_dir, settings.name)
        self._rollout = where.rollout
        self._note: tuple[float, float] | None = None  # its time, and when it was first seen

    def reason(self, found: Inspected) -> str:
        """Return why a container's server is left alone, as a sentence without the full stop; empty if it is not."""
        state = found["State"]
        if state.get("Paused"):
            return "the container is paused"
        if state.get("Restarting"):
            return "Docker's restart policy is starting the container"
        if not state.get("Running"):
            return f"the container does not run ({state.get('Status')}, exit code {state.get('ExitCode')})"
        if self.locked():
            return "a run of vllm_server works on the server"
        if self._drained():
            return "a rollout has drained the server"
        return "the server is in maintenance" if self._maintenance.exists() else ""

    def locked(self) -> bool:
        """Whether a module holds the server's lock."""
        with contextlib.suppress(FileNotFoundError), self._lock.open("rb") as handle:
            try:
                # Shared, so that two that only look do not hinder each other; it ends with the block.
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _drained(self) -> bool:
        """Whether a rollout's note is there and younger than an hour, by the node's clock and by the watchdog's own."""
        try:
            written = self._rollout.stat().st_mtime
        except OSError:
            self._note = None
            return False
        if self._note is None or self._note[0] != written:
            self._note = (written, time.monotonic())
        # The node's clock may be set back.
        return time.time() < written + HOUR and time.monotonic() < self._note[1] + HOUR
