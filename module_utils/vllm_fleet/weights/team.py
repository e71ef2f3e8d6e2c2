# SPDX-License-Identifier: Apache-2.0
"""Which node gives a snapshot to which, and what became of it: the arithmetic of the role hf_cache over all nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import said

FEW = 1
"""A swarm needs more receivers than this; for one, a copy is as fast."""

Result = Mapping[str, Any]
"""What a task registered on one host; empty where it was skipped or did not run."""


@dataclass(frozen=True)
class Transfer:
    """The results of one host's tasks: the blobs that it lacks, following the swarm, copying by rsync."""

    missing: Result = field(default_factory=dict)
    followed: Result = field(default_factory=dict)
    copied: Result = field(default_factory=dict)


def _held(probe: Result) -> int:
    """Return the number of files of the snapshot that a node has, as far as its probe could see."""
    return int(probe.get("files") or 0) - len(probe.get("missing") or []) - len(probe.get("corrupt") or [])


def team(probes: Mapping[str, Result], mine: Result, me: str, transport: str = "swarm") -> dict[str, Any]:
    """Return the hosts that have the snapshot of the host ``me``, those that lack it, the seed, and the transport.

    ``probes`` are the results of hf_snapshot (state verified) of the hosts that give and take, in the order of the
    play, ``mine`` that of ``me``; ``transport`` is the one that the user wants. The seed is the first host that has the
    snapshot whole, otherwise the one that has most of it. The transport becomes rsync where one host receives only,
    and none where no host does. ``conflict`` is a sentence when hosts have different commits under one name.
    """
    snapshot = (mine.get("repo_id"), mine.get("revision"))
    peers = {
        host: probe
        for host, probe in probes.items()
        if "complete" in probe and (probe.get("repo_id"), probe.get("revision")) == snapshot
    }
    holders = [host for host, probe in peers.items() if probe["complete"]]
    lacking = [host for host in peers if host not in holders]
    seed = holders[0] if holders else max(peers, key=lambda host: _held(peers[host]), default=me)
    receivers = [host for host in lacking if host != seed]
    if not receivers:
        transport = "none"
    elif transport == "swarm" and len(receivers) <= FEW:
        transport = "rsync"
    return {
        "peers": list(peers),
        "holders": holders,
        "lacking": lacking,
        "receivers": receivers,
        "seed": seed,
        "transport": transport,
        "conflict": _conflict(snapshot, {host: peers[host] for host in holders}),
    }


def _conflict(snapshot: tuple[Any, Any], held: Mapping[str, Result]) -> str:
    commits = _hosts_by(held, "commit")
    if len(commits) > 1:
        by_host = ", ".join(f"{hosts[0]} has {commit}" for commit, hosts in sorted(commits.items()))
        what = f"different commits of {snapshot[0]} under the name {snapshot[1]}"
        return f"Nodes hold {what}: {by_host}. Pin hf_cache_revision."
    lists = _hosts_by(held, "list_digest")
    lists.pop("", None)
    if len(lists) > 1:
        by_list = "; ".join(f"{', '.join(hosts)}: {digest}" for digest, hosts in sorted(lists.items()))
        return (
            f"Nodes hold different file lists of {snapshot[0]} at {next(iter(commits))}, which one commit cannot have "
            f"({by_list}). Compare one with the Hub's, set hf_cache_list_digest to the right digest, and run again."
        )
    return ""


def _hosts_by(held: Mapping[str, Result], name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for host, probe in held.items():
        found.setdefault(str(probe.get(name) or ""), []).append(host)
    return found


def list_fault(mine: object, listed: object, seed: str) -> str:
    """Return in what the file list of the seed is not that of the Hub, as a sentence; an empty string where it is.

    A file that the seed lacks is none of its faults: caches that others have filled may lack what no server reads.
    """
    here, there = ((found.get("files") or {}) if isinstance(found, Mapping) else {} for found in (mine, listed))
    blobs = {path: entry.get("blob") for path, entry in there.items()}
    odd = sorted(path for path, entry in here.items() if entry.get("blob") != blobs.get(path))
    if not odd:
        return ""
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    what = ", ".join(f"{path} ({'other content' if path in blobs else 'not in it'})" for path in odd[:3])
    return (
        f"The snapshot of {seed} is not what the Hub has under that commit: {what}{more}. Nothing was spread. Find "
        "out who changed it there, remove it (hf_snapshot with state absent) and run again."
    )


def same_everywhere(probes: Iterable[Result]) -> bool:
    """Return whether there are hosts, each has its snapshot whole, and all have the same commit and file list."""
    found = list(probes)
    lists = {probe.get("list_digest") or "" for probe in found} - {""}
    one_commit = len({probe.get("commit", "") for probe in found}) == 1
    return all(probe.get("complete") for probe in found) and one_commit and len(lists) <= 1


def fetched(results: Iterable[Result], repo_id: str, revision: str) -> Result:
    """Return the first result that brought this snapshot, empty for none.

    The role may have run in the same play for another snapshot before, and its results are kept.
    """
    snapshot = (repo_id, revision)
    brought = (one for one in results if "commit" in one and (one.get("repo_id"), one.get("revision")) == snapshot)
    return next(brought, {})


def wanted(lacks: Iterable[Result], manifest: object) -> list[str]:
    """Return the blobs of a file list that at least one receiver lacks, sorted: every run makes the same torrent.

    What else a receiver asks for is no blob of this snapshot, and the seed has nothing to do with it.
    """
    return said.blobs((blob for result in lacks for blob in result.get("wanted") or []), said.listed(manifest))


def keyed(keys: Mapping[str, Result]) -> list[str]:
    """Return the hosts that made an SSH key, from the results of making it; without those that show something else."""
    made = []
    for host, result in keys.items():
        if lines := result.get("stdout_lines"):
            with contextlib.suppress(said.NotOfItsForm):
                said.key(lines, host)
                made.append(host)
    return made


def followers(joined: Mapping[str, Result]) -> list[str]:
    """Return the hosts that are receiving from a swarm, from the results of joining it."""
    return [host for host, result in joined.items() if result.get("ok") and "total" in result]


def by_rsync(lacks: Mapping[str, Result], following: Sequence[str]) -> list[str]:
    """Return the receivers that lack blobs and are not in the swarm."""
    return [host for host, result in lacks.items() if result.get("wanted") and host not in following]


def not_arrived(transfer: Transfer, *, following: bool, seed: str, seed_followed: Result) -> str:
    """Return why the blobs that a host lacks have not arrived; an empty string when they have or none are lacking.

    A receiver sees that the swarm stands still, and often the seed alone knows why: the reason that ended it is added.
    """
    if not transfer.missing.get("wanted"):
        return ""
    if following:
        followed = transfer.followed
        if followed.get("finished"):
            return ""
        why = str(followed.get("reason") or followed.get("msg") or "unreachable")
        ended = seed_followed.get("reason") if seed_followed.get("ok") is False else ""
        return f"{why}; {seed}, which has all of it: {ended}" if ended else why
    copied = transfer.copied
    if copied.get("rc") == 0 and not copied.get("unreachable"):
        return ""
    tail = " ".join(str(line) for line in list(copied.get("tail") or [])[-3:])
    return f"the copy by rsync over SSH from {seed} failed ({tail or copied.get('msg') or 'not started'})"
