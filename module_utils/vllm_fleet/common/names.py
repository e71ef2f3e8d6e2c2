# SPDX-License-Identifier: Apache-2.0
"""Names that become paths: a server's is a folder of the node's state, which root makes and removes. Pure."""

from __future__ import annotations

import re

#: As Docker has them; the first character keeps `..` and an empty name out, the length a path too long.
_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}")


def wrong_container(name: str) -> str:
    """Return what is wrong with the name of a container as a sentence without its full stop; empty where nothing is."""
    if _CONTAINER.fullmatch(name):
        return ""
    return f"name: expected a container name ([a-zA-Z0-9][a-zA-Z0-9_.-]+, 200 characters at most), got {name[:300]!r}"
