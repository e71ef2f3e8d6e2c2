# SPDX-License-Identifier: Apache-2.0
"""A preset that is right, and the same with something changed."""

from __future__ import annotations

import copy

GOOD = {
    "model": "acme/Tiny-1B",
    "api": "chat",
    "weights_bytes": 1000,
    "accelerators": {"rocm": {"args": {"tensor-parallel-size": 4}, "bytes_per_gpu": 250}},
    "verify": [{"name": "x", "api": "chat", "prompt": "?", "expect": {"min_chars": 1}}],
}


def changed(**changes):
    made = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *way, last = path.split("__")
        place = made
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return made
