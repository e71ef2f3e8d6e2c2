# SPDX-License-Identifier: Apache-2.0
"""Filters of the role rollout, see module_utils/vllm_fleet/rollout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible import context

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.gateway import vip
from ansible.module_utils.vllm_fleet.rollout import (
    caches,
    comparison,
    estimate,
    gate,
    left_out,
    messages,
    node_units,
    play_hosts,
    recovery,
    repair,
    replicas,
    restart,
    soak,
    steps,
    stop,
    undo,
    waves,
)
from ansible.module_utils.vllm_fleet.vllm import host_variables


def rollout_plan(
    hostvars: Mapping[str, Any],
    fleet: list[str],
    play: list[str],
    alive: list[str],
    gateways: list[str],
    *,
    check_mode: bool,
    task_files: Sequence[str] = (),
    **limits: Any,
) -> dict[str, Any]:
    """Return who is replaced, when; ``limits`` are `waves` and `max_failures`, ``task_files`` may have empty names."""
    missing = dict.fromkeys(path for path in task_files if path and not Path(path).is_file())
    return waves.plan(
        waves.Scene(hostvars, fleet, play, alive, gateways),
        waves.Limits(**limits, missing=tuple(missing), rates=_rates()),
        check_mode=check_mode,
    )


def _rates() -> Mapping[str, Any]:
    """Return the bytes per second of what came last, as the callback vllm_fleet_report has kept them."""
    try:
        found = json.loads(os.environ.get("VLLM_FLEET_RATES") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def hosts_of_play(choose: Callable[..., list[str]], *, of_gateways: bool = False) -> Callable[..., list[str]]:
    """Return a filter for the hosts of a play, which names its group where the plays are only listed (--list-tags ...).

    Nobody knows the hosts then, and the pattern for none of them would stand in the list.
    """

    def hosts(hostvars: Mapping[str, Any], *args: Any) -> list[str]:
        if not any(context.CLIARGS.get(option) for option in ("listhosts", "listtasks", "listtags")):
            return choose(hostvars, *args)
        return list(args[0]) or play_hosts.NOBODY if of_gateways else ["vllm"]

    return hosts


def deploy_steps(
    hostvars: Mapping[str, Any], hosts: list[str], *, refused: Mapping[str, Mapping[str, Any]], **more: Any
) -> dict[str, Any]:
    """Return steps.plan() of the hosts that the run does not leave out, and those others as `left_out`."""
    absent = left_out.of_refusals(hostvars, hosts, refused)
    there = [host for host in hosts if host not in absent]
    ends = [host for host in refused if host not in absent]
    return {**steps.plan(hostvars, there, refused=ends, **more), "left_out": absent}


def stop_says(hostvars: Mapping[str, Any], *args: Any, check_mode: bool) -> list[str]:
    """Return which models have no server any more, as sentences; ``args`` as stop.emptied() has them."""
    return messages.without_server(stop.emptied(hostvars, *args), check_mode=check_mode)


def still_running(hostvars: Mapping[str, Any], fleet: list[str], play: list[str], looked: str) -> list[str]:
    """Return which servers on nodes of ``play`` no host describes; ``looked`` is the variable with what is there."""
    seen = {host: host_variables.servers_seen(hostvars[host].get(looked) or {}) for host in play}
    more = {
        host: servers
        for host, servers in seen.items()
        if any(name != host_variables.container_name(hostvars[host]) for name in servers)
    }
    return messages.still_running(host_variables.undescribed(hostvars, fleet, more))


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "deploy_batches": play_hosts.batches,
            "deploy_hosts": hosts_of_play(play_hosts.step),
            "deploy_step_ends": play_hosts.step_ends,
            "deploy_taken": play_hosts.taken,
            "deploy_takers": hosts_of_play(play_hosts.takers),
            "deploy_steps": deploy_steps,
            "deploy_watchdogs": hosts_of_play(play_hosts.watchdogs),
            "repair_plan": repair.plan,
            "repair_refused_hosts": hosts_of_play(play_hosts.unrepaired),
            "repair_sick": repair.sick,
            "restart_against": restart.against,
            "restart_asked": restart.asked,
            "rollout_answers": recovery.answers,
            "rollout_judged": comparison.judge,
            "rollout_judges": comparison.wants,
            "rollout_new_release": comparison.new_release,
            "rollout_peers": comparison.peers_of,
            "rollout_cache_donor": caches.donor,
            "rollout_canary": node_units.canary,
            "rollout_failed": hosts_of_play(play_hosts.failed),
            "rollout_forgetful_gateways": hosts_of_play(play_hosts.forgetful_gateways, of_gateways=True),
            "rollout_gate": gate.closed,
            "rollout_gateway_problems": waves.gateway_problems,
            "rollout_gateways": hosts_of_play(play_hosts.gateways_of, of_gateways=True),
            "rollout_standing": vip.standing,
            "rollout_hosts": hosts_of_play(play_hosts.waves),
            "rollout_in_replicas": hosts_of_play(play_hosts.in_replicas),
            "rollout_left_out": left_out.of_looks,
            "rollout_left_out_failures": left_out.failures,
            "rollout_leftovers": hosts_of_play(play_hosts.leftovers),
            "rollout_lock_nodes": left_out.lock_nodes,
            "rollout_lost": hosts_of_play(play_hosts.lost),
            "rollout_neighbours": host_variables.neighbours,
            "rollout_node_lacks": recovery.node_lacks,
            "rollout_not_drained": recovery.not_drained,
            "rollout_part": hosts_of_play(play_hosts.part),
            "rollout_warms": steps.warms,
            "rollout_old_is_back": recovery.old_is_back,
            "rollout_old_loads": recovery.old_loads,
            "rollout_pending_artifact": replicas.pending_artifact,
            "rollout_plan": rollout_plan,
            "rollout_present": hosts_of_play(play_hosts.present),
            "rollout_removers": hosts_of_play(play_hosts.removers),
            "rollout_repair": replicas.repair_of,
            "rollout_server": host_variables.server_result,
            "rollout_serial": play_hosts.serial,
            "rollout_sharing_weights": host_variables.sharing_weights,
            "rollout_shortage": gate.shortage,
            "rollout_skippable": hosts_of_play(play_hosts.skippable),
            "rollout_soak_hosts": soak.hosts,
            "rollout_soak_look": soak.look,
            "rollout_soak_seconds": soak.seconds,
            "rollout_still_running": still_running,
            "rollout_stop_against": stop.against,
            "rollout_stop_says": stop_says,
            "rollout_settled": hosts_of_play(play_hosts.settled),
            "rollout_undo_begin": undo.begin,
            "rollout_undo_going": hosts_of_play(play_hosts.going_back),
            "rollout_undo_hosts": hosts_of_play(play_hosts.undone),
            "rollout_told": undo.told,
            "rollout_undo_no_look": undo.no_look,
            "rollout_undo_waves": hosts_of_play(play_hosts.waves_back),
            "rollout_unplanned": hosts_of_play(play_hosts.unplanned),
            "rollout_waited": estimate.waited,
            "rollout_url": host_variables.own_url,
            "rollout_verdict": gate.verdict,
        }
