# SPDX-License-Identifier: Apache-2.0
"""The node's GPUs, looked at every few seconds: the driver's counters, and what the kernel logged since the boot."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from ..container.inspected import Inspected, renders
from ..host import gpu_health, render_nodes
from ..host.gpu_health import Fault
from .journal import read, write_whole

#: Seconds after which a look is said to be stuck.
STUCK = 60.0
#: Bytes of one record of the kernel's log, and records of one look; a boot writes some thousands.
RECORD, RECORDS = 8192, 50_000
#: Device in a container that computes on AMD's GPUs.
KFD = "/dev/kfd"


def used_by(container: Inspected) -> bool:
    """Whether a container was given AMD's GPUs."""
    devices = (container.get("HostConfig") or {}).get("Devices") or ()
    return any(device.get("PathInContainer") == KFD for device in devices)


class Gpus:
    """Looks at the GPUs under ``sysfs`` and reads the ``log`` of the kernel, as /dev/kmsg gives it.

    ``known`` is a file of the GPUs that were seen since the boot, so that one that is gone is missed.
    """

    def __init__(self, known: Path, sysfs: Path = Path("/sys"), log: Path = Path("/dev/kmsg")) -> None:
        """Nothing is read yet."""
        self._known, self._sysfs, self._path = known, sysfs, log
        self._log: int | None = None
        self._states: dict[str, str] = {}
        #: GPUs of whose memory more was in use at the last look than processes held: one that ends gives it free soon.
        self._loose: set[str] = set()
        #: The GPUs that the node has had since its boot, by their PCI addresses; and these by their render nodes.
        self.seen: set[str] = set()
        self._renders: dict[str, str] = {}
        self._thread: threading.Thread | None = None
        self._begun = 0.0
        self._found: list[Fault] | None = None

    @property
    def stuck(self) -> bool:
        """Whether a look has gone on for a minute: a driver that is being reset may not answer for ever."""
        going = self._thread is not None and self._thread.is_alive()
        return going and time.monotonic() - self._begun > STUCK

    def latest(self, pause: float) -> list[Fault] | None:
        """Return what a new look found, None where there is none; begin the next one ``pause`` seconds after the last.

        Each in a thread: the watchdog of a server must not wait for a GPU.
        """
        if self._thread is not None and self._thread.is_alive():
            return None
        found, self._found = self._found, None
        now = time.monotonic()
        if self._thread is None or now - self._begun >= pause:
            self._begun = now
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return found

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            self._found = self.faults()

    def faults(self, wanted: Collection[str] = (), *, keep: bool = True) -> list[Fault]:
        """Look once; return what is wrong, the serious first.

        ``wanted``: GPUs that have to be there besides; ``keep``: note which GPUs were seen.
        """
        now = gpu_health.read(self._sysfs)
        known, left = self.known(), read(self._known).get("renders") or {}
        self.seen = {*known, *now, *wanted}
        # One that is gone is no node of the topology any more.
        self._renders = {**left, **render_nodes.addresses(self._sysfs)}
        if keep and (now.keys() - known or self._renders != left):
            write_whole(self._known, {"gpus": sorted({*known, *now}), "renders": self._renders})
        self._states = gpu_health.states(self._new_lines(), self._states)
        loose, self._loose = self._loose, {pci for pci, one in now.items() if one.loose}
        faults = gpu_health.judge(self.seen, now, self._states)
        return [fault for fault in faults if fault.kind != "memory" or fault.pci in loose]

    def own(self, container: Inspected, faults: Iterable[Fault]) -> list[Fault]:
        """Return the faults of GPUs that a container has; all, where it has all GPUs, or it is not known which."""
        given = [self._renders.get(render) for render in renders(container) or ()]
        return [fault for fault in faults if not given or None in given or fault.pci in given]

    def known(self) -> set[str]:
        """Return the GPUs that were seen since the boot, as the file has them."""
        return {str(pci) for pci in read(self._known).get("gpus") or ()}

    def close(self) -> None:
        """Let go of the kernel's log."""
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _new_lines(self) -> list[str]:
        """Return what the kernel has logged since the last look; the first look reads all that it still has."""
        lines: list[str] = []
        try:
            if self._log is None:
                self._log = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
            for _ in range(RECORDS):
                try:
                    record = os.read(self._log, RECORD)
                except BrokenPipeError:
                    continue  # the kernel has overwritten what was next
                if not record:
                    break
                lines += record.decode(errors="replace").splitlines()
        except BlockingIOError:
            pass  # that was all
        except OSError:
            self.close()  # a container's /dev has none: counters are all there is
        return lines
