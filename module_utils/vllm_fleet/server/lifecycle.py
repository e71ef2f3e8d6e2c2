# SPDX-License-Identifier: Apache-2.0
"""One run of vllm_server on one node: observe, check, change, watch; and on failure explain and restore."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..common import names
from ..common.failure import Failure, FailureClass
from ..common.refused import Refused
from ..common.secrets import cleaned
from ..container.engine import ENGINE_RETRY_TIMEOUT, Engine, EngineError, EngineUnavailable
from ..container.inspected import Inspected, environment, ident, running
from ..container.plan import Plan, Trust, left_over
from ..container.spec import Image
from ..weights import layout
from . import endpoint, engine_cache, observe, recover, release, result
from .observe import Observation
from .options import ServerOptions
from .outcome import Limits, Outcome, Token
from .release_store import Releases
from .run import RunContext, RunState, boottime
from .state import LockTaken, unwritable

if TYPE_CHECKING:
    from .change import Change

#: Seconds to wait for another module run on the same container: the slice of a run whose connection was lost.
LOCK_WAIT = 45.0
#: What replaces a failed container by its predecessor (see plan.on_failure).
PUT_BACK = ("stop", "remove", "unkeep", "start")
Result = dict[str, Any]


class Lifecycle:
    """Drives one container on one node. ``run`` returns the module's result (``failed`` and ``pending`` included)."""

    #: Whether this node alone makes a server.
    _alone = True

    def __init__(
        self,
        options: ServerOptions,
        engine: Engine,
        *,
        host: str,
        check_mode: bool = False,
        asks: bool = False,
        token: Mapping[str, Any] | None = None,
        slice_seconds: float | None = None,
        secrets: tuple[str, ...] = (),
        after_action: Callable[[str], None] | None = None,
    ) -> None:
        """Nothing happens yet. ``token`` is that of a slice before; for the rest see RunContext.

        ``asks``: this is a plan, and where it is refused, no run follows.
        """
        self.state = RunState.from_token(token) if token else RunState()
        self.context = RunContext(options, engine, host, check_mode, slice_seconds, secrets, after_action, self.state)
        self.asks, self.resumed = asks, bool(token)

    @cached_property
    def change(self) -> Change:
        """Return what carries out actions.

        A run with nothing to change costs a node little more than its imports, so the files that act are read here: all
        of them before anything is touched.
        """
        from . import checks, watch  # noqa: F401, PLC0415
        from .change import Change  # noqa: PLC0415

        return Change(self.context)

    @property
    def sharing(self) -> ModuleType:
        """Return what finds a place on a node that servers share; see change."""
        from . import sharing  # noqa: PLC0415

        return sharing

    def run(self) -> Result:
        """Do it. Never raises for what can be foreseen: a refusal is a result with ``failed`` and ``failure``."""
        try:
            if self.context.check_mode:
                return self._once()
            with self.context.node.lock(LOCK_WAIT):
                done = self._once()
                if not done.get("pending") and (self.state.actions or not done.get("failed")):
                    with self.context.remembering():
                        self.context.node.note_stopping(None)
                return done
        except LockTaken as exc:
            return self._refused(Refused(FailureClass.UNKNOWN, str(exc), "wait for it to end, then run again"))
        except OSError as exc:
            return self._refused(unwritable(exc, self.context.options.state_dir))
        except (EngineError, EngineUnavailable) as exc:
            self.context.refuse(Refused(FailureClass.UNKNOWN, str(exc), result.ENGINE_REMEDY))
            self.state.changed = bool(self.state.actions)
            return self._result(None, failed=True, msg=self.state.msg)

    def _once(self) -> Result:
        """Run from the beginning, or take up an earlier slice."""
        try:
            return self._resume() if self.resumed else self._fresh()
        except Refused as exc:
            return self._refused_start(exc)

    def _fresh(self) -> Result:
        """Run from the beginning."""
        seen = self._observe()
        self.state.notes += seen.notes
        self.state.plan_to(seen)
        if seen.state == "started" and "start" in seen.plan.actions and seen.spec:
            from . import checks  # noqa: PLC0415  see change

            seen = checks.before_stop(self.context, seen, seen.spec)
            self.state.plan_to(seen)
        if seen.image and self.context.options.engine_cache and self._alone:
            self._know_cache(seen.image)
        if self.context.check_mode:
            self.state.actions = list(seen.plan.actions)
            if seen.plan.actions:
                self._recall(seen.image)
            return self._result(seen.current)
        if seen.state == "confirmed":
            return self._confirm(seen)
        if seen.state == "restored" and seen.previous and "unkeep" in seen.plan.actions:
            self.sharing.may_come_back(self.context, seen.previous)
        self._note_restoring(seen)
        if seen.state == "restarted" and seen.plan.actions:
            # One that hangs finishes no request, so its own stop timeout would only be waited for.
            self.change.grace = self.context.options.stop_timeout
            if self.context.options.because:
                self.state.notes.append(f"restarted because {self.context.options.because}")
        try:
            current = self._apply(seen.plan.actions, seen)
        except (EngineError, OSError) as exc:
            if isinstance(exc, OSError) and not self.state.actions:
                raise  # run() says so: nothing was touched yet
            return self._not_started(str(exc), seen)
        except Refused as exc:  # found only after the old server had stopped: its memory did not come back
            self.context.refuse(exc)
            return self._put_back(Outcome("not_started", 0.0, detail=exc.cause))
        if not seen.plan.watch or current is None:
            return self._result(current)
        return self._watch(current)

    def _recall(self, image: Image | None) -> None:
        """Look up how long such a change took before; ``image`` is None where it is not there yet."""
        ids = (image.id, *image.ids) if image else ()
        self.context.past = release.past(Releases(self.context.node).all(), self.context.options.model, ids)

    def _know_cache(self, image: Image) -> None:
        """Note whose compile cache would fit this server; of a part of one over several nodes none would."""
        options, node = self.context.options, self.context.node
        folder = node.engine_cache(image.id, options.model)
        self.state.cache = engine_cache.about(options, image, folder, secrets=self.context.secrets)

    def _resume(self) -> Result:
        """Take up the watch of an earlier slice, or of the restore that it had come to."""
        if self.state.place:
            self.sharing.again(self.context)
        current = self.context.current()
        if current is None:
            raise Refused(
                FailureClass.UNKNOWN,
                f"the container {self.context.name} disappeared while its start was watched",
                "somebody else removed it; run again",
            )
        if self.state.current not in ("", ident(current)):
            self._catch_up(ident(current))
        return self._watch(current)

    def _catch_up(self, now: str) -> None:
        """Take over what a slice did whose answer was lost: it may have failed, and put the previous server back."""
        state = self.state
        noted = self.context.node.failure(state.current) if state.phase != "restore" else None
        if noted is None or noted.get("previous") != now:
            raise Refused(
                FailureClass.UNKNOWN,
                f"the container {state.current[:12]}, whose start was watched, was replaced by {now[:12]} meanwhile",
                "another run or somebody did that; look what serves now (playbooks/status.yml), and run again",
            )
        state.failure = Failure.from_result(noted["failure"])
        state.msg, state.log_file, state.stages = noted["msg"], noted["log_file"], noted["stages"]
        state.actions += PUT_BACK
        state.phase, state.current, state.watch = "restore", now, {}

    # -- the steps ---------------------------------------------------------------------------------------------

    def _observe(self) -> Observation:
        context = self.context
        if context.options.state == "started" and (context.options.shares or context.node.place):
            self.sharing.take(context)
        seen = observe.gather(context.options, context.engine, context.node, check_mode=context.check_mode)
        context.learn(seen.current, seen.previous, seen.left)
        return seen

    def _note_restoring(self, seen: Observation) -> None:
        """Remember which container a restore on request is to bring back, in case this run is killed."""
        if seen.state == "restored":
            self.state.phase = "restore"
            target = seen.previous or seen.current
            with self.context.remembering():
                self.context.node.note_restoring(ident(target) if target else None)
        elif self.state.changed:
            with self.context.remembering():
                self.context.node.note_restoring(None)

    def _confirm(self, seen: Observation) -> Result:
        """Mark the running container as verified from outside; it is then the last good one."""
        context, current = self.context, seen.current
        if current and (context.options.record or {}).get("trial"):
            # Before it counts as good: what is good and has no note stays when others go back.
            context.node.note_trial(ident(current), time.time(), Releases(context.node).newest())
        if current and seen.current_trust is not Trust.CONFIRMED:
            context.note_trust(current, Trust.CONFIRMED, seen.previous)
        if context.node.place:
            self.sharing.settle(context)
        done = self._result(current)
        record, spec = context.options.record, done["spec"]
        if record is not None and current and spec:
            image = context.engine.image(str(current["Image"]))
            digests = image.ids if image else frozenset()
            kept, before = Releases(context.node).keep(current, spec, digests, record)
            done |= {"release": release.summary(kept), "previous_release": release.summary(before)}
        self._note_filled(record)
        return done

    def _note_filled(self, record: Mapping[str, Any] | None) -> None:
        """Note that the server's compile cache is filled: it was verified with it."""
        given = (record or {}).get("engine_cache") or {}
        folder = Path(str(given.get("folder") or "/"))
        if given.get("key") and folder.parent == self.context.node.engine_caches and folder.is_dir():
            with self.context.remembering():
                engine_cache.note(folder, str(given["key"]))

    def _apply(self, actions: tuple[str, ...], seen: Observation) -> Inspected | None:
        if not actions:
            return self.context.engine.container(seen.current_id) if seen.current_id else None
        return self.change.apply(actions, seen)

    def _watch(self, current: Inspected) -> Result:
        """Watch until a verdict or the end of the slice, and do what follows."""
        state, options = self.state, self.context.options
        state.current = ident(current)
        from .watch import Watch  # noqa: PLC0415  see change

        described = state.phase == "start" and options.state == "started"
        where = endpoint.of_options(options) if described else endpoint.of_container(current)
        outcome = Watch(
            self.context.engine,
            ident(current),
            where,
            Limits(options.ready_timeout, options.stall_timeout, self.context.slice_seconds),
            token=Token(**state.watch) if state.watch else None,
            cache=self._blobs(),
            idle="start" not in state.actions,
            run_age=boottime() - state.begun,
            offline=environment(current).get("HF_HUB_OFFLINE") == "1",
            **self._partners(),
        ).run()
        if outcome.verdict == "pending":
            state.watch = outcome.token_dict()
            return self._pending(current, outcome)
        state.watch = {}
        return self._ready(outcome) if outcome.verdict == "ready" else self._failed(current, outcome)

    def _partners(self) -> dict[str, Any]:
        """Return what the watch must know where the server has other nodes, too: nothing here."""
        return {}

    def _blobs(self) -> Path | None:
        """Return the folder in which a download grows; None where none can."""
        cache, model = self.context.options.hf_cache, self.context.options.model
        return layout.Repository(Path(cache), model).blobs if cache and model and model[0] != "/" else None

    def _pending(self, current: Inspected, outcome: Outcome) -> Result:
        return result.pending(self.context, current, outcome)

    def _ready(self, outcome: Outcome) -> Result:
        context = self.context
        current, previous = context.current(), context.previous()
        with context.remembering():
            if current:
                context.note_trust(current, Trust.READY, previous)
            context.node.note_restoring(None)
        done = self._result(current, outcome)
        if self.state.failure:
            done |= {"failed": True, "rolled_back": True}
            done["msg"] = f"{self.state.msg} The previous server is back and ready."
        return done

    # -- failure -----------------------------------------------------------------------------------------------

    def _failed(self, current: Inspected | None, outcome: Outcome) -> Result:
        """Say why, keep the log, and put the better container back."""
        if current:
            recover.note_failed(self.context, current)
        if self.state.failure:
            return self._not_back(current, outcome)
        recover.explain(self.context, current, outcome)
        return self._put_back(outcome)

    def _not_back(self, current: Inspected | None, outcome: Outcome) -> Result:
        """The restore itself failed: both reasons are reported, the first is what the user must mend."""
        context, state = self.context, self.state
        state.msg = (
            f"{state.msg} The previous server was put back but did not become ready ({outcome.verdict}: "
            f"{outcome.detail or outcome.describe}); see `docker logs {context.name}` on {context.host}."
        )
        if current and context.node.trust(ident(current)) is Trust.FAILED:
            with contextlib.suppress(EngineError):  # it never worked, so it need not go on in a loop
                context.engine.stop(ident(current), 0)
                state.actions.append("stop")
            current = context.current()
        return self._result(current, outcome, failed=True, msg=state.msg)

    def _not_started(self, error: str, seen: Observation) -> Result:
        """The engine refused an action. A start is the same road as a start that failed."""
        context, state = self.context, self.state
        outcome = Outcome("not_started", 0.0, detail=error)
        context.engine.wait(ENGINE_RETRY_TIMEOUT)  # it may be the engine that ended in the middle of it
        refused = next((a for n, a in enumerate(seen.plan.actions) if n >= len(state.actions)), "start")
        if refused == "start":
            return self._failed(context.current(), outcome)
        # The new container was not started yet, so nothing of it failed; what there was goes on.
        recover.explain_refusal(context, outcome, refused, old=running(seen.current))
        self._remove_next()
        state.changed = bool(state.actions)
        if refused == "create" and seen.current is None:
            return self._put_back(outcome)
        current = context.current()
        wanted = seen.state == "started" and running(seen.current)
        if refused == "create" and running(current) == running(seen.current):
            return self._bring_back() or self._result(current, failed=True, msg=state.msg)
        renamed = refused == "rename" and left_over(current, context.name)  # done, and only the answer was lost
        if renamed or (current is None and wanted and context.previous()):
            return self._put_back(outcome)
        if current is None or not wanted:
            return self._result(current, failed=True, msg=state.msg)
        again = Plan(() if running(current) else ("start",), watch=True)
        return self._restore(recover.back_to(context, again, current, None))

    def _remove_next(self) -> None:
        """Remove a new container that will not get its name; where Docker cannot, the next run does."""
        with contextlib.suppress(EngineError):
            left = self.context.left()
            if left:
                self.context.engine.remove(ident(left))
                self.state.actions.append("remove_next")

    def _put_back(self, outcome: Outcome) -> Result:
        """Bring back what served before; without it, leave the failed container stopped, to be looked into."""
        self.state.stages = outcome.stages
        self.change.grace = recover.grace(outcome)
        return self._restore(recover.way_back(self.context), outcome)

    def _restore(self, back: Observation, outcome: Outcome | None = None) -> Result:
        state, stopped = self.state, self.state.stopped
        try:
            now = self._apply(back.plan.actions, back)
        except (EngineError, OSError) as exc:
            msg = f"{state.msg} The previous server could not be put back: {exc}."
            return self._result(self.context.current(), outcome, failed=True, msg=msg)
        finally:
            # The downtime began when the old server stopped, not when its failed successor did.
            state.stopped = stopped if stopped is not None else state.stopped
        if not back.plan.watch or now is None:
            return self._result(self.context.current(), outcome, failed=True, msg=state.msg)
        state.phase = "restore"
        return self._watch(now)

    def _refused(self, exc: Refused) -> Result:
        """Nothing was touched, and the result says so whatever the differences were."""
        self.context.refuse(exc)
        self.state.changed = bool(self.state.actions)
        return self._result(self.context.current(), failed=True, msg=self.state.msg)

    def _refused_start(self, exc: Refused) -> Result:
        """Nothing was touched; but what an earlier run stopped and did not replace comes back."""
        if self.context.check_mode and exc.failure_class is FailureClass.IMAGE_MISSING:
            self._recall(None)
        if self.context.options.state == "started" and not self.resumed:
            self.context.refuse(exc)
            done = self._bring_back()
            if done:
                return done
        return self._refused(exc)

    def _bring_back(self) -> Result | None:
        """Start the old server again that a killed run had stopped; None where there is none."""
        state, back = self.state, None
        with contextlib.suppress(EngineError):
            back = recover.interrupted(self.context)
        if back is None:
            return None
        if self.asks or not self._alone:
            state.changed = bool(state.actions)
            return self._result(back.current, failed=True, msg=f"{state.msg} {recover.by_hand(self.context, back)}")
        state.msg = f"{state.msg} {recover.BROUGHT_BACK}"
        if not self.context.check_mode:
            return self._restore(back)
        state.actions, state.changed = [*state.actions, *back.plan.actions], True
        return self._result(back.current, failed=True, msg=state.msg)

    def _result(
        self,
        current: Inspected | None,
        outcome: Outcome | None = None,
        *,
        failed: bool = False,
        msg: str | None = None,
    ) -> Result:
        return result.of_run(self.context, current, outcome, failed=failed, msg=msg)


def perform(
    params: Mapping[str, Any],
    *,
    check_mode: bool,
    secrets: Collection[str] = (),
    kind: Callable[..., Lifecycle] = Lifecycle,
) -> Result:
    """Do on this node what the checked options of vllm_server ask, and return the module's result, of a failure too.

    ``secrets`` are further words that no result may show; ``kind`` is the lifecycle, another one for a replica's rank.
    """
    if wrong := names.wrong_container(params["name"]):
        why = Refused(FailureClass.BAD_ARGUMENT, wrong, "correct vllm_server_name; nothing was touched")
        return result.nothing(params["name"], params["reported_host"] or socket.gethostname(), why)
    hidden = {*secrets, *(params[name] for name in ("api_key", "hf_token") if params[name])}
    host = params["reported_host"] or socket.gethostname()
    token = params["watch_token"]
    try:
        # In the middle of a watch an engine that restarts (live-restore, an update of Docker) is waited for.
        engine = Engine(params["docker_host"], retry_timeout=ENGINE_RETRY_TIMEOUT if token else 0.0)
    except EngineUnavailable as exc:
        return result.no_engine(params["name"], host, exc)
    run = kind(
        ServerOptions.from_params(params),
        engine,
        host=host,
        check_mode=check_mode or params["mode"] != "deploy",
        asks=params["mode"] != "deploy",
        token=token,
        slice_seconds=params["watch_slice"],
        secrets=tuple(hidden),
    )
    found = run.run()
    shown: Result = cleaned(found, run.context.secrets)  # which it learned in the run
    return shown
