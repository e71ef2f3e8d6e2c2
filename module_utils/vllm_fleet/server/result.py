# SPDX-License-Identifier: Apache-2.0
"""The result of vllm_server: one shape, on success and on failure alike."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..common import maintenance
from ..common.failure import FailureClass
from ..common.refused import Refused
from ..common.secrets import scrub
from ..container import compare
from ..container.engine import EngineError
from ..container.inspected import Inspected, ident, running
from ..container.plan import Trust
from . import endpoint, release, watched
from .outcome import Outcome
from .release_store import Releases, standing
from .run import RunContext, boottime

#: What to do when Docker does not answer.
ENGINE_REMEDY = (
    "see `systemctl status docker` and `journalctl -u docker` on the node, start it (role docker_engine) or run as a "
    "user who may use it, then run again: a start that was going on is taken up where it stands"
)


def no_engine(name: str, host: str, error: Exception) -> dict[str, Any]:
    """Return the result of a run that found no Docker engine."""
    return nothing(name, host, Refused(FailureClass.UNKNOWN, str(error), ENGINE_REMEDY))


def nothing(name: str, host: str, why: Refused) -> dict[str, Any]:
    """Return the result of a run that did not come to ask Docker."""
    return {
        "failed": True,
        "msg": why.failure.sentence(f"{host}, container {name}"),
        "failure": why.failure.as_result(),
        **{"changed": False, "rolled_back": False, "confirmed": False, "elapsed": 0.0},
        **{key: [] for key in ("actions", "differences", "stages", "notes")},
        **dict.fromkeys(("container", "spec", "place", "downtime", "log_file", "engine_cache")),
        **{"diff": {}, "spent": {}},
    }


def of_run(
    context: RunContext,
    current: Inspected | None,
    outcome: Outcome | None = None,
    *,
    failed: bool = False,
    msg: str | None = None,
) -> dict[str, Any]:
    """Return the result of a run that leaves the container ``current``, after a watch that came to ``outcome``."""
    state, now = context.state, boottime()
    spec = spec_of(context, current)
    ready = outcome is not None and outcome.verdict == "ready"
    result: dict[str, Any] = {
        "changed": state.changed,
        "actions": state.actions,
        "differences": state.differences,
        "diff": state.diff,
        "container": describe(current),
        "spec": spec,
        "elapsed": round(now - state.begun, 3),
        "downtime": round(now - state.stopped, 3) if state.stopped is not None and ready else None,
        "spent": dict(state.spent),
        "engine_cache": dict(state.cache) or None,
        "stages": state.stages or (outcome.stages if outcome else []),
        "log_file": state.log_file,
        "rolled_back": False,
        "confirmed": current is not None and context.node.trust(ident(current)) is Trust.CONFIRMED,
        "notes": state.notes,
        "place": _place(context, spec),
        "release": release.summary(Releases(context.node).serving(ident(current), spec) if current else None),
    }
    if context.check_mode:
        up = current is not None and running(current)
        result["serving"] = standing(endpoint.of_container(current)) if current and up else None
        result["past"] = context.past
        result["watchdog"] = watched.look(context.name)
        result["servers"] = context.engine.servers()
        result["trial"] = current is not None and context.node.trial(ident(current))
        result["trial_failed"] = current is not None and bool(context.node.trial_note(ident(current)).get("wrong"))
        result["maintenance"] = maintenance.look(context.options.state_dir, context.name)
    if state.failure:
        result["failure"] = state.failure.as_result()
    if failed:
        result["failed"] = True
    if msg:
        result["msg"] = msg
    if outcome:
        result["progress"] = _progress(outcome, state.phase, context.secrets)
        result["log_lines"] = [scrub(line, context.secrets) for line in outcome.new_lines]
    return result


def pending(context: RunContext, current: Inspected | None, outcome: Outcome | None = None) -> dict[str, Any]:
    """Return the result of a slice without a verdict, with the token of the next one."""
    return {**of_run(context, current, outcome), "pending": True, "token": context.state.as_token()}


def _progress(outcome: Outcome, phase: str, secrets: tuple[str, ...]) -> dict[str, Any]:
    return {
        "stage": outcome.stage,
        "describe": outcome.describe,
        "elapsed": outcome.elapsed,
        "estimate": outcome.estimate,
        "idle": outcome.idle,
        "alarmed": outcome.alarmed,
        "last_line": scrub(outcome.last_line, secrets),
        "news": [asdict(one) for one in outcome.news],
        "phase": phase,
    }


def spec_of(context: RunContext, current: Inspected | None) -> dict[str, Any] | None:
    """Return what any container is made of; None where that cannot be read."""
    if current is None:
        return None
    with contextlib.suppress(EngineError, OSError, Refused):
        redact = compare.fingerprint(context.node.fingerprint_key(create=not context.check_mode))
        return compare.as_spec(current, context.engine.image(str(current["Image"])), redact)
    return None


def _place(context: RunContext, spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what the server has of a node that it shares, `gpus`, `cpus` and `numa`; None for one that has it all."""
    if not context.state.place and not (spec and (spec.get("gpus") or spec.get("cpus"))):
        return None
    from . import sharing  # noqa: PLC0415  few runs need it

    return sharing.facts(context, spec)


def describe(container: Inspected | None) -> dict[str, Any] | None:
    """Return the result's ``container`` from Docker's inspect."""
    if container is None:
        return None
    state, config = container["State"], container.get("Config") or {}
    return {
        "id": container["Id"],
        "name": str(container["Name"]).lstrip("/"),
        "image": config.get("Image"),
        "image_id": container.get("Image"),
        "started_at": state.get("StartedAt"),
        "status": state.get("Status"),
    }
