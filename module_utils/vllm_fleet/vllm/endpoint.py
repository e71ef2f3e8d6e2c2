# SPDX-License-Identifier: Apache-2.0
"""Where a server answers from its own node, and what it must serve. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Endpoint:
    """Where the server answers from the node, and what it must serve.

    ``names``: acceptable ids in /v1/models, empty for any; ``root``: the model it must have been started with (None:
    not checked); ``tls``: it speaks HTTPS, whatever its certificate.
    """

    host: str
    port: int
    names: tuple[str, ...]
    root: str | None = None
    api_key: str | None = None
    tls: bool = False


def reachable(bind: str) -> str:
    """Return the address at which a server bound to ``bind`` answers from its own node."""
    if bind in ("", "0.0.0.0"):  # noqa: S104  asked for by the user, only read here
        return "127.0.0.1"
    return {"::": "::1", "localhost": "127.0.0.1"}.get(bind, bind)
