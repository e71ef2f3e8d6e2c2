"""The steps of one rank's run: as `lifecycle`, but halting where the nodes of a replica wait for one another.

The action plugin on the controller leads: it asks every node to check, tells each what all do together, lets all of
them stop before one starts, and has all of them go back when one fails. A step's answer says ``pending`` and carries a
token, as a slice of a watch does; a run that ends between two steps is taken up by any later run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..common.refused import Refused
from ..container import compare, plan
from ..container.engine import EngineError
from ..container.plan import Plan
from ..container.spec import Spec
from ..server import endpoint
from ..server import observe as surveys
from ..server.lifecycle import PUT_BACK, Lifecycle
from ..server.observe import Survey
from ..server.watch import News, Outcome, Token
from ..vllm.ranks import GUARD_TARGET
from . import guard
from .blame import CONSEQUENCES

#: Seconds beyond the head's patience that a worker waits for the head's verdict.
WORKER_SLACK = 120.0
#: Seconds that the guard's word may take into both streams of Docker's log, and between two looks for it.
LATE, LOOK = 5.0, 0.1
#: Name of the difference on a node that has none of its own.
WITH_PARTNERS = "replica"


class ReplicaLifecycle(Lifecycle):
    """One rank. Steps: check, hold (everything but the start), go (start, watch), ready, give_up."""

    def __init__(self, options: Mapping[str, Any], *args: Any, **named: Any) -> None:
        """Remember the step; nothing happens yet."""
        self.step: Mapping[str, Any] = options.get("replica_step") or {}
        changed = dict(options)
        if endpoint.headless(options):
            # Ready is what the head says, so the head's patience is the replica's.
            changed["ready_timeout"] = float(options["ready_timeout"]) + WORKER_SLACK
        super().__init__(changed, *args, **named)
        if self.step.get("name") == "check":
            self.check_mode = True
        self._holding = self.step.get("name") in ("hold", "give_up")
        self._held = False

    # -- the plan ----------------------------------------------------------------------------------------------

    def _survey(self) -> Survey:
        """Find out and plan; a node that has nothing to do itself does what its partners must do."""
        seen = super()._survey()
        wanted = self.step.get("together")
        if seen.state != "started" or not wanted or seen.current is None:
            return seen
        judge = seen.judge

        def with_partners(candidate: Spec) -> tuple[list[compare.Difference], Plan]:
            found, made = judge(candidate) if judge else (seen.differences, seen.plan)
            return self._join_in(str(wanted), found, made, seen)

        seen.differences, seen.plan = self._join_in(str(wanted), seen.differences, seen.plan, seen)
        return replace(seen, judge=with_partners)

    def _join_in(
        self, wanted: str, found: list[compare.Difference], made: Plan, seen: Survey
    ) -> tuple[list[compare.Difference], Plan]:
        if "create" in made.actions or ("start" in made.actions and wanted == "restart"):
            return found, made
        how = {"replace": "replaced", "restart": "restarted"}[wanted]
        reason = compare.Difference(WITH_PARTNERS, "running", f"{how} with its partners")
        if wanted == "replace":
            joined = [d for d in found if d.name not in ("state", "previous")]
            made = plan.make("started", [*joined, reason], self._existing(seen.current), self._existing(seen.previous))
            return [*found, reason], made
        stop = ("stop",) if seen.current and seen.current["State"].get("Running") else ()
        return [*found, reason], Plan((*made.actions, *stop, "start"), watch=True)

    # -- while watching ----------------------------------------------------------------------------------------

    def _partners(self) -> dict[str, Any]:
        feed = self._file("news")
        return {
            "wake": self._file("wake"),
            # The rank's own guard knows at once that another one is lost.
            "alarm": guard.ENDING.encode(),
            "partners_idle": self.step.get("idle"),
            "feed": feed and (lambda news: self._feed(feed, news)),
        }

    def _pending(self, current: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
        """Where the guard says that another rank is lost, that one may have lost this one, which has just not ended.

        A rank that fails takes seconds to clear up. What it failed of stands in its log before the guard's word.
        """
        found = None
        if outcome.alarmed and self.passage.phase != "restore":
            found = self._own_reason(current, replace(outcome, verdict="exited"))
        return found or super()._pending(current, outcome)

    def _failed(self, current: Mapping[str, Any] | None, outcome: Outcome) -> dict[str, Any]:
        """Where the guard ended the server, what the server failed of before that is the reason, if it did."""
        found = None
        if current and not self.passage.failure and outcome.exit_code == guard.LOST:
            found = self._own_reason(current, outcome)
        return found or super()._failed(current, outcome)

    def _own_reason(self, current: Mapping[str, Any], ended: Outcome, *, word: bool = True) -> dict[str, Any] | None:
        """Read in this rank's log what it failed of, if it did. ``word``: the guard's word is there, or is to come."""
        said = self._said_before_the_word(current, ended, LATE if word else 0.0)
        # Without a death Docker has not restarted it, so this is one start in any case.
        self._diagnose(ended, said.decode(errors="replace"), one_start=True)
        failure = self.passage.failure or {}
        if failure.get("class") not in CONSEQUENCES:
            failure["lost"] = True
            self._note_failed(current)
            self._save_log(self._log_of_start(current, ended)[0], str(current["Id"]))
            return self._put_back(ended)
        self.passage.failure, self.passage.msg = None, ""
        return None

    def _said_before_the_word(self, current: Mapping[str, Any], ended: Outcome, patience: float) -> bytes:
        """Give this start's log up to the guard's word: what comes after it comes of the guard's ending the server."""
        deadline = time.monotonic() + patience
        while True:
            since, until = self._span_of_start(current, ended)
            word = guard.ENDING.encode()
            said, whole = self.engine.log_before(str(current["Id"]), word, since, until)
            if whole or until is not None or time.monotonic() >= deadline:
                return self._scrubbed(said)
            time.sleep(LOOK)  # nothing tells that Docker has written down what was said

    def _feed(self, file: Path, news: Sequence[News]) -> None:
        with contextlib.suppress(OSError):  # it is for the eye alone; a full disk is told by the server's own end
            self.node.write(file, {"news": [asdict(one) for one in news], "phase": self.passage.phase})

    def _file(self, kind: str) -> Path | None:
        """Give a file of this run in the node's folder.

        ``wake``: it appears when a partner has news, and ends the slice. ``news``: what the slice has to tell so far,
        which the controller reads meanwhile; a rank that died between two slices would be found a start of Python late.
        """
        nonce = self.step.get("wake")
        return self.node.folder / f"{kind}-{nonce}" if nonce else None

    # -- the steps ---------------------------------------------------------------------------------------------

    def _fresh(self) -> dict[str, Any]:
        result = super()._fresh()
        if self.step.get("name") == "hold" and not result.get("failed") and not result.get("pending"):
            # Nothing to watch in this step: the partners are not there yet.
            result |= {"pending": True, "token": asdict(self.passage)}
        return result

    def _apply(self, actions: tuple[str, ...], seen: Survey) -> Mapping[str, Any] | None:
        if "create" in actions and seen.spec:
            self._place_guard(seen.spec)
        if not self._holding:
            return super()._apply(actions, seen)
        current = super()._apply(tuple(a for a in actions if a != "start"), seen)
        self.passage.held = "start" if "start" in actions else "watch"
        self._held = True
        return current or self.engine.container(self.name)

    def _watch(self, current: Mapping[str, Any]) -> dict[str, Any]:
        if self._held:
            result = self._result(current)
            return result | {"pending": True, "token": asdict(self.passage)}
        return super()._watch(current)

    def _resume(self) -> dict[str, Any]:
        p, name = self.passage, self.step.get("name")
        for kind in ("news", "wake") if name in ("ready", "give_up") else ("news",):
            with contextlib.suppress(OSError):
                (self._file(kind) or Path("/nonexistent")).unlink(missing_ok=True)
        current = self.engine.container(self.name)
        if name == "give_up":
            return self._give_up(current)
        if name == "why":
            return self._why(current)
        if name == "ready":
            return self._partner_ready(current)
        if p.held == "start" and current is not None:
            p.held = ""
            try:
                seen = self._survey_of_start(current)
                current = super()._apply(("start",), seen)
            except (EngineError, OSError) as exc:
                return self._failed(self.engine.container(self.name), Outcome("not_started", 0.0, detail=str(exc)))
            except Refused as exc:
                self._set_failure(exc)
                return self._put_back(Outcome("not_started", 0.0, detail=exc.cause))
        p.held = ""
        return super()._resume()

    def _survey_of_start(self, current: Mapping[str, Any]) -> Survey:
        if self.passage.phase == "restore" or self.options.get("state") != "started":
            return surveys.bare(self.name, current)
        return super()._survey()

    def _partner_ready(self, current: Mapping[str, Any] | None) -> dict[str, Any]:
        """Note that the head is ready, and this rank with it: it has no port to be asked on."""
        if current is None or not current["State"].get("Running"):
            self.passage.held = ""
            return super()._resume()  # it says itself how it died
        age = float(self.step.get("age") or 0.0)
        stages = [{"stage": "ready with its head", "at": round(age, 3)}]
        return self._ready(Outcome("ready", age, stages=stages, stage="ready", describe="ready"))

    def _why(self, current: Mapping[str, Any] | None) -> dict[str, Any]:
        """Answer for a rank that was still going when a partner failed: perhaps it was the first to fail."""
        p = self.passage
        ended = Outcome("exited", 0.0, token=Token(**p.watch) if p.watch else None)
        # A partner that ended was missed by this rank's guard at once; one that stalled was not.
        found = self._own_reason(current, ended, word=bool(self.step.get("ended"))) if current else None
        return found or self._result(current) | {"pending": True, "token": asdict(p)}

    # -- failure -----------------------------------------------------------------------------------------------

    def _put_back(self, outcome: Outcome) -> dict[str, Any]:
        """Say why and halt; back it goes when all nodes of the replica know."""
        if self.step.get("name") == "give_up":
            return super()._put_back(outcome)
        self.passage.held = "failed:" + outcome.verdict
        self.passage.stages = outcome.stages
        result = self._result(self.engine.container(self.name), outcome)
        return result | {"pending": True, "token": asdict(self.passage), "msg": self.passage.msg}

    def _give_up(self, current: Mapping[str, Any] | None) -> dict[str, Any]:
        """Go back with the others: for an own reason, or a partner's, which ``failure`` and ``because`` tell."""
        p = self.passage
        verdict = p.held.partition(":")[2] if p.held.startswith("failed:") else "partner_failed"
        p.held = ""
        if p.failure is None or self.step.get("failure"):
            p.failure = dict(self.step.get("failure") or {})
            p.msg = str(self.step.get("because") or "")
        if current is not None and p.current not in ("", str(current["Id"])):
            # This step's answer was lost on its way, and it is asked again: the previous one is back already.
            p.actions += PUT_BACK[:-1]
            p.phase, p.current, p.held, self._held = "restore", str(current["Id"]), "start", True
            return self._watch(current)
        if current is None and self.engine.container(self.name + plan.PREVIOUS_SUFFIX) is None:
            return self._result(None, failed=True, msg=p.msg)
        return self._put_back(Outcome(verdict, 0.0, stages=p.stages))

    # -- the guard's file --------------------------------------------------------------------------------------

    @staticmethod
    def _place_guard(made: Spec) -> None:
        """Write the first process of the ranks to where its mount is taken from, whole or not at all."""
        for volume in made.volumes:
            if volume.target == GUARD_TARGET:
                path = Path(volume.source)
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
                handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
                with os.fdopen(handle, "w") as out:
                    out.write(guard_source())
                Path(name).chmod(0o644)
                Path(name).replace(path)


def guard_source() -> str:
    """Text of `replica_guard`, from wherever this package was loaded (Ansible sends it as a zip)."""
    loader: Any = guard.__loader__
    return str(loader.get_source(guard.__name__))
