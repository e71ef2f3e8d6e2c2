# SPDX-License-Identifier: Apache-2.0
"""What the watchdog of a server thinks of it, for a table of the fleet: two small files are read, nothing is asked."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Where the package watchdog, which imports this one, keeps the present state (watchdog/places.py).
STATE = "run/vllm-fleet/{name}/watchdog.json"
#: There where systemd is the first process, and where it runs the server's watchdog (cgroup v2, then v1).
BOOTED = "run/systemd/system"
UNIT = r"system.slice/system-vllm\x2dfleet\x2dwatchdog.slice/vllm-fleet-watchdog@{name}.service"
CGROUPS = ("sys/fs/cgroup", "sys/fs/cgroup/systemd")


def look(name: str, root: Path = Path("/")) -> dict[str, Any]:
    """Return `state`, `seconds` since when, `why`, `quarantine` (why GPUs cannot be trusted), `restarts`, `last_event`.

    `restarts` counts those of the last hour. `state` is `none` without a watchdog, `no systemd` where there can be
    none, `stopped` where it does not run, else the watchdog's own word.
    """
    if not (root / BOOTED).is_dir():
        return {"state": "no systemd"}
    try:
        found = json.loads((root / STATE.format(name=name)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    runs = any((root / tree / UNIT.format(name=name)).is_dir() for tree in CGROUPS)
    if not isinstance(found, Mapping):
        return {"state": "starting" if runs else "none"}
    since, last = found.get("since"), found.get("last_event")
    return {
        "state": str(found.get("state")) if runs else "stopped",
        "seconds": round(max(0.0, time.time() - since), 1) if isinstance(since, (int, float)) else None,
        "why": str(found.get("trouble") or found.get("why") or ""),
        "quarantine": str(found.get("quarantine") or "") if runs else "",
        "restarts": len(found.get("restarts") or ()),
        "last_event": {key: str(last.get(key) or "") for key in ("at", "kind", "why")} if last else None,
    }
