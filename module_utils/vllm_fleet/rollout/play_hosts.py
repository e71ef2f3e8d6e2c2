# SPDX-License-Identifier: Apache-2.0
"""The hosts of each play of a deployment, so that a play for which no host has work costs nothing. Pure.

Headers of plays are templated before the run, when ``hostvars`` may hold no host and no fact yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..common.probes import probed
from ..gateway import vip
from ..vllm.host_variables import replica_name, truth
from . import left_out, undo
from .replicas import outcome
from .steps import FACTS, STEPS

#: A pattern that matches no host, without Ansible's warning.
NOBODY = ["all:!all"]


def _fact(hostvars: Mapping[str, Any], host: str, name: str) -> Any:
    """Return a fact of a host; None where there is no such host yet, or no such fact."""
    try:
        return hostvars[host].get(name)
    except KeyError:
        return None


def _plan(hostvars: Mapping[str, Any]) -> Mapping[str, Any]:
    return _fact(hostvars, "localhost", "rollout_plan") or {}


def _prepared(hostvars: Mapping[str, Any], step: str = "") -> Mapping[str, Any]:
    """Return the steps of this run (steps.plan), where the node check and all steps before ``step`` came to an end.

    Empty otherwise, and where no node takes part. Ansible goes on with the hosts of the next play where one is lost.
    """
    steps, done = _fact(hostvars, "localhost", "deploy_steps") or {}, _fact(hostvars, "localhost", "deploy_done") or []
    for name in (steps.get("hosts") and ("refused", "lock", *STEPS)) or ():
        if name == step:
            return dict(steps)
        if name not in done and steps.get(name):
            return {}
    return dict(steps)


def step(hostvars: Mapping[str, Any], name: str) -> list[str]:
    """Return the hosts of a play of deploy.yml: `refused`, `lock`, or one of steps.STEPS."""
    return list(_prepared(hostvars, name).get(name) or NOBODY)


def batches(hostvars: Mapping[str, Any], name: str) -> list[int]:
    """Return the sizes of the batches of a play of deploy.yml; none where all of its hosts are in one."""
    return list((_prepared(hostvars, name).get("batches") or {}).get(name) or [])


def step_ends(hostvars: Mapping[str, Any], name: str, batch: Iterable[str]) -> bool:
    """Return whether the hosts of ``batch`` are in the last batch of a step."""
    steps = _fact(hostvars, "localhost", "deploy_steps") or {}
    sizes = (steps.get("batches") or {}).get(name) or []
    return len(sizes) < 2 or not set(batch).isdisjoint(steps[name][-sizes[-1] :])


def takers(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts for which another server of their node did a step."""
    return [host for host in _prepared(hostvars).get("takes") or () if taken(hostvars, host)] or NOBODY


def taken(hostvars: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Return what those noted that did a step for ``host``, as facts for it."""
    takes = (_fact(hostvars, "localhost", "deploy_steps") or {}).get("takes") or {}
    return {
        name: value
        for step_, actor in (takes.get(host) or {}).items()
        for name in FACTS[step_]
        if (value := _fact(hostvars, actor, name)) is not None
    }


def watchdogs(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts whose watchdog is to be changed after the waves; none where a step did not come to its end.

    A host without systemd has nothing to change; it is visited, to be told so, where its server was replaced.
    """
    found = _prepared(hostvars)
    visited = {*(found.get("watchdog") or ()), *(_plan(hostvars).get("hosts") or () if found else ())}
    return [
        host
        for host in found.get("hosts") or ()
        if host in visited and (host in (found.get("watchdog") or ()) or _without_systemd(hostvars, host))
    ] or NOBODY


def _without_systemd(hostvars: Mapping[str, Any], host: str) -> bool:
    result = probed(_fact(hostvars, host, "ansible_facts"), "vllm_watchdog").get("result") or {}
    return result.get("systemd") is False and bool(result.get("msg"))


def in_replicas(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return the hosts that are a part of a server over several nodes, and are not left out."""
    parts = [host for host in hosts if host in hostvars and replica_name(hostvars[host])]
    return (left_out.present(hostvars, parts) if parts else parts) or NOBODY


def part(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return the hosts that a rollout is about: those of a repair where that is what runs; none that are left out."""
    repair = _fact(hostvars, "localhost", "repair_plan")
    return left_out.present(hostvars, hosts if repair is None else repair["hosts"]) or NOBODY


def unrepaired(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts that need a repair and get none."""
    return list((_fact(hostvars, "localhost", "repair_plan") or {}).get("refused") or NOBODY)


def unplanned(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return the hosts whose server has to be planned by a task of its own; without a node check all of ``hosts``.

    One more where some need none: a play all of whose hosts fail ends the run before the plan can say why.
    """
    hosts = part(hostvars, hosts)
    steps = _prepared(hostvars)
    answered = list(steps.get("answered") or [])
    # Of a limited run, the hosts outside the limit were not checked, and need nothing.
    rest = [host for host in steps.get("hosts") or hosts if host not in set(answered)]
    return (rest + answered[:1] if rest else []) or NOBODY


def gateways_of(hostvars: Mapping[str, Any], gateways: Iterable[str], part: str) -> list[str]:
    """Return the gateways of this run that may change now.

    For `prepare` all nodes must have come through, for `rollout` their plan. A run without nodes has neither.
    """
    plan = _plan(hostvars)
    accepted = bool(_prepared(hostvars)) and (part == "prepare" or plan.get("problems") == [])
    without_nodes = _fact(hostvars, "localhost", "deploy_stage") is None
    return [
        gateway
        for gateway in gateways
        if _fact(hostvars, gateway, "gateway_takes_part") and (accepted or without_nodes)
    ] or NOBODY


def _ready(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> bool:
    """Return whether every gateway of this run knows its servers; Ansible goes on when one is lost over it."""
    return not any(
        _fact(hostvars, gateway, "gateway_takes_part") and not _fact(hostvars, gateway, "gateway_ready")
        for gateway in gateways
    )


def removers(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> list[str]:
    """Return the hosts that remove what is not described any more on their nodes, where a user has asked for that.

    None unless every server of the waves was replaced and every other one was right: one out of reach fails without a
    word. Nor where a gateway may still send requests there: one that was not in the run, or did not forget them.
    """
    plan = _plan(hostvars)
    found = plan.get("undescribed") or {}
    if undo.begun(hostvars) or not found or plan.get("problems") or plan.get("wrong"):
        return NOBODY
    if any(outcome(hostvars[host]).get("state") != "replaced" for host in plan.get("hosts") or ()):
        return NOBODY
    standing = vip.standing(hostvars, gateways)
    if any(not _fact(hostvars, one, "gateway_ready") or _fact(hostvars, one, "gateway_keeps") for one in standing):
        return NOBODY
    hosts = [one["by"] for one in found.values() if not _fact(hostvars, one["by"], "rollout_drain_tasks")]
    return [host for host in hosts if truth(_fact(hostvars, host, "rollout_remove_undescribed"))] or NOBODY


def forgetful_gateways(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> list[str]:
    """Return the gateways of this run that have old keys or names, or servers that left the inventory."""
    return [gateway for gateway in gateways if _fact(hostvars, gateway, "gateway_keeps")] or NOBODY


def leftovers(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> list[str]:
    """Return the hosts whose servers are not replaced and may have been left drained."""
    plan = _plan(hostvars)
    wanted = plan.get("problems") == [] and _ready(hostvars, gateways)
    return list((wanted and plan.get("leftovers")) or NOBODY)


def waves(hostvars: Mapping[str, Any], gateways: Iterable[str] = ()) -> list[str]:
    """Return the hosts in the order of the waves."""
    return list(_plan(hostvars).get("hosts") or NOBODY) if _ready(hostvars, gateways) else NOBODY


def serial(hostvars: Mapping[str, Any]) -> list[int]:
    """Return how many hosts each wave has."""
    return list(_plan(hostvars).get("serial") or [1])


def failed(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts whose failure is reported after the waves; where some failed, those that did not answer, too.

    No play comes after one all of whose hosts have failed.
    """
    back = undo.begun(hostvars)
    plan = _plan(hostvars)
    hosts = undo.told(hostvars) if back else [*undo.on_trial(hostvars, plan), *(plan.get("hosts") or [])]
    ends = {*undo.stuck(hostvars), *back.get("failed", ())}
    found = [host for host in dict.fromkeys(hosts) if host in ends or outcome(hostvars[host]).get("state") == "failed"]
    return [*found, *left_out.failures(hostvars)] if found else NOBODY


def undone(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts that go back after a failed rollout."""
    return undo.hosts(hostvars) or NOBODY


def going_back(hostvars: Mapping[str, Any]) -> list[str]:
    """Return those of undone() that can go back."""
    return undo.going(hostvars) or NOBODY


def waves_back(hostvars: Mapping[str, Any]) -> list[str]:
    """Return those that go back, in the order of the waves."""
    return undo.waves(hostvars) or NOBODY


def settled(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts whose release is no trial any more."""
    return undo.settled(hostvars) or NOBODY


def lost(hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts that did not answer and were left out, which the run ends with."""
    return list(left_out.failures(hostvars)) or NOBODY


def skippable(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return the hosts that are looked at before the first task, because a run may go on without them."""
    there = left_out.present(hostvars, hosts)
    return [host for host in there if host in hostvars and left_out.may_skip(hostvars[host])] or NOBODY


def present(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return the hosts that the run has not left out."""
    return left_out.present(hostvars, hosts) or NOBODY
