# SPDX-License-Identifier: Apache-2.0
"""The fleet's replicas as a rollout finds them: what serves, what would change, what a gateway says. Pure.

``hostvars`` holds for every host what the roles noted: ``vllm_server_result`` of the plan, ``docker_engine_result``,
``vllm_image_result``, ``hf_cache_result`` of staging, ``rocm_reboot_required``, and of a gateway ``gateway_result``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..gateway.servers import DRAIN, MAINT, UP
from ..vllm import host_variables
from . import left_out


@dataclass
class Replica:
    """One server: its hosts in the inventory's order, the pool it belongs to, whether it serves now."""

    name: str
    pool: str
    hosts: list[str] = field(default_factory=list)
    serves: bool = True
    change: bool = False
    #: Whether there is no server yet that would be replaced.
    new: bool = False
    #: An administrator has put it into MAINT at every gateway: it serves neither now nor when it has been replaced.
    kept_out: bool = False
    #: What check mode has only said that it would bring first, by host.
    pending: dict[str, str] = field(default_factory=dict)
    #: Why a node of it has to be rebooted in its wave, by host.
    reboots: dict[str, str] = field(default_factory=dict)
    #: Why a node of it is repaired in its wave, by host (playbooks/repair.yml).
    sick: dict[str, str] = field(default_factory=dict)
    #: Why it is mended in its wave although it is as described: it gives no answer.
    repair: str = ""
    #: Of a host alone: all servers of this project on its node, where one of them is not its own.
    servers: dict[str, str] = field(default_factory=dict)
    #: Whether no request to it ever ends: it serves nobody, and nobody waits for its requests.
    silent: bool = False
    #: Requests that it had when the plan looked, those that waited for it too.
    requests: int = 0

    @property
    def head(self) -> str:
        """The host that answers for it."""
        return self.hosts[0]

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return host_variables.label(self.name, self.hosts)


def labels(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return the labels of the replicas that these hosts make."""
    return [host_variables.label(name, members) for name, members in host_variables.replicas(hostvars, hosts).items()]


def pool_of(variables: Mapping[str, Any]) -> str:
    """Return the first served name of a host's server, by which the servers of a pool belong together."""
    return host_variables.served_names(variables)[0]


#: Where a server stands in several backends (its key or names change), the first of these is its state.
_STATES = (MAINT, UP, DRAIN)


def gateway_states(hostvars: Mapping[str, Any], gateways: Iterable[str], server: str) -> set[str]:
    """Return a server's states at the gateways of this run: HAProxy's first word, UP, DOWN, DRAIN, MAINT.

    MAINT is an administrator's alone; what HAProxy itself calls so (no address, for one) counts as DOWN.
    """
    found = set()
    for gateway in gateways:
        here = set()
        for entry in (hostvars[gateway].get("gateway_result") or {}).get("servers") or []:
            if entry.get("name") == server:
                words = str(entry.get("status")).split()
                here.add("DOWN" if words[0] == MAINT and words[1:] else words[0])
        found |= {next(state for state in (*_STATES, *here) if state in here)} if here else set()
    return found


def requests_at(hostvars: Mapping[str, Any], gateways: Iterable[str], server: str) -> int:
    """Return the requests of a server, by the gateways of this run; where none knows it, by its own counts."""
    entries = [
        entry
        for gateway in gateways
        for entry in (hostvars[gateway].get("gateway_result") or {}).get("servers") or []
        if entry.get("name") == server
    ]
    if not entries:
        serving = planned(hostvars[server]).get("serving") or {}
        entries = [{"sessions": serving.get("running"), "queue": serving.get("waiting")}]
    return sum(int(entry.get(name) or 0) for entry in entries for name in ("sessions", "queue"))


def planned(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what vllm_server would do on a host; empty where it could not be asked or refused."""
    found = host_variables.server_result(variables)
    return {} if found.get("failed") or found.get("skipped") or "actions" not in found else found


def repair_of(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how a wave mends a host's server that is as described: `restart`, `silent`, `because`; empty for none.

    The plan found that it gives no answer (server/verification.repair), or its own watchdog keeps it out of the
    gateways, whatever it answers: it comes back when it was started anew and is verified, and not before.
    """
    noted: Mapping[str, Any] = variables.get("vllm_server_repair") or {}
    found = planned(variables)
    watchdog = found.get("watchdog") or {}
    if noted or host_variables.replica_name(variables) or watchdog.get("state") != "out":
        return noted
    if not found.get("confirmed") or found.get("actions"):
        return {}
    why = str(watchdog.get("why") or "too many restarts").rstrip(".")
    return {"restart": True, "silent": True, "because": f"its watchdog keeps it out of the gateways ({why})"}


def outcome(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how a host's turn in the waves ended; empty before its turn."""
    return variables.get("rollout_outcome") or {}


#: Failure classes of vllm_server that mean: the weights are not there.
_NO_WEIGHTS = ("cache_miss_offline", "cache_incomplete")


def pending_artifact(found: Mapping[str, Any] | None, variables: Mapping[str, Any]) -> str:
    """Return what check mode has only said that it would bring, and without which vllm_server could not compare.

    One of `the image`, `the weights`, `the engine`; empty where nothing is missing. ``found`` is vllm_server's result.
    """
    engine, image, weights = (
        variables.get(name) or {} for name in ("docker_engine_result", "vllm_image_result", "hf_cache_result")
    )
    found = found or {}
    why = (found.get("failure") or {}).get("class")
    # The tag may be on another image, which is no failure: the server was compared with that one then.
    moves = variables.get("vllm_image_tag") in (image.get("tags_moved") or []) and "@" not in str(
        image.get("image_ref")
    )
    lacks = image.get("present") is False or moves
    if lacks and (why == "image_missing" or (why is None and not found.get("failed"))):
        return "the image"
    # The role's own result is the model's; adapters are noted by themselves.
    lacks = weights.get("complete") is False or host_variables.truth(variables.get("hf_cache_pending"))
    if lacks and why in _NO_WEIGHTS:
        return "the weights"
    missing = engine.get("running") is False or engine.get("sdk") is False
    return "the engine" if missing and why == "unknown" else ""


def reboot_needed(variables: Mapping[str, Any]) -> tuple[str, bool]:
    """Return why only a reboot helps a node, as the role rocm found (or ""), and whether it may be rebooted."""
    reasons = variables.get("rocm_reboot_required") or []
    return " and ".join(map(str, reasons)), host_variables.truth(variables.get("rocm_allow_reboot"))


def replicas_of(
    hostvars: Mapping[str, Any],
    fleet: Iterable[str],
    play: Iterable[str],
    gateways: Iterable[str],
    *,
    check_mode: bool = False,
    admits: bool = False,
) -> list[Replica]:
    """Return the fleet's replicas. Those outside ``play`` count as serving; a gateway that was asked knows better.

    One that the run leaves out serves only where a gateway says so. ``admits``: what a killed run has left drained
    counts, too, because this run admits it before its first wave.
    """
    found: dict[str, Replica] = {}
    fleet, play, gateways = list(fleet), set(play), list(gateways)
    absent = left_out.of(hostvars, fleet)
    for host in fleet:
        name = host_variables.group_name(hostvars, host)
        replica = found.setdefault(name, Replica(name, pool_of(hostvars[host])))
        replica.hosts.append(host)
        if host in play:
            _add_host(hostvars, replica, host, gateways, check_mode=check_mode)
    for replica in found.values():
        states = gateway_states(hostvars, gateways, replica.head)
        replica.kept_out = states == {MAINT}
        replica.requests = requests_at(hostvars, gateways, replica.head) if replica.change else 0
        left = admits and DRAIN in states and not replica.change and bool(play.intersection(replica.hosts))
        lost = not absent.keys().isdisjoint(replica.hosts) and UP not in states
        if (states and UP not in states and not left) or replica.silent or lost:
            replica.serves = False
    return list(found.values())


def _add_host(
    hostvars: Mapping[str, Any], replica: Replica, host: str, gateways: list[str], *, check_mode: bool
) -> None:
    """Add to a replica what the plan found on one of its hosts."""
    found = planned(hostvars[host])
    servers = host_variables.servers_seen(found)
    if any(name != host_variables.container_name(hostvars[host]) for name in servers):
        replica.servers = servers
    confirmed = bool(found.get("confirmed"))
    running = (found.get("container") or {}).get("status") == "running"
    why, allowed = reboot_needed(hostvars[host])
    if why and allowed:
        replica.reboots[host] = why
    sick = hostvars[host].get("repair_reasons") or []
    if sick:
        replica.sick[host] = " and ".join(map(str, sick))
    first = pending_artifact(found, hostvars[host]) if check_mode else ""
    if first:
        replica.pending[host] = first
    mend = repair_of(hostvars[host])
    replica.repair = replica.repair or str(mend.get("because") or "")
    replica.silent = replica.silent or bool(mend.get("silent"))
    replica.change = replica.change or bool(found.get("actions") or first) or not confirmed or bool(replica.reboots)
    replica.change = replica.change or bool(replica.repair or replica.sick)
    first_of_it = any(one["name"] == "state" and one.get("current") is None for one in found.get("differences") or [])
    replica.new = first_of_it and (replica.new or host == replica.head)
    # One that was never verified is drained, unless a gateway sends it requests all the same.
    replica.serves = (
        replica.serves and running and (confirmed or UP in gateway_states(hostvars, gateways, replica.head))
    )


def min_available(hostvars: Mapping[str, Any], replicas: Iterable[Replica], pool: str, *, sole: int = 0) -> int:
    """Return how many replicas of a pool must stay; by default one, and ``sole`` of a pool of a single one."""
    heads = [replica.head for replica in replicas if replica.pool == pool]
    return host_variables.min_available(hostvars, heads, sole=sole)
