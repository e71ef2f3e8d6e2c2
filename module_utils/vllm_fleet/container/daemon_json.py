# SPDX-License-Identifier: Apache-2.0
"""Docker's daemon.json: what is wanted laid over what is there, and what it takes to make it so. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

#: Keys that dockerd takes over on SIGHUP (docs.docker.com, dockerd, "Configuration reload behavior"); all others need
#: a restart of the engine.
RELOADABLE = frozenset(
    {
        "allow-nondistributable-artifacts",
        "authorization-plugins",
        "debug",
        "default-runtime",
        "features",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)


def parse(text: str) -> dict[str, Any]:
    """Return the file's settings; an empty file has no settings. Raises ValueError for anything but a JSON object."""
    if not text.strip():
        return {}
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, found {type(found).__name__}")
    return found


def render(settings: Mapping[str, Any]) -> str:
    """Write the file's content, keys in their order."""
    return json.dumps(settings, indent=2) + "\n"


def merge(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``wanted`` over ``existing``.

    Keys that are not wanted stay as they are: container toolkits and monitoring keep theirs in this file too. Objects
    are merged key by key, lists are extended by what they lack, ``None`` removes a key. The options of a log driver
    belong to that driver: when it changes, the old one's go with it.
    """
    out = dict(existing)
    if "log-driver" in wanted and existing.get("log-driver", "json-file") != wanted["log-driver"]:
        out.pop("log-opts", None)
    for key, value in wanted.items():
        have = out.get(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(have, Mapping):
            out[key] = merge(have, value)
        elif isinstance(value, list) and isinstance(have, list):
            out[key] = [*have, *(item for item in value if item not in have)]
        else:
            out[key] = value
    return out


def differences(existing: Mapping[str, Any], merged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the keys that differ, with current and desired value (None: absent), sorted."""
    return [
        {"name": key, "current": existing.get(key), "desired": merged.get(key)}
        for key in sorted(existing.keys() | merged.keys())
        if existing.get(key) != merged.get(key)
    ]


def action(
    changed: Collection[str], running: bool, live_containers: int, live_restore: bool, allow_restart: bool
) -> str:
    """Return what it takes: ``start``, ``none``, ``reload``, ``restart``, or ``pending`` (a restart that must wait).

    An engine is restarted only where that stops no container: none runs, they survive it (live-restore is
    active), or it is allowed.
    """
    if not running:
        return "start"
    if not changed:
        return "none"
    if all(key in RELOADABLE for key in changed):
        return "reload"
    if live_containers == 0 or live_restore or allow_restart:
        return "restart"
    return "pending"
