# SPDX-License-Identifier: Apache-2.0
"""Filters of the role hf_cache: its variables of all hosts, as the arithmetic of weights/team.py takes them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.vllm.host_variables import bracketed
from ansible.module_utils.vllm_fleet.weights import prewarm, team


def _registered(hostvars: Mapping[str, Any], host: str, name: str) -> dict[str, Any]:
    found = hostvars[host].get(name if name == "hf_cache_result" else f"__hf_cache_{name}") or {}
    return dict(found) if isinstance(found, Mapping) else {}


def _takes_part(hostvars: Mapping[str, Any], host: str) -> bool:
    """Return whether a host gives and takes, as the role's __hf_cache_between_nodes says it of its own host.

    A role's defaults are not in ``hostvars``, and the play's variables are the same for all: hosts differ by the
    inventory.
    """
    return (
        hostvars[host].get("hf_cache_source") != "shared"
        and hostvars[host].get("hf_cache_distribution") != "hub"
        and hostvars[host].get("ansible_connection") != "local"
    )


def hf_cache_team(
    hosts: Sequence[str], hostvars: Mapping[str, Any], me: str, distribution: str = "swarm"
) -> dict[str, Any]:
    """Return the team of the host ``me`` among the ``hosts`` of the play; see weights/team.py."""
    probes = {host: _registered(hostvars, host, "hf_cache_result") for host in hosts if _takes_part(hostvars, host)}
    return team.team(probes, _registered(hostvars, me, "hf_cache_result"), me, distribution)


def hf_cache_same_everywhere(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> bool:
    """Return whether all ``hosts`` that were probed have their snapshot, and it is the same one."""
    probed = [host for host in hosts if hostvars[host].get("hf_cache_result") is not None]
    return team.same_everywhere(_registered(hostvars, host, "hf_cache_result") for host in probed)


def hf_cache_wanted(team_of: Mapping[str, Any], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the blobs that at least one receiver of a team lacks."""
    return team.wanted(_registered(hostvars, host, "missing") for host in team_of["receivers"])


def hf_cache_followers(team_of: Mapping[str, Any], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts of a team that are receiving from a swarm."""
    return team.followers({host: _registered(hostvars, host, "joined") for host in team_of["receivers"]})


def hf_cache_by_rsync(team_of: Mapping[str, Any], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts of a team that lack blobs and got into no swarm."""
    following = hf_cache_followers(team_of, hostvars) if team_of["transport"] == "swarm" else []
    return team.by_rsync({host: _registered(hostvars, host, "missing") for host in team_of["receivers"]}, following)


def hf_cache_keyed(team_of: Mapping[str, Any], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts of a team that are served by rsync and have made a key for it."""
    return team.keyed({host: _registered(hostvars, host, "key") for host in hf_cache_by_rsync(team_of, hostvars)})


def hf_cache_seed_address(team_of: Mapping[str, Any], hostvars: Mapping[str, Any]) -> str:
    """Return the address at which receivers reach the seed: the one given for swarms, one that was found, Ansible's.

    As rsync takes it: IPv6 in brackets.
    """
    seed = str(team_of["seed"])
    found = (_registered(hostvars, seed, name).get("address") for name in ("seeding", "ready"))
    known = (hostvars[seed].get("hf_cache_swarm_address"), *found, hostvars[seed].get("ansible_host"), seed)
    return bracketed(str(next(filter(None, known))))


def hf_cache_missed(team_of: Mapping[str, Any], hostvars: Mapping[str, Any], me: str) -> str:
    """Return why the blobs that the host ``me`` lacks have not arrived; an empty string when none are lacking."""
    mine = {name: _registered(hostvars, me, name) for name in ("missing", "followed", "copied")}
    following = team_of["transport"] == "swarm" and me in hf_cache_followers(team_of, hostvars)
    seed = str(team_of["seed"])
    return team.not_arrived(
        team.Transfer(**mine), following=following, seed=seed, seed_followed=_registered(hostvars, seed, "followed")
    )


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "hf_cache_by_rsync": hf_cache_by_rsync,
            "hf_cache_fetched": team.fetched,
            "hf_cache_followers": hf_cache_followers,
            "hf_cache_keyed": hf_cache_keyed,
            "hf_cache_missed": hf_cache_missed,
            "hf_cache_prewarmed": prewarm.in_words,
            "hf_cache_same_everywhere": hf_cache_same_everywhere,
            "hf_cache_seed_address": hf_cache_seed_address,
            "hf_cache_team": hf_cache_team,
            "hf_cache_wanted": hf_cache_wanted,
        }
