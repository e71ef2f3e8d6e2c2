# SPDX-License-Identifier: Apache-2.0
"""Which known name somebody meant: names of several words are compared word by word. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

#: How much of two names' words must be the same, 1 being all; two names of one word of theirs alone have less.
ALIKE = 0.6
#: How alike two words must be for one to be a slip of the other, and what that counts beside the same word.
_SLIP = 0.75
#: What a beginning counts (`env` of `environment`), and how many letters one has at least.
_BEGINNING, _SHORT = 0.9, 3
#: What a word counts that says only whose the name is (`vllm`, `server`).
_COMMON = 0.3
#: How alike whole names must be whose words are put together otherwise.
_WHOLE = 0.85


def nearest(name: str, known: Iterable[str], common: Sequence[str] = (), least: float = ALIKE) -> str:
    """Return the known name that is nearest to ``name``; empty where none is near enough to be meant.

    ``common`` are words that many of the known names have, and that say little.
    """
    names = sorted(known)
    scores = {one: _alike(_words(name), _words(one), common) for one in names}
    letters = difflib.SequenceMatcher(b=name)

    def rank(one: str) -> tuple[float, float]:
        letters.set_seq1(one)
        return round(scores[one], 3), letters.ratio()

    best = max((one for one in names if scores[one] >= least), key=rank, default="")
    return best or next(iter(difflib.get_close_matches(name, names, n=1, cutoff=_WHOLE)), "")


def edits(one: str, other: str) -> int:
    """Return the number of letters to add, drop, exchange or swap with their neighbour to make ``other`` of ``one``."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, above, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                best = min(best, above[j - 2] + 1)
            row.append(best)
    return row[-1]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_.]", name.lower()) if word]


def _alike(one: Sequence[str], other: Sequence[str], common: Sequence[str]) -> float:
    def weight(word: str) -> float:
        return _COMMON if word in common else 1.0

    left, same = list(other), 0.0
    # The same words first, so that no slip of one takes its place.
    for word in sorted(one, key=lambda word: word not in left):
        fits = {there: _alike_words(word, there) for there in left}
        best = max(fits, key=fits.__getitem__, default="")
        if best and fits[best]:
            same += fits[best] * (weight(word) + weight(best))
            left.remove(best)
    return same / (sum(map(weight, one)) + sum(map(weight, other)) or 1.0)


def _alike_words(one: str, other: str) -> float:
    if one == other:
        return 1.0
    if min(len(one), len(other)) >= _SHORT and (one.startswith(other) or other.startswith(one)):
        return _BEGINNING
    ratio = difflib.SequenceMatcher(None, one, other).ratio()
    return ratio if ratio >= _SLIP else 0.0
