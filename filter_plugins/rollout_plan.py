# SPDX-License-Identifier: Apache-2.0
"""Filters of the role rollout, see module_utils/vllm_fleet/rollout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible import context

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.gateway import vip
from ansible.module_utils.vllm_fleet.rollout import (
    gate,
    node_units,
    play_hosts,
    recovery,
    repair,
    replicas,
    restart,
    steps,
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
        waves.Limits(**limits, missing=tuple(missing)),
        check_mode=check_mode,
    )


def hosts_of_play(choose: Callable[..., list[str]], *, of_gateways: bool = False) -> Callable[..., list[str]]:
    """Return a filter for the hosts of a play, which names its group where the plays are only listed (--list-tags ...).

    Nobody knows the hosts then, and the pattern for none of them would stand in the list.
    """

    def hosts(hostvars: Mapping[str, Any], *args: Any) -> list[str]:
        if not any(context.CLIARGS.get(option) for option in ("listhosts", "listtasks", "listtags")):
            return choose(hostvars, *args)
        return list(args[0]) or play_hosts.NOBODY if of_gateways else ["vllm"]

    return hosts


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
            "deploy_steps": steps.plan,
            "deploy_watchdogs": hosts_of_play(play_hosts.watchdogs),
            "repair_plan": repair.plan,
            "repair_refused_hosts": hosts_of_play(play_hosts.unrepaired),
            "repair_sick": repair.sick,
            "restart_against": restart.against,
            "restart_asked": restart.asked,
            "rollout_answers": recovery.answers,
            "rollout_canary": node_units.canary,
            "rollout_failed": hosts_of_play(play_hosts.failed),
            "rollout_first_of_nodes": host_variables.first_of_nodes,
            "rollout_forgetful_gateways": hosts_of_play(play_hosts.forgetful_gateways, of_gateways=True),
            "rollout_gate": gate.closed,
            "rollout_gateway_problems": waves.gateway_problems,
            "rollout_gateways": hosts_of_play(play_hosts.gateways_of, of_gateways=True),
            "rollout_standing": vip.standing,
            "rollout_hosts": hosts_of_play(play_hosts.waves),
            "rollout_in_replicas": hosts_of_play(play_hosts.in_replicas),
            "rollout_leftovers": hosts_of_play(play_hosts.leftovers),
            "rollout_neighbours": host_variables.neighbours,
            "rollout_node_lacks": recovery.node_lacks,
            "rollout_not_drained": recovery.not_drained,
            "rollout_part": hosts_of_play(play_hosts.part),
            "rollout_warms": steps.warms,
            "rollout_old_is_back": recovery.old_is_back,
            "rollout_old_loads": recovery.old_loads,
            "rollout_pending_artifact": replicas.pending_artifact,
            "rollout_plan": rollout_plan,
            "rollout_removers": hosts_of_play(play_hosts.removers),
            "rollout_repair": replicas.repair_of,
            "rollout_server": host_variables.server_result,
            "rollout_serial": play_hosts.serial,
            "rollout_sharing_weights": host_variables.sharing_weights,
            "rollout_shortage": gate.shortage,
            "rollout_unplanned": hosts_of_play(play_hosts.unplanned),
            "rollout_url": host_variables.own_url,
            "rollout_verdict": gate.verdict,
        }
