# SPDX-License-Identifier: Apache-2.0
"""Which servers are replaced in which wave: what the plan found, what speaks against it, the waves. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..gateway import room
from ..gateway.pools import backend_name, is_generation
from ..gateway.servers import DRAIN
from ..preflight import inventory
from ..vllm import cli, host_variables
from . import estimate, messages, soak
from . import left_out as absent
from .node_units import Unit, boots, left_out, take_part, units
from .replicas import (
    Replica,
    gateway_states,
    labels,
    min_available,
    planned,
    pool_of,
    reboot_needed,
    replicas_of,
)

_COUNT = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Scene:
    """Who is there: all variables, the hosts of group vllm, of this run, those that have not failed, the gateways."""

    hostvars: Mapping[str, Any]
    fleet: list[str]
    play: list[str]
    alive: list[str]
    gateways: list[str]


@dataclass(frozen=True)
class Limits:
    """What the user set: waves, how many may fail, tasks that admit, and files of tasks that are not there."""

    waves: Any
    max_failures: Any
    missing: tuple[str, ...] = ()
    #: Whether only a note on its node says that a server is drained (rollout_admit_tasks), and no gateway.
    noted: bool = False
    #: Bytes per second of `weights` and `image`, as they came last.
    rates: Mapping[str, Any] = field(default_factory=dict)
    #: `idle`: of the servers that serve, those with the fewest requests first; `inventory`: as they stand there.
    order: str = "idle"

    @property
    def failures(self) -> int:
        """Replicas that may fail; none where the variable is no number."""
        return int(self.max_failures) if _COUNT.fullmatch(str(self.max_failures)) else 0


@dataclass
class Found:
    """What the plan found: hosts that did not answer, hosts that failed their verification, and all replicas."""

    silent: list[str]
    wrong: list[str]
    replicas: list[Replica]
    order: str = "idle"

    @property
    def change(self) -> list[Replica]:
        """Those that are replaced. What does not serve comes first: it costs nothing. Then those with few requests."""
        idle = self.order == "idle"
        return sorted(
            (one for one in self.replicas if one.change),
            key=lambda replica: (replica.serves, not replica.repair, replica.requests if idle else 0),
        )


def sizes(waves: Any, replicas: int) -> list[int]:
    """Return the replicas of each wave; the last one is repeated as long as there are replicas."""
    shares = [inventory.wave(entry) for entry in inventory.wave_list(waves)]
    return [count or max(1, replicas * percent // 100) for count, percent in shares]


def plan(scene: Scene, limits: Limits, *, check_mode: bool) -> dict[str, Any]:
    """Return who is replaced, when.

    ``hosts`` are in the order of the waves, ``serial`` counts hosts of each wave, ``waves`` names replicas by their
    heads; ``play`` and ``wrong`` are the hosts of the run and those that failed their verification. ``repair`` are
    heads that are mended because they give no answer, ``admit`` heads that need nothing but to be admitted,
    ``leftovers`` those to visit for it, ``reboot`` the hosts that are rebooted in their wave, ``sick`` those
    whose GPUs are repaired, ``boots`` what node_units.boots() says of them, ``undescribed`` the
    servers that no host describes (host_variables.undescribed()); ``problems`` are sentences, with any of
    them nothing is done. ``says`` is the plan in words, ``estimate`` what it will cost (estimate.of()), ``cost``
    that in lines, ``irreversible`` what rollback.yml cannot take back.
    """
    found = collect(scene, check_mode=check_mode)
    found.order = limits.order
    problems = judge(scene, limits, found)
    change = found.change
    together = units(scene.hostvars, change)
    waves: list[list[Replica]] = []
    if not problems:
        waves, problems = fill(scene.hostvars, found.replicas, together, sizes(limits.waves, len(change)))
    away = messages.left_out(absent.of(scene.hostvars, scene.fleet))
    if problems and away:
        problems.append(away.strip())
    same = [one for one in found.replicas if not one.change and set(one.hosts) <= set(scene.alive)]
    # One that has not passed its soak stays out where the first wave is to take it back.
    out = [one.head for one in same if waves and soak.goes_back(scene.hostvars[one.head])]
    left = [one.head for one in same if one.head not in out]
    admit = [head for head in left if DRAIN in gateway_states(scene.hostvars, scene.gateways, head)]
    others = {one.head: one.servers for one in found.replicas if one.servers}
    undescribed = host_variables.undescribed(scene.hostvars, scene.fleet, others)
    reboots = {host: why for replica in change for host, why in replica.reboots.items()}
    sick = {host: why for replica in change for host, why in replica.sick.items()}
    cost = estimate.of(scene.hostvars, waves, found.replicas, limits.rates)
    undone = estimate.irreversible(scene.hostvars, waves, undescribed)
    return {
        "hosts": [] if check_mode or problems else [h for wave in waves for replica in wave for h in replica.hosts],
        "serial": [sum(len(replica.hosts) for replica in wave) for wave in waves],
        "waves": [[replica.head for replica in wave] for wave in waves],
        "change": [replica.head for replica in change],
        "unchanged": [replica.head for replica in same],
        "admit": admit,
        "leftovers": left if limits.noted else admit,
        "play": scene.play,
        "wrong": found.wrong,
        "reboot": list(reboots),
        "sick": list(sick),
        "boots": boots(together, scene.fleet),
        "repair": [replica.head for replica in change if replica.repair],
        "silent": [replica.head for replica in change if replica.silent],
        "undescribed": undescribed,
        "problems": problems,
        "estimate": cost,
        "irreversible": undone,
        "cost": estimate.lines(cost, undone),
        "says": messages.plan(
            waves, same, total=len([one for one in found.replicas if set(one.hosts) & set(scene.play)])
        )
        + messages.pending({host: what for replica in change for host, what in replica.pending.items()})
        + messages.repairs({replica.label: replica.repair for replica in change if replica.repair})
        + messages.sick(_of_nodes(scene.hostvars, sick))
        + messages.reboots(_of_nodes(scene.hostvars, reboots), _of_nodes(scene.hostvars, _waiting(scene)))
        + messages.undescribed(undescribed)
        + away,
    }


def collect(scene: Scene, *, check_mode: bool) -> Found:
    """Return what the plan found on all hosts of the run."""
    silent = [host for host in scene.play if not planned(scene.hostvars[host])]
    wrong = [host for host in scene.play if host not in scene.alive and host not in silent]
    replicas = replicas_of(scene.hostvars, scene.fleet, scene.play, scene.gateways, check_mode=check_mode, admits=True)
    for replica in replicas:
        if set(wrong).intersection(replica.hosts):
            replica.serves = replica.change = False
    take_part(scene.hostvars, replicas)
    return Found(silent, wrong, replicas)


def _of_nodes(hostvars: Mapping[str, Any], reasons: Mapping[str, str]) -> dict[str, str]:
    """Return reasons by host as reasons by node."""
    return {host_variables.node_of(hostvars[host], host): why for host, why in reasons.items()}


def _waiting(scene: Scene) -> dict[str, str]:
    """Return why a node waits for a reboot that its user has not allowed, by host."""
    reasons = {host: reboot_needed(scene.hostvars[host]) for host in scene.play}
    return {host: why for host, (why, allowed) in reasons.items() if why and not allowed}


# --- what speaks against a plan -----------------------------------------------------------------------------------


def judge(scene: Scene, limits: Limits, found: Found) -> list[str]:
    """Return what speaks against replacing anything, as sentences."""
    problems = _odd_settings(scene, limits)
    if found.silent:
        problems.append(messages.silent(found.silent))
    if len(host_variables.replicas(scene.hostvars, found.wrong)) > limits.failures:
        problems.append(messages.wrong(labels(scene.hostvars, found.wrong), found.wrong, limits.failures))
    for replica in found.replicas:
        inside = [host for host in replica.hosts if host in scene.play]
        if inside and len(inside) < len(replica.hosts):
            problems.append(messages.half_a_replica(replica.hosts, inside))
    problems += left_out(scene.hostvars, found.replicas, scene.play)
    if problems:
        return problems
    changed = [host for replica in found.replicas if replica.change for host in replica.hosts]
    return gateway_problems(scene.hostvars, scene.fleet, changed, scene.gateways) or ignorant(
        scene.hostvars, found.replicas, scene.gateways
    )


def _odd_settings(scene: Scene, limits: Limits) -> list[str]:
    judged = inventory.waves(limits.waves)
    problems = [f"{judged.sentence}."] if judged.level == "refused" else []
    problems += [messages.no_file(path) for path in limits.missing]
    if not _COUNT.fullmatch(str(limits.max_failures)):
        problems.append(messages.no_count("rollout_max_failures", limits.max_failures))
    given = {scene.hostvars[host].get("rollout_min_available") for host in scene.fleet} - {None}
    return problems + [
        messages.no_count("rollout_min_available", value)
        for value in sorted(given, key=str)
        if not _COUNT.fullmatch(str(value))
    ]


def ignorant(hostvars: Mapping[str, Any], replicas: list[Replica], gateways: list[str]) -> list[str]:
    """Return which gateways outside of the run would not know a new key or name of a server, as sentences."""
    outside = [gateway for gateway in gateways if not hostvars[gateway].get("gateway_takes_part")]
    changed: dict[str, list[Replica]] = {}
    for replica in replicas if outside else ():
        if replica.change and (what := _new_to_gateways(hostvars, replica)):
            changed.setdefault(what, []).append(replica)
    return [messages.gateway_outside(outside, what, members) for what, members in changed.items()]


def _new_to_gateways(hostvars: Mapping[str, Any], replica: Replica) -> str:
    """Return `key` or `served names` where a server gets others than its gateways have of it; else ""."""
    found = planned(hostvars[replica.head])
    changed = {one["name"]: one.get("current") for one in found.get("differences") or []}
    # A server without a key does not look at the one it is sent.
    if changed.get("env.VLLM_API_KEY") is not None:
        return "key"
    spec = host_variables.container_spec(hostvars[replica.head]) or {}
    has = cli.served_names(spec.get("args", {}), str(spec.get("model") or "")) if spec else []
    return "served names" if has and set(has) != set(host_variables.served_names(hostvars[replica.head])) else ""


def gateway_problems(
    hostvars: Mapping[str, Any], fleet: list[str], play: Iterable[str], gateways: Iterable[str]
) -> list[str]:
    """Return which gateways could neither drain nor admit the servers of ``play``, and what to do, as sentences.

    A gateway that takes part in the run starts and learns its servers in it; another one must know them.
    """
    play = set(play)
    replicas = [
        Replica(name, pool_of(hostvars[hosts[0]]), hosts)
        for name, hosts in host_variables.replicas(hostvars, fleet).items()
        if play.intersection(hosts)
    ]
    problems = []
    for gateway in gateways if replicas else ():
        probe = hostvars[gateway].get("gateway_result") or {}
        cramped = room.too_little_memory(gateway, probe.get("memory") or 0, hostvars[gateway])
        problems += [cramped] if cramped else []
        if "running" not in probe:
            problems.append(messages.gateway_lost(gateway, str(probe.get("msg") or "no reason was given")))
        elif hostvars[gateway].get("gateway_takes_part"):
            continue
        elif not probe["running"]:
            problems.append(messages.gateway_stopped(gateway, str(probe.get("reason") or "does not answer")))
        else:
            there = [(str(entry.get("backend")), entry.get("name")) for entry in probe.get("servers") or []]
            missing = [
                one
                for one in replicas
                if not any(name == one.head and is_generation(at, backend_name(one.pool)) for at, name in there)
            ]
            if missing:
                problems.append(messages.gateway_ignorant(gateway, missing))
    return problems


# --- the waves ----------------------------------------------------------------------------------------------------


def fill(
    hostvars: Mapping[str, Any], replicas: list[Replica], change: list[Unit], wanted: list[int]
) -> tuple[list[list[Replica]], list[str]]:
    """Return waves as large as wanted and as small as it takes to keep enough replicas, or none and a problem.

    ``change`` are the replicas to replace, those that are replaced together as one.
    """
    serving = Counter(replica.pool for replica in replicas if replica.serves)
    pools = {replica.pool for unit in change for replica in unit}
    spare = {pool: serving[pool] - min_available(hostvars, replicas, pool) for pool in pools}
    waves: list[list[Replica]] = []
    left = list(change)
    while left:
        taken = _wave(left, spare, wanted[min(len(waves), len(wanted) - 1)])
        if not taken:
            return [], [_stuck(hostvars, replicas, left[0], spare)]
        waves.append([replica for unit in taken for replica in unit])
        left = [unit for unit in left if unit not in taken]
        for replica in waves[-1]:
            spare[replica.pool] += not replica.serves and not replica.kept_out
    return waves, []


def _wave(left: list[Unit], spare: Mapping[str, int], size: int) -> list[Unit]:
    """Return the next wave of at most ``size`` replicas, or of one unit; empty where no pool can spare one."""
    wave: list[Unit] = []
    count = 0
    taken: Counter[str] = Counter()
    for unit in left:
        if count >= size:
            break
        going = Counter(replica.pool for replica in unit if replica.serves)
        if (wave and count + len(unit) > size) or any(taken[pool] + going[pool] > spare[pool] for pool in going):
            continue
        taken += going
        count += len(unit)
        wave.append(unit)
    return wave


def _stuck(hostvars: Mapping[str, Any], replicas: list[Replica], unit: Unit, spare: Mapping[str, int]) -> str:
    going = Counter(replica.pool for replica in unit if replica.serves)
    pool = next(pool for pool in going if going[pool] > spare[pool])
    members = [replica for replica in replicas if replica.pool == pool]
    serving = [replica.label for replica in members if replica.serves]
    keep = min_available(hostvars, replicas, pool)
    if len(unit) > 1:
        host = unit[0].head
        return messages.node_stuck(host_variables.node_of(hostvars[host], host), pool, keep, going[pool], len(serving))
    return messages.stuck(pool, keep, serving, len(members))
