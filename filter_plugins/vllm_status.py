# SPDX-License-Identifier: Apache-2.0
"""Filters for the tables of playbooks/status.yml, usage.yml, events.yml and logs.yml; the logic is in fleet_report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.vllm import host_variables  # noqa: E402
from fleet_report import gateways, logs, status, usage, watchdogs  # noqa: E402  found only with the line above


def vllm_status_rows(
    hostvars: Mapping[str, Any], hosts: Sequence[str], fleet: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the table's rows from what vllm_server returned on each host; one without a result was not asked.

    ``fleet`` are all hosts that serve: what none of them describes has a row, too.
    """
    own = {host: hostvars[host] for host in hosts}
    watched = {host for host in hosts if host_variables.watched(own[host])}
    results = {host: own[host].get("vllm_server_result") for host in hosts}
    nodes = {host: str(node) for host in hosts if (node := own[host].get("vllm_node"))}
    others = {
        host: servers
        for host, found in results.items()
        if isinstance(found, Mapping)
        and (servers := host_variables.servers_seen(found))
        and set(servers) - {host_variables.container_name(own[host])}
    }
    return status.rows(results, watched, nodes, host_variables.undescribed(hostvars, fleet or hosts, others))


def vllm_fleet_logs(found: Mapping[str, Mapping[str, Any] | None], level: str, since: str) -> str:
    """Return the lines of all servers as text, from the results of vllm_logs by host."""
    asked = (f"of class {level}" if level != "debug" else "in the logs") + (f" in the last {since}" if since else "")
    return "\n".join(logs.lines(found, asked))


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {
            "vllm_fleet_events": lambda found, since: "\n".join(watchdogs.lines(found, since)),
            "vllm_fleet_logs": vllm_fleet_logs,
            "vllm_gateways_table": lambda found: "\n".join(gateways.lines(found)),
            "vllm_gateways_usage": lambda found, since, until: "\n".join(usage.lines(found, since, until)),
            "vllm_gateways_usage_csv": lambda found: usage.csv_text(usage.rows_of(found)),
            "vllm_status_rows": vllm_status_rows,
            "vllm_status_table": lambda rows: "\n".join(status.lines(rows)),
        }
