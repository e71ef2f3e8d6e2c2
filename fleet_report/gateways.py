# SPDX-License-Identifier: Apache-2.0
"""What the gateways said of themselves to one table. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fleet_report.summary import table
from fleet_report.words import DASH, clip

HEAD = ["GATEWAY", "HAPROXY", "STATE", "UP", "REQUESTS", "WAITING", "OUT"]
#: Characters of a reason in the table.
WIDTH = 90


def lines(gateways: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Write the table: results of gateway_info by gateway. OUT are servers that get no requests, and their state."""
    return table([HEAD, *([name, *_cells(found or {})] for name, found in gateways.items())])


def _cells(found: Mapping[str, Any]) -> list[str]:
    if not found.get("running"):
        why = str(found.get("reason") or found.get("msg") or "it was not asked").strip().splitlines()[-1]
        return [DASH, "stopped" if "reason" in found else "unreachable", DASH, DASH, DASH, clip(why, WIDTH)]
    servers = found.get("servers") or []
    out = [f"{one['name']} {one['status']}" for one in servers if not str(one["status"]).startswith("UP")]
    return [
        str(found.get("version") or DASH),
        "running",
        f"{len(servers) - len(out)} of {len(servers)}",
        str(sum(one["sessions"] for one in servers)),
        str(sum(one["queue"] for one in servers)),
        clip(", ".join(out), WIDTH) or "none",
    ]
