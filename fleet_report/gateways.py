# SPDX-License-Identifier: Apache-2.0
"""What the gateways said of themselves to one table, and what a run did to each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fleet_report.summary import table
from fleet_report.words import DASH, clip, count, natural

HEAD = ["GATEWAY", "HAPROXY", "STATE", "UP", "REQUESTS", "WAITING", "CONFIGURATION", "CERTIFICATE", "KEYS", "OUT"]
#: Characters of a reason in the table.
WIDTH = 90
#: What a changed task of the role gateway is about: by its module, else by its file. Of an installation it is what
#: differed of its files.
_SUBJECTS = {
    "gateway_certificate": "certificate",
    "gateway_keys": "clients' keys",
    "package": "package",
    "remove": "removed",
    "remove_vip": "shared address",
    "vip": "shared address",
}
_FILES = {
    "vllm-fleet.cfg": "configuration",
    "vllm-fleet-secrets.cfg": "servers' keys",
    "vllm-fleet-keys.map": "clients' keys",
}


def rows(
    run: Mapping[str, Any], results: Iterable[Mapping[str, Any]], tasks: Mapping[Any, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Give a row for each gateway that the role was run on: `name`, `outcome`, what `changed`, what it `forgets`.

    ``run``, ``results`` and ``tasks`` are as build.build has them.
    """
    found: dict[str, dict[str, Any]] = {}
    differing: dict[str, list[str]] = {}
    for one in results:
        task = tasks[one["task"]]
        module, host = task["action"].rpartition(".")[2], one["host"]
        if task.get("role") != "gateway":
            continue
        if module == "gateway_info" and task.get("file") in ("main", "remove"):
            found.setdefault(host, {"name": host, "outcome": "unchanged", "changed": [], "forgets": []})
            names = (str(path).rpartition("/")[2] for path in one["data"].get("differing") or [])
            differing[host] = list(dict.fromkeys(_FILES.get(name, "service") for name in names))
        if host in found and one["data"].get("forgets"):
            found[host]["forgets"] = [str(text) for text in one["data"]["forgets"]]
        if host in found and one["changed"]:
            subject = _SUBJECTS.get(module) or _SUBJECTS.get(str(task.get("file")))
            row = found[host]
            row["outcome"] = "changed"
            row["changed"] += [
                what for what in ([subject] if subject else differing[host]) if what not in row["changed"]
            ]
    for name, row in found.items():
        if name in run.get("unreachable", ()):
            row["outcome"] = "unreachable"
        elif name in run.get("failed", ()):
            row["outcome"] = "failed"
    return sorted(found.values(), key=lambda row: natural(row["name"]))


def lines(gateways: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Write the table: results of gateway_info by gateway. OUT are servers that get no requests, and why.

    Under it stand the gateways that differ, and what is wrong with keys and with the shared address.
    """
    out = table([HEAD, *([name, *_cells(found or {})] for name, found in gateways.items())])
    running = {name: found for name, found in gateways.items() if found and found.get("running")}
    versions = {str(found.get("configuration") or "") for found in running.values()}
    if len(versions) > 1:
        out.append(f"{' and '.join(running)} have different configurations: run deploy.yml without --limit.")
    for name, found in running.items():
        out += [f"{name}: port {clip(problem, WIDTH)}." for problem in found.get("doors") or []]
        vip = found.get("vip") or {}
        if vip.get("wanted") and not vip.get("running"):
            out.append(f"{name}: keepalived does not run, so {name} cannot take over the shared address.")
    shared = {str(found["vip"]["wanted"]) for found in running.values() if (found.get("vip") or {}).get("wanted")}
    for address in sorted(shared):
        holders = [
            name
            for name, found in running.items()
            if (found.get("vip") or {}).get("wanted") == address and found["vip"]["holds"]
        ]
        out.append(f"{address} is at {' and '.join(holders) or 'none of them'}.")
    return out


def _cells(found: Mapping[str, Any]) -> list[str]:
    if not found.get("running"):
        why = str(found.get("reason") or found.get("msg") or "it was not asked").strip().splitlines()[-1]
        state = "stopped" if "reason" in found else "removed" if found.get("skipped") else "unreachable"
        return [DASH, state, *[DASH] * 6, clip("gateway_absent" if state == "removed" else why, WIDTH)]
    servers = found.get("servers") or []
    out = [f"{one['name']} {_why(one)}" for one in servers if not str(one["status"]).startswith("UP")]
    return [
        str(found.get("version") or DASH),
        "running",
        f"{len(servers) - len(out)} of {len(servers)}",
        str(sum(one["sessions"] for one in servers)),
        str(sum(one["queue"] for one in servers)),
        str(found.get("configuration") or DASH),
        _days(found.get("certificate") or {}),
        DASH if "doors" not in found else "wrong" if found["doors"] else "checked",
        clip(", ".join(out), WIDTH) or "none",
    ]


def _why(server: Mapping[str, Any]) -> str:
    """HAProxy's word for a server that gets no requests, with the reason of the server's watchdog if that is why."""
    status, said = str(server["status"]), str(server.get("agent") or "")
    reason = said.removeprefix("down").strip()
    reason = reason[1:-1] if reason.startswith("(") else reason
    return f"DOWN ({reason})" if status.startswith("DOWN") and status.endswith("(agent)") and reason else status


def _days(certificate: Mapping[str, Any]) -> str:
    left = certificate.get("days_left")
    return DASH if left is None else f"{count(left, 'day')} left" if left >= 0 else "expired"
