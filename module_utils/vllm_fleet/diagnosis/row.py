# SPDX-License-Identifier: Apache-2.0
"""A row of the table of known failures. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..common.failure import FailureClass
from .phrases import Explain


class Rule(NamedTuple):
    """Patterns, searched in order with ``^`` and ``$`` at each line, and the function that explains a match."""

    explain: Explain
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One failure class, ``meaning`` in one line.

    ``rank`` orders matches of different errors in one log: 0 names a cause, 1 is a general complaint with perhaps a
    cause behind it, 1.5 is a word that families.py knows better where there are frames, 2 is a consequence. With
    ``serving`` the row also holds after the server was ready. A class without rules is found by how the start ended,
    or by families.py.
    """

    class_: FailureClass
    meaning: str
    rules: tuple[Rule, ...] = ()
    rank: float = 0
    serving: bool = False


def on(explain: Explain, *patterns: str) -> Rule:
    """Return a rule of a row."""
    return Rule(explain, patterns)
