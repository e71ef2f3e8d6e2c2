# SPDX-License-Identifier: Apache-2.0
"""Filters of the role hf_cache: its variables of all hosts, as the arithmetic of weights/team.py takes them."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.vllm import adapters, host_variables
from ansible.module_utils.vllm_fleet.weights import layout, prewarm, said, team

#: The variables that may name a commit.
_REVISIONS = ("hf_cache_revision", "vllm_server_revision")


def _of_its_form(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """Make the refusal of what a node said a filter's error."""

    @functools.wraps(filter_)
    def checked(*values: Any, **options: Any) -> Any:
        try:
            return filter_(*values, **options)
        except said.NotOfItsForm as error:
            raise AnsibleFilterError(str(error)) from None

    return checked


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
    manifest = _registered(hostvars, str(team_of["seed"]), "whole").get("manifest")
    return team.wanted((_registered(hostvars, host, "missing") for host in team_of["receivers"]), manifest)


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


@_of_its_form
def hf_cache_seed_address(team_of: Mapping[str, Any], hostvars: Mapping[str, Any]) -> str:
    """Return the address at which receivers reach the seed: the one given for swarms, one that was found, Ansible's."""
    seed = str(team_of["seed"])
    found = (_registered(hostvars, seed, name).get("address") for name in ("seeding", "ready"))
    given = hostvars[seed].get("hf_cache_swarm_address")
    if not given and (own := next(filter(None, found), None)):
        return said.address(own, seed)
    return said.host_name(str(given or hostvars[seed].get("ansible_host") or seed), seed)


@_of_its_form
def hf_cache_swarm_seed(seeding: Mapping[str, Any], host: str) -> str:
    """Return the address at which a swarm's first seed says that it listens."""
    return said.address(seeding.get("address"), host)


@_of_its_form
def hf_cache_addresses(team_of: Mapping[str, Any], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the nodes of a swarm, as the inventory or they themselves say them, each once."""
    found: set[str] = set()
    for host in team_of["peers"]:
        # The one that the inventory gives may be public; what a node says besides it may not.
        if given := hostvars[host].get("hf_cache_swarm_address"):
            found.add(said.address(given, host))
        ready = _registered(hostvars, host, "ready")
        own = [*filter(None, [ready.get("address")]), *(ready.get("addresses") or [])]
        found |= set(said.addresses([item for item in own if item != given], host))
    return sorted(found)


@_of_its_form
def hf_cache_commit(result: Mapping[str, Any], host: str, revision: str) -> str:
    """Return the commit that a host says its snapshot of a revision is of."""
    return said.commit(result.get("commit"), host, revision)


@_of_its_form
def hf_cache_offer(lines: Sequence[str], host: str) -> dict[str, Any]:
    """Return the parts of what a seed offers by rsync, empty where it did not come to that."""
    return asdict(said.offer(lines, host)) if lines else {}


@_of_its_form
def hf_cache_key(lines: Sequence[str], host: str) -> dict[str, str]:
    """Return folder and public part of the SSH key that a host made for a copy, empty where it did not come to that."""
    return asdict(said.key(lines, host)) if lines else {}


@_of_its_form
def hf_cache_as_owner(result: Mapping[str, Any], host: str) -> list[str]:
    """Return the words before a command on a host so that it runs as the owner of the cache."""
    return said.as_owner(result.get("as_owner") or [], host)


def hf_cache_commits_of_neighbours(hostvars: Mapping[str, Any], fleet: Sequence[str], host: str) -> list[str]:
    """Return the commits that other servers of a host's node want, which may not have a container yet.

    With them those of all adapters, the host's own too: two may be commits of one repository.
    """
    others = [hostvars[one] for one in host_variables.neighbours(hostvars, fleet, host) if one != host]
    named = {str(one.get(name) or "") for one in others for name in ("hf_cache_commit", *_REVISIONS)}
    for one in (*others, hostvars[host]):
        with contextlib.suppress(adapters.AdapterError):
            named |= {adapter.revision for adapter in adapters.parse(one.get(adapters.WHAT))}
    return sorted(name for name in named if layout.is_commit(name))


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
            "hf_cache_addresses": hf_cache_addresses,
            "hf_cache_as_owner": hf_cache_as_owner,
            "hf_cache_blobs": said.blobs,
            "hf_cache_by_rsync": hf_cache_by_rsync,
            "hf_cache_commit": hf_cache_commit,
            "hf_cache_commits_of_neighbours": hf_cache_commits_of_neighbours,
            "hf_cache_fetched": team.fetched,
            "hf_cache_followers": hf_cache_followers,
            "hf_cache_key": hf_cache_key,
            "hf_cache_keyed": hf_cache_keyed,
            "hf_cache_list_fault": team.list_fault,
            "hf_cache_missed": hf_cache_missed,
            "hf_cache_offer": hf_cache_offer,
            "hf_cache_prewarmed": prewarm.in_words,
            "hf_cache_same_everywhere": hf_cache_same_everywhere,
            "hf_cache_seed_address": hf_cache_seed_address,
            "hf_cache_swarm_seed": hf_cache_swarm_seed,
            "hf_cache_team": hf_cache_team,
            "hf_cache_wanted": hf_cache_wanted,
        }
