# SPDX-License-Identifier: Apache-2.0
"""What the process of a machine is told: its file, checked once. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

FILE = "/etc/vllm-fleet/metrics.json"
#: Where the textfile collector of Debian's and Ubuntu's node_exporter reads.
OUT = "/var/lib/prometheus/node-exporter/vllm-fleet.prom"


@dataclass(frozen=True)
class Settings:
    """``servers``: the servers that the inventory describes on this machine, by name, with the labels of each.

    ``gateway`` is the port of HAProxy's figures on loopback, 0 for none; ``certificates`` are files, by what they are
    called; ``interval`` is seconds.
    """

    state_dir: str = "/var/lib/vllm-fleet"
    docker_socket: str = "/var/run/docker.sock"
    run_dir: str = "/run/vllm-fleet"
    sysfs: str = "/sys"
    out: str = OUT
    interval: float = 15.0
    gateway: int = 0
    lock: str = ""
    servers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    certificates: Mapping[str, str] = field(default_factory=dict)


def parse(text: str) -> Settings:
    """Return the settings in a file's ``text``. Raises ValueError, one sentence: what, expected, found."""
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError(f"the settings should be an object, found {type(given).__name__}")
    made: dict[str, Any] = {}
    for one in fields(Settings):
        value = given.pop(one.name, None)
        if value is None:
            continue
        if one.name in ("servers", "certificates"):
            right = isinstance(value, dict)
        elif one.name in ("interval", "gateway"):
            right = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
        else:
            right = isinstance(value, str)
        if not right:
            raise ValueError(f"{one.name} should be of another kind, found {value!r}")
        made[one.name] = value
    if given:
        raise ValueError(f"the settings have {', '.join(sorted(given))}, which nothing reads: of another version?")
    if not made.get("interval", 1):
        raise ValueError("interval should be above 0 seconds")
    return Settings(**made)
