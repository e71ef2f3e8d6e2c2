# SPDX-License-Identifier: Apache-2.0
"""What the hosts of one replica must have in common, and whether they can meet in a play. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def starts(actions: Sequence[str], together: str) -> bool:
    """Whether a node's own plan already does what all do."""
    return ("create" if together == "replace" else "start") in actions


def differing(published: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> str:
    """Return what hosts of one replica do not have in common; empty when they agree."""
    first = hosts[0]
    for host in hosts[1:]:
        for key in sorted({*published[first], *published[host]}):
            if published[first].get(key) != published[host].get(key):
                return f"{key}: {first} has {published[first].get(key)!r}, but {host} has {published[host].get(key)!r}"
    return ""


def incomplete(
    replica: Mapping[str, Any],
    batch: Sequence[str],
    alive: Sequence[str],
    forks: int,
    names: Mapping[str, str] | None = None,
) -> str:
    """Return why the hosts of a replica cannot meet in this play; empty when they can.

    ``batch``: hosts of this batch that still run, ``alive``: those of the play, ``names``: the replicas of all hosts
    that are part of one.
    """
    missing = [h for h in replica["hosts"] if h not in batch]
    if missing:
        who, verb = ", ".join(missing), "is" if len(missing) == 1 else "are"
        if any(h in alive for h in missing):
            why = f"{who} {verb} in another batch of this play; its serial must not divide a replica"
        else:
            why = f"{who} {verb} not in this play or failed earlier in it; --limit must name all hosts of a replica"
        return f"replica {replica['name']} is {', '.join(replica['hosts'])}, one server: {why}"
    stuck = blocked(batch, forks, names or dict.fromkeys(replica["hosts"], str(replica["name"])))
    if stuck:
        return (
            f"replica {replica['name']}: the nodes of a replica are brought up at once, but with {len(batch)} hosts in "
            f"this batch and {forks} at a time their turns would not come together; run with --forks {stuck}"
        )
    return ""


def blocked(batch: Sequence[str], forks: int, names: Mapping[str, str]) -> int:
    """Forks that a batch needs where it has too few, else 0.

    Ansible begins the hosts in this order, as many as it has forks, the next when one is done. A host of a replica is
    done only when all of its replica have begun (``names``: host to replica), any other by itself.
    """
    waiting: dict[str, set[str]] = {}
    most = 0
    for host in batch:
        most = max(most, sum(map(len, waiting.values())) + 1)
        name = names.get(host)
        if name is None:
            continue
        begun = waiting.setdefault(name, set())
        begun.add(host)
        if len(begun) == sum(1 for h in batch if names.get(h) == name):
            del waiting[name]
    return most if most > forks else 0
