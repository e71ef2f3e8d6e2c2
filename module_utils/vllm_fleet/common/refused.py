"""What is raised where a request cannot work: nothing was touched."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Refused(Exception):
    """A start that cannot succeed, found before anything was touched.

    ``failure_class`` is one of the public classes; ``cause`` and ``remedy`` are sentences; ``evidence`` lines.
    """

    failure_class: str
    cause: str
    remedy: str
    evidence: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return cause and remedy as one sentence."""
        return f"{self.cause}; {self.remedy}"
