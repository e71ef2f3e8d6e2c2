# SPDX-License-Identifier: Apache-2.0
"""Carries out the actions of a plan on one node, one boundary after the other: a run may be killed at each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..common.refused import Refused
from ..container.engine import EngineError
from ..container.inspected import Inspected, ident, publishes
from ..container.mounts import ENGINE_CACHE
from ..container.plan import Trust
from ..container.spec import Image, Spec
from . import engine_cache, gpu_gate
from .observe import Observation
from .run import RunContext, boottime

#: Docker's words for a port that it counts as taken.
ALLOCATED = re.compile(r":(\d+) failed: port is already allocated")


@dataclass
class _Containers:
    """Ids of the container that has the name, of the one that waits as the previous one, and of the new one."""

    current: str | None
    previous: str | None
    next: str | None


class Change:
    """The actions of plan.make and plan.on_failure, by their names."""

    def __init__(self, context: RunContext) -> None:
        """Nothing happens yet."""
        self.context = context
        #: Seconds that a server has to end, where that is less than its own stop timeout.
        self.grace: int | None = None
        #: The new container is only to be checked by Docker: it never gets the server's name.
        self.trial = False
        self._memory_missing = False

    def apply(self, actions: tuple[str, ...], seen: Observation) -> Inspected | None:
        """Carry out ``actions``. Returns the container that then has the name. Raises EngineError, OSError, Refused."""
        context = self.context
        previous, left = seen.previous, seen.left
        there = _Containers(seen.current_id, ident(previous) if previous else None, ident(left) if left else None)
        if seen.current and "keep" in actions and seen.current_trust > Trust.UNKNOWN:
            # Noted before it is stopped: afterwards it cannot be asked any more.
            context.note_trust(seen.current, seen.current_trust, seen.previous)
        for action in actions:
            self._timed(action, there, seen)
            context.state.actions.append(action)
            context.state.changed = True
            if context.after_action:
                context.after_action(action)
        return context.engine.container(there.current) if there.current else None

    def _timed(self, action: str, there: _Containers, seen: Observation) -> None:
        """Carry out an action, and note what it took of the time without a server."""
        spent, begun = self.context.state.spent, boottime()
        waited = spent.get("memory", 0.0)
        self._act(action, there, seen)
        if self.context.state.stopped is not None:
            took = boottime() - begun - (spent.get("memory", 0.0) - waited)
            spent[action] = round(spent.get(action, 0.0) + took, 3)

    def _act(self, action: str, there: _Containers, seen: Observation) -> None:
        engine, options = self.context.engine, self.context.options
        if action == "restart_engine":
            engine.restart()
        elif action in ("remove_previous", "remove_next"):
            self._remove_waiting(action.removeprefix("remove_"), there)
        elif action == "stop_previous" and there.previous:
            engine.stop(there.previous, options.stop_timeout)
        elif action == "stop" and there.current:
            self._stop(there.current, seen.current, replacing=seen.state in ("started", "restarted"))
        elif action == "keep" and there.current:
            engine.rename(there.current, self.context.previous_name)
            there.previous, there.current = there.current, None
        elif action == "remove" and there.current:
            self._keep_log(there.current)
            engine.remove(there.current)
            there.current = None
        elif action == "unkeep" and there.previous:
            engine.rename(there.previous, self.context.name)
            there.current, there.previous = there.previous, None
            self.context.state.current = there.current
        elif action == "create" and seen.spec and seen.image:
            self._create(there, seen.spec, seen.image)
        elif action == "rename" and there.next:
            engine.rename(there.next, self.context.name)
            there.current = self.context.state.current = there.next
            there.next = None
        elif action == "update" and there.current and seen.spec:
            engine.update_restart_policy(there.current, seen.spec.restart_policy)
        elif action == "start" and there.current:
            begun = boottime()
            self._await_memory(there.current, seen.spec)
            if self.context.state.stopped is not None and self.context.options.rocm:
                self.context.state.spent["memory"] = round(boottime() - begun, 3)
            self._start(there.current)

    def _create(self, there: _Containers, spec: Spec, image: Image) -> None:
        """Create the new container; under its own name only where that is free and the container is to stay."""
        self._make_engine_cache(spec)
        if there.current or self.trial:
            there.next = self.context.engine.create(spec, image, self.context.next_name)
        else:
            there.current = self.context.state.current = self.context.engine.create(spec, image)

    def _make_engine_cache(self, spec: Spec) -> None:
        """Make the folder of the compile cache, emptied where it is to be; one that is only tried stays as it is."""
        options = self.context.options
        for volume in spec.volumes:
            if volume.target != ENGINE_CACHE:
                continue
            folder = Path(volume.source)
            if self.trial or folder.parent != self.context.node.engine_caches:
                folder.mkdir(parents=True, exist_ok=True, mode=0o755)
                continue
            machine = engine_cache.hardware(options)
            if why := engine_cache.prepare(folder, machine, reset=options.engine_cache_reset):
                self.context.state.notes.append(f"the compile cache {folder} was emptied: {why}")
                self.context.state.cache |= {"warm": False} if self.context.state.cache else {}

    def _remove_waiting(self, which: str, there: _Containers) -> None:
        """Remove the container that waits as the ``previous`` or as the ``next`` one."""
        container = getattr(there, which)
        if container:
            self.context.engine.remove(container)
            setattr(there, which, None)

    def _stop(self, container: str, info: Inspected | None, *, replacing: bool) -> None:
        if replacing and info:
            # Should this run be killed, the next one knows that it was no person who stopped this server.
            with self.context.remembering():
                self.context.node.note_stopping((container, str(info["State"]["StartedAt"])))
        own = ((info or {}).get("Config") or {}).get("StopTimeout")
        timeout = int(self.context.options.stop_timeout if own is None else own)
        self.context.state.stopped = boottime()
        self.context.engine.stop(container, timeout if self.grace is None else min(timeout, self.grace))

    def _keep_log(self, container: str) -> None:
        """Save the log of a container that is about to be removed and that was started at least once."""
        self.context.learn(self.context.engine.container(container))
        log = self.context.scrubbed(self.context.engine.log(container))
        if log and not self.context.state.log_file:
            self.context.save_log(log, container)

    def _await_memory(self, container: str, spec: Spec | None) -> None:
        """Wait for the GPU memory of what was stopped; without it a new server (``spec``) is not started."""
        options = self.context.options
        if not options.rocm:
            return
        try:
            if spec:
                gpu_gate.after_stop(options, spec.command)
            elif not self._memory_missing:
                gpu_gate.after_stop(*gpu_gate.demand_of(self.context.engine.container(container) or {}, options))
        except Refused as exc:
            self._memory_missing = True  # one that comes back afterwards is started as it is, without another wait
            if spec:
                raise
            self.context.state.notes.append(f"{exc.cause}, and the previous server was started all the same")

    def _start(self, container: str) -> None:
        engine = self.context.engine
        try:
            engine.start(container)
        except EngineError as exc:
            port = ALLOCATED.search(str(exc))
            if not port or publishes(engine.running(), int(port[1])) or not engine.survives_restart():
                raise
            # The engine was killed since the port was looked at, and lost track of it (see preconditions.Leaked).
            engine.restart()
            self.context.state.actions.append("restart_engine")
            engine.start(container)
