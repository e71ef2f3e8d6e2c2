# SPDX-License-Identifier: Apache-2.0
"""What serves on a node whose replacement failed. Pure.

``result`` and ``restored`` are what vllm_server returned in this run when the server was to be replaced, and when the
old one was to be put back; empty where it was not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .replicas import outcome

#: Stages of a host's turn in which its old server was not touched yet.
_BEFORE = ("draining", "drained")
#: Actions of vllm_server that the old server does not notice.
_ASIDE = frozenset({"remove_next", "restart_engine"})
#: Errors of vllm_chat that say nothing against an old server: its key or its port may be others than the new one's.
_NOT_ITS_FAULT = ("unauthorized", "refused")


def not_drained(hostvars: Mapping[str, Any], hosts: Iterable[str]) -> list[str]:
    """Return those of a replica's hosts that were not drained, or not rebooted where that was due."""
    return [host for host in hosts if outcome(hostvars[host]).get("state") != "drained"]


def node_lacks(hostvars: Mapping[str, Any], hosts: Iterable[str], step: str) -> list[str]:
    """Return those of a node's hosts that have not come so far: `ready` to be stopped, `stopped`, `booted`."""
    return [host for host in hosts if not outcome(hostvars[host]).get(step)]


def old_is_back(stage: str, result: Mapping[str, Any], restored: Mapping[str, Any]) -> bool:
    """Return whether the old server runs and has been seen ready: it was never stopped, or it was put back.

    ``stage``: how far the host's turn had come.
    """
    untouched = bool(result.get("failed")) and _ASIDE.issuperset(result.get("actions") or ())
    put_back = bool(result.get("rolled_back")) or (_runs(restored) and "failure" not in restored)
    return stage in _BEFORE or untouched or put_back


def old_loads(result: Mapping[str, Any], restored: Mapping[str, Any]) -> bool:
    """Return whether an old server that was good before runs again and is not ready yet, as with weights on disk."""
    return any(bool(found.get("confirmed")) and _runs(found) for found in (result, restored))


def _runs(found: Mapping[str, Any]) -> bool:
    return bool((found.get("container") or {}).get("status") == "running")


def answers(results: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the old server counts as answering, by the ``results`` of vllm_chat; its words do not matter."""
    return any("error" in one and one["error"] in (None, *_NOT_ITS_FAULT) for one in results)
