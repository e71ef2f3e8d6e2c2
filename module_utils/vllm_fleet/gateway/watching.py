# SPDX-License-Identifier: Apache-2.0
"""The port of a gateway that leads to Prometheus, from the inventory. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..vllm.host_variables import LOOPBACK, WILDCARDS
from .fronts import local_port
from .pools import backend_name, is_loopback, same_machine


def behind(hostvars: Mapping[str, Any], hosts: Iterable[str], gateway: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `servers` (`name`, `address`, `port`) behind gateway_monitoring_port, and, as sentences, `problems`.

    ``hosts`` are those of group monitoring, the first of them serves. ``given`` are the variables of the gateway,
    defaults among them. Without the port there are neither.
    """
    port, own, hosts = int(given["gateway_monitoring_port"]), hostvars[gateway], list(hosts)
    if not port:
        return {"servers": [], "problems": []}
    fronts = {int(one): "a port of models" for one in (given["gateway_port"], *given["gateway_ports"].values())}
    taken = {local_port(one, int(given["gateway_local_offset"])): "a port of models on loopback" for one in fronts}
    taken |= {**fronts, int(given["gateway_stats_port"]): "gateway_stats_port"}
    taken[int(own.get("monitoring_node_port") or 9110)] = "monitoring_node_port"
    servers, problems = [], []
    if not hosts:
        problems.append(
            f"gateway_monitoring_port of {gateway} is {port}, but group monitoring has no hosts: name the host of "
            "Prometheus there, or leave the port at 0."
        )
    for host in hosts:
        server = hostvars[host]
        bind, where = str(server.get("monitoring_bind") or LOOPBACK), int(server.get("monitoring_port") or 9090)
        here = same_machine(server, own)
        if here:
            taken |= {
                where: "monitoring_port",
                int(server.get("monitoring_alertmanager_port") or 9093): "Alertmanager's",
            }
        lacks = [name for name in ("monitoring_certificate", "monitoring_users") if not server.get(name)]
        if lacks:
            problems.append(
                f"gateway_monitoring_port of {gateway} would open the Prometheus of {host} without "
                f"{' and '.join(lacks)}: set them for group monitoring and run playbooks/monitoring.yml, or leave the "
                "port at 0."
            )
        if is_loopback(bind) and not here:
            problems.append(
                f"The Prometheus of {host} listens on {bind} alone, where {gateway} cannot reach it: set "
                "monitoring_bind to an address of its network, or leave gateway_monitoring_port at 0."
            )
        address = bind if bind not in (*WILDCARDS, "localhost") else LOOPBACK
        if bind in WILDCARDS and not here:
            address = str(server.get("ansible_host") or host)
        servers.append({"name": f"monitoring:{backend_name(host)}", "address": address, "port": where})
    if port in taken or not 0 < port < 65536:
        found = f"{taken[port]} there" if port in taken else "no port"
        problems.append(
            f"gateway_monitoring_port of {gateway} is {port}, which is {found}: take another, such as 9443."
        )
    return {"servers": servers, "problems": problems}
