# SPDX-License-Identifier: Apache-2.0
"""What of a watchdog is to be on its node, and what of that is not: the unit's text, and the differences. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..container.compare import Difference

PROGRAM = "/usr/local/lib/vllm-fleet/watchdog.pyz"
PYTHON = "/usr/bin/python3"
TEMPLATE = "vllm-fleet-watchdog@.service"

#: For every server of a node. It asks Docker's socket, which is as much as being root: the rest keeps accidents small.
#: ProtectHome is read-only because the model's files may lie in root's home, and a restart looks at them.
UNIT = f"""\
# Of vllm-fleet, role vllm_watchdog: the next run overwrites what is changed here.
[Unit]
Description=Watchdog of the vLLM server %i
After=docker.service network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={PYTHON} -I {PROGRAM} run %i
Restart=always
RestartSec=5
RuntimeDirectory=vllm-fleet/%i
RuntimeDirectoryPreserve=yes
NoNewPrivileges=yes
PrivateTmp=yes
ProtectHome=read-only
ProtectSystem=full
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelModules=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def instance(name: str) -> str:
    """Return the unit of a server."""
    return TEMPLATE.replace("@.", f"@{name}.")


def text(settings: Mapping[str, Any]) -> str:
    """Return the settings as their file has them."""
    return json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


#: Starts by systemd itself after which a watchdog that is not running is one that ends again and again.
ENDS = 3


def state(shown: str) -> str:
    """Return the state of a unit by what `systemctl show` printed of ActiveState, SubState and NRestarts.

    One that has just ended is started again by systemd after some seconds: nothing differs.
    """
    told = dict(line.partition("=")[::2] for line in shown.splitlines())
    active = told.get("ActiveState") or "inactive"
    if (active, told.get("SubState")) != ("activating", "auto-restart"):
        return active
    return "ends" if int(told.get("NRestarts") or 0) >= ENDS else "active"


@dataclass(frozen=True)
class Found:
    """What a node has. ``program`` is a file's SHA-256, ``settings`` and ``unit`` are texts, None where there is none.

    ``state`` is systemd's word for the server's unit, `ends` for one that ends again and again; ``others``: further
    servers of the node have settings.
    """

    program: str | None = None
    settings: str | None = None
    unit: str | None = None
    enabled: bool = False
    state: str = "inactive"
    others: bool = False


def missing(found: Found, program: str, settings: Mapping[str, Any]) -> list[Difference]:
    """Return what differs from a watchdog with these settings that runs, the SHA-256 of its program being ``program``.

    A change of settings alone needs no restart: the program reads them again.
    """
    out = [Difference("program", _short(found.program), _short(program))] if found.program != program else []
    if found.unit != UNIT:
        out.append(Difference("unit", found.unit, UNIT))
    out += _settings(found.settings, settings)
    if not found.enabled:
        out.append(Difference("enabled", False, True))
    if found.state not in ("active", "ends"):
        out.append(Difference("state", found.state, "active"))
    return out


def left(found: Found) -> list[Difference]:
    """Return what is there of a watchdog that is not wanted. Program and unit go with the node's last server."""
    out = []
    if found.settings is not None:
        out.append(Difference("settings", "there", None))
    if found.enabled:
        out.append(Difference("enabled", True, False))
    if found.state in ("active", "activating", "reloading", "ends"):
        out.append(Difference("state", found.state, "inactive"))
    if not found.others:
        if found.unit is not None:
            out.append(Difference("unit", "there", None))
        if found.program is not None:
            out.append(Difference("program", "there", None))
    return out


def _short(digest: str | None) -> str | None:
    return digest[:12] if digest else digest


def _settings(current: str | None, desired: Mapping[str, Any]) -> list[Difference]:
    """Compare the settings one by one; a file that cannot be read is replaced as a whole."""
    if current == text(desired):
        return []
    try:
        known = json.loads(current) if current is not None else None
    except ValueError:
        known = None
    if not isinstance(known, dict):
        return [Difference("settings", None if current is None else "unreadable", "as described")]
    names = [name for name in sorted({*known, *desired}) if known.get(name) != desired.get(name)]
    found = [Difference(f"settings.{name}", known.get(name), desired.get(name)) for name in names]
    return found or [Difference("settings", "in another form", "as described")]
