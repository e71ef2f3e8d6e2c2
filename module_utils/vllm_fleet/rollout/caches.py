# SPDX-License-Identifier: Apache-2.0
"""From whom a host gets what an engine compiled: a host whose server was made for the same key. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..vllm import host_variables
from .replicas import outcome

_KEY = re.compile(r"[0-9a-f]{16}")


def of(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what vllm_server said of a host's compile cache (engine_cache.about); empty where it has no key."""
    found = host_variables.server_result(variables).get("engine_cache")
    if not isinstance(found, Mapping) or not _KEY.fullmatch(str(found.get("key"))):
        return {}
    return found


def donor(hostvars: Mapping[str, Any], play: Iterable[str], host: str) -> str:
    """Return the host from which ``host`` gets its compile cache before it is replaced; empty for none.

    It has been verified with that cache: replaced in this run, or as described before it. ``play`` are the hosts of the
    run. Several take turns, so that not all ask the same one.
    """
    variables = hostvars[host]
    own = of(variables)
    # One that was emptied on purpose is filled by its own engine; ranks of a replica compile each its own part.
    if not own or own.get("warm") or own.get("reset") or host_variables.replica_name(variables):
        return ""
    node = host_variables.node_of(variables, host)
    play = list(play)
    found = [
        other
        for other in play
        if other != host
        and of(hostvars[other]).get("key") == own["key"]
        and host_variables.node_of(hostvars[other], other) != node
        and hostvars[other].get("ansible_connection") != "local"
        and _verified(hostvars[other])
    ]
    return found[play.index(host) % len(found)] if found and variables.get("ansible_connection") != "local" else ""


def _verified(variables: Mapping[str, Any]) -> bool:
    result = host_variables.server_result(variables)
    state = outcome(variables).get("state")
    if state is not None:
        return bool(state == "replaced")
    return bool(result.get("confirmed")) and result.get("actions") == [] and not result.get("failed")
