# SPDX-License-Identifier: Apache-2.0
"""What the project has noted on a node about its servers: releases, failed starts, watchdogs, the fleet's lock."""

from __future__ import annotations

import contextlib
from calendar import timegm
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import strptime
from typing import Any

from ..common import durable, maintenance
from ..server.release_store import Releases
from ..server.state import NodeState
from .page import Page

#: What a watchdog may think of its server (watchdog/words.py, STATES).
WATCHDOG_STATES = ("starting", "serving", "hung", "restarting", "out", "left_alone", "absent")


@dataclass(frozen=True)
class Known:
    """What is noted of one server: the newest record, and the class and time of the last failed start."""

    record: Mapping[str, Any] | None
    failed: str | None
    failed_at: float | None


class Records:
    """The folder of the project on a node, read again only where a file has changed."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        """Remember where."""
        self._root, self._run = state_dir, run_dir
        self._kept: dict[str, tuple[tuple[Any, ...], Known]] = {}

    def known(self, server: str) -> Known:
        """Return what is noted of a server."""
        store = Releases(NodeState(str(self._root), server))
        newest, failure = max(store.files(), default=None), self._root / server / "failure.json"
        stamp = (newest, _changed(newest), _changed(failure))
        kept = self._kept.get(server)
        if kept is None or kept[0] != stamp:
            found = _json(failure)
            last = store.read(newest) if newest else None
            why = found.get("failure")
            failed = str((why if isinstance(why, dict) else {}).get("class") or "unknown") if found else None
            kept = (stamp, Known(last, failed, _changed(failure) if found else None))
            self._kept[server] = kept
        return kept[1]

    def watchdog(self, page: Page, server: str, labels: Mapping[str, object]) -> None:
        """Add what the server's watchdog says, where it has one."""
        found = _json(self._run / server / "watchdog.json")
        state = found.get("state")
        if state not in WATCHDOG_STATES:
            return
        for one in WATCHDOG_STATES:
            page.add("vllm_fleet_watchdog_state", one == state, {**labels, "state": one})
        page.add("vllm_fleet_quarantined", bool(found.get("quarantine")), labels)

    def maintenance(self, page: Page, server: str, labels: Mapping[str, object]) -> None:
        """Add whether playbooks/stop.yml has put the server into maintenance: nobody is to be called for it."""
        page.add("vllm_fleet_maintenance", maintenance.path(str(self._root), server).exists(), labels)

    def lock(self, page: Page, path: str) -> None:
        """Add since when a run holds the fleet, and when it last said so; 0 for no run."""
        if path:
            found = _json(Path(path))
            page.add("vllm_fleet_run_since_timestamp_seconds", moment(found.get("since")) or 0)
            page.add("vllm_fleet_run_renewed_timestamp_seconds", (_changed(Path(path)) or 0) if found else 0)


def moment(given: Any) -> float | None:
    """Return a noted time of UTC, 2026-11-30T10:00:00Z or 2026-11-30 10:00:00 UTC, in seconds since 1970."""
    with contextlib.suppress(ValueError, OverflowError):
        return float(timegm(strptime(str(given)[:19].replace("T", " "), "%Y-%m-%d %H:%M:%S")))
    return None


def _changed(path: Path | None) -> float | None:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime if path else None
    return None


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        return durable.read(path) or {}
    return {}
