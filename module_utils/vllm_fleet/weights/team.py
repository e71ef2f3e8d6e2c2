"""Which node gives a snapshot to which: the arithmetic of the role hf_cache, from what every node's probe found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: The distribution between nodes starts where more than this many nodes have to receive; for one, a copy is as fast.
FEW = 1


def _probe(hostvars: Mapping[str, Any], host: str) -> dict[str, Any]:
    found = hostvars[host].get("__hf_cache_probe") or {}
    return dict(found) if isinstance(found, Mapping) else {}


def _held(probe: Mapping[str, Any]) -> int:
    """Count the files of the snapshot that a node has, as far as its probe could tell."""
    return int(probe.get("files") or 0) - len(probe.get("missing") or []) - len(probe.get("corrupt") or [])


def _takes_part(hostvars: Mapping[str, Any], host: str) -> bool:
    """Say whether a host gives and takes, as the role's __hf_cache_between_nodes says it of the host that is asked.

    A role's defaults are not in ``hostvars``, and the play's variables are everybody's: what tells hosts apart is in
    the inventory.
    """
    return (
        hostvars[host].get("hf_cache_source") != "shared"
        and hostvars[host].get("hf_cache_distribution") != "hub"
        and hostvars[host].get("ansible_connection") != "local"
    )


def hf_cache_team(hosts: Sequence[str], hostvars: Mapping[str, Any], me: str, way: str = "swarm") -> dict[str, Any]:
    """Return who has the snapshot that ``me`` asked for, who lacks it, who seeds, and how it travels.

    ``hosts`` are the hosts of the play in their order, ``way`` what the user wants. Those that neither give nor take
    (a shared cache, a local connection, each for itself) are left out. The seed is the first host that has the snapshot
    whole, otherwise the one that has most of it. ``way`` becomes rsync where one host receives only, and none where
    nobody does. ``conflict`` is a sentence when hosts have different commits under one name.
    """
    mine = _probe(hostvars, me)
    asked = (mine.get("repo_id"), mine.get("revision"))
    hosts = [host for host in hosts if _takes_part(hostvars, host)]
    team = {host: probe for host in hosts if (probe := _probe(hostvars, host)) and "complete" in probe}
    team = {host: probe for host, probe in team.items() if (probe.get("repo_id"), probe.get("revision")) == asked}
    holders = [host for host, probe in team.items() if probe["complete"]]
    lacking = [host for host in team if host not in holders]
    seed = holders[0] if holders else max(team, key=lambda host: _held(team[host]), default=me)
    receivers = [host for host in lacking if host != seed]
    commits = {str(team[host]["commit"]): host for host in reversed(holders)}
    conflict = ""
    if len(commits) > 1:
        held = ", ".join(f"{host} has {commit}" for commit, host in sorted(commits.items()))
        conflict = (
            f"Nodes hold different commits of {asked[0]} under the name {asked[1]}: {held}. Pin hf_cache_revision."
        )
    if not receivers:
        way = "none"
    elif way == "swarm" and len(receivers) <= FEW:
        way = "rsync"
    return {
        "peers": list(team),
        "holders": holders,
        "lacking": lacking,
        "receivers": receivers,
        "seed": seed,
        "way": way,
        "conflict": conflict,
    }


def _registered(hostvars: Mapping[str, Any], host: str, name: str) -> dict[str, Any]:
    found = hostvars[host].get(name) or {}
    return dict(found) if isinstance(found, Mapping) else {}


def hf_cache_followers(team: Mapping[str, Any], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts of a team that are receiving from a swarm."""
    joined = {host: _registered(hostvars, host, "__hf_cache_joined") for host in team["receivers"]}
    return [host for host, result in joined.items() if result.get("ok") and "total" in result]


def hf_cache_by_rsync(team: Mapping[str, Any], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts of a team that lack blobs and got into no swarm."""
    followers = hf_cache_followers(team, hostvars) if team["way"] == "swarm" else []
    wanting = [host for host in team["receivers"] if _registered(hostvars, host, "__hf_cache_lack").get("wanted")]
    return [host for host in wanting if host not in followers]


def hf_cache_missed(team: Mapping[str, Any], hostvars: Mapping[str, Any], me: str) -> str:
    """Return why the blobs that ``me`` lacks have not arrived; an empty string when they have or none are lacking.

    What stands still is seen by the receivers; why, often by the seed alone: what ended it is said with it.
    """
    if not _registered(hostvars, me, "__hf_cache_lack").get("wanted"):
        return ""
    if team["way"] == "swarm" and me in hf_cache_followers(team, hostvars):
        followed = _registered(hostvars, me, "__hf_cache_followed")
        if followed.get("finished"):
            return ""
        why = str(followed.get("reason") or followed.get("msg") or "unreachable")
        seed = _registered(hostvars, team["seed"], "__hf_cache_followed")
        ended = seed.get("reason") if seed.get("ok") is False else ""
        return f"{why}; {team['seed']}, which has all of it: {ended}" if ended else why
    copied = _registered(hostvars, me, "__hf_cache_copied")
    if copied.get("rc") == 0 and not copied.get("unreachable"):
        return ""
    tail = " ".join(str(line) for line in list(copied.get("tail") or [])[-3:])
    return f"the copy by rsync over SSH from {team['seed']} failed ({tail or copied.get('msg') or 'not started'})"


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        """Name them."""
        return {
            "hf_cache_team": hf_cache_team,
            "hf_cache_followers": hf_cache_followers,
            "hf_cache_by_rsync": hf_cache_by_rsync,
            "hf_cache_missed": hf_cache_missed,
        }
