# SPDX-License-Identifier: Apache-2.0
"""One check of a node or an inventory, and how serious it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

LEVELS = ("ok", "unknown", "warning", "unseen", "refused")
"""In rising order. ``refused`` is what a server cannot work with, ``warning`` what makes it slower or less certain.

``unknown`` is one fact that cannot be read; ``unseen`` a whole node that cannot be checked, and ends a run as well.
"""

ENDING = ("unseen", "refused")
"""Levels with which a node is not deployed to."""


@dataclass(frozen=True)
class Finding:
    """One check. ``expected`` and ``got`` are short, for a column; ``remedy`` is empty where nothing is to be done."""

    level: str
    what: str
    expected: str
    got: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """The finding as one sentence; without anything that was expected, what was found is the cause."""
        found = f"expected {self.expected}, found {self.got}" if self.expected else self.got
        return f"{self.what}: {found}; {self.remedy}"


def told(given: object) -> Finding:
    """Return a finding that a user or a node gives. Raises ValueError, one sentence, for what is none."""
    parts = {str(name): value for name, value in given.items()} if isinstance(given, Mapping) else {}
    texts = all(isinstance(value, (str, int, float)) for value in parts.values())
    names = {"level", "what", "expected", "got"}
    if not (names <= parts.keys() <= names | {"remedy"} and texts and parts["level"] in LEVELS):
        levels = ", ".join(LEVELS)
        raise ValueError(f"a finding has level (one of {levels}), what, expected, got and remedy, each a text")
    return Finding(**{name: str(value) for name, value in parts.items()})


def worst(findings: Iterable[Finding]) -> str:
    """Return the highest level; ``ok`` of nothing."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def accept(findings: Iterable[Finding], accepted: Iterable[str]) -> list[Finding]:
    """Turn refusals that the operator has accepted by name (``what``) into warnings."""
    names = set(accepted)
    return [replace(one, level="warning") if one.level == "refused" and one.what in names else one for one in findings]
