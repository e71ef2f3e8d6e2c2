# SPDX-License-Identifier: Apache-2.0
"""The sentences of a rollout: what is planned, what speaks against it, how far it came. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..gateway.servers import DRAIN, MAINT, UP, Forgotten, Loss, entry_of
from .replicas import Replica

MANY = 6  # names in a list before the rest is counted
#: Why a server is restarted that playbooks/restart.yml was run for.
ASKED = "playbooks/restart.yml was run"
#: What helps where a gateway has no record of what its servers have, or is to forget it.
_MOVE = (
    "run deploy.yml once without that change, so that the gateway can keep the old key or name beside the new one "
    "(docs/gateway.md; gateway_keep_old must be true), or accept the gap with -e rollout_min_available=0."
)


def names(given: Iterable[str]) -> str:
    """Return names as a list in words; `none` for no name."""
    given = list(given)
    if len(given) > MANY:
        return f"{', '.join(given[:MANY])} and {len(given) - MANY} more"
    return " and ".join(filter(None, [", ".join(given[:-1]), *given[-1:]])) or "none"


def _s(count: int) -> str:
    """Return the ending of a noun for a number of things."""
    return "" if count == 1 else "s"


def _verb_s(subjects: Sequence[object]) -> str:
    """Return the ending of a verb for its subjects."""
    return "s" if len(subjects) == 1 else ""


# --- the plan -----------------------------------------------------------------------------------------------------


def plan(waves: Sequence[Sequence[Replica]], same: Sequence[Replica], total: int) -> str:
    """Return what is replaced in which wave, and what stays as it is; ``total`` counts the replicas of the run."""
    matches = "matches" if len(same) == 1 else "match"
    rest = f"{names(one.label for one in same)} {matches} the inventory and answered correctly"
    if not waves:
        return f"Nothing to do: {rest}." if same else "Nothing to replace."
    listed = " | ".join(names(replica.label for replica in wave) for wave in waves)
    what = "deploy" if all(replica.new for wave in waves for replica in wave) else "replace"
    return (
        f"To {what}: {sum(map(len, waves))} of {total} replica{_s(total)}, in {len(waves)} wave{_s(len(waves))}: "
        f"{listed}." + (f" {rest}." if same else "")
    )


def pending(first: Mapping[str, str]) -> str:
    """Return which nodes get something first (`the image`, by host), before it is known what would change there."""
    return "".join(
        f" {names(hosts)} get{_verb_s(hosts)} {what} first: what changes there is known then."
        for what, hosts in _by_value(first)
    )


def repairs(reasons: Mapping[str, str]) -> str:
    """Return which servers are mended although they are as described, or restarted; reasons by replica."""
    return "".join(
        f" {names(labels)} {'is' if len(labels) == 1 else 'are'} {_mended(why)}." for why, labels in _by_value(reasons)
    )


def _mended(why: str) -> str:
    return (
        "drained and restarted in that wave, with nothing changed" if why == ASKED else f"mended first, because {why}"
    )


def sick(reasons: Mapping[str, str]) -> str:
    """Return which nodes are repaired in their wave; reasons by host."""
    return "".join(
        f" {names(hosts)} will be drained and repaired in that wave: {why}." for why, hosts in _by_value(reasons)
    )


def reboots(planned: Mapping[str, str], waiting: Mapping[str, str]) -> str:
    """Return which nodes are rebooted in their wave and which wait for their user to allow it; reasons by host."""
    said = [f" {names(hosts)} will be drained and rebooted in that wave: {why}." for why, hosts in _by_value(planned)]
    said += [
        f" {names(hosts)} wait{_verb_s(hosts)} for a reboot: {why}. With rocm_allow_reboot: true the "
        "next deployment drains, reboots and verifies node by node; otherwise reboot when nothing is served there."
        for why, hosts in _by_value(waiting)
    ]
    return "".join(said)


def undescribed(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which servers are on nodes and in no inventory, by node."""
    listed = [f"{node} ({', '.join(one['servers'])})" for node, one in found.items()]
    if not listed:
        return ""
    return f" Not described any more, and left alone unless rollout_remove_undescribed is true: {names(listed)}."


def still_running(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return which servers in no inventory a teardown has left, by node as ``undescribed`` has them; [] for none."""
    left = [
        (name, node, one["by"])
        for node, one in found.items()
        for name, state in one["servers"].items()
        if state == "running"
    ]
    if not left:
        return []
    name, _, host = left[0]
    return [
        f"Still running, not described: {names(f'{name} on {node}' for name, node, _ in left)}. To remove one: "
        f"ansible {host} -b -m vllm_watchdog -a 'name={name} state=absent', then the same with -m vllm_server"
    ]


def left_out(absent: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which hosts a run leaves out, and why; ``absent`` is what left_out.of() returns."""
    lost = [host for host, one in absent.items() if one["lost"] and not one["with"]]
    along = _by_value({host: str(one["with"]) for host, one in absent.items() if one["with"]})
    said = [f"{names(lost)}, which do{'es' if len(lost) == 1 else ''} not answer"] if lost else []
    resting = {host: str(one["why"]) for host, one in absent.items() if not (one["lost"] or one["with"])}
    said += [f"{names(hosts)}, in maintenance{why}" for why, hosts in _by_value(resting)]
    said += [f"{names(hosts)} together with {host}" for host, hosts in along]
    return f" Left out: {'; '.join(said)}." if said else ""


def _by_value(reasons: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for host, why in reasons.items():
        grouped.setdefault(why, []).append(host)
    return list(grouped.items())


# --- what speaks against it ---------------------------------------------------------------------------------------


def no_file(path: str) -> str:
    """Refuse a file of tasks that is not there."""
    return (
        f"{path} is no file on the controller; expected tasks that drain or admit a server. Give rollout_drain_tasks "
        "and rollout_admit_tasks whole paths, such as {{ inventory_dir }}/drain.yml."
    )


def no_count(name: str, value: object) -> str:
    """Refuse a variable that is no number of replicas."""
    return f"{name} is {value!r}; expected a number of replicas from 0."


def _without(hosts: Iterable[str]) -> str:
    """Return the limit of a run without these hosts."""
    return ":".join(f"!{host}" for host in hosts)


def silent(hosts: Sequence[str]) -> str:
    """Refuse a run in which hosts could not be planned."""
    return (
        f"{names(hosts)} could not be asked or would refuse what is described (see above), so no server of any "
        f"node was replaced. Mend that, or leave it out with --limit '{_without(hosts)}'."
    )


def wrong(replicas: Sequence[str], hosts: Sequence[str], max_failures: int) -> str:
    """Refuse a run in which too many replicas, with these ``hosts``, did not pass their verification."""
    return (
        f"{names(replicas)} runs what is described but did not pass its verification (see above), "
        f"so no server of any node was replaced: rollout_max_failures is {max_failures}. To release to the others, "
        f"leave it out with --limit '{_without(hosts)}', or let it fail with -e rollout_max_failures={len(replicas)}; "
        f"to start it anew as it is, run playbooks/restart.yml with --limit {','.join(hosts)}."
    )


def half_a_replica(hosts: Iterable[str], inside: Iterable[str]) -> str:
    """Refuse a limit that cuts a replica."""
    return f"{names(hosts)} are one replica, and this run is limited to {names(inside)}: name all of them with --limit."


def half_a_node(node: str, outside: Iterable[str]) -> str:
    """Refuse a boot or a repair of a node some of whose servers are not in the run."""
    return (
        f"{node} has to be rebooted or repaired, which stops all of its servers, and {names(outside)} of it are not in "
        f"this run: name the node with --limit {node}."
    )


def gateway_outside(gateways: Sequence[str], what: str, replicas: Sequence[Replica]) -> str:
    """Refuse another key or other names (``what``) that gateways outside of the run would not know."""
    hosts = ",".join(host for replica in replicas for host in replica.hosts)
    return (
        f"{names(replica.label for replica in replicas)} would get another {what}, which {names(gateways)} would not "
        f"know: this run does not change that gateway. Run deploy.yml with both: --limit {hosts},{','.join(gateways)}; "
        "a rollback across it is a deployment of the old values. No server was replaced."
    ).replace("another served names", "other served names")


def gateway_loses(gateway: str, loss: Loss) -> str:
    """Refuse a change of a gateway that would take too many servers of a pool for down."""
    why = [f"{', '.join(loss.refuse_key)} does not take vllm_server_api_key as it is described"] * bool(loss.refuse_key)
    why += [f"{', '.join(loss.serve_other)} does not serve {loss.model}"] * bool(loss.serve_other)
    return (
        f"With what is described, {gateway} would send requests for {loss.model} to {loss.stay} of {loss.have} "
        f"servers that have them now, expected at least {loss.keep} (rollout_min_available): {'; '.join(why)}. "
        f"{_MOVE[0].upper()}{_MOVE[1:]} The gateway was not changed."
    )


def _reason(text: str) -> str:
    """Return a module's message as part of a sentence."""
    return text.strip().removeprefix("Task failed: ").removesuffix(".")


def gateway_lost(gateway: str, reason: str) -> str:
    """Refuse a run with a gateway that cannot be reached."""
    return (
        f"{gateway} cannot be asked ({_reason(reason)}), so no server could be drained or admitted "
        "there. See to its network, its SSH server and its sudo, or take it out of group gateway."
    )


def gateway_stopped(gateway: str, reason: str) -> str:
    """Refuse a run with a gateway whose HAProxy does not run."""
    return (
        f"HAProxy on {gateway} {reason}, and this run does not change that "
        f"gateway. Start it (systemctl status haproxy), or run deploy.yml with {gateway} in --limit, too."
    )


def gateway_ignorant(gateway: str, missing: Sequence[Replica]) -> str:
    """Refuse a run with a gateway that does not know servers of it."""
    pools = names(dict.fromkeys(replica.pool for replica in missing))
    hosts = ",".join(host for replica in missing for host in replica.hosts)
    return (
        f"{gateway} does not know {names(replica.label for replica in missing)} by the model {pools}, and "
        f"this run does not change that gateway. Run deploy.yml with both: --limit {hosts},{gateway}."
    )


def stuck(pool: str, keep: int, serving: Sequence[str], members: int) -> str:
    """Refuse a run that would leave too few of a pool."""
    return (
        f"rollout_min_available is {keep}, but {len(serving)} of {members} replicas of {pool} serve "
        f"({names(serving)}), so none of them can be replaced: add replicas, bring back those that are down, or allow "
        f"the gap with -e rollout_min_available={max(0, len(serving) - 1)}. Nothing was replaced."
    )


def node_stuck(node: str, pool: str, keep: int, going: int, serving: int) -> str:
    """Refuse a boot or a repair of a node that would leave too few of a pool."""
    return (
        f"{node} has to be rebooted or repaired, which stops {going} of the {serving} replicas of {pool} that serve, "
        f"and rollout_min_available is {keep}: add replicas on other nodes, bring back those that are down, or allow "
        f"the gap with -e rollout_min_available={max(0, serving - going)}. Nothing was replaced."
    )


def gateway_forgets(gateway: str, one: Forgotten, removed: bool) -> str:
    """Say which servers a gateway forgets, and what they do now; ``removed``: the run may remove their containers."""
    state = {UP: "serving now", DRAIN: "drained", MAINT: "in maintenance"}.get(one.state, "down")
    stays = f"; {'its container stays' if len(one.servers) == 1 else 'their containers stay'}"
    return f"{gateway} forgets {names(one.servers)} ({one.model}, {state}){'' if removed else stays}"


def no_server_left(gateway: str, model: str) -> str:
    """Say that a model is gone from a gateway."""
    return f"{gateway}: no server of {model} is left: clients that ask for it get 404"


# --- draining and admitting ---------------------------------------------------------------------------------------


def not_drained(host: str, silent: Sequence[Mapping[str, Any]]) -> str:
    """Return which gateways did not drain a server, by their answers (of community.general.haproxy) without a state."""
    reasons = dict.fromkeys(str(answer.get("msg", "no message")).strip() for answer in silent)
    gateways = " and ".join(dict.fromkeys(str(answer["item"]["gateway"]) for answer in silent))
    return (
        f"{host} was not drained and nothing of it was stopped, because "
        f"{gateways} did not do it ({'; '.join(reasons)}). Start that "
        "host or its HAProxy (systemctl status haproxy), or take it out of group gateway, and run again. If a gateway "
        "does not know the server by this model yet, run deploy.yml with the gateway in --limit, too."
    )


def not_admitted(host: str, gateway: str, probe: Mapping[str, Any], place: Mapping[str, Any], timeout: int) -> str:
    """Return what a gateway sees of a server that it does not admit within ``timeout`` s.

    ``probe`` is a result of gateway_info, ``place`` is the server's (gateway/pools.place).
    """
    entry = entry_of(probe, place)
    if probe.get("unreachable"):
        why = f"the gateway cannot be reached ({str(probe['msg']).strip()}). Start it, or take it out of group gateway."
    elif not probe.get("running"):
        why = f"its HAProxy {probe.get('reason', 'failed')}. See systemctl status haproxy there."
    elif entry is None:
        why = (
            f"it has no server {place['backend']}/{place['server']}. Run the role gateway there (deploy.yml does) and "
            "try again."
        )
    elif str(entry.get("agent") or "").startswith("down"):
        why = (
            f"after {timeout} s the server's watchdog still says {entry['agent']}. See playbooks/events.yml, and "
            f"`systemctl status vllm-fleet-watchdog@*` on {host}."
        )
    else:
        why = (
            f"after {timeout} s its status is {entry['status']}, the last health check said: {entry['check']}. Compare "
            "address, port, key and served model name with what the server has."
        )
    return f"{gateway} does not send requests to {host}: {why}"


# --- between the waves and at their end ---------------------------------------------------------------------------


def too_many_failed(replicas: Iterable[str], max_failures: int) -> str:
    """Return why no further wave begins after failures."""
    return f"{names(replicas)} failed and rollout_max_failures is {max_failures}"


def too_few_stay(pool: str, stay: Sequence[str], keep: int) -> str:
    """Return why a wave must not begin that would leave too few of a pool."""
    return (
        f"only {len(stay)} replica{_s(len(stay))} of {pool} would stay ({names(stay)}) and "
        f"rollout_min_available is {keep}"
    )


def too_few_to_stop(pool: str, stay: Sequence[str], keep: int, *, only: str = "") -> str:
    """Return why servers are not stopped for maintenance; ``only`` is the model's server where it has one alone."""
    if only:
        return (
            f"{only} is the only server of {pool}, whose requests would all be refused until playbooks/start.yml: "
            "deploy that model elsewhere first, or accept the gap with -e rollout_min_available=0."
        )
    return (
        f"{too_few_stay(pool, stay, keep)}: stop fewer at a time, bring back those that are down, or accept the gap "
        f"with -e rollout_min_available={len(stay)}."
    )


def without_server(pools: Iterable[str], *, check_mode: bool) -> list[str]:
    """Return which models have no server when others have gone to maintenance."""
    has = "would have" if check_mode else "has"
    return [f"{pool} {has} no server until start.yml" for pool in pools]


def verdict(host: str, cause: str, done: Iterable[str], untouched: Sequence[str], max_failures: int) -> str:
    """Return what a host failed with, and how far the run came."""
    said = f"Replaced before: {names(done)}."
    if untouched:
        said += f" The run stopped there, as rollout_max_failures is {max_failures}; not touched: {names(untouched)}."
    return f"{host}: {cause} {said}"


def part_of_a_replica(host: str, replica: str, head: str) -> str:
    """Return the verdict of a host whose head says why their replica failed."""
    return f"{host}: it is part of {replica}; the message of {head} has the reason."
