# SPDX-License-Identifier: Apache-2.0
"""Everything that is checked while the old server still answers. Changes nothing; raises Refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container.inspected import Inspected, names
from ..container.mounts import ENGINE_CACHE, HF_HOME, normal_path
from ..container.spec import Spec
from ..models import adapter_files
from ..vllm import adapters
from ..vllm.ranks import GUARD_TARGET
from . import gpu_gate, observe, preconditions
from .observe import Observation
from .run import RunContext

#: Seconds for which a port that Docker holds for no running container may be one that is just starting.
LEAK_RETRY_TIMEOUT = 3.0
#: Variables that say where a program and its parts are.
PROGRAM_VARIABLES = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD")
#: Seconds between two looks at such a port.
LEAK_RETRY = 0.5


def before_stop(context: RunContext, seen: Observation, spec: Spec) -> Observation:
    """Return what is to be done once all checks passed; the guard of GPU memory may have lowered the server's share."""
    options = context.options
    if seen.name_taken and seen.current and "create" in seen.plan.actions:
        raise _name_taken(context.next_name)
    _model(context, spec)
    _adapters(context, spec)
    gpu_gate.check_parallelism(options)
    preconditions.volumes_exist(tuple(v for v in spec.volumes if v.target not in (ENGINE_CACHE, GUARD_TARGET)))
    preconditions.mounts_have_a_place(spec.volumes)
    preconditions.devices_exist(spec.devices)
    preconditions.limits_can_be_set(spec.ulimits)
    preconditions.capabilities_can_be_given(spec.capabilities)
    running = context.engine.running()
    if options.rocm:
        verdict = gpu_gate.before_stop(options, spec, _own_pids(context, seen), names(running))
        context.state.notes += verdict.notes
        if verdict.spec is not spec and seen.judge:
            seen.spec = verdict.spec
            seen.differences, seen.plan = seen.judge(verdict.spec)
    # A rank without a port of its own needs none.
    if not options.headless and not _port_is_ours(context, seen, running):
        seen.plan = replace(seen.plan, actions=("restart_engine", *seen.plan.actions))
        context.state.notes.append(
            f"port {options.port} was held by the Docker engine for a container that does not run, so the "
            "engine is restarted; with live-restore the containers of this node go on"
        )
    _image_still_starts(context, seen, spec)
    return seen


def _image_still_starts(context: RunContext, seen: Observation, spec: Spec) -> None:
    """Refuse mounts and variables with which the image's server cannot even print its help, as it does without them.

    It is tried only where a mount hides something of the image, for it takes as long as vLLM's import.
    """
    image, engine = seen.image, context.engine
    known = context.node.flags(image.id) if image else None
    if image is None or known is None or not known.flags or "create" not in seen.plan.actions:
        return
    # Named volumes would be made by the trial, and labels of SELinux change the node's files.
    given = [v for v in spec.volumes if v.source.startswith("/") and {"z", "Z"}.isdisjoint(v.mode.split(","))]
    there = engine.holds(image, [v.target for v in given if v.target not in (HF_HOME, ENGINE_CACHE, GUARD_TARGET)])
    binds = [volume for volume in given if volume.target in there]
    env = {name: spec.env[name] for name in PROGRAM_VARIABLES if name in spec.env}
    if not binds and not env:
        return
    entrypoint, devices = observe.help_of(context.options, image)
    words = [*entrypoint, observe.ask(known)]
    ran = engine.run_once(image, words, timeout=observe.HELP_TIMEOUT, devices=devices, binds=binds, env=env)
    culprits = ", ".join([*(f"{v.source} at {v.target}" for v in binds), *(f"{name}={env[name]}" for name in env)])
    if ran.code is None:
        context.state.notes.append(f"whether {image.ref} starts with {culprits} could not be tried in time")
    elif "Read-only file system" in ran.error:
        # In the trial nothing may change the node's folders.
        context.state.notes.append(f"whether {image.ref} starts with {culprits} could not be tried: it writes there")
    elif ran.code != 0:
        options = [name for name, found in (("volumes", binds), ("env", env)) if found]
        why = context.scrubbed((ran.error.strip().splitlines() or [f"exit code {ran.code}"])[-1].encode()).decode()
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"{' and '.join(options)}: with {culprits} the server of {image.ref} cannot start, as it can without, for "
            "what it needs is hidden",
            f"correct {' and '.join(f'vllm_server_{name}' for name in options)}; /data is a place that no image uses",
            [f"`{' '.join(words)}` says: {why[:500]}"],
        )


def _name_taken(name: str) -> Refused:
    return Refused(
        FailureClass.BAD_ARGUMENT,
        f"name: expected no container {name}, for the new server is created under that name, but there is one that no "
        "run of this project left",
        f"rename or remove it (docker rename {name} ...), then run again",
    )


def _model(context: RunContext, spec: Spec) -> None:
    """Check that the model is where the server will look for it."""
    options = context.options
    cache, model = options.hf_cache, options.model
    if cache:
        preconditions.cache_folder(cache)
    if cache and spec.env.get("HF_HUB_OFFLINE") == "1" and not model.startswith("/"):
        try:
            preconditions.model_in_cache(cache, model, options.revision)
        except Refused as exc:
            exc.cause += observe.suggest_model(model, cache)
            raise
    if model.startswith("/") and any(v.source == normal_path(model) for v in spec.volumes):
        preconditions.model_folder_exists(model)


def _adapters(context: RunContext, spec: Spec) -> None:
    """Check that the adapters are in the cache, and that the server's flags have room for their ranks."""
    options = context.options
    if not options.hf_cache:
        return
    inside = f"{HF_HOME}/"
    folders = {
        name: Path(options.hf_cache, path.removeprefix(inside))
        for name, path in adapters.paths(options.flags).items()
        if path.startswith(inside)
    }
    wrong = adapter_files.worst(adapter_files.judged(folders, options.flags, options.model))
    if wrong:
        failure = FailureClass.CACHE_INCOMPLETE if wrong.expected == "its files" else FailureClass.BAD_ARGUMENT
        raise Refused(failure, f"{wrong.what}: expected {wrong.expected}, found {wrong.got}", wrong.remedy)


def _own_pids(context: RunContext, seen: Observation) -> frozenset[int]:
    return context.engine.pids(seen.current_id) if seen.current_id else frozenset()


def _port_is_ours(context: RunContext, seen: Observation, running: Sequence[Inspected]) -> bool:
    """Return whether the port is free; False where that takes a restart of the engine, which harms no container."""
    deadline = time.monotonic() + LEAK_RETRY_TIMEOUT
    own, options = (context.name, context.previous_name), context.options
    while True:
        try:
            preconditions.port_is_free(options.bind, options.port, running, own, lambda: _own_pids(context, seen))
        except preconditions.Leaked:
            if time.monotonic() >= deadline:
                if not context.engine.survives_restart():
                    raise
                return False
        else:
            return True
        time.sleep(LEAK_RETRY)  # one that is just starting holds its port before Docker lists it, and no event says so
        running = context.engine.running()
