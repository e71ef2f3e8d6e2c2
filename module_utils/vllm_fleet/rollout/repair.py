# SPDX-License-Identifier: Apache-2.0
"""Which nodes playbooks/repair.yml repairs, and what speaks against one of them. Pure.

``repair_probe`` of a host is what gpu_repair found there in this run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..vllm import host_variables
from .messages import names


def plan(
    hostvars: Mapping[str, Any],
    hosts: Iterable[str],
    *,
    tries: int = 3,
    because: str = "",
    limited: bool = False,
    reset: bool = True,
) -> dict[str, Any]:
    """Return the run's part of the rollout.

    ``reasons`` are those of each node that is repaired, ``hosts`` these nodes and their partners in a server over
    several nodes, ``refused`` why a node that needs a repair gets none, ``says`` all of it in words. ``because`` is a
    user's reason to repair the nodes of a ``limited`` run, whatever was found; ``reset``: GPUs may be reset.
    """
    hosts = list(hosts)
    reasons: dict[str, list[str]] = {}
    refused: dict[str, str] = {}
    resting = {host: why for host in hosts if (why := (hostvars[host].get("repair_probe") or {}).get("maintenance"))}
    hosts = [host for host in hosts if host not in resting]
    if because and not limited:
        refused = dict.fromkeys(hosts, "repair_because is for nodes that --limit names, and there is no --limit")
        return {"reasons": {}, "hosts": [], "refused": refused, "says": "Nothing was touched."}
    for host in hosts:
        probe = hostvars[host].get("repair_probe") or {}
        why = [*(probe.get("reasons") or []), *([because] if because else [])]
        ways = [probe.get("reset") if reset else "", host_variables.truth(hostvars[host].get("rocm_allow_reboot"))]
        sick = bool(probe.get("sick") or because)
        # A repair that was begun is brought to its end, whatever the limits are.
        against = _against(_tries(hostvars, hosts, host) if sick else 0, tries, possible=any(ways)) if sick else ""
        if against:
            refused[host] = f"{' and '.join(why)}; {against}"
        elif why:
            reasons[host] = why
    groups = list(host_variables.replicas(hostvars, hosts).values())
    for servers in host_variables.by_node(hostvars, hosts).values() if reasons or refused else ():
        if len(servers) > 1:
            groups.append(servers)
            _together(servers, reasons, refused)
    for members in groups:
        bad = next((host for host in members if host in refused), "")
        for host in members if bad else ():
            if reasons.pop(host, None):
                refused[host] = f"its server is one with {bad}, which is not repaired"
    return {
        "reasons": reasons,
        "hosts": list(dict.fromkeys(host for members in groups if set(members) & reasons.keys() for host in members)),
        "refused": refused,
        "says": _says(hostvars, hosts, reasons, refused) + _resting(resting),
    }


def _resting(resting: Mapping[str, str]) -> str:
    return "".join(f"\n{host} is left out: in maintenance{why}." for host, why in resting.items())


def sick(hostvars: Mapping[str, Any], host: str) -> bool:
    """Return whether any server of a host's node found its GPUs sick.

    One of them repairs the node for all, and what another one's own watchdog has read may be known to nobody else.
    """
    hosts = hostvars["localhost"]["repair_plan"]["hosts"]
    probes = [hostvars[one].get("repair_probe") or {} for one in host_variables.neighbours(hostvars, hosts, host)]
    return any(probe.get("sick") for probe in probes)


def _together(servers: list[str], reasons: dict[str, list[str]], refused: dict[str, str]) -> None:
    """Repair all servers of a node for the reasons of any of them, or none: GPUs of one node are reset together."""
    why = list(dict.fromkeys(one for host in servers for one in reasons.get(host, ())))
    against = next((refused[host] for host in servers if host in refused), "")
    for host in servers:
        if against:
            reasons.pop(host, None)
            refused[host] = against
        elif why:
            reasons[host] = why


def _tries(hostvars: Mapping[str, Any], hosts: list[str], host: str) -> int:
    """Return the repairs of a day that the servers of a host's node have noted, each its own."""
    probes = [hostvars[one].get("repair_probe") or {} for one in host_variables.neighbours(hostvars, hosts, host)]
    return sum(int(probe.get("tries") or 0) for probe in probes)


def _against(done: int, tries: int, *, possible: bool) -> str:
    """Return why a node is not repaired, as part of a sentence."""
    if done >= tries:
        return (
            f"it was repaired {done} times within a day (repair_tries is {tries}): a GPU that is sick again is for its "
            "provider"
        )
    return "" if possible else "neither amd-smi nor rocm-smi may reset it, and rocm_allow_reboot is false"


def _says(
    hostvars: Mapping[str, Any], hosts: list[str], reasons: Mapping[str, list[str]], refused: Mapping[str, str]
) -> str:
    def of_nodes(said: Mapping[str, Any]) -> dict[str, Any]:
        return {host_variables.node_of(hostvars[host], host): one for host, one in said.items()}

    reasons, refused = of_nodes(reasons), of_nodes(refused)
    hosts = list(of_nodes(dict.fromkeys(hosts)))
    well = [host for host in hosts if host not in reasons and host not in refused]
    lines = [f"{host}: {' and '.join(why)}." for host, why in reasons.items()]
    lines += [f"{host} is not repaired: {why}." for host, why in refused.items()]
    lines += [f"Not touched, for nothing is wrong with their GPUs: {names(well)}."] if well else []
    return "\n".join(lines)
