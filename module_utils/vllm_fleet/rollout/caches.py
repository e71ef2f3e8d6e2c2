# SPDX-License-Identifier: Apache-2.0
"""From whom a host gets what an engine compiled: a host whose server was made for the same key. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..vllm import host_variables
from .replicas import outcome

_KEY = re.compile(r"[0-9a-f]{16}")
#: Hosts that are looked at for one that can give, and those of them that take turns.
_LOOKS, _DONORS = 64, 8


def of(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what vllm_server said of a host's compile cache (engine_cache.about); empty where it has no key."""
    found = host_variables.server_result(variables).get("engine_cache")
    if not isinstance(found, Mapping) or not _KEY.fullmatch(str(found.get("key"))):
        return {}
    return found


def donor(hostvars: Mapping[str, Any], plan: Mapping[str, Any], batch: Sequence[str], host: str) -> str:
    """Return the host from which ``host`` of the wave ``batch`` gets its compile cache; empty for none.

    It has been verified with that cache: replaced in an earlier wave of the ``plan``, or left as it is. Several take
    turns, so that not all ask the same one. In a large fleet a look at all hosts for each costs, so few are looked at.
    """
    variables = hostvars[host]
    own = of(variables)
    # One that was emptied on purpose is filled by its own engine; ranks of a replica compile each its own part.
    if not own or own.get("warm") or own.get("reset") or host_variables.replica_name(variables):
        return ""
    if variables.get("ansible_connection") == "local":
        return ""
    node, hosts = host_variables.node_of(variables, host), list(plan.get("hosts") or [])
    begins = min((hosts.index(one) for one in batch if one in hosts), default=0)
    found: list[str] = []
    for other in [*hosts[:begins], *(plan.get("unchanged") or [])][:_LOOKS]:
        theirs = hostvars[other]
        if (
            of(theirs).get("key") == own["key"]
            and host_variables.node_of(theirs, other) != node
            and theirs.get("ansible_connection") != "local"
            and _verified(theirs)
        ):
            found.append(other)
        if len(found) == _DONORS:
            break
    return found[batch.index(host) % len(found)] if found else ""


def _verified(variables: Mapping[str, Any]) -> bool:
    result = host_variables.server_result(variables)
    state = outcome(variables).get("state")
    if state is not None:
        return bool(state == "replaced")
    return bool(result.get("confirmed")) and result.get("actions") == [] and not result.get("failed")
