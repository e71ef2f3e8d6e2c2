# SPDX-License-Identifier: Apache-2.0
"""The steps of one rank's run: as `lifecycle`, but waiting where the nodes of a replica wait for one another.

The action plugin on the controller leads: every node checks, all stop before one starts, and all go back when one
fails. A step's answer says ``pending`` and carries a token, as a slice of a watch does; a run that ends between two
steps is taken up by any later run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..common import durable
from ..common.failure import Failure
from ..common.refused import Refused
from ..container import plan
from ..container.compare import Difference
from ..container.engine import Engine, EngineError
from ..container.inspected import Inspected, ident, running
from ..container.plan import Plan
from ..container.spec import Spec
from ..server import observe, recover
from ..server import result as results
from ..server.lifecycle import PUT_BACK, Lifecycle, Result
from ..server.observe import Observation
from ..server.options import ServerOptions
from ..server.outcome import News, Outcome, Token
from ..vllm.ranks import GUARD_TARGET
from . import guard
from .blame import CONSEQUENCES

#: Seconds beyond the head's ready_timeout that a worker waits for the head's verdict.
WORKER_SLACK = 120.0
#: Seconds that the guard's word may take into both streams of Docker's log, and between two looks for it.
LATE, LOOK = 5.0, 0.1
#: Name of the difference on a node that has none of its own.
WITH_PARTNERS = "replica"


@dataclass(frozen=True)
class Step:
    """What the controller asks of a rank.

    ``name``: check; try (create the new container and remove it again); hold (everything but the start); go (start,
    watch); ready (the head is, after ``age`` seconds); why (a partner failed, by ending or not: ``ended``); give_up (go
    back, for the partner's ``failure``, with its sentence ``because``). ``together``: what all nodes do, ``replace`` or
    ``restart``. ``wake``: a word of this run, by which its files are named. ``idle``: seconds since a partner's last
    sign of life.
    """

    name: str
    together: str = ""
    wake: str = ""
    idle: float | None = None
    ended: bool = False
    age: float = 0.0
    failure: Failure | None = None
    because: str = ""

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Step:
        """Return the step out of the module's option ``replica_step``."""
        failure = params.get("failure")
        return cls(
            str(params["name"]),
            together=str(params.get("together") or ""),
            wake=str(params.get("wake") or ""),
            idle=params.get("idle"),
            ended=bool(params.get("ended")),
            age=float(params.get("age") or 0.0),
            failure=Failure.from_result(failure) if failure else None,
            because=str(params.get("because") or ""),
        )


class RankLifecycle(Lifecycle):
    """One rank's run, step by step."""

    #: A rank that comes back without its partners serves nobody.
    _alone = False

    def __init__(self, options: ServerOptions, engine: Engine, *, step: Step, **named: Any) -> None:
        """Nothing happens yet; ``named`` as for Lifecycle."""
        if options.headless:
            # Ready is what the head says, so the head's timeout is the replica's.
            options = replace(options, ready_timeout=options.ready_timeout + WORKER_SLACK)
        super().__init__(options, engine, **named)
        self.step = step
        self.context.check_mode |= step.name == "check"
        self._holds = step.name in ("hold", "give_up")
        self._held = False

    # -- the plan ----------------------------------------------------------------------------------------------

    def _observe(self) -> Observation:
        """Find out and plan; a node that has nothing to do itself does what its partners must do."""
        seen = super()._observe()
        if seen.state != "started" or not self.step.together or seen.current is None:
            return seen
        judge = seen.judge

        def with_partners(candidate: Spec) -> tuple[list[Difference], Plan]:
            found, actions = judge(candidate) if judge else (seen.differences, seen.plan)
            return self._join_in(found, actions, seen)

        seen.differences, seen.plan = self._join_in(seen.differences, seen.plan, seen)
        return replace(seen, judge=with_partners)

    def _join_in(self, found: list[Difference], actions: Plan, seen: Observation) -> tuple[list[Difference], Plan]:
        together, own = self.step.together, actions.actions
        if "create" in own or ("start" in own and together == "restart"):
            return found, actions
        how = {"replace": "replaced", "restart": "restarted"}[together]
        reason = Difference(WITH_PARTNERS, "running", f"{how} with its partners")
        if together == "replace":
            joined = [d for d in found if d.name not in ("state", "previous", "next")]
            current, previous = self.context.existing(seen.current), self.context.existing(seen.previous)
            left = seen.left is not None
            try:
                return [*found, reason], plan.make("started", [*joined, reason], current, previous, left=left)
            except plan.Unsure:
                raise observe.unsure(self.context.name, self.context.node.damage()) from None
        stop = ("stop",) if running(seen.current) else ()
        return [*found, reason], Plan((*own, *stop, "start"), watch=True)

    # -- while watching ----------------------------------------------------------------------------------------

    def _partners(self) -> dict[str, Any]:
        feed = self._file("news")
        return {
            "wake": self._file("wake"),
            # The rank's own guard knows at once that another one is lost.
            "alarm": guard.ENDING.encode(),
            "partners_idle": self.step.idle,
            "feed": feed and (lambda news: self._feed(feed, news)),
        }

    def _pending(self, current: Inspected, outcome: Outcome) -> Result:
        """Where the guard says that another rank is lost, that one may have lost this one, which has just not ended.

        A rank that fails takes seconds to clear up. What it failed of stands in its log before the guard's word.
        """
        found = None
        if outcome.alarmed and self.state.phase != "restore":
            found = self._own_reason(current, replace(outcome, verdict="exited"))
        return found or super()._pending(current, outcome)

    def _failed(self, current: Inspected | None, outcome: Outcome) -> Result:
        """Where the guard ended the server, what the server failed of before that is the reason, if it did."""
        found = None
        if current and not self.state.failure and outcome.exit_code == guard.LOST:
            found = self._own_reason(current, outcome)
        return found or super()._failed(current, outcome)

    def _own_reason(self, current: Inspected, ended: Outcome, *, word: bool = True) -> Result | None:
        """Read in this rank's log what it failed of, if it did. ``word``: the guard's word is there, or is to come."""
        context, state = self.context, self.state
        log = self._log_before_the_word(current, ended, LATE if word else 0.0)
        # Without a death Docker has not restarted it, so this is one start in any case.
        recover.diagnose(context, ended, log.decode(errors="replace"), one_start=True)
        if state.failure and state.failure.class_ not in CONSEQUENCES:
            state.failure = replace(state.failure, lost=True)
            recover.note_failed(context, current)
            context.save_log(recover.log_of_start(context, current, ended)[0], ident(current))
            return self._put_back(ended)
        state.failure, state.msg = None, ""
        return None

    def _log_before_the_word(self, current: Inspected, ended: Outcome, retry_timeout: float) -> bytes:
        """Return this start's log up to the guard's word; what comes later came of its ending the server."""
        deadline = time.monotonic() + retry_timeout
        while True:
            since, until = recover.span_of_start(self.context, current, ended)
            log, whole = self.context.engine.log_before(ident(current), guard.ENDING.encode(), since, until)
            if whole or until is not None or time.monotonic() >= deadline:
                return self.context.scrubbed(log)
            time.sleep(LOOK)  # no event says that Docker has written down what was printed

    def _feed(self, file: Path, news: Sequence[News]) -> None:
        with contextlib.suppress(OSError):  # it is for the eye alone; the server's own end reports a full disk
            self.context.node.write(file, {"news": [asdict(one) for one in news], "phase": self.state.phase})

    def _file(self, kind: str) -> Path | None:
        """Return a file of this run in the node's folder.

        ``wake``: it appears when a partner has news, and ends the slice. ``news``: the news of the slice so far, for
        the controller to read meanwhile; a rank that died between two slices would be found a start of Python late.
        """
        return self.context.node.folder / f"{kind}-{self.step.wake}" if self.step.wake else None

    # -- the steps ---------------------------------------------------------------------------------------------

    def _apply(self, actions: tuple[str, ...], seen: Observation) -> Inspected | None:
        """Carry out the plan; in a step that holds, everything but the start."""
        if "create" in actions and seen.spec:
            _place_guard(seen.spec)
        if self.step.name == "try":
            return self._try(actions, seen)
        if not self._holds:
            return super()._apply(actions, seen)
        current = super()._apply(tuple(a for a in actions if a != "start"), seen)
        self.state.held = "start" if "start" in actions else "watch"
        self._held = True
        return current or self.context.current()

    def _try(self, actions: tuple[str, ...], seen: Observation) -> Inspected | None:
        """Let Docker check the new container, and leave everything as it is."""
        if "create" not in actions or (seen.current is None and seen.name_taken):
            return None
        self._held = self.change.trial = True
        return super()._apply((*actions[: actions.index("create") + 1], "remove_next"), seen)

    def _watch(self, current: Inspected) -> Result:
        return results.pending(self.context, current) if self._held else super()._watch(current)

    def _resume(self) -> Result:
        state, name = self.state, self.step.name
        for kind in ("news", "wake") if name in ("ready", "give_up") else ("news",):
            with contextlib.suppress(OSError):
                (self._file(kind) or Path("/nonexistent")).unlink(missing_ok=True)
        current = self.context.current()
        if name == "give_up":
            return self._give_up(current)
        if name == "why":
            return self._why(current)
        if name == "ready":
            return self._partner_ready(current)
        if state.held == "start" and current is not None:
            state.held = ""
            try:
                super()._apply(("start",), self._observe_for_start(current))
            except (EngineError, OSError) as exc:
                return self._failed(self.context.current(), Outcome("not_started", 0.0, detail=str(exc)))
            except Refused as exc:
                self.context.refuse(exc)
                return self._put_back(Outcome("not_started", 0.0, detail=exc.cause))
        state.held = ""
        return super()._resume()

    def _observe_for_start(self, current: Inspected) -> Observation:
        if self.state.phase == "restore" or self.context.options.state != "started":
            return observe.bare(self.context.name, current)
        return super()._observe()

    def _partner_ready(self, current: Inspected | None) -> Result:
        """Note that the head is ready, and this rank with it: it has no port to be asked on."""
        if not running(current):
            self.state.held = ""
            return super()._resume()  # it says itself how it died
        stages = [{"stage": "ready with its head", "at": round(self.step.age, 3)}]
        return self._ready(Outcome("ready", self.step.age, stages=stages, stage="ready", describe="ready"))

    def _why(self, current: Inspected | None) -> Result:
        """Answer for a rank that was still going when a partner failed: perhaps it was the first to fail."""
        watched = self.state.watch
        ended = Outcome("exited", 0.0, token=Token(**watched) if watched else None)
        # A partner that ended was missed by this rank's guard at once; one that stalled was not.
        found = self._own_reason(current, ended, word=self.step.ended) if current else None
        return found or results.pending(self.context, current)

    # -- failure -----------------------------------------------------------------------------------------------

    def _put_back(self, outcome: Outcome) -> Result:
        """Say why and wait; it goes back when all nodes of the replica know."""
        if self.step.name == "give_up":
            return super()._put_back(outcome)
        if self.step.name == "try":  # nothing was touched, and nothing is to be started
            return self._result(self.context.current(), outcome, failed=True, msg=self.state.msg)
        self.state.held = "failed:" + outcome.verdict
        self.state.stages = outcome.stages
        return results.pending(self.context, self.context.current(), outcome) | {"msg": self.state.msg}

    def _give_up(self, current: Inspected | None) -> Result:
        """Go back with the others: for an own reason, or for a partner's."""
        state, step = self.state, self.step
        verdict = state.held.partition(":")[2] if state.held.startswith("failed:") else "partner_failed"
        state.held = ""
        if state.failure is None or step.failure:
            state.failure, state.msg = step.failure, step.because
        if current is not None and state.current not in ("", ident(current)):
            # This step's answer was lost on its way, and it is asked again: the previous one is back already.
            state.actions += PUT_BACK[:-1]
            state.phase, state.current, state.held, self._held = "restore", ident(current), "start", True
            return self._watch(current)
        if current is None and self.context.previous() is None:
            return self._result(None, failed=True, msg=state.msg)
        return self._put_back(Outcome(verdict, 0.0, stages=state.stages))


def _place_guard(spec: Spec) -> None:
    """Write the first process of the ranks to where its mount is taken from, whole or not at all."""
    for volume in spec.volumes:
        if volume.target == GUARD_TARGET:
            path = Path(volume.source)
            durable.make_folders(path.parent)
            durable.write(path, guard_source().encode(), 0o644)


def guard_source() -> str:
    """Text of `guard`, from wherever this package was loaded (Ansible sends it as a zip)."""
    loader: Any = guard.__loader__
    return str(loader.get_source(guard.__name__))
