"""One run of vllm_server on one node: survey, checks, actions, watch, and on failure diagnosis and restore.

A run may be cut into slices by its caller: ``Progressing`` carries what the next slice needs, and nothing of it is
needed for safety - a run that never gets its next slice is taken up by any later run.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container import compare, plan
from ..container.engine import Engine, EngineError, EngineUnavailable
from ..container.plan import PREVIOUS_SUFFIX, Existing, Plan, Rank
from ..container.spec import ENGINE_CACHE, Spec
from ..vllm.log import scrub
from ..vllm.ranks import GUARD_TARGET
from ..weights import layout
from . import endpoint, gpu_gate, preconditions, release
from . import observe as surveys
from .observe import Survey
from .release_store import Releases, standing
from .result import ENGINE_REMEDY, describe, listed, names, unwritable
from .state import LockTaken, NodeState
from .watch import ENGINE_PATIENCE, Limits, Outcome, Token, Watch, epoch

#: Seconds to wait for another module run on the same container: the slice of a run whose connection was lost.
LOCK_WAIT = 45.0
#: Seconds that a server which hangs or serves the wrong thing has to end, before the old one takes its place.
FAILED_GRACE = 5
#: What replaces a failed container by its predecessor (see plan.on_failure).
PUT_BACK = ("stop", "remove", "unkeep", "start")
#: Docker's words for a port that it counts as taken.
ALLOCATED = re.compile(r":(\d+) failed: port is already allocated")
#: Seconds for which a port that Docker holds for no running container may be one that is just starting.
LEAK_PATIENCE = 3.0


@dataclass
class Passage:
    """What travels from slice to slice (plain JSON), and what the final result is made of."""

    phase: str = "start"  # start | restore
    begun: float = 0.0  # CLOCK_BOOTTIME of the node
    stopped: float | None = None  # the same, when the old server was told to stop
    changed: bool = False
    actions: list[str] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    diff: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    failure: dict[str, Any] | None = None
    msg: str | None = None
    log_file: str | None = None
    watch: dict[str, Any] = field(default_factory=dict)
    current: str = ""  # id of the container that has the name after what was done so far
    held: str = ""  # where a rank of a replica halts for its partners, see replica_lifecycle


def boottime() -> float:
    """Seconds since the node's boot: a monotonic clock that all processes of the node share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lifecycle:
    """Drives one container on one node. ``run`` gives the module's result (``failed`` and ``pending`` included)."""

    def __init__(
        self,
        options: Mapping[str, Any],
        engine: Engine,
        *,
        host: str,
        check_mode: bool = False,
        token: Mapping[str, Any] | None = None,
        slice_seconds: float | None = None,
        secrets: tuple[str, ...] = (),
        after_action: Callable[[str], None] | None = None,
    ) -> None:
        """Remember everything; nothing happens yet. ``after_action`` is told each action that was carried out."""
        self.options, self.engine, self.host, self.check_mode = options, engine, host, check_mode
        self.name = str(options["name"])
        self.node = NodeState(str(options["state_dir"]), self.name)
        self.releases = Releases(self.node)
        self.slice, self.secrets = slice_seconds, secrets
        self.after_action = after_action or (lambda action: None)
        self.passage = Passage(**token) if token else Passage(begun=boottime())
        self.resumed = bool(token)
        self._grace: int | None = None
        self._waited = False  # for GPU memory, in vain

    # -- the run -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Do it. Never raises for what can be foreseen: a refusal is a result with ``failed`` and ``failure``."""
        try:
            if self.check_mode:
                return self._fresh()
            with self.node.lock(LOCK_WAIT):
                return self._resume() if self.resumed else self._fresh()
        except Refused as exc:
            return self._refused(exc)
        except LockTaken as exc:
            return self._refused(Refused(FailureClass.UNKNOWN, str(exc), "wait for it to end, then run again"))
        except OSError as exc:
            return self._refused(unwritable(exc, str(self.options["state_dir"])))
        except (EngineError, EngineUnavailable) as exc:
            self._set_failure(Refused(FailureClass.UNKNOWN, str(exc), ENGINE_REMEDY))
            self.passage.changed = bool(self.passage.actions)
            return self._result(None, failed=True, msg=self.passage.msg)

    def _fresh(self) -> dict[str, Any]:
        seen = self._survey()
        p = self.passage
        p.notes += seen.notes
        self._tell(seen)
        starts = "start" in seen.plan.actions
        if seen.state == "started" and starts and seen.spec:
            seen = self._checked(seen)
            self._tell(seen)
        if self.check_mode:
            p.actions = list(seen.plan.actions)
            return self._result(seen.current)
        if seen.state == "confirmed":
            return self._confirm(seen)
        if seen.state == "restored":
            p.phase = "restore"
            target = seen.previous or seen.current
            self.node.note_restoring(str(target["Id"]) if target else None)
        elif p.changed:
            self.node.note_restoring(None)
        try:
            current = self._apply(seen.plan.actions, seen)
        except (EngineError, OSError) as exc:
            if isinstance(exc, OSError) and not p.actions:
                raise  # run() says so: nothing was touched yet
            return self._not_started(str(exc), seen)
        except Refused as exc:  # found only after the old server had stopped: its memory did not come back
            self._set_failure(exc)
            return self._put_back(Outcome("not_started", 0.0, detail=exc.cause))
        if not seen.plan.watch or current is None:
            return self._result(current)
        return self._watch(current)

    def _survey(self) -> Survey:
        return surveys.survey(self.options, self.engine, self.node, check_mode=self.check_mode)

    def _tell(self, seen: Survey) -> None:
        p = self.passage
        p.differences = [d.as_dict() for d in seen.differences]
        p.diff = compare.as_diff(seen.differences, self.name)
        p.changed = bool(seen.differences)

    def _resume(self) -> dict[str, Any]:
        """Take up the watch of an earlier slice, or of the restore that it had come to."""
        current = self.engine.container(self.name)
        if current is None:
            raise Refused(
                FailureClass.UNKNOWN,
                f"the container {self.name} disappeared while its start was watched",
                "somebody else removed it; run again",
            )
        if self.passage.current not in ("", str(current["Id"])):
            self._catch_up(str(current["Id"]))
        return self._watch(current)

    def _catch_up(self, now: str) -> None:
        """Take over what a slice did whose answer was lost: it may have failed, and put the previous server back."""
        p = self.passage
        told = self.node.failure(p.current) if p.phase != "restore" else None
        if told is None or told.get("previous") != now:
            raise Refused(
                FailureClass.UNKNOWN,
                f"the container {p.current[:12]}, whose start was watched, was replaced by {now[:12]} meanwhile",
                "another run or somebody did that; look what serves now (playbooks/status.yml), and run again",
            )
        p.failure, p.msg, p.log_file, p.stages = told["failure"], told["msg"], told["log_file"], told["stages"]
        p.actions += PUT_BACK
        p.phase, p.current, p.watch = "restore", now, {}

    # -- before the stop ---------------------------------------------------------------------------------------

    def _checked(self, seen: Survey) -> Survey:
        """Refuse what cannot start, while the old server still answers."""
        made = seen.spec
        assert made is not None  # noqa: S101  started always has one
        options = self.options
        cache = options.get("hf_cache")
        model = str(options["model"])
        if cache:
            preconditions.cache_folder(str(cache))
        if cache and made.env.get("HF_HUB_OFFLINE") == "1" and not model.startswith("/"):
            try:
                preconditions.model_in_cache(str(cache), model, options.get("revision"))
            except Refused as exc:
                exc.cause += surveys.suggest_model(model, str(cache))
                raise
        if model.startswith("/") and any(v.source == model for v in made.volumes):
            preconditions.model_folder_exists(model)
        gpu_gate.check_parallelism(options)
        self._check_volumes(made)
        preconditions.devices_exist(made.devices)
        preconditions.capabilities_can_be_given(made.capabilities)
        running = self.engine.running()
        if options["accelerator"] == "rocm":
            verdict = gpu_gate.before_stop(options, made, self._own_pids(seen), names(running))
            self.passage.notes += verdict.notes
            if verdict.spec is not made and seen.judge:
                seen.spec = verdict.spec
                seen.differences, seen.plan = seen.judge(verdict.spec)
        # A rank without a port of its own needs none.
        if not endpoint.headless(options) and not self._port_is_ours(seen, running):
            seen.plan = replace(seen.plan, actions=("restart_engine", *seen.plan.actions))
            self.passage.notes.append(
                f"port {options['port']} was held by the Docker engine for a container that does not run, so the "
                "engine is restarted; with live-restore the containers of this node go on"
            )
        return seen

    def _own_pids(self, seen: Survey) -> frozenset[int]:
        return self.engine.pids(seen.current_id) if seen.current_id else frozenset()

    def _port_is_ours(self, seen: Survey, running: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether the port can be had; False where that takes a restart of the engine, which harms nobody."""
        deadline = time.monotonic() + LEAK_PATIENCE
        own = (self.name, self.name + PREVIOUS_SUFFIX)
        while True:
            try:
                preconditions.port_is_free(
                    str(self.options["bind"]), int(self.options["port"]), running, own, lambda: self._own_pids(seen)
                )
            except preconditions.Leaked:
                if time.monotonic() >= deadline:
                    if not self.engine.survives_restart():
                        raise
                    return False
            else:
                return True
            time.sleep(0.5)  # one that is just starting holds its port before Docker lists it; no event tells either
            running = self.engine.running()

    def _check_volumes(self, made: Spec) -> None:
        keep = tuple(v for v in made.volumes if v.target not in (ENGINE_CACHE, GUARD_TARGET))
        preconditions.volumes_exist(keep)

    # -- actions -----------------------------------------------------------------------------------------------

    def _apply(self, actions: tuple[str, ...], seen: Survey) -> Mapping[str, Any] | None:
        """Carry out the plan, one boundary after the other. Gives the container that then has the name."""
        current = str(seen.current["Id"]) if seen.current else None
        previous = str(seen.previous["Id"]) if seen.previous else None
        if current and "keep" in actions and seen.current_rank > Rank.UNKNOWN:
            # Noted before it is stopped: afterwards nobody could ask it any more.
            self._note(current, seen.current_rank, (current, previous))
        for action in actions:
            if action in ("restart_engine", "stop_previous", "remove_previous"):
                previous = self._make_way(action, previous)
            elif action == "stop" and current:
                self._stop(current, seen.current)
            elif action == "keep" and current:
                self.engine.rename(current, self.name + PREVIOUS_SUFFIX)
                previous, current = current, None
            elif action == "remove" and current:
                self._keep_log(current)
                self.engine.remove(current)
                current = None
            elif action == "unkeep" and previous:
                self.engine.rename(previous, self.name)
                current, previous = previous, None
                self.passage.current = current
            elif action == "create" and seen.spec and seen.image:
                self._make_engine_cache(seen.spec)
                current = self.engine.create(seen.spec, seen.image)
                self.passage.current = current
            elif action == "update" and current and seen.spec:
                self.engine.update_restart_policy(current, seen.spec.restart_policy)
            elif action == "start" and current:
                self._await_memory(current, seen.spec)
                self._start(current)
            self.passage.actions.append(action)
            self.passage.changed = True
            self.after_action(action)
        return self.engine.container(current) if current else None

    def _await_memory(self, container: str, made: Spec | None) -> None:
        """Wait for the GPU memory of what was stopped; without it a new server (``made``) is not started."""
        if self.options.get("accelerator") != "rocm":
            return
        try:
            if made:
                gpu_gate.after_stop(self.options, made.command)
            elif not self._waited:
                info = self.engine.container(container) or {}
                gpu_gate.after_stop(*endpoint.demand_of(info, self.options))
        except Refused as exc:
            self._waited = True  # once is enough: one that comes back afterwards is started as it is
            if made:
                raise
            self.passage.notes.append(f"{exc.cause}, and the previous server was started all the same")

    def _start(self, container: str) -> None:
        try:
            self.engine.start(container)
        except EngineError as exc:
            port = ALLOCATED.search(str(exc))
            if not port or listed(self.engine.running(), int(port[1])) or not self.engine.survives_restart():
                raise
            # The engine was killed since the port was looked at, and lost track of it (see preconditions.Leaked).
            self.engine.restart()
            self.passage.actions.append("restart_engine")
            self.engine.start(container)

    def _make_way(self, action: str, previous: str | None) -> str | None:
        """Carry out an action that does not touch the current container; gives what is then the previous one."""
        if action == "restart_engine":
            self.engine.restart()
        elif previous and action == "stop_previous":
            self.engine.stop(previous, int(self.options["stop_timeout"]))
        elif previous:
            self.engine.remove(previous)
            return None
        return previous

    def _stop(self, container: str, info: Mapping[str, Any] | None) -> None:
        own = ((info or {}).get("Config") or {}).get("StopTimeout")
        timeout = int(self.options["stop_timeout"] if own is None else own)
        self.passage.stopped = boottime()
        self.engine.stop(container, timeout if self._grace is None else min(timeout, self._grace))

    def _keep_log(self, container: str) -> None:
        """Save the log of a container that is about to be removed and that was started at least once."""
        log = self._scrubbed(self.engine.log(container))
        if log and not self.passage.log_file:
            self._save_log(log, container)

    def _save_log(self, log: bytes, container: str) -> None:
        with self._remembering():
            self.passage.log_file = str(self.node.save_log(log, container))

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        """Go on where something cannot be noted: a full disk must not keep a server from coming back."""
        try:
            yield
        except OSError as exc:
            self.passage.notes.append(f"{unwritable(exc, str(self.node.folder)).cause}; what it is for was not kept")

    def _scrubbed(self, log: bytes) -> bytes:
        return scrub(log.decode(errors="replace"), self.secrets).encode()

    @staticmethod
    def _make_engine_cache(made: Spec) -> None:
        for volume in made.volumes:
            if volume.target == ENGINE_CACHE:
                Path(volume.source).mkdir(parents=True, exist_ok=True, mode=0o755)

    def _note(self, container: str, rank: Rank, existing: tuple[str | None, ...]) -> None:
        self.node.note_rank(container, rank, tuple(e for e in existing if e))

    def _confirm(self, seen: Survey) -> dict[str, Any]:
        """Mark the running container as verified from outside; it is then the last good one."""
        current = seen.current_id
        if current and seen.current_rank is not Rank.CONFIRMED:
            previous = str(seen.previous["Id"]) if seen.previous else None
            self._note(current, Rank.CONFIRMED, (current, previous))
        result = self._result(seen.current)
        given, made = self.options.get("record"), result["spec"]
        if given is not None and seen.current and made:
            image = self.engine.image(str(seen.current["Image"]))
            kept, before = self.releases.keep(seen.current, made, image.ids if image else frozenset(), given)
            result |= {"release": release.summary(kept), "previous_release": release.summary(before)}
        return result

    # -- watching ----------------------------------------------------------------------------------------------

    def _watch(self, current: Mapping[str, Any]) -> dict[str, Any]:
        p, options = self.passage, self.options
        restoring = p.phase == "restore"
        p.current = str(current["Id"])
        where = endpoint.endpoint_of(current) if restoring else endpoint.endpoint(options)
        watch = Watch(
            self.engine,
            str(current["Id"]),
            where,
            Limits(float(options["ready_timeout"]), float(options["stall_timeout"]), self.slice),
            token=Token(**p.watch) if p.watch else None,
            cache=self._blobs(),
            idle="start" not in p.actions,
            run_age=boottime() - p.begun,
            offline="HF_HUB_OFFLINE=1" in ((current.get("Config") or {}).get("Env") or []),
            **self._partners(),
        )
        outcome = watch.run()
        if outcome.verdict == "pending":
            p.watch = outcome.token_dict()
            return self._pending(current, outcome)
        p.watch = {}
        return self._ready(outcome) if outcome.verdict == "ready" else self._failed(current, outcome)

    def _partners(self) -> dict[str, Any]:
        """Give the watch what it must know where the server has other nodes, too: nothing here."""
        return {}

    def _blobs(self) -> Path | None:
        cache, model = self.options.get("hf_cache"), str(self.options.get("model") or "/")
        return layout.Repository(Path(str(cache)), model).blobs if cache and not model.startswith("/") else None

    def _pending(self, current: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
        result = self._result(current, outcome)
        result["pending"] = True
        result["token"] = asdict(self.passage)
        return result

    def _ready(self, outcome: Outcome) -> dict[str, Any]:
        current = self.engine.container(self.name)
        previous = self.engine.container(self.name + PREVIOUS_SUFFIX)
        with self._remembering():
            if current:
                ids = [str(c["Id"]) for c in (current, previous) if c]
                self._note(str(current["Id"]), Rank.READY, tuple(ids))
            self.node.note_restoring(None)
        result = self._result(current, outcome)
        if self.passage.failure:
            result.update(failed=True, rolled_back=True)
            result["msg"] = f"{self.passage.msg} The previous server is back and ready."
        return result

    # -- failure -----------------------------------------------------------------------------------------------

    def _not_started(self, error: str, seen: Survey) -> dict[str, Any]:
        """The engine refused an action. To create or start is the same road as a start that failed."""
        p = self.passage
        outcome = Outcome("not_started", 0.0, detail=error)
        self.engine.wait(ENGINE_PATIENCE)  # it may be the engine that ended in the middle of it
        refused = next((a for n, a in enumerate(seen.plan.actions) if n >= len(p.actions)), "start")
        if refused in ("create", "start"):
            return self._failed(self.engine.container(self.name), outcome)
        # The new container does not exist yet, so nothing of it failed; what there was goes on.
        self._diagnose(outcome, "")
        p.changed = bool(p.actions)
        current = self.engine.container(self.name)
        wanted = seen.state == "started" and seen.current and seen.current["State"].get("Running")
        if current is None and wanted and self.engine.container(self.name + PREVIOUS_SUFFIX):
            return self._put_back(outcome)
        if current is None or not wanted:
            return self._result(current, failed=True, msg=p.msg)
        return self._bring_back(Plan(() if current["State"].get("Running") else ("start",), watch=True), current, None)

    def _failed(self, current: Mapping[str, Any] | None, outcome: Outcome) -> dict[str, Any]:
        """Say why, keep the log, and put the better container back."""
        p = self.passage
        if current:
            self._note_failed(current)
        if p.failure:
            # The restore itself failed: both are told, the first is what the user must mend.
            p.msg = (
                f"{p.msg} The previous server was put back but did not become ready ({outcome.verdict}: "
                f"{outcome.detail or outcome.describe}); see `docker logs {self.name}` on {self.host}."
            )
            if current and self.node.rank(str(current["Id"])) is Rank.FAILED:
                with contextlib.suppress(EngineError):  # it never worked, so it need not go on in a loop
                    self.engine.stop(str(current["Id"]), 0)
                    p.actions.append("stop")
                current = self.engine.container(self.name)
            return self._result(current, outcome, failed=True, msg=p.msg)
        log, alone = self._log_of_start(current, outcome) if current else (b"", True)
        if log and current:
            self._save_log(log, str(current["Id"]))
        self._diagnose(outcome, log.decode(errors="replace"), one_start=alone)
        if self.slice is not None and current:
            self._note_why(str(current["Id"]), outcome)
        return self._put_back(outcome)

    def _note_why(self, container: str, outcome: Outcome) -> None:
        """Keep the failure for a caller who never gets the answer of this slice and asks for the next one."""
        p = self.passage
        previous = self.engine.container(self.name + PREVIOUS_SUFFIX)
        told = {"failure": p.failure, "msg": p.msg, "log_file": p.log_file, "stages": outcome.stages}
        with self._remembering():
            self.node.note_failure(container, {**told, "previous": previous and previous["Id"]})

    def _note_failed(self, current: Mapping[str, Any]) -> None:
        """Remember that this container never became ready, unless more is known of it."""
        if self.node.rank(str(current["Id"])) is Rank.UNKNOWN:
            previous = self.engine.container(self.name + PREVIOUS_SUFFIX)
            with self._remembering():
                self._note(str(current["Id"]), Rank.FAILED, tuple(str(c["Id"]) for c in (current, previous) if c))

    def _log_of_start(self, current: Mapping[str, Any], outcome: Outcome) -> tuple[bytes, bool]:
        """Log of the start that was watched, and whether it holds that one alone.

        Docker's restart policy may have left it behind already, and others may have come before it.
        """
        since, until = self._span_of_start(current, outcome)
        log = self._scrubbed(self.engine.log(str(current["Id"]), since=since, until=until))
        return log, until is not None or outcome.verdict != "restarting" or since is None

    def _span_of_start(self, current: Mapping[str, Any], outcome: Outcome) -> tuple[float | None, float | None]:
        """Say when the start that was watched began and ended, in seconds since 1970; None for never and not yet.

        Notes its exit code in ``outcome``.
        """
        begun = epoch(outcome.token.started_at if outcome.token else str(current["State"]["StartedAt"]))
        if not begun:
            return None, None
        deaths = self.engine.deaths(str(current["Id"]), begun - 60)
        # Docker notes a start a moment after the process began to write.
        since = max((at for at, _ in deaths if at < begun), default=begun - 2)
        until, code = next(((at, code) for at, code in deaths if at > begun), (outcome.died_at, None))
        if outcome.exit_code is None:
            outcome.exit_code = code
        return since, until

    def _put_back(self, outcome: Outcome) -> dict[str, Any]:
        """Bring back what served before; without it, leave the failed container stopped for whoever looks into it."""
        p = self.passage
        p.stages = outcome.stages
        # It has no requests to finish. And one that Docker has just restarted would sit out its whole stop timeout: a
        # container's first process hears no SIGTERM before it has a handler, which vLLM gets after its imports.
        self._grace = 0 if outcome.verdict in ("exited", "restarting", "not_started") else FAILED_GRACE
        current = self.engine.container(self.name)
        previous = self.engine.container(self.name + PREVIOUS_SUFFIX)
        made = plan.on_failure(self._existing(previous), self._existing(current))
        return self._bring_back(made, current, previous, outcome)

    def _bring_back(
        self,
        made: Plan,
        current: Mapping[str, Any] | None,
        previous: Mapping[str, Any] | None,
        outcome: Outcome | None = None,
    ) -> dict[str, Any]:
        p = self.passage
        existing = self._existing(current)
        rank = existing.rank if existing else Rank.UNKNOWN
        back = Survey(self.name, "restored", None, None, current, previous, rank, Rank.UNKNOWN, [], made)
        stopped = p.stopped
        try:
            now = self._apply(made.actions, back)
        except (EngineError, OSError) as exc:
            msg = f"{p.msg} The previous server could not be put back: {exc}."
            return self._result(self.engine.container(self.name), outcome, failed=True, msg=msg)
        finally:
            # The downtime began when the old server stopped, not when its failed successor did.
            p.stopped = stopped if stopped is not None else p.stopped
        if not made.watch or now is None:
            return self._result(self.engine.container(self.name), outcome, failed=True, msg=p.msg)
        p.phase = "restore"
        return self._watch(now)

    def _existing(self, container: Mapping[str, Any] | None) -> Existing | None:
        if container is None:
            return None
        ident = str(container["Id"])
        state = container["State"]
        return Existing(ident, bool(state.get("Running")), self.node.rank(ident), bool(state.get("Paused")))

    def _diagnose(self, outcome: Outcome, log: str, *, one_start: bool = False) -> None:
        """Turn an outcome into the failure that the user reads."""
        # Imported here: a run with nothing to diagnose, which is nearly every run, does not pay for the table.
        from ..diagnosis import diagnose  # noqa: PLC0415

        p, options = self.passage, self.options
        named: dict[str, str] = {}
        if options.get("accelerator") == "rocm":
            with contextlib.suppress(EngineError):  # names are a help to the reader, and what follows is to be done
                named = names(self.engine.running())
        facts = diagnose.ExitFacts(
            exit_code=outcome.exit_code,
            oom_killed=outcome.oom_killed,
            error=outcome.detail if outcome.verdict in ("not_started", "exited") else "",
            verdict=outcome.verdict,
            seconds=outcome.elapsed,
            detail=outcome.detail,
        )
        context = diagnose.Context(
            host=self.host,
            container=self.name,
            image=str(options.get("image") or ""),
            model=str(options.get("model") or ""),
            port=int(options.get("port") or 0),
            args=dict(options.get("args") or {}),
            utilization=gpu_gate.utilization(options),
            gpus=diagnose.gpus_from_info(gpu_gate.gpus_as_dicts(options, named)) or None,
            log_file=p.log_file or "",
            secrets=self.secrets,
        )
        found = diagnose.diagnose(log, facts, context, one_start=one_start)
        p.failure = found.as_result()
        p.msg = diagnose.message(found, context)

    def _set_failure(self, exc: Refused) -> None:
        self.passage.failure = exc.failure.as_result()
        self.passage.msg = exc.failure.sentence(f"{self.host}, container {self.name}")

    def _refused(self, exc: Refused) -> dict[str, Any]:
        """Nothing was touched, and the result says so whatever the differences were."""
        self._set_failure(exc)
        self.passage.changed = bool(self.passage.actions)
        return self._result(self.engine.container(self.name), failed=True, msg=self.passage.msg)

    # -- result ------------------------------------------------------------------------------------------------

    def _result(
        self,
        current: Mapping[str, Any] | None,
        outcome: Outcome | None = None,
        *,
        failed: bool = False,
        msg: str | None = None,
    ) -> dict[str, Any]:
        p = self.passage
        now = boottime()
        serving = outcome is not None and outcome.verdict == "ready"
        result: dict[str, Any] = {
            "changed": p.changed,
            "actions": p.actions,
            "differences": p.differences,
            "diff": p.diff,
            "container": describe(current),
            "spec": self._spec(current),
            "elapsed": round(now - p.begun, 3),
            "downtime": round(now - p.stopped, 3) if p.stopped is not None and serving else None,
            "stages": p.stages or (outcome.stages if outcome else []),
            "log_file": p.log_file,
            "rolled_back": False,
            "confirmed": bool(current) and self.node.rank(str((current or {})["Id"])) is Rank.CONFIRMED,
            "notes": p.notes,
        }
        kept = self.releases.serving(str(current["Id"]), result["spec"]) if current else None
        result["release"] = release.summary(kept)
        if self.check_mode:
            running = current is not None and current["State"].get("Running")
            result["serving"] = standing(endpoint.endpoint_of(current)) if current and running else None
        if p.failure:
            result["failure"] = p.failure
        if failed:
            result["failed"] = True
        if msg:
            result["msg"] = msg
        if outcome:
            result["progress"] = {
                "stage": outcome.stage,
                "describe": outcome.describe,
                "elapsed": outcome.elapsed,
                "estimate": outcome.estimate,
                "idle": outcome.idle,
                "alarmed": outcome.alarmed,
                "last_line": scrub(outcome.last_line, self.secrets),
                "news": [asdict(n) for n in outcome.news],
                "phase": p.phase,
            }
            result["log_lines"] = [scrub(line, self.secrets) for line in outcome.new_lines]
        return result

    def _spec(self, current: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Say what the container at the end is made of, whoever made it: for a record of what serves."""
        if current is None:
            return None
        with contextlib.suppress(EngineError, OSError):
            redact = compare.fingerprint(self.node.fingerprint_key(create=not self.check_mode))
            return compare.as_spec(current, self.engine.image(str(current["Image"])), redact)
        return None
