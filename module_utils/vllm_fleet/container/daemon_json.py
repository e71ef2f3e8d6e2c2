# SPDX-License-Identifier: Apache-2.0
"""Docker's daemon.json: what is wanted laid over what is there, and what it takes to make it so. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
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


#: Log drivers that write files and rotate them by `max-size` and `max-file` (docs.docker.com, "Logging drivers").
FILE_DRIVERS = ("json-file", "local")


def parse(text: str) -> dict[str, Any]:
    """Return the file's settings; an empty file has no settings. Raises ValueError for anything but a JSON object."""
    if not text.strip():
        return {}
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, found {type(found).__name__}")
    return found


def described(
    settings: Mapping[str, Any],
    *,
    log_driver: str = "",
    log_max_size: object = "",
    log_max_file: object = "",
    live_restore: bool = False,
    registry_mirrors: Sequence[str] = (),
    insecure_registries: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the settings that options describe, with any further ``settings`` over them, objects key by key.

    An empty option is no setting. Only the drivers that write files on the node know a size and a number of files.
    """
    bounds = {"max-size": str(log_max_size), "max-file": str(log_max_file)}
    options = {
        "log-driver": log_driver,
        "log-opts": bounds if log_driver in FILE_DRIVERS else {},
        "live-restore": bool(live_restore),
        "registry-mirrors": registry_mirrors,
        "insecure-registries": insecure_registries,
    }
    return _over({key: value for key, value in options.items() if value}, settings)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _over(out[key], value) if both else value
    return out


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
