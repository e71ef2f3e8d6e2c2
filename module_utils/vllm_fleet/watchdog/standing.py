# SPDX-License-Identifier: Apache-2.0
"""How a server stands: what one watchdog leaves to the next, and what status.yml shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .words import STATES

HOUR = 3600.0


@dataclass
class Standing:
    """``state`` since ``since`` (seconds since 1970) because of ``why``, of one start of one container.

    ``hung``: the start that hung and is to be ended, empty where none is. ``ready``: it was ready once. ``verify``: it
    gets requests again only after verification; ``hold``: not before another start. ``resumed``: its restart was begun
    before, and interrupted. ``begun``: when it was taken out, and ``restarts_boot``, are seconds since boot,
    ``restarts`` the same since 1970. ``trouble`` is what keeps the watchdog from its work; ``quarantine``: why the
    node's GPUs are not to be trusted, which is independent of the state; ``version`` is that of this
    form.
    """

    state: str = "starting"
    since: float = 0.0
    why: str = "the watchdog has just begun"
    container: str = ""
    started_at: str = ""
    hung: str = ""
    ready: bool = False
    verify: bool = False
    hold: bool = False
    resumed: bool = False
    begun: float = 0.0
    failure_class: str = ""
    restarts: list[int] = field(default_factory=list)
    restarts_boot: list[float] = field(default_factory=list)
    last_event: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""
    quarantine: str = ""
    version: int = 1

    @classmethod
    def of(cls, left: Mapping[str, Any]) -> Standing:
        """Return what a state file says, also one of another version; a new one where it is none."""
        if left.get("state") not in STATES:
            return cls()
        # What another version did not write is as in the beginning: what it took out stays out all the same.
        found = cls(**{one.name: left[one.name] for one in fields(cls) if one.name in left})
        if found.state == "hung":
            # Found, and nothing was done yet: it will be found again.
            found.state = "starting"
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    def forget(self, now: float) -> None:
        """Drop restarts that are older than an hour; ``now`` in seconds since boot."""
        known = zip(self.restarts_boot, self.restarts, strict=False)
        kept = [(at, epoch) for at, epoch in known if 0 <= now - at < HOUR]
        self.restarts_boot, self.restarts = [at for at, _ in kept], [epoch for _, epoch in kept]
