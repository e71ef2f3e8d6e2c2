# SPDX-License-Identifier: Apache-2.0
"""Whether gateway_buffer_size fits: what HAProxy says must fit into a buffer, and all buffers into the memory. Pure.

Configuration manual of HAProxy, tune.bufsize and tune.maxrewrite. HAProxy 2.6 takes an answer that is larger than a
buffer with a warning, and gives 500 instead when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..vllm.host_variables import truth
from . import fronts as listeners

#: Bytes: the default of HAProxy. Below it, heads that browsers and proxies send are 400.
LEAST = 16384
#: Bytes of a buffer that an answer of HAProxy leaves free: tune.maxrewrite, and the head.
HEAD = 2048
MB = 1_000_000
#: The role's defaults (roles/gateway/defaults/main.yml).
SIZE, CONNECTIONS = 131072, 4096


def problems(size: int, fronts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what does not fit into buffers of ``size`` bytes, as sentences. ``fronts`` are those of pools_behind."""
    if size < LEAST:
        return [f"gateway_buffer_size is {size}: give at least {LEAST} bytes, in which the head of any request fits."]
    found = []
    for front in fronts:
        answers = (listeners.listing(front["pools"]), listeners.known_models(front["pools"]))
        needs = max(len(answer.encode()) for answer in answers) + HEAD
        if (len(front["pools"]) > 1 or front.get("aliases")) and needs > size:
            found.append(
                f"gateway_buffer_size is {size}, but the list of models at port {front['port']} takes {needs} bytes: "
                "raise it, give models ports of their own in gateway_ports, or take names away."
            )
    return found


def too_little_memory(gateway: str, memory: int, variables: Mapping[str, Any]) -> str:
    """Return why the buffers of all connections do not fit into ``memory`` bytes, as a sentence; else empty.

    ``variables`` are the gateway's. Counted is one buffer for each connection, as while all send their requests; two
    with gateway_http2.
    """
    size, connections = (
        int(variables.get(name, default))
        for name, default in (("gateway_buffer_size", SIZE), ("gateway_maxconn", CONNECTIONS))
    )
    ports = variables.get("gateway_ports")
    # With fewer ports than models there is a common one besides; that is not known here.
    takes = size * connections * (len(ports) or 1 if isinstance(ports, Mapping) else 1)
    # What the role allows there (tune.buffers.limit).
    takes *= 2 if truth(variables.get("gateway_http2")) else 1
    if not memory or takes <= memory:
        return ""
    return (
        f"{gateway} has {memory // MB} MB of memory, and requests may take {takes // MB} MB: gateway_maxconn is "
        f"{connections} for each port, gateway_buffer_size is {size}. Lower one of them."
    )
