# SPDX-License-Identifier: Apache-2.0
"""How often each kind of event has happened, as node_exporter's textfile collector reads it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .words import KINDS

#: Beside the events: kind -> number.
COUNTS = "counts.json"
#: Where Debian's and Ubuntu's prometheus-node-exporter reads.
FOLDER = "/var/lib/prometheus/node-exporter"
METRIC = "vllm_fleet_watchdog_events_total"


def file_name(server: str) -> str:
    """Return the file of a server's counts."""
    return f"vllm-fleet-watchdog-{server}.prom"


def page(server: str, counts: Mapping[str, Any]) -> str:
    """Return the counts in Prometheus' format; a kind that never happened is 0, so that its first time is a rise."""
    lines = [f"# HELP {METRIC} Events of a server's watchdog.", f"# TYPE {METRIC} counter"]
    lines += [f'{METRIC}{{server="{server}",kind="{kind}"}} {int(counts.get(kind) or 0)}' for kind in KINDS]
    return "\n".join(lines) + "\n"
