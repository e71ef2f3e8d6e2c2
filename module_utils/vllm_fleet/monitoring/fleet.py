# SPDX-License-Identifier: Apache-2.0
"""What the monitoring knows of an inventory: machines, targets, settings of each, targets of models. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..vllm import host_variables

Hostvars = Mapping[str, Mapping[str, Any]]

#: Targets of `vllm_server_slo`, and seconds of their units.
SLO = ("ttft_p95", "itl_p95")
_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0}
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


def machines(hostvars: Hostvars, servers: Sequence[str], gateways: Sequence[str]) -> dict[str, str]:
    """Return the machines of the fleet by name, each with the host by which it is reached."""
    if not hostvars:
        return {}  # a header of a play, before a play has had hosts
    found = {node: hosts[0] for node, hosts in host_variables.by_node(hostvars, servers).items()}
    for host in gateways:
        if not host_variables.truth(hostvars[host].get("gateway_absent", False)):
            found.setdefault(host, host)
    return found


def targets(
    hostvars: Hostvars, servers: Sequence[str], gateways: Sequence[str], port: int | str = 9110
) -> list[dict[str, Any]]:
    """Return what file_sd of Prometheus reads: one target for each machine, with its name as `node`."""
    out = []
    for node, host in machines(hostvars, servers, gateways).items():
        own = hostvars[host]
        address = str(own.get("monitoring_address") or own.get("ansible_host") or host)
        place = f"{host_variables.bracketed(address)}:{own.get('monitoring_node_port', port)}"
        out.append({"targets": [place], "labels": {"node": node}})
    return out


def settings(hostvars: Hostvars, servers: Sequence[str], gateways: Sequence[str], host: str) -> dict[str, Any]:
    """Return the settings of the process on the machine that ``host`` reaches (monitoring/settings.py)."""
    own = hostvars[host]
    node = host_variables.node_of(own, host)
    here = host_variables.by_node(hostvars, servers).get(node, []) if host in servers else []
    state_dir = own.get("vllm_server_state_dir") or "/var/lib/vllm-fleet"
    certificates = {"monitoring": "/etc/vllm-fleet/monitoring/cert.pem"}
    out: dict[str, Any] = {
        "state_dir": state_dir,
        "docker_socket": own.get("docker_engine_socket") or "/var/run/docker.sock",
        "sysfs": own.get("vllm_fleet_sysfs_root") or "/sys",
        "interval": float(own.get("monitoring_interval", 15)),
        "lock": (own.get("fleet_lock_path") or f"{state_dir}/fleet.lock") if here else "",
        "servers": {
            host_variables.container_name(hostvars[one]): {
                "replica": host_variables.replica_head(hostvars, servers, one)
            }
            for one in here
        },
    }
    if host in gateways:
        out["gateway"] = int(own.get("gateway_stats_port", 8404))
        if own.get("gateway_certificate"):
            certificates["gateway"] = str(own["gateway_certificate"])
    return {**out, "certificates": certificates}


def slo_rules(hostvars: Hostvars, servers: Sequence[str]) -> dict[str, Any]:
    """Return a file of rules that records the targets of each model; of several hosts' targets the strictest.

    Raises ValueError, one sentence: where, what, expected, found.
    """
    found: dict[tuple[str, str], float] = {}
    for host in servers:
        for name, value in (hostvars[host].get("vllm_server_slo") or {}).items():
            if name not in SLO:
                raise ValueError(f"vllm_server_slo of {host} has {name!r}, expected one of {', '.join(SLO)}")
            key = (str(hostvars[host].get("vllm_server_model")), name)
            found[key] = min(found.get(key, float("inf")), seconds(value, f"vllm_server_slo of {host}: {name}"))
    rules = [
        {"record": "vllm_fleet_slo_seconds", "expr": f"vector({value:g})", "labels": {"model": model, "slo": name}}
        for (model, name), value in sorted(found.items())
    ]
    return {"groups": [{"name": "vllm-fleet-slo", "rules": rules}] if rules else []}


def seconds(given: Any, what: str) -> float:
    """Return a duration such as `2s`, `80ms` or 0.08 in seconds. Raises ValueError with ``what`` it is of."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(ms|s|m|)", str(given).strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{what} is {given!r}, expected a duration such as 2s or 80ms")
    return float(match[1]) * _UNITS[match[2]]


def board(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dashboard without what a Grafana has written into it: two that are alike then are one."""
    return {name: value for name, value in given.items() if name not in ("id", "version")}


#: What to do where Grafana refuses, by the status of its answer; -1 is ansible.builtin.uri's for none.
_GRAFANA = {
    -1: "Check that the controller reaches monitoring_grafana_url",
    401: "Give monitoring_grafana_token a token of one of its service accounts, which has not run out",
    403: "Let the service account of monitoring_grafana_token edit dashboards, in monitoring_grafana_folder too",
    404: "Check monitoring_grafana_url (no /api behind it) and that monitoring_grafana_folder is a folder's uid",
    412: "Check in Grafana who else saves the dashboards of vllm-fleet; run again",
}


def refusal(result: Mapping[str, Any], url: str) -> str:
    """Return why Grafana did not do what ansible.builtin.uri asked of it, and what to do, in one sentence each."""
    status = result.get("status", -1)
    body = result.get("json")
    told = body.get("message") if isinstance(body, Mapping) else None
    words = " ".join("".join(c if c.isprintable() else " " for c in str(told or result.get("msg") or "")).split())
    said = f"answered {status}" if status != -1 else "does not answer"
    advice = _GRAFANA.get(status, "Check its log; run again")
    return f"Grafana at {url} {said}: {words[:200] or 'no reason was given'}. {advice}."


def authorities(known: str, given: Mapping[str, str], nodes: Iterable[str]) -> str:
    """Return the file of the certificates that Prometheus takes: those ``given``, and ``known`` ones of other nodes.

    Each stands below a line `# NODE`. A node that the inventory does not have any more is left out.
    """
    kept: dict[str, str] = {}
    for part in re.split(r"^# ", known, flags=re.MULTILINE)[1:]:
        name, _, text = part.partition("\n")
        kept[name.strip()] = text
    out = []
    for node in nodes:
        match = _PEM.search(given.get(node) or kept.get(node) or "")
        if match:
            out.append(f"# {node}\n{match[0]}\n")
    return "".join(out)
