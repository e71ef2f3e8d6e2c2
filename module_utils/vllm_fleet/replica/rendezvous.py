# SPDX-License-Identifier: Apache-2.0
"""Where the controller's processes for the nodes of one replica meet: files in a folder of this run.

Ansible runs a task for every host in a process of its own. Those of one replica show each other how far their node is
by small files, written whole; a process that is gone without a word is noticed by its number. Standard library alone:
it runs on the controller.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: Seconds between two looks; the files are local.
INTERVAL = 0.05


class Lost(Exception):
    """A partner will not come: its process ended, or it never arrived."""

    def __init__(self, host: str, why: str) -> None:
        """Remember who."""
        super().__init__(f"{host} {why}")
        self.host, self.why = host, why


class Rendezvous:
    """One host's side of one meeting."""

    def __init__(self, folder: Path, replica: str, host: str, hosts: Sequence[str]) -> None:
        """Open the meeting that this host has not left yet: a replica may meet several times in a run."""
        self.host, self.hosts = host, list(hosts)
        self.partners = [h for h in self.hosts if h != host]
        number = 0
        while (folder / f"{_safe(replica)}-{number}" / f"{_safe(host)}.gone").exists():
            number += 1
        self.folder = folder / f"{_safe(replica)}-{number}"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.publish("pid", os.getpid())

    def publish(self, topic: str, value: Any) -> None:
        """Publish ``value`` as ``topic``, for the others."""
        path = self._path(self.host, topic)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(value, default=str))
        part.replace(path)

    def read(self, host: str, topic: str) -> Any:
        """Return what a host has published; None when it has not."""
        try:
            return json.loads(self._path(host, topic).read_text())
        except (OSError, ValueError):
            return None

    def published(self, topic: str) -> dict[str, Any]:
        """Return what has been published so far, the earliest first."""
        found = []
        for host in self.hosts:
            value = self.read(host, topic)
            if value is not None:
                found.append((self._path(host, topic).stat().st_mtime_ns, host, value))
        return {host: value for _, host, value in sorted(found, key=lambda item: item[:2])}

    def lost(self, host: str, topic: str) -> str:
        """Return why a partner will not publish ``topic`` any more; empty while it still may."""
        pid = self.read(host, "pid")
        alive = pid is not None and _alive(int(pid))
        left = self.read(host, "gone")
        if pid is None or (alive and left is None) or self.read(host, topic) is not None:
            return ""
        return str(left or "dropped out of the run: its process on the controller is gone")

    def gather(
        self, topic: str, *, arrival: float | None = None, until: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Wait for all to publish ``topic``; what there is when ``until`` becomes true. Raises Lost.

        ``arrival``: seconds that a partner may take to come at all.
        """
        begun = time.monotonic()
        while True:
            found = self.published(topic)
            if len(found) == len(self.hosts) or until():
                return found
            for host in self.partners:
                why = self.lost(host, topic)
                if why:
                    raise Lost(host, why)
                if arrival is not None and time.monotonic() - begun > arrival and self.read(host, "pid") is None:
                    raise Lost(host, f"has not come to this task within {arrival:.0f} s")
            time.sleep(INTERVAL)  # several processes, no common queue

    def leave(self, why: str) -> None:
        """Leave: after this no partner waits for this host. ``why`` is what they read."""
        self.publish("gone", why)

    def _path(self, host: str, topic: str) -> Path:
        return self.folder / f"{_safe(host)}.{topic}"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", lambda m: f"%{ord(m.group()):02x}", name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
