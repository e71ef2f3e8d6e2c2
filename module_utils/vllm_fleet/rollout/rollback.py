# SPDX-License-Identifier: Apache-2.0
"""Which nodes a rollback takes back to what, and what speaks against it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def behind_and_ahead(known: Mapping[str, Mapping[str, Any]], replicas: Mapping[str, str]) -> dict[str, list[str]]:
    """Return nodes split into those `behind` and those `ahead` of them; both empty where all go back by the same step.

    ``known``: by host, what vllm_release_info returned. ``replicas``: by host, the server over several nodes that it is
    a part of, if any. A node is behind another one that has gone on from what it serves: it serves a release of the
    same content, or brought by the same run, as an older release of the other. The newest rollout did not reach it, or
    it went back since. Runs that differ are no sign by themselves, for a rollout may be made node by node, or be
    finished by a second run.
    """
    servers = _servers(known, replicas)
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


def _servers(hosts: Iterable[str], replicas: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the hosts of each server; those of a server over several nodes stand together."""
    servers: dict[str, list[str]] = {}
    for host in hosts:
        servers.setdefault(replicas.get(host) or f"host {host}", []).append(host)
    return servers


def gone_back(known: Mapping[str, Mapping[str, Any]], replicas: Mapping[str, str]) -> list[str]:
    """Return the nodes whose release came back; a server over several nodes has gone back when any of its nodes has.

    ``known`` and ``replicas`` as for behind_and_ahead().
    """
    return [
        host
        for hosts in _servers(known, replicas).values()
        if any((known[one].get("current") or {}).get("rolled_back_from") for one in hosts)
        for host in hosts
    ]


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


def stays(replica: Sequence[Mapping[str, Any] | None], own: Mapping[str, Any]) -> bool:
    """Return whether a node's part is older than the newest change of its replica, which is what a rollback takes back.

    ``replica``: of all its nodes, and ``own``: of this one, what vllm_release_info returned.
    """
    made = [run for known in replica if (run := _made(known))]
    return bool(_made(own)) and _made(own) < max(made, default="")


def _made(known: Mapping[str, Any] | None) -> str:
    """The run that brought what a node serves (ids begin with the time); of a release that came back, its first one."""
    current = (known or {}).get("current") or {}
    first = next((r for r in (known or {}).get("releases") or [] if r["release"] == current.get("restores")), current)
    return str(first.get("run") or first.get("when") or "")


def variables(found: Mapping[str, Any], env: Mapping[str, Any], presets_path: str) -> dict[str, Any]:
    """Return the variables of the role vllm_server that make a recorded release again.

    ``found``: what vllm_release_info returned for it. Its environment has no secrets; these come from ``env``, today's
    vllm_server_env, which has all of them (see problems()). ``presets_path``: a folder without presets.
    """
    recorded = found["variables"]
    secrets = {name: env[name] for name in found["secret_env"]}
    return {
        **recorded,
        "vllm_server_env": {**recorded["vllm_server_env"], **secrets},
        "vllm_server_presets_path": presets_path,
        "vllm_server_variant": "",
        "vllm_server_features": [],
        "vllm_server_adapters": {},  # they are flags of the record
    }


def overridden(wanted: Mapping[str, Any], current: Sequence[Any], text: Callable[[Any], str]) -> list[str]:
    """Return which variables have another value than ``wanted``; ``current`` are their values now, in the same order.

    ``text`` writes a value down: 1 and true differ.
    """
    return [name for (name, value), now in zip(wanted.items(), current, strict=True) if text(now) != text(value)]


def problems(
    found: Mapping[str, Any],
    split: Mapping[str, Sequence[str]],
    gone_back: Sequence[str],
    missing: Sequence[str],
    to: int | None = None,
    *,
    again: bool = False,
) -> list[str]:
    """Return what speaks against taking a node back, as sentences.

    ``found``: what vllm_release_info returned for the wanted release ``to`` (None: the one before). ``split``:
    behind_and_ahead() of the run, ``gone_back``: its nodes that went back already, ``again``: all go one release
    further. ``missing``: secrets of the release's environment that the inventory does not have.
    """
    return [
        *(_in_doubt(found) or _no_target(found, to)),
        *([] if again or to is not None else _apart(split, gone_back)),
        *_no_image(found),
        *_no_secrets(found, missing),
    ]


def _no_target(found: Mapping[str, Any], to: int | None) -> list[str]:
    if found.get("target") is not None:
        return []
    if to is None:
        return [
            "There is no earlier release to go back to; deploy.yml deploys what the inventory describes. Leave this "
            "node out with --limit to roll the others back."
        ]
    known = ", ".join(str(release["release"]) for release in found.get("releases") or []) or "none"
    return [f"There is no release {to}, known are {known}."]


def _in_doubt(found: Mapping[str, Any]) -> list[str]:
    numbers = ", ".join(f"{number:06d}.json" for number in found.get("in_doubt") or ())
    if not numbers:
        return []
    return [
        f"The node's record {numbers} cannot be read, so it is not known which release came before. Choose one with "
        "-e rollback_to, or remove that record."
    ]


def _apart(split: Mapping[str, Sequence[str]], gone_back: Sequence[str]) -> list[str]:
    behind, ahead = split["behind"], split["ahead"]
    went = [host for host in behind if host in gone_back]
    limit = f"--limit {','.join(ahead)}"
    if went:
        return [
            f"{', '.join(went)} went back already, {', '.join(ahead)} not yet. Finish with {limit}, or take all of "
            "them one release further with -e rollback_again=true."
        ]
    if behind:
        return [
            f"{', '.join(behind)} never had the release that {', '.join(ahead)} would go back from. Take that one back "
            f"with {limit}, or all of them one release further with -e rollback_again=true."
        ]
    return []


def _no_image(found: Mapping[str, Any]) -> list[str]:
    image = found.get("image") or {}
    if image.get("present", True):
        return []
    return [
        f"The image of release {found['target']['release']} is not on the node any more ({image['reference']}, "
        f"{image['id']}). Pull or load it (role vllm_image), or choose another release with -e rollback_to."
    ]


def _no_secrets(found: Mapping[str, Any], missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    return [
        f"Release {found['target']['release']} had secrets in its environment that the inventory does not have today: "
        f"{', '.join(missing)}. Add them to vllm_server_env."
    ]
