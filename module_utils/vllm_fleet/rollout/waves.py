# SPDX-License-Identifier: Apache-2.0
"""Filters: which servers are replaced in which wave, and whether the next wave may begin."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.preflight import inventory
from ansible.module_utils.vllm_fleet.server import result

SERVED_NAME = "served-model-name"
KEEP = 1  # default of rollout_min_available
#: Matches nothing, and says so without a warning.
NOBODY = ["all:!all"]
UP, DRAIN, MAINT = "UP", "DRAIN", "MAINT"  # HAProxy's words
MANY = 6  # names in a list before the rest is counted


@dataclass
class Replica:
    """One server: its hosts in the inventory's order, the pool it belongs to, whether it serves now."""

    name: str
    pool: str
    hosts: list[str] = field(default_factory=list)
    serves: bool = True
    change: bool = False
    #: An administrator has put it into MAINT at every gateway: it serves neither now nor when it has been replaced.
    kept_out: bool = False
    #: What is brought first, by host, where check mode has only said so.
    unstaged: dict[str, str] = field(default_factory=dict)
    #: Why a node of it has to be rebooted in its wave, by host.
    reboots: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The host that answers for it."""
        return self.hosts[0]

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return _label(self.name, self.hosts)


# --- waves --------------------------------------------------------------------------------------------------------


def sizes(waves: Any, replicas: int) -> list[int]:
    """Replicas of each wave; the last one is repeated as long as there are replicas."""
    shares = [inventory.wave(entry) for entry in inventory.wave_list(waves)]
    return [count or max(1, replicas * percent // 100) for count, percent in shares]


# --- what there is ------------------------------------------------------------------------------------------------


def _served(variables: Mapping[str, Any]) -> list[str]:
    """The names under which a host's server is to answer."""
    for flag, value in (variables.get("vllm_server_args") or {}).items():
        if str(flag).lstrip("-").replace("_", "-") == SERVED_NAME and value:
            return [str(name) for name in ([value] if isinstance(value, str) else value)]
    return [str(variables.get("vllm_server_model") or "")]


def _pool(variables: Mapping[str, Any]) -> str:
    """The first of these names, by which the servers of a pool belong together."""
    return _served(variables)[0]


def _replica_name(hostvars: Mapping[str, Any], host: str) -> str:
    name = hostvars[host].get("vllm_server_replica")
    return f"host {host}" if name in (None, "") else f"replica {name}"


def _label(name: str, hosts: Sequence[str]) -> str:
    """`node3` for a host alone, `big (node1+node2)` for a replica of several."""
    return hosts[0] if len(hosts) == 1 else f"{name.partition(' ')[2]} ({'+'.join(hosts)})"


def _together(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> dict[str, list[str]]:
    """The hosts of each replica, as they are in `hosts`."""
    found: dict[str, list[str]] = {}
    for host in hosts:
        found.setdefault(_replica_name(hostvars, host), []).append(host)
    return found


def _labels(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    return [_label(name, members) for name, members in _together(hostvars, hosts).items()]


def _gateway_says(hostvars: Mapping[str, Any], gateways: Iterable[str], server: str) -> set[str]:
    """A server's status at the gateways that were asked in this run: HAProxy's first word, UP, DOWN, DRAIN, MAINT.

    MAINT is an administrator's alone; what HAProxy itself calls so (no address, for one) counts as DOWN.
    """
    found = set()
    for gateway in gateways:
        for entry in (hostvars[gateway].get("__gateway_probe") or {}).get("servers") or []:
            if entry.get("name") == server:
                words = str(entry.get("status")).split()
                found.add("DOWN" if words[0] == MAINT and words[1:] else words[0])
    return found


def _asked(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """What vllm_server answered when it was asked what it would do; empty when it could not be asked or refused."""
    answer = variables.get("__vllm_server_started") or {}
    return {} if answer.get("failed") or answer.get("skipped") or "actions" not in answer else answer


#: Failure classes of vllm_server that mean: the weights are not there.
_NO_WEIGHTS = ("cache_miss_offline", "cache_incomplete")


def rollout_unstaged(answer: Mapping[str, Any] | None, variables: Mapping[str, Any]) -> str:
    """What check mode has only said that it would bring, and without which vllm_server could not tell; empty otherwise.

    ``variables`` are the host's, with what the roles before found there.
    """
    engine, image, weights = (
        variables.get(name) or {} for name in ("__docker_engine", "__vllm_image_probe", "__hf_cache_probe")
    )
    answer = answer or {}
    why = (answer.get("failure") or {}).get("class")
    # The tag may be on another image, which is no failure: the server was compared with that one then.
    moves = variables.get("vllm_image_tag") in (image.get("tags_moved") or []) and "@" not in str(
        image.get("image_ref")
    )
    lacks = image.get("present") is False or moves
    if lacks and (why == "image_missing" or (why is None and not answer.get("failed"))):
        return "the image"
    if weights.get("complete") is False and why in _NO_WEIGHTS:
        return "the weights"
    missing = engine.get("running") is False or engine.get("sdk") is False
    return "the engine" if missing and why == "unknown" else ""


def _waits_for_boot(variables: Mapping[str, Any]) -> tuple[str, bool]:
    """Why only a reboot helps a node, as the role rocm found (empty: it need not), and whether it may be rebooted."""
    reasons = variables.get("rocm_reboot_required") or []
    return " and ".join(map(str, reasons)), boolean(variables.get("rocm_allow_reboot"), strict=False)


def replicas_of(
    hostvars: Mapping[str, Any],
    fleet: Iterable[str],
    play: Iterable[str],
    gateways: Iterable[str],
    *,
    check_mode: bool = False,
    admits: bool = False,
) -> list[Replica]:
    """The fleet's replicas. Those outside `play` count as serving; a gateway that was asked knows better of all.

    `admits`: what a killed run has left drained counts, too, because this run admits it before its first wave.
    """
    found: dict[str, Replica] = {}
    play, gateways = set(play), list(gateways)
    for host in fleet:
        name = _replica_name(hostvars, host)
        replica = found.setdefault(name, Replica(name, _pool(hostvars[host])))
        replica.hosts.append(host)
        if host not in play:
            continue
        answer = _asked(hostvars[host])
        confirmed = bool(answer.get("confirmed"))
        running = (answer.get("container") or {}).get("status") == "running"
        why, allowed = _waits_for_boot(hostvars[host])
        if why and allowed:
            replica.reboots[host] = why
        first = rollout_unstaged(answer, hostvars[host]) if check_mode else ""
        if first:
            replica.unstaged[host] = first
        replica.change = (
            replica.change or bool(answer.get("actions") or first) or not confirmed or bool(replica.reboots)
        )
        # One that was never verified is drained, unless a gateway sends it requests all the same.
        replica.serves = (
            replica.serves and running and (confirmed or UP in _gateway_says(hostvars, gateways, replica.head))
        )
    for replica in found.values():
        says = _gateway_says(hostvars, gateways, replica.head)
        replica.kept_out = says == {MAINT}
        left = admits and DRAIN in says and not replica.change and bool(play.intersection(replica.hosts))
        if says and UP not in says and not left:
            replica.serves = False
    return list(found.values())


def _keep(hostvars: Mapping[str, Any], replicas: Iterable[Replica], pool: str) -> int:
    """Replicas of a pool that must stay; a pool of a single one keeps none unless its user has said otherwise."""
    members = [replica for replica in replicas if replica.pool == pool]
    told = [hostvars[replica.head].get("rollout_min_available") for replica in members]
    values = [int(value) for value in told if value is not None]
    return max(values) if values else min(KEEP, len(members) - 1)


# --- the plan -----------------------------------------------------------------------------------------------------


def rollout_plan(
    hostvars: Mapping[str, Any],
    fleet: list[str],
    play: list[str],
    alive: list[str],
    gateways: list[str],
    *,
    waves: Any,
    max_failures: Any,
    check_mode: bool,
    missing: Iterable[str] = (),
) -> dict[str, Any]:
    """Who is replaced, when. `play` are the hosts of this run, `alive` those that have not failed in it.

    `hosts` are in the order of the waves, `serial` counts hosts of each wave, `waves` names replicas by their heads;
    `play` and `wrong` are the hosts that were asked and those that failed their verification. `admit` are heads
    that need nothing but to be admitted, `reboot` the hosts that are rebooted in their wave; `problems` are sentences,
    with any of them nothing is done. `missing` are files of tasks that a wave would look for in vain.
    """
    judged = inventory.waves(waves)
    problems = [f"{judged.sentence}."] if judged.level == "refused" else []
    problems += [
        f"{path} is no file on the controller; expected tasks that drain or admit a server. Give rollout_drain_tasks "
        "and rollout_admit_tasks whole paths, such as {{ inventory_dir }}/drain.yml."
        for path in missing
    ]
    if not re.fullmatch(r"[0-9]+", str(max_failures)):
        problems.append(f"rollout_max_failures is {max_failures!r}; expected a number of replicas from 0.")
        max_failures = 0
    told = {hostvars[host].get("rollout_min_available") for host in fleet} - {None}
    problems += [
        f"rollout_min_available is {value!r}; expected a number of replicas from 0."
        for value in sorted(told, key=str)
        if not re.fullmatch(r"[0-9]+", str(value))
    ]
    silent = [host for host in play if not _asked(hostvars[host])]
    if silent:
        problems.append(
            f"{_names(silent)} could not be asked or would refuse what is described (see above), so no server of any "
            "node was replaced. Mend that, or leave it out with --limit."
        )
    wrong = [host for host in play if host not in alive and host not in silent]
    if len(_together(hostvars, wrong)) > int(max_failures):
        problems.append(
            f"{_names(_labels(hostvars, wrong))} runs what is described but did not pass its verification (see above), "
            f"so no server of any node was replaced: rollout_max_failures is {max_failures}."
        )
    replicas = replicas_of(hostvars, fleet, play, gateways, check_mode=check_mode, admits=True)
    for replica in replicas:
        inside = [host for host in replica.hosts if host in play]
        if inside and len(inside) < len(replica.hosts):
            problems.append(
                f"{_names(replica.hosts)} are one replica, and this run is limited to {_names(inside)}: name all of "
                "them with --limit."
            )
        if set(wrong).intersection(replica.hosts):
            replica.serves = replica.change = False
    change = [replica for replica in replicas if replica.change]
    if not problems:
        problems += _gaps(hostvars, replicas, gateways)
        problems += rollout_apart(hostvars, fleet, [host for replica in change for host in replica.hosts], gateways)
    # What does not serve costs nothing when it is replaced. Stable: otherwise the inventory's order.
    change.sort(key=lambda replica: replica.serves)
    batches: list[list[Replica]] = []
    if not problems:
        batches, stuck = _batches(hostvars, replicas, change, sizes(waves, len(change)))
        problems += stuck
    order = [host for batch in batches for replica in batch for host in replica.hosts]
    reboots = {host: why for replica in change for host, why in replica.reboots.items()}
    waiting = {host: why for host in play for why, allowed in [_waits_for_boot(hostvars[host])] if why and not allowed}
    same = [replica for replica in replicas if not replica.change and set(replica.hosts) <= set(alive)]
    return {
        "hosts": [] if check_mode or problems else order,
        "serial": [sum(len(replica.hosts) for replica in batch) for batch in batches],
        "waves": [[replica.head for replica in batch] for batch in batches],
        "change": [replica.head for replica in change],
        "unchanged": [replica.head for replica in same],
        "admit": [replica.head for replica in same if DRAIN in _gateway_says(hostvars, gateways, replica.head)],
        "play": play,
        "wrong": wrong,
        "reboot": list(reboots),
        "problems": problems,
        "says": _say(
            batches, [replica.label for replica in same], len([r for r in replicas if set(r.hosts) & set(play)])
        )
        + _say_unstaged({host: what for replica in change for host, what in replica.unstaged.items()})
        + _say_boots(reboots, waiting),
    }


def _batches(
    hostvars: Mapping[str, Any], replicas: list[Replica], change: list[Replica], wanted: list[int]
) -> tuple[list[list[Replica]], list[str]]:
    """Fill the waves as large as wanted and as small as it takes to keep enough replicas of every pool."""
    serving = Counter(replica.pool for replica in replicas if replica.serves)
    spare = {pool: serving[pool] - _keep(hostvars, replicas, pool) for pool in {replica.pool for replica in change}}
    batches: list[list[Replica]] = []
    left = list(change)
    while left:
        batch: list[Replica] = []
        taken: Counter[str] = Counter()
        for replica in left:
            if len(batch) == wanted[min(len(batches), len(wanted) - 1)]:
                break
            if replica.serves and taken[replica.pool] >= spare[replica.pool]:
                continue
            taken[replica.pool] += replica.serves
            batch.append(replica)
        if not batch:
            return [], [_stuck(hostvars, replicas, left[0].pool)]
        batches.append(batch)
        left = [replica for replica in left if replica not in batch]
        for replica in batch:
            spare[replica.pool] += not replica.serves and not replica.kept_out
    return batches, []


def _lost_from_sight(hostvars: Mapping[str, Any], replica: Replica, gateways: Iterable[str]) -> str:
    """`key` or `name` where a gateway with what is described takes a replica that serves for down; empty otherwise."""
    answer = _asked(hostvars[replica.head])
    changed = {one["name"]: one.get("current") for one in answer.get("differences") or []}
    # A server without a key does not look at the one it is sent.
    if changed.get("env.VLLM_API_KEY") is not None:
        return "key"
    if not changed.keys() & {"model", f"args.{SERVED_NAME}"}:
        return ""
    also = [set(hostvars[gateway].get("gateway_also_healthy") or []) for gateway in gateways]
    made = result.made_of(hostvars[replica.head]) or {}
    then = made.get("args", {}).get(SERVED_NAME) or made.get("model") or ""
    known = {*_served(hostvars[replica.head]), *set.intersection(*also)}
    return "" if known.intersection([then] if isinstance(then, str) else map(str, then)) else "name"


def _gaps(hostvars: Mapping[str, Any], replicas: list[Replica], gateways: list[str]) -> list[str]:
    """Say which pools would lose too many at once, because the gateways know one key and one name a pool."""
    said = []
    lost = [
        (replica, why)
        for replica in replicas
        if gateways and replica.change and replica.serves
        for why in [_lost_from_sight(hostvars, replica, gateways)]
        if why
    ]
    for pool, why in dict.fromkeys((replica.pool, why) for replica, why in lost):
        going = [replica for replica, _ in lost if replica.pool == pool]
        stay = [replica for replica in replicas if replica.pool == pool and replica.serves and replica not in going]
        keep = _keep(hostvars, replicas, pool)
        if len(stay) >= keep:
            continue
        names = _names(replica.label for replica, cause in lost if (replica.pool, cause) == (pool, why))
        what, remedy = {
            "key": (
                f"{names} would get another vllm_server_api_key. A gateway sends one key to a pool, and would take all "
                "servers with the old one for down at once",
                "",
            ),
            "name": (
                f"{names} would get another served name, {pool}. A gateway would take all servers with the old one for "
                "down at once",
                "name the old one in gateway_also_healthy for this run, ",
            ),
        }[why]
        said.append(
            f"{what}: expected at least {keep} of {pool} to stay (rollout_min_available), {len(stay)} would. Clients "
            f"need the new {why} at the same moment: {remedy}bring the new ones up as a second pool with a port of its "
            "own and move the clients (docs/gateway.md), or accept the gap with -e rollout_min_available=0. No server "
            "was replaced and no gateway was changed."
        )
    return said


def rollout_apart(
    hostvars: Mapping[str, Any], fleet: list[str], play: Iterable[str], gateways: Iterable[str]
) -> list[str]:
    """Say which gateways could neither drain nor admit the servers of `play`, and what to do, as sentences.

    A gateway that takes part in the run starts and learns its servers in it; another one must know them.
    """
    replicas = [
        replica
        for name, hosts in _together(hostvars, fleet).items()
        if set(hosts).intersection(play)
        for replica in [Replica(name, _pool(hostvars[hosts[0]]), hosts)]
    ]
    said = []
    for gateway in gateways if replicas else ():
        variables = hostvars[gateway]
        probe = variables.get("__gateway_probe") or {}
        if "running" not in probe:
            why = str(probe.get("msg") or "no reason was given").strip().removeprefix("Task failed: ").removesuffix(".")
            said.append(
                f"{gateway} cannot be asked ({why}), so no server could be drained or admitted there. See to its "
                "network, its SSH server and its sudo, or take it out of group gateway."
            )
        elif variables.get("__gateway_takes_part"):
            continue
        elif not probe["running"]:
            said.append(
                f"HAProxy on {gateway} {probe.get('reason') or 'does not answer'}, and this run does not change that "
                f"gateway. Start it (systemctl status haproxy), or run deploy.yml with {gateway} in --limit, too."
            )
        else:
            there = {(entry.get("backend"), entry.get("name")) for entry in probe.get("servers") or []}
            missing = [one for one in replicas if (re.sub(r"[^A-Za-z0-9_.:-]", "_", one.pool), one.head) not in there]
            pools = _names(dict.fromkeys(replica.pool for replica in missing))
            hosts = ",".join(host for replica in missing for host in replica.hosts)
            if missing:
                said.append(
                    f"{gateway} does not know {_names(replica.label for replica in missing)} by the model {pools}, and "
                    f"this run does not change that gateway. Run deploy.yml with both: --limit {hosts},{gateway}."
                )
    return said


def _stuck(hostvars: Mapping[str, Any], replicas: list[Replica], pool: str) -> str:
    members = [replica for replica in replicas if replica.pool == pool]
    serving = [replica.label for replica in members if replica.serves]
    keep = _keep(hostvars, replicas, pool)
    return (
        f"rollout_min_available is {keep}, but {len(serving)} of {len(members)} replicas of {pool} serve "
        f"({_names(serving)}), so none of them can be replaced: add replicas, bring back those that are down, or allow "
        f"the gap with -e rollout_min_available={max(0, len(serving) - 1)}. Nothing was replaced."
    )


def _names(hosts: Iterable[str]) -> str:
    hosts = list(hosts)
    if len(hosts) > MANY:
        return f"{', '.join(hosts[:MANY])} and {len(hosts) - MANY} more"
    return " and ".join(filter(None, [", ".join(hosts[:-1]), *hosts[-1:]])) or "none"


def _say(batches: list[list[Replica]], same: list[str], total: int) -> str:
    rest = f"{_names(same)} serve{'s' if len(same) == 1 else ''} what is described and answered right"
    if not batches:
        return f"Nothing to replace: {rest}." if same else "Nothing to replace."
    waves = " | ".join(_names(replica.label for replica in batch) for batch in batches)
    count = sum(map(len, batches))
    return (
        f"To replace: {count} of {total} replica{'s' if total > 1 else ''}, in {len(batches)} "
        f"wave{'s' if len(batches) > 1 else ''}: {waves}." + (f" {rest[0].upper()}{rest[1:]}." if same else "")
    )


def _say_unstaged(first: Mapping[str, str]) -> str:
    """Tell of nodes that cannot be asked yet what would change there."""
    return "".join(
        f" {_names(hosts)} get{'s' if len(hosts) == 1 else ''} {what} first: what changes there is known then."
        for what, hosts in _by_value(first)
    )


def _say_boots(reboots: Mapping[str, str], waiting: Mapping[str, str]) -> str:
    """Tell of nodes that only a reboot helps: those that a wave takes care of, those that are left to their user."""
    said = [f" {_names(hosts)} will be drained and rebooted in that wave: {why}." for why, hosts in _by_value(reboots)]
    said += [
        f" {_names(hosts)} wait{'s' if len(hosts) == 1 else ''} for a reboot: {why}. With rocm_allow_reboot: true the "
        "next deployment drains, reboots and verifies node by node; otherwise reboot when nothing is served there."
        for why, hosts in _by_value(waiting)
    ]
    return "".join(said)


def _by_value(reasons: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for host, why in reasons.items():
        grouped.setdefault(why, []).append(host)
    return list(grouped.items())


# --- between the waves --------------------------------------------------------------------------------------------


def _outcome(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    return variables.get("rollout_outcome") or {}


def failed_hosts(hostvars: Mapping[str, Any], plan: Mapping[str, Any], batch: Iterable[str] = ()) -> list[str]:
    """Hosts of earlier waves that failed, or were lost before they came to an end."""
    batch = set(batch)
    return [
        host
        for host in plan.get("hosts") or []
        if host not in batch and _outcome(hostvars[host]).get("state", "replaced") != "replaced"
    ]


def rollout_gate(
    hostvars: Mapping[str, Any],
    plan: Mapping[str, Any],
    batch: list[str],
    fleet: list[str],
    *,
    gateways: list[str],
    max_failures: int,
) -> str:
    """Why the wave `batch` must not begin, as a sentence; empty when it may."""
    failed = failed_hosts(hostvars, plan, batch)
    if len(_together(hostvars, failed)) > max_failures:
        return f"{_names(_labels(hostvars, failed))} failed and rollout_max_failures is {max_failures}"
    return rollout_shortage(hostvars, plan, batch, fleet, gateways=gateways)


def rollout_shortage(
    hostvars: Mapping[str, Any], plan: Mapping[str, Any], batch: list[str], fleet: list[str], *, gateways: list[str]
) -> str:
    """Say how many replicas would stay during the wave `batch`, where these are too few; empty otherwise."""
    replicas = replicas_of(hostvars, fleet, plan.get("play") or [], gateways)
    for replica in replicas:
        replica.serves = replica.serves and not set(plan.get("wrong") or []).intersection(replica.hosts)
    for pool in sorted({replica.pool for replica in replicas if set(batch).intersection(replica.hosts)}):
        members = [replica for replica in replicas if replica.pool == pool]
        going = [replica for replica in members if set(batch).intersection(replica.hosts)]
        stay = [
            replica.label for replica in members if replica not in going and _serves_now(hostvars, replica, gateways)
        ]
        keep = _keep(hostvars, replicas, pool)
        if any(replica.serves for replica in going) and len(stay) < keep:
            return (
                f"only {len(stay)} replica{'s' if len(stay) != 1 else ''} of {pool} would stay ({_names(stay)}) and "
                f"rollout_min_available is {keep}"
            )
    return ""


def _serves_now(hostvars: Mapping[str, Any], replica: Replica, gateways: Iterable[str]) -> bool:
    """What a replica does after the waves so far, as its head ended in them and as the gateways say by now."""
    outcome = _outcome(hostvars[replica.head])
    state = outcome.get("state")
    if state is None or (state == "failed" and "serving" not in outcome):  # the waves have not touched it
        return replica.serves
    says = _gateway_says(hostvars, gateways, replica.head)
    if says and UP not in says:
        return False
    return state == "replaced" or bool(outcome.get("serving"))


def rollout_verdict(hostvars: Mapping[str, Any], plan: Mapping[str, Any], host: str, *, max_failures: int) -> str:
    """What a host failed with, and how far the run came."""
    replicas = _together(hostvars, plan.get("hosts") or [])
    name = _replica_name(hostvars, host)
    head = replicas.get(name, [host])[0]
    if host != head and _outcome(hostvars[head]).get("state") == "failed":
        return f"{host}: it is part of {name}, of which {head} tells."
    states = {
        _label(one, hosts): {_outcome(hostvars[member]).get("state", "") for member in hosts}
        for one, hosts in replicas.items()
    }
    done = [label for label, found in states.items() if found == {"replaced"}]
    untouched = [label for label, found in states.items() if found == {""}]
    told = str(_outcome(hostvars[host]).get("msg") or "It was lost on the way.").strip().removeprefix(f"{host}: ")
    says = f"Replaced before: {_names(done)}."
    if untouched:
        says += f" The run stopped there, as rollout_max_failures is {max_failures}; not touched: {_names(untouched)}."
    return f"{host}: {told} {says}"


# --- for the headers of plays, where hostvars may not be there yet ------------------------------------------------


def _noted(hostvars: Mapping[str, Any], host: str, name: str) -> Any:
    """A fact of a host; None where there is no such host yet, or no such fact."""
    try:
        return hostvars[host].get(name)
    except KeyError:
        return None


def _plan(hostvars: Mapping[str, Any]) -> Mapping[str, Any]:
    return _noted(hostvars, "localhost", "rollout_plan") or {}


def rollout_gateways(hostvars: Mapping[str, Any], gateways: Iterable[str], part: str) -> list[str]:
    """The gateways of this run that may change now.

    For `prepare` all nodes must have come through, for `rollout` their plan. A run without nodes has neither.
    """
    stage, plan = _noted(hostvars, "localhost", "__deploy_stage"), _plan(hostvars)
    accepted = stage == "prepared" and (part == "prepare" or plan.get("problems") == [])
    return [
        gateway
        for gateway in gateways
        if _noted(hostvars, gateway, "__gateway_takes_part") and (accepted or stage is None)
    ] or NOBODY


def _ready(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> bool:
    """Whether every gateway of this run has learnt its servers; Ansible goes on when one is lost over it."""
    return not any(
        _noted(hostvars, gateway, "__gateway_takes_part") and not _noted(hostvars, gateway, "__gateway_ready")
        for gateway in gateways
    )


def rollout_left(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> list[str]:
    """The hosts of the run, where servers that are not replaced may have been left drained."""
    plan = _plan(hostvars)
    wanted = plan.get("problems") == [] and (plan.get("admit") or plan.get("unchanged")) and _ready(hostvars, gateways)
    return list(plan["play"]) if wanted else NOBODY


def rollout_hosts(hostvars: Mapping[str, Any], gateways: Iterable[str] = ()) -> list[str]:
    """Hosts in the order of the waves."""
    return list(_plan(hostvars).get("hosts") or NOBODY) if _ready(hostvars, gateways) else NOBODY


def rollout_url(variables: Mapping[str, Any]) -> str:
    """Where a host asks the server that it runs now; the inventory's where none is known."""
    made = result.made_of(variables) or {}
    bind = str(made.get("bind") or variables.get("vllm_server_bind") or "127.0.0.1")
    bind = "127.0.0.1" if bind in ("0.0.0.0", "::", "localhost") else bind  # noqa: S104 - a name, nothing is bound here
    return (
        f"http://{f'[{bind}]' if ':' in bind else bind}:{made.get('port') or variables.get('vllm_server_port') or 8000}"
    )


def rollout_serial(hostvars: Mapping[str, Any]) -> list[int]:
    """Hosts of each wave."""
    return list(_plan(hostvars).get("serial") or [1])


def rollout_failed(hostvars: Mapping[str, Any]) -> list[str]:
    """Hosts whose failure is to be told at the end."""
    hosts = _plan(hostvars).get("hosts") or []
    return [host for host in hosts if _outcome(hostvars[host]).get("state") == "failed"] or NOBODY


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {
            "rollout_apart": rollout_apart,
            "rollout_failed": rollout_failed,
            "rollout_gate": rollout_gate,
            "rollout_gateways": rollout_gateways,
            "rollout_hosts": rollout_hosts,
            "rollout_left": rollout_left,
            "rollout_plan": rollout_plan,
            "rollout_serial": rollout_serial,
            "rollout_shortage": rollout_shortage,
            "rollout_unstaged": rollout_unstaged,
            "rollout_url": rollout_url,
            "rollout_verdict": rollout_verdict,
        }
