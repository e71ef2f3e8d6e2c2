# SPDX-License-Identifier: Apache-2.0
"""Filters of the role gateway, see module_utils/vllm_fleet/gateway."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.gateway import (
    fronts,
    generations,
    haproxy,
    keys,
    pools,
    room,
    servers,
    vip,
    watching,
)
from ansible.module_utils.vllm_fleet.rollout import messages
from ansible.module_utils.vllm_fleet.vllm import host_variables


def gateway_losses(
    hostvars: Mapping[str, Any],
    made: Iterable[Mapping[str, Any]],
    answers: Iterable[Mapping[str, Any]],
    gateway: str,
    also: Iterable[str],
) -> list[str]:
    """Return which pools would lose too many servers once ``gateway`` has what is described, as sentences."""
    return [messages.gateway_loses(gateway, loss) for loss in servers.losses(hostvars, made, answers, also)]


def gateway_forgets(
    hostvars: Mapping[str, Any],
    seen: Iterable[Mapping[str, Any]],
    hosts: Iterable[str],
    made: Iterable[Mapping[str, Any]],
    gateway: str,
    *,
    recorded: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Return which servers ``gateway`` forgets because they left the inventory, and which models, as sentences."""
    hosts = list(hosts)
    gone, lost = servers.forgotten(seen, hosts, recorded, made)
    removed = any(host_variables.truth(hostvars[host].get("rollout_remove_undescribed")) for host in hosts if gone)
    return [
        *(messages.gateway_forgets(gateway, one, removed) for one in gone),
        *(messages.no_server_left(gateway, model) for model in lost),
    ]


def gateway_not_admitted(probes: Iterable[Mapping[str, Any]], host: str, place: Mapping[str, Any], timeout: int) -> str:
    """Return what each gateway sees of a server that it did not admit; an item of ``probes`` is the answer to that."""
    return "\n".join(messages.not_admitted(host, probe["item"]["item"], probe, place, timeout) for probe in probes)


def gateway_not_drained(answers: Iterable[Mapping[str, Any]], host: str) -> str:
    """Return which gateways did not drain a server: without a state afterwards in their answers."""
    return messages.not_drained(host, [answer for answer in answers if "state_after" not in answer])


def kept_pools(made: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the pools that are there for servers with an old key or name, or for those that move to another pool."""
    return [pool["name"] for pool in made if pool.get("kept") or any(one.get("guest") for one in pool["servers"])]


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "gateway_entries": servers.entries,
            "gateway_http2_problems": fronts.odd_http2,
            "gateway_key_map": keys.key_map,
            "gateway_key_variable": generations.variable,
            "gateway_kept_pools": kept_pools,
            "gateway_kept_out": servers.kept_out,
            "gateway_local_url": pools.local_url,
            "gateway_losses": gateway_losses,
            "gateway_forgets": gateway_forgets,
            "gateway_form_field": fronts.form_field,
            "gateway_model_listing": fronts.listing,
            "gateway_model_names": fronts.known_models,
            "gateway_moved": servers.moved,
            "gateway_not_admitted": gateway_not_admitted,
            "gateway_not_drained": gateway_not_drained,
            "gateway_own_url": host_variables.own_url,
            "gateway_path_pattern": fronts.path_pattern,
            "gateway_place": pools.place,
            "gateway_quoted_key": generations.quoted,
            "gateway_record": generations.record,
            "gateway_records": generations.records,
            "gateway_pools": pools.pools_behind,
            "gateway_doors": keys.doors,
            "gateway_room_problems": room.problems,
            "gateway_standing": vip.standing,
            "gateway_status_changed": servers.status_changed,
            "gateway_urls": fronts.urls,
            "gateway_up_in": servers.up_in,
            "gateway_sums": haproxy.sums,
            "gateway_verification_urls": servers.verification_urls,
            "gateway_versioned": haproxy.versioned,
            "gateway_watching": watching.behind,
            "gateway_vip": vip.described,
            "gateway_vip_not_on_host": vip.not_on_host,
        }
