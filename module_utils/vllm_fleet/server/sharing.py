# SPDX-License-Identifier: Apache-2.0
"""A server on a node that it shares: its place is taken first of all, and becomes options of its container.

What looks at GPUs afterwards looks at the container's devices and variables, so it sees the server's own alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..common import durable
from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container.fields import parse_numbers
from ..container.inspected import Inspected, cpuset, renders
from ..container.spec import OMP_BIND, VISIBLE
from ..host import gpu, place
from ..host.place import Asked, Asker, Place
from ..host.share import CPU, GPU, NoPlace
from ..models import placement
from . import gpu_gate, release
from .options import ServerOptions
from .run import RunContext
from .state import unwritable


def take(context: RunContext) -> None:
    """Find the place of a server that is to be started, write it down, and put it into the run's options.

    In check mode nothing is written. Raises Refused, EngineError, OSError.
    """
    options, name = context.options, context.name
    given, state_dir = asked(options), Path(context.options.state_dir)
    if not given.shared:
        if not context.check_mode:
            place.write(state_dir, name, None)
        return
    try:
        with contextlib.nullcontext() if context.check_mode else place.locked(state_dir):
            found, made = _found(context, given)
            if found:
                context.options = given_to(options, found)
                context.state.place = asdict(found)
                context.state.notes += unused(options, found)
            if not context.check_mode:
                place.write(state_dir, name, made)
    except NoPlace as exc:
        kind = FailureClass.NOT_ENOUGH_GPUS if exc.short is GPU else FailureClass.BAD_ARGUMENT
        raise Refused(kind, exc.why, f"{exc.remedy}; nothing was touched") from None
    except durable.Unreadable as exc:
        raise unwritable(exc, str(state_dir)) from None


def _found(context: RunContext, given: Asked) -> tuple[Place | None, dict[str, Any] | None]:
    """Return the place, and what is to be written of it."""
    containers = context.engine.managed()
    gpus = [asdict(one) for one in gpu.read(given.sysfs).gpus] if given.own.rocm else []
    found = place.find(given, containers, gpus)
    if found is None:
        return None, None
    old = place.read(given.state_dir, given.own.name)
    everything = [str(one["render"]) for one in gpus if one.get("render")]
    return found, place.record(found, context.current(), old, everything)


def again(context: RunContext) -> None:
    """Put the place of an earlier slice into the run's options."""
    context.options = given_to(context.options, _of_state(context))


def _of_state(context: RunContext) -> Place:
    return Place(**{name: _tuples(value) for name, value in context.state.place.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def asked(options: ServerOptions) -> Asked:
    """Return what a server asks of the node."""
    return Asked(
        Asker(options.name, options.gpus, options.cpus, options.rocm),
        tuple(Asker.from_option(one) for one in options.neighbours),
        Path(options.state_dir),
        Path(options.sysfs_root),
        place.chosen_by_hand(options.env, options.devices),
    )


def given_to(options: ServerOptions, found: Place) -> ServerOptions:
    """Return the options with what follows from a place: devices, variables, CPUs. Raises Refused."""
    env = dict(options.env)
    if found.gpus is not None:
        _enough(options, len(found.gpus))
        # Of the GPUs of its devices; those of others its process cannot open.
        env[VISIBLE] = ",".join(map(str, range(len(found.gpus))))
        options = replace(options, devices=tuple(place.devices(found)), given_gpus=found.gpus)
    if found.cpus is not None:
        if not options.rocm:
            env |= _binding(options, found)
        options = replace(options, cpuset=found.facts()["cpus"])
    return replace(options, env=env)


def _enough(options: ServerOptions, count: int) -> None:
    needed = gpu_gate.ranks(options).local
    if needed > count:
        raise Refused(
            FailureClass.NOT_ENOUGH_GPUS,
            f"the arguments ask for {needed} GPUs, and {GPU.option} gives {count}",
            f"set {GPU.option} to {needed}, or lower tensor-parallel-size or its like in vllm_server_args to {count}; "
            "nothing was touched",
        )


def unused(options: ServerOptions, found: Place) -> list[str]:
    """Return a note where the arguments leave GPUs of the server unused."""
    needed, count = gpu_gate.ranks(options).local, len(found.gpus or ())
    if needed >= count:
        return []
    return [f"{GPU.option} gives {count} GPUs, and the arguments use {needed} of them (tensor-parallel-size)"]


def _binding(options: ServerOptions, found: Place) -> dict[str, str]:
    """Return vLLM's own binding of threads; one that the user switched off or left to vLLM stays."""
    given = options.env.get(OMP_BIND)
    if given in ("auto", "nobind"):
        return {}
    if given not in (None, ""):
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"{CPU.option} is set together with {OMP_BIND} in vllm_server_env, and each would choose CPUs",
            "take one of them away, or set that variable to auto or nobind; nothing was touched",
        )
    try:
        return {OMP_BIND: placement.omp_binding(found.cores, gpu_gate.ranks(options).local)}
    except ValueError as exc:
        remedy = (
            f"raise {CPU.option}, or lower tensor-parallel-size or its like in vllm_server_args; nothing was touched"
        )
        raise Refused(FailureClass.BAD_ARGUMENT, f"{CPU.option}: {exc}", remedy) from None


def settle(context: RunContext) -> None:
    """Give free what the server had before, for its new container is good; what cannot be read stays as it is."""
    with context.remembering(), contextlib.suppress(NoPlace):
        place.settle(Path(context.options.state_dir), context.name)


def facts(context: RunContext, spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return `place` of the result: what was found in this run, else what the container has."""
    if context.state.place:
        return _of_state(context).facts()
    given = release.place_of(spec or {})
    if given is None:
        return None
    with contextlib.suppress(OSError):
        noted = place.read(Path(context.options.state_dir), context.name) or {}
        if all(noted.get(name) == value for name, value in given.items()):
            return {**given, "numa": list(noted.get("numa") or ())}
    return {**given, "numa": []}


def may_come_back(context: RunContext, previous: Inspected) -> None:
    """Refuse to bring back a container whose GPUs or CPUs another server has by now. Raises Refused, EngineError."""
    mine = _parts(previous)
    for other in context.engine.managed() if any(mine.values()) else ():
        server = place.server_of(other)
        both = {kind: sorted(units & mine[kind]) for kind, units in _parts(other).items() if units & mine[kind]}
        if both and server != context.name and other["State"].get("Running"):
            shown = ", ".join(f"{kind} {', '.join(map(str, units))}" for kind, units in both.items())
            raise Refused(
                FailureClass.BAD_ARGUMENT,
                f"{shown} of the previous server is used by {server} now",
                f"stop {server} first, or deploy this server anew; nothing was touched",
            )


def _parts(container: Inspected) -> dict[str, set[Any]]:
    """Return what a container has for itself: nothing where it may use all of its node."""
    cpus = cpuset(container)
    return {"GPU": set(renders(container) or ()), "CPU": set(parse_numbers(cpus, "cpuset")) if cpus else set()}
