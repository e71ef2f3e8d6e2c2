# SPDX-License-Identifier: Apache-2.0
"""Advice about flags of ``vllm serve`` that are gone or misspelt. Pure; which are gone: `vllm/release_data.py`.

A flag that is not here and resembles none that exists gets no advice: a wrong flag costs a start of an hour.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ..vllm.release_data import FLAGS_GONE, Gone

#: How alike two flags must be for one to be a misspelling of the other: max-model-length and max-model-len are 0.90,
#: disable-log-requests and disable-log-stats 0.74.
_ALIKE = 0.85


def split_words(unknown: str) -> tuple[list[str], list[str]]:
    """Return the flags of argparse's list of unknown arguments as given, and the words that belong to none of them."""
    flags: list[str] = []
    stray: list[str] = []
    for word in unknown.split():
        if re.match(r"--?[A-Za-z]", word):
            flags.append(word.split("=", 1)[0])
        elif not flags:
            stray.append(word)
    return flags, stray


def removed(flag: str) -> Gone | None:
    """Return what became of a flag that is gone; ``no-`` before it changes nothing."""
    return FLAGS_GONE.get(flag) or FLAGS_GONE.get(flag.removeprefix("no-"))


def meant(flag: str, known: Sequence[str]) -> str:
    """Return the flag of which this is a misspelling, or an empty string."""
    sense = _sense(flag)
    return next(iter(difflib.get_close_matches(flag, [name for name in known if _sense(name) == sense], 1, _ALIKE)), "")


def _sense(flag: str) -> str:
    """What a flag begins with where that turns its meaning round."""
    return flag.split("-", 1)[0] if flag.startswith(("enable-", "disable-", "no-")) else ""
