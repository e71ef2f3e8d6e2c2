# SPDX-License-Identifier: Apache-2.0
"""What a gateway has of the address that gateways share: its interfaces, keepalived, files of either."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# keepalived's own, of Debian and Ubuntu (there /var/run is /run).
PID_FILE = "/run/keepalived.pid"
OWN_CONFIG = "/etc/keepalived/keepalived.conf"
PROGRAM = "/usr/sbin/keepalived"


def look(address: str, files: Mapping[str, str], digest: Callable[[str], str | None]) -> dict[str, Any]:
    """Return the IPv4 `addresses` by interface, whether one is ``address`` (`holds`), whether keepalived is `installed`
    and `running`, what was `wanted`, and its `foreign` configuration, if it has one.

    ``files`` are paths with the digest that each should have: some are `there`, some `differing`. An address may
    have its prefix. Without the program `ip` there are no addresses.
    """
    addresses = _addresses()
    return {
        "wanted": address,
        "installed": Path(PROGRAM).is_file(),
        "running": _runs(),
        "addresses": addresses,
        "holds": bool(address) and any(address.partition("/")[0] in here for here in addresses.values()),
        "there": [name for name in files if Path(name).exists()],
        "differing": [name for name, wanted in files.items() if not Path(name).is_file() or digest(name) != wanted],
        "foreign": OWN_CONFIG if _is_filled(Path(OWN_CONFIG)) else "",
    }


def _addresses() -> dict[str, list[str]]:
    try:
        done = subprocess.run(["ip", "-json", "-4", "address"], capture_output=True, text=True, check=True, timeout=10)
        # Without an address of the family an interface is an empty object.
        return {
            one["ifname"]: [entry["local"] for entry in one.get("addr_info", []) if "local" in entry]
            for one in json.loads(done.stdout)
            if "ifname" in one
        }
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def _runs() -> bool:
    try:
        number = Path(PID_FILE).read_text(encoding="ascii").strip()
        return Path("/proc", number, "comm").read_text(encoding="utf-8").strip() == "keepalived"
    except (OSError, ValueError):
        return False


def _is_filled(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
