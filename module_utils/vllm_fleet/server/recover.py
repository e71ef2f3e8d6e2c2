# SPDX-License-Identifier: Apache-2.0
"""What happens when a start fails: its log is kept, its reason found, and the better server comes back."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container import plan, refusal
from ..container.engine import EngineError
from ..container.inspected import Inspected, ident, mounted_at, names
from ..container.mounts import ENGINE_CACHE
from ..container.plan import Plan, Trust
from .observe import Observation
from .outcome import Outcome
from .run import RunContext

#: Seconds that a server which hangs or serves the wrong thing has to end, before the old one takes its place.
FAILED_GRACE = 5
#: What is said of the old server where Docker does not create the new one.
UNTOUCHED = "the server that is there was not touched"


#: What is said where a refused run brings back what an earlier one had stopped.
BROUGHT_BACK = "The old server, which an interrupted run had stopped, is started again."


def interrupted(context: RunContext) -> Observation | None:
    """Return how the server comes back that a killed run stopped to replace it; None where there is none.

    The node's memory tells such a server from one that a person stopped. Raises EngineError.
    """
    stopped = context.node.stopping()
    if stopped is None:
        return None
    noted, current, previous = context.engine.container(stopped[0]), context.current(), context.previous()
    if noted and str(noted["State"]["StartedAt"]) != stopped[1]:
        return None  # somebody started it since, and may have stopped it too
    made = plan.bring_back(context.existing(current), context.existing(previous), stopped[0])
    if not made.actions:
        return None
    left = context.left()
    made = Plan((*made.actions, *(["remove_next"] if left else [])), watch=True)
    return replace(back_to(context, made, current, previous), left=left)


def by_hand(context: RunContext, back: Observation) -> str:
    """Return as a sentence that the old server is stopped, and the commands that do what ``back`` plans."""
    name = context.name
    words = {
        "remove": f"docker rm {name}",
        "unkeep": f"docker rename {context.previous_name} {name}",
        "start": f"docker start {name}",
    }
    again = " && ".join(words[action] for action in back.plan.actions if action in words)
    return (
        "The old server is stopped, because an earlier run was interrupted; correct this and run again, or bring it "
        f"back with `{again}` on {context.host}."
    )


def explain(context: RunContext, current: Inspected | None, outcome: Outcome) -> None:
    """Keep the log of a failed start, and take its reason over into the run's state."""
    log, alone = log_of_start(context, current, outcome) if current else (b"", True)
    if log and current:
        context.save_log(log, ident(current))
    diagnose(context, outcome, log.decode(errors="replace"), one_start=alone)
    if context.slice_seconds is not None and current:
        _note_why(context, ident(current), outcome)


def note_failed(context: RunContext, current: Inspected) -> None:
    """Remember that this container never became ready, unless more is known of it."""
    if context.node.trust(ident(current)) is Trust.UNKNOWN:
        previous = context.previous()
        with context.remembering():
            context.note_trust(current, Trust.FAILED, previous)


def diagnose(context: RunContext, outcome: Outcome, log: str, *, one_start: bool = False) -> None:
    """Turn an outcome into the failure that the user reads. ``one_start``: the log holds no other start."""
    # Imported here: a run with nothing to diagnose, as nearly every run is, does not pay for the table.
    from ..diagnosis import diagnose as diagnosis  # noqa: PLC0415
    from . import gpu_gate  # noqa: PLC0415

    options = context.options
    named: dict[str, str] = {}
    cache = ""
    with contextlib.suppress(EngineError):
        cache = mounted_at(context.current(), ENGINE_CACHE)
    if options.rocm:
        with contextlib.suppress(EngineError):  # names are a help to the reader, and what follows is to be done
            named = names(context.engine.running())
    facts = diagnosis.ExitFacts(
        exit_code=outcome.exit_code,
        oom_killed=outcome.oom_killed,
        error=outcome.detail if outcome.verdict in ("not_started", "exited") else "",
        verdict=outcome.verdict,
        seconds=outcome.elapsed,
        detail=outcome.detail,
    )
    known = diagnosis.Context(
        host=context.host,
        container=context.name,
        image=options.image,
        model=options.model,
        port=options.port,
        args=options.flags,
        utilization=gpu_gate.utilization(options),
        gpus=diagnosis.gpus_from_info(gpu_gate.gpus_as_dicts(options, named)) or None,
        log_file=context.state.log_file or "",
        engine_cache=cache,
        secrets=context.secrets,
    )
    context.state.failure = diagnosis.diagnose(log, facts, known, one_start=one_start)
    context.state.msg = diagnosis.message(context.state.failure, known)


def explain_refusal(context: RunContext, outcome: Outcome, action: str, *, old: bool) -> None:
    """Take over why Docker refused an action; of a creation the option is named, where Docker's words show it.

    ``old``: an old server runs, which a refused creation did not touch.
    """
    option = refusal.option(outcome.detail) if action == "create" else ""
    if option:
        remedy = f"correct {option} (vllm_server_{option}) and run again" + (f"; {UNTOUCHED}" if old else "")
        words = context.scrubbed(outcome.detail.encode()).decode()
        cause = f"{option}: Docker does not take it ({words})"
        context.refuse(Refused(FailureClass.BAD_ARGUMENT, cause, remedy))
        return
    diagnose(context, outcome, "")
    if action == "create" and old:
        context.state.msg = f"{context.state.msg} {UNTOUCHED[:1].upper()}{UNTOUCHED[1:]}."


def log_of_start(context: RunContext, current: Inspected, outcome: Outcome) -> tuple[bytes, bool]:
    """Return the log of the start that was watched, and whether it holds that one alone.

    Docker's restart policy may have left it behind already, and others may have come before it.
    """
    context.learn(current)
    since, until = span_of_start(context, current, outcome)
    log = context.scrubbed(context.engine.log(ident(current), since=since, until=until))
    return log, until is not None or outcome.verdict != "restarting" or since is None


def span_of_start(context: RunContext, current: Inspected, outcome: Outcome) -> tuple[float | None, float | None]:
    """Return when the start that was watched began and ended, in seconds since 1970; None for never and not yet.

    Notes its exit code in ``outcome``.
    """
    from .watch import epoch  # noqa: PLC0415  loaded by the watch, which went before

    begun = epoch(outcome.token.started_at if outcome.token else str(current["State"]["StartedAt"]))
    if not begun:
        return None, None
    deaths = context.engine.deaths(ident(current), begun - 60)
    # Docker notes a start a moment after the process began to write.
    since = max((at for at, _ in deaths if at < begun), default=begun - 2)
    until, code = next(((at, code) for at, code in deaths if at > begun), (outcome.died_at, None))
    if outcome.exit_code is None:
        outcome.exit_code = code
    return since, until


def _note_why(context: RunContext, container: str, outcome: Outcome) -> None:
    """Keep the failure for a caller who never gets the answer of this slice and asks for the next one."""
    state, previous = context.state, context.previous()
    found = {
        "failure": state.failure and state.failure.as_result(),
        "msg": state.msg,
        "log_file": state.log_file,
        "stages": outcome.stages,
        "previous": previous and previous["Id"],
    }
    with context.remembering():
        context.node.note_failure(container, found)


def grace(outcome: Outcome) -> int:
    """Seconds that a failed server has to end; it has no requests to finish.

    No second where it ended by itself: one that Docker has just restarted would sit out its whole stop timeout, for a
    container's first process gets no SIGTERM before it has a handler, and vLLM has one only after its imports.
    """
    return 0 if outcome.verdict in ("exited", "restarting", "not_started") else FAILED_GRACE


def way_back(context: RunContext) -> Observation:
    """Return what follows a failed start: the better server back, else the failed one is left stopped."""
    current, previous = context.current(), context.previous()
    return back_to(context, plan.on_failure(context.existing(previous), context.existing(current)), current, previous)


def back_to(context: RunContext, actions: Plan, current: Inspected | None, previous: Inspected | None) -> Observation:
    """Return ``actions`` as what is to be done to these two containers, to restore what served."""
    existing = context.existing(current)
    trust = existing.trust if existing else Trust.UNKNOWN
    return Observation(context.name, "restored", current, previous, actions, current_trust=trust)
