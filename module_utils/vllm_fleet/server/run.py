# SPDX-License-Identifier: Apache-2.0
"""One run on one node: what it was given (RunContext), and what it did so far (RunState).

A run may be cut into slices by its caller: the state travels from one to the next as a token, and nothing of it is
needed for safety - a run that never gets its next slice is taken up by any later run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..common.failure import Failure
from ..common.refused import Refused
from ..common.secrets import scrub
from ..container import compare
from ..container.engine import Engine
from ..container.inspected import Inspected, ident, secrets_of
from ..container.plan import NEXT_SUFFIX, PREVIOUS_SUFFIX, Existing, Trust, left_over
from .observe import Observation
from .options import ServerOptions
from .state import NodeState, unwritable


def boottime() -> float:
    """Seconds since the node's boot: a monotonic clock that all processes of the node share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class RunState:
    """What one slice leaves to the next, and what the final result is made of.

    ``phase`` is ``start`` or ``restore``; ``begun`` and ``stopped`` (when the old server got its signal) are seconds
    of ``boottime``; ``watch`` is the watch's own token; ``current`` is the id of the container that has the name after
    what was done so far; ``held`` is where a rank of a replica waits for its partners (see replica/rank_lifecycle);
    ``place`` is what the server got of a node that it shares (host/place.Place); ``spent`` are the seconds of each
    action since the old server got its signal, up to the new one's start, `memory` those until its GPU memory was free;
    ``cache`` is what engine_cache.about() says of its compile cache.
    """

    phase: str = "start"
    begun: float = field(default_factory=boottime)
    stopped: float | None = None
    changed: bool = False
    actions: list[str] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    diff: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    failure: Failure | None = None
    msg: str | None = None
    log_file: str | None = None
    watch: dict[str, Any] = field(default_factory=dict)
    current: str = ""
    held: str = ""
    place: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_token(cls, token: Mapping[str, Any]) -> RunState:
        """Return the state that ``as_token`` wrote."""
        failure = token.get("failure")
        return cls(**{**token, "failure": Failure.from_result(failure) if failure else None})

    def as_token(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        return {**asdict(self), "failure": self.failure.as_result() if self.failure else None}

    def plan_to(self, seen: Observation) -> None:
        """Take over the differences that are to be removed."""
        self.differences = [d.as_dict() for d in seen.differences]
        self.diff = compare.as_diff(seen.differences, seen.name)
        self.changed = bool(seen.differences)


@dataclass
class RunContext:
    """What every room of a run needs: the options, Docker, the node's memory, and the state so far.

    ``slice_seconds``: a watch ends after so long without a verdict (None: it does not). Values in ``secrets`` never
    come out. ``after_action`` is called with each action that was carried out.
    """

    options: ServerOptions
    engine: Engine
    host: str
    check_mode: bool = False
    slice_seconds: float | None = None
    secrets: tuple[str, ...] = ()
    after_action: Callable[[str], None] | None = None
    state: RunState = field(default_factory=RunState)
    node: NodeState = field(init=False)
    #: How long such a change took this node before (release.past), where a plan has asked.
    past: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Find the node's memory; nothing is read yet."""
        self.node = NodeState(self.options.state_dir, self.options.name)

    @property
    def name(self) -> str:
        """The container's name."""
        return self.options.name

    @property
    def previous_name(self) -> str:
        """The name under which the replaced container waits."""
        return self.name + PREVIOUS_SUFFIX

    @property
    def next_name(self) -> str:
        """The name under which a new container is created, as long as the old one has its own."""
        return self.name + NEXT_SUFFIX

    def current(self) -> Inspected | None:
        """Ask Docker for the container that has the name now. Raises EngineError."""
        return self.engine.container(self.name)

    def previous(self) -> Inspected | None:
        """Ask Docker for the container that was replaced. Raises EngineError."""
        return self.engine.container(self.previous_name)

    def left(self) -> Inspected | None:
        """Ask Docker for a new container that did not get its name. Raises EngineError."""
        found = self.engine.container(self.next_name)
        return found if left_over(found, self.name) else None

    def existing(self, container: Inspected | None) -> Existing | None:
        """Return a container as a plan wants it, with what the node remembers of it."""
        if container is None:
            return None
        own = ident(container) == self.state.current and "create" in self.state.actions
        remembered = own or self.node.damage() is None
        return Existing.of(container, self.node.trust(ident(container)), remembered=remembered)

    def learn(self, *containers: Inspected | None) -> None:
        """Take the secrets of containers that are there to those that never come out."""
        self.secrets = tuple({*self.secrets, *secrets_of(*containers)})

    def scrubbed(self, log: bytes) -> bytes:
        """Return a log without secrets."""
        return scrub(log.decode(errors="replace"), self.secrets).encode()

    def refuse(self, refused: Refused) -> None:
        """Take a refusal over as what the run ends with."""
        self.state.failure = refused.failure
        self.state.msg = refused.failure.sentence(f"{self.host}, container {self.name}")

    def note_trust(self, container: Inspected, trust: Trust, previous: Inspected | None) -> None:
        """Remember how good a container is; of others only the ``previous`` one is still known. Raises OSError."""
        self.node.note_trust(ident(container), trust, tuple(ident(one) for one in (container, previous) if one))

    def save_log(self, log: bytes, container: str) -> None:
        """Keep the log of a failed start on the node, if its disk allows."""
        with self.remembering():
            self.state.log_file = str(self.node.save_log(log, container))

    @contextlib.contextmanager
    def remembering(self) -> Iterator[None]:
        """Go on where something cannot be noted: a full disk must not keep a server from coming back."""
        try:
            yield
        except OSError as exc:
            self.state.notes.append(f"{unwritable(exc, str(self.node.folder)).cause}; what it is for was not kept")
