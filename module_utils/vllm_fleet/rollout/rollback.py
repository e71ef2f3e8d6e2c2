# SPDX-License-Identifier: Apache-2.0
"""Filter: which nodes a rollback of all would take back too far, because the newest rollout never reached them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def rollback_behind(known: Mapping[str, Mapping[str, Any]], replicas: Mapping[str, str]) -> dict[str, list[str]]:
    """Split nodes into those `behind` and those `ahead` of them; both empty where all go back by the same step.

    ``known``: by host, what vllm_release_info returned. ``replicas``: by host, the server over several nodes that it is
    a part of, if any. A node is behind another one that has gone on from what it serves: it serves a release of the
    same content, or brought by the same run, as an older release of the other. The newest rollout did not reach it, or
    it went back since. Runs that differ are no sign by themselves, for a rollout may be made node by node, or be
    finished by a second run.
    """
    servers: dict[str, list[str]] = {}
    for host in known:
        servers.setdefault(replicas.get(host) or f"host {host}", []).append(host)
    # Of a server over several nodes that counts of which the newest change was made.
    newest = {name: max(hosts, key=lambda host: _order(known[host])) for name, hosts in servers.items()}
    pairs = [
        (one, other)
        for one, low in newest.items()
        for other, high in newest.items()
        if one != other and _is_behind(known[low], known[high])
    ]
    behind = {one for one, _ in pairs}
    ahead = {other for _, other in pairs} - behind
    return {
        "behind": [host for name, hosts in servers.items() if name in behind for host in hosts],
        "ahead": [host for name, hosts in servers.items() if name in ahead for host in hosts],
    }


def _order(known: Mapping[str, Any]) -> str:
    current = known.get("current") or {}
    return str(current.get("run") or current.get("when") or "")


def _is_behind(low: Mapping[str, Any], high: Mapping[str, Any]) -> bool:
    mine, theirs = low.get("current"), high.get("current")
    if not mine or not theirs:
        return False
    at = theirs.get("restores") or theirs["release"]
    left = [release for release in high.get("releases") or [] if release["release"] < at]
    runs = {release.get("run") for release in left} - {None, _run(high, theirs)}
    contents = {_content(high, release) for release in left} - {None, _content(high, theirs)}
    return _run(low, mine) in runs or _content(low, mine) in contents


def _run(known: Mapping[str, Any], release: Mapping[str, Any]) -> str | None:
    """The run that brought a release first, also where it came back since."""
    origin = release.get("restores") or release["release"]
    found = next((one for one in known.get("releases") or [] if one["release"] == origin), release)
    return found.get("run")


def _content(known: Mapping[str, Any], release: Mapping[str, Any]) -> str | None:
    contents = known.get("contents") or {}
    return contents.get(str(release["release"]))


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name it."""
        return {"rollback_behind": rollback_behind}
