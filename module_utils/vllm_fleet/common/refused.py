# SPDX-License-Identifier: Apache-2.0
"""What is raised where a request cannot work: nothing was touched."""

from __future__ import annotations

from dataclasses import dataclass, field

from .failure import Failure, FailureClass


@dataclass
class Refused(Exception):
    """A start that cannot succeed, found before anything was touched.

    ``cause`` and ``remedy`` are sentences without their full stop, ``evidence`` lines.
    """

    failure_class: FailureClass
    cause: str
    remedy: str
    evidence: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return cause and remedy as one sentence."""
        return f"{self.cause}; {self.remedy}"

    @property
    def failure(self) -> Failure:
        """The same as a module's result has it: the remedy is a sentence of its own there."""
        remedy = self.remedy[:1].upper() + self.remedy[1:].rstrip(".")
        return Failure(self.failure_class, self.cause, list(self.evidence), remedy)
