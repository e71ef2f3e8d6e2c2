# SPDX-License-Identifier: Apache-2.0
"""Where a fleet is asked: at its gateways, else at its servers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.module_utils.vllm_fleet.vllm.host_variables import LOOPBACK, WILDCARDS, bracketed
from fleet_report.words import clip

#: Outcomes of a server that may be asked afterwards.
_SERVING = frozenset(
    (
        *("deployed", "replaced", "rolled_back", "restarted", "started", "updated", "unchanged", "answered"),
        *("restored", "taken_back"),
    )
)
#: Addresses that are told apart; a node with many servers has as many.
_MOST = 4


def found(
    run: Mapping[str, Any], results: Iterable[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return where to ask, as texts: URLs of gateways, or of servers with their nodes. None where nothing is known.

    Servers behind gateways are not for clients: ``run["gateway_hosts"]`` are the inventory's gateways, also where this
    run looked at none of them.
    """
    serving = [node for node in nodes if node["outcome"] in _SERVING]
    if run.get("gateway_hosts"):
        urls = (url for one in results for url in one["data"].get("urls") or [])
        return list(dict.fromkeys(map(str, urls))) if serving or not nodes else []
    places: dict[tuple[str, int], list[str]] = {}
    for node in serving:
        if node["at"]:
            places.setdefault((node["at"]["bind"], node["at"]["port"]), []).append(node["name"])
    out = [_place(bind, port, clip(", ".join(names), 60)) for (bind, port), names in places.items()]
    return [*out[:_MOST], *([f"{len(out) - _MOST} more"] if len(out) > _MOST else [])]


def want_key(run: Mapping[str, Any], results: Iterable[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether one of these places wants a key from whoever asks it."""
    if run.get("gateway_hosts"):
        return any(one["data"].get("closed") for one in results)
    return any((node["at"] or {}).get("key") for node in nodes if node["outcome"] in _SERVING)


def _place(bind: str, port: int, names: str) -> str:
    if bind in WILDCARDS:
        return f"port {port} of {names}"
    url = f"http://{bracketed(bind)}:{port}/v1"
    return f"{url} on {names}" if bind in (LOOPBACK, "localhost", "::1") else f"{url} ({names})"
