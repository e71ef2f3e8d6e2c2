# SPDX-License-Identifier: Apache-2.0
"""The program that stays: looks at one server every few seconds, tells the gateways, and starts the restart.

It may be killed anywhere: what it has begun stands in the state file, and the next one goes on from there.
"""

from __future__ import annotations

import calendar
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..container.api import DockerApi, DockerRefused, DockerUnavailable
from ..container.inspected import Inspected, ident
from ..server import endpoint
from ..vllm.endpoint import Endpoint
from . import ask, settings, signs, words
from .agent import Agent
from .gpus import Gpus, used_by
from .journal import Journal, boottime, read, write_whole
from .judge import Judge, Verdict
from .others import Others
from .places import Places
from .standing import Standing

#: Seconds for an answer of Docker, and for a page of the server (less where the silence is short).
DOCKER_TIMEOUT, PAGE_TIMEOUT = 10.0, 10.0
#: Seconds between two looks at a restart that goes on.
CHILD_LOOK = 0.5
#: Every second look is one at the GPUs, too.
GPUS_EACH = 2
#: Lines and bytes of a container's log that are looked through for signs of life.
LINES, LOG_BYTES = 1000, 1 << 18
#: A restart that is interrupted again and again is given up after so many tries.
TRIES = 5


class Resident:
    """Watches one server. ``program`` is what starts this program, for its second half."""

    def __init__(self, where: Places, program: Sequence[str]) -> None:
        """Read the settings and what an earlier one left. Raises OSError, ValueError for settings that are wrong."""
        self.where, self.program = where, list(program)
        self.stop = threading.Event()
        self.agent, self.asking = Agent(), ask.Asking()
        self.standing = Standing.of(read(where.state))
        self._gpus = Gpus(where.gpus, Path(where.sysfs), Path(where.kernel_log))
        self._gpus_said: set[str] = set()
        self._child: subprocess.Popen[bytes] | None = None
        self._verb = ""
        self._tries, self._not_before = 0, 0.0
        self._troubles: dict[str, str] = {}
        self._saved: dict[str, Any] = {}
        self._take(self._load())

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Watch until SIGTERM; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())
        # Before anything else: what an earlier watchdog took out stays out.
        self._save()
        self._listen()
        self._event("started", f"the watchdog begins, and the server is {self.standing.state}")
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                self.look()
            except (DockerUnavailable, DockerRefused) as exc:
                self._trouble("docker", str(exc))
                self._afresh()  # what the server does meanwhile is not seen
            except OSError as exc:
                self._trouble("watchdog", str(exc))
            else:
                self._trouble("docker", "")
                self._trouble("watchdog", "")
            self._save()
            now = time.monotonic()
            # Earlier than usual where an engine's time is over before: the gateways are to be told at once.
            pause = CHILD_LOOK if self._child else min(self.settings.interval, now - begun + self.judge.due(now))
            self.stop.wait(max(0.05, pause - (now - begun)))
        if self._child:
            self._child.kill()  # the next watchdog goes on with the restart
            self._child.wait()
        self.agent.close()
        return 0

    def look(self) -> None:
        """Look once. Raises DockerUnavailable, DockerRefused, OSError."""
        self._reload()
        if self._child:
            if self._child.poll() is not None:
                self._ended(self._child.returncode)
            return
        found, standing = self.docker.container(self.settings.name), self.standing
        self._look_at_gpus(found)
        if found is None:
            self._begin("absent", f"there is no container {self.settings.name}", None)
        elif standing.state == "restarting" and ident(found) == standing.container:
            self._resume()
        else:
            if ident(found) != standing.container:
                self._begin("starting", "the container has not been ready yet", found)
            elif found["State"].get("Running") and found["State"].get("StartedAt") != standing.started_at:
                # One that the watchdog took out is verified before it gets requests again: here, or by who drained it.
                out = standing.state in words.DOWN and self.settings.action == "restart"
                verify = out and not self._others.reason(found)
                self._begin("out" if verify else "starting", "the container was started again", found, verify=verify)
            if not self._left_alone(found):
                self._judge(found)

    def _begin(self, state: str, why: str, found: Inspected | None, *, verify: bool = False) -> None:
        """Take up another container, another start of the same one, or none."""
        standing = self.standing
        standing.container = ident(found) if found else ""
        standing.started_at = str(found["State"].get("StartedAt")) if found else ""
        standing.ready = standing.hold = standing.resumed = False
        standing.verify, standing.hung, standing.failure_class, self._tries = verify, "", "", 0
        self._to(state, why)
        self._afresh()

    # -- sick GPUs -------------------------------------------------------------------------------------------------

    def _look_at_gpus(self, found: Inspected | None) -> None:
        """Keep a server whose GPUs cannot be trusted away from the gateways; say once what is less serious."""
        if found is None or not used_by(found):
            self._quarantine("")
            return
        faults = self._gpus.latest(GPUS_EACH * self.settings.interval)
        self._trouble("gpus", "/sys has not answered for a minute: a GPU may be stuck" if self._gpus.stuck else "")
        if faults is None:
            return
        faults = self._gpus.own(found, faults)
        self._quarantine("; ".join(fault.says for fault in faults if fault.serious))
        light = {fault.says for fault in faults if not fault.serious}
        for says in sorted(light - self._gpus_said):
            self._event("gpu", says)
        self._gpus_said |= light

    def _quarantine(self, why: str) -> None:
        before, self.standing.quarantine = self.standing.quarantine, why
        if why and why != before:
            self._event("quarantine", why)
        elif before and not why:
            self._event("released", f"no GPU is sick any more, after: {before}")

    # -- left alone ------------------------------------------------------------------------------------------------

    def _left_alone(self, found: Inspected) -> bool:
        """Say why the server is left alone, if it is; one that is out stays out."""
        why = self._others.reason(found)
        if why and found["State"].get("Restarting"):
            self._leave(why, "starting")
        elif why:
            self._leave(why)
        return bool(why)

    def _leave(self, why: str, state: str = "left_alone") -> None:
        self._afresh()
        if self.standing.state not in words.DOWN:
            if self.standing.state != state == "left_alone":
                self._event("left_alone", why)
            self._to(state, why)

    # -- works or hangs ----------------------------------------------------------------------------------------------

    def _judge(self, found: Inspected) -> None:
        place = endpoint.of_container(found)
        if place is None:
            self._leave("the container has no port that can be asked")
            return
        engines = ask.engines(place, min(PAGE_TIMEOUT, max(1.0, self.settings.silence / 4)))
        now = time.monotonic()
        if not self.standing.ready:
            if engines is None:
                if self.standing.state not in words.DOWN:
                    self._to("starting", "the container has not been ready yet")
                return
            self.standing.ready = True
            self._afresh()
        self.judge.page(now, engines)
        if self.judge.asleep:
            self._leave("the server was put to sleep")
            return
        for label, answer in self.asking.answers():
            self.judge.answer(now, label, answer)
        verdict = self.judge.verdict(now)
        if verdict.look and self.standing.state not in words.DOWN:
            self._read_log(found, now)
            verdict = self.judge.verdict(now)
        if verdict.ask is not None:
            self._ask(place, verdict.ask, now)
        if verdict.kind == "moving":
            self._works()
        elif verdict.kind == "hung" and self.standing.state not in words.DOWN:
            self._hangs(place, verdict)

    def _hangs(self, place: Endpoint, verdict: Verdict) -> None:
        """Act on a server that hangs; one that may only be busy must never be restarted."""
        if ask.paused(place, 2.0):
            self._leave("somebody paused the generation")
        elif not verdict.blind:
            self._act(verdict.why)
        elif self.standing.state != "left_alone":
            why = f"{verdict.why}; its statistics are off, so it may be a long queue, and is left alone"
            self._event("hung", why)
            self._to("left_alone", why)

    def _ask(self, place: Endpoint, label: str, now: float) -> None:
        model = self.settings.model
        if place.names and model not in place.names:
            model = place.names[0]
        self.judge.asking(now, label)
        question = ask.Question(place, model, self.settings.api)
        self.asking.ask(question, label, several=self.judge.several, timeout=self.settings.silence)

    def _read_log(self, found: Inspected, now: float) -> None:
        """Take what the engines wrote as signs of life, where the clock lets their age be known."""
        try:
            text = self.docker.log_tail(ident(found), LINES, LOG_BYTES).decode(errors="replace")
        except DockerRefused:
            return  # a log driver that cannot be read from
        for label, stamp in signs.newest(text).items():
            age = time.time() - calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
            # A line from the future was written before the clock was set back.
            if 0 <= age < self.settings.silence:
                self.judge.logged(now - age, label)

    def _works(self) -> None:
        standing = self.standing
        if standing.state == "serving" or standing.hold:
            return
        if standing.state == "out" and standing.verify:
            standing.resumed = True
            self._to("restarting", "the container was started again, and is to be verified")
            self._spawn("restart")
        elif standing.state not in words.DOWN:
            self._to("serving", "the engine works")
        elif self.judge.alive:
            self._to("serving", "the engine works again")
            self._event("back", "the engine works again", seconds=self._out_for())

    # -- what is done --------------------------------------------------------------------------------------------------

    def _act(self, why: str) -> None:
        standing, action = self.standing, self.settings.action
        standing.begun, standing.hung = boottime(), standing.started_at
        self._to("hung", why)
        self._event("hung", why)
        self._save()  # from here on the gateways are told
        standing.forget(boottime())
        before = len(standing.restarts)
        if action == "restart" and before < self.settings.restarts:
            standing.restarts_boot.append(boottime())
            standing.restarts.append(round(time.time()))
            standing.resumed, self._tries = False, 0
            self._to("restarting", why)
            self._event("out", why)
            self._spawn("restart")
            return
        if action == "restart":
            times = f"it was restarted {before} times within the last hour" if before else "no restart is allowed"
            self._to("out", f"{why}; {times}, so it is left out of the gateways")
            self._event("limit", standing.why)
        elif action == "drain":
            self._to("out", why)
            self._event("out", why)
        self._spawn("evidence")

    def _resume(self) -> None:
        """Go on with a restart that was interrupted: one of the two halves was killed, or Docker went away."""
        if time.monotonic() < self._not_before:
            return
        if self._tries >= TRIES:
            self._failed(f"the restart was interrupted {self._tries} times, and is given up", "")
            self._event("failed", self.standing.why)
            return
        self._tries += 1
        self.standing.resumed = True
        self._spawn("restart")

    def _spawn(self, verb: str) -> None:
        """Start the second half, which reads the state file. Raises OSError."""
        self.where.result.unlink(missing_ok=True)
        self._save()
        self._verb = verb
        places = [
            "--settings-dir",
            self.where.settings_dir,
            "--run-dir",
            self.where.run_dir,
        ]  # the rest is not its matter
        self._child = subprocess.Popen([*self.program, *places, verb, self.where.name], stdin=subprocess.DEVNULL)

    def _ended(self, code: int) -> None:
        """Take over what the second half came to."""
        self._child = None
        self._afresh()
        if self._verb == "evidence":
            return
        standing, found = self.standing, read(self.where.result)
        outcome, why = found.get("outcome"), str(found.get("why") or "")
        if found.get("event"):
            standing.last_event = found["event"]
        if outcome == "back":
            standing.container, standing.started_at = str(found["container"]), str(found["started_at"])
            standing.ready, standing.verify, standing.resumed, standing.hung = True, False, False, ""
            self._to("serving", why)
            self._event("back", why, seconds=self._out_for())
        elif outcome == "failed":
            standing.started_at = str(found.get("started_at") or standing.started_at)
            self._failed(why, str(found.get("class") or ""))
        elif outcome == "left_alone":
            self._event("left_alone", why)
            self._begin("left_alone", why, None)
        else:
            self._trouble("restart", why or f"the restart was ended from outside (code {code}), and is taken up again")
            self._not_before = time.monotonic() + self._tries * 2.0
            return
        self._trouble("restart", "")

    def _failed(self, why: str, failure_class: str) -> None:
        self.standing.hold, self.standing.verify, self.standing.resumed, self.standing.hung = True, False, False, ""
        self.standing.failure_class = failure_class
        self._to("out", why)

    def _out_for(self) -> float:
        return round(boottime() - self.standing.begun, 1)

    # -- what is remembered --------------------------------------------------------------------------------------

    def _afresh(self) -> None:
        self.judge = Judge(self.settings.silence, time.monotonic())
        self.asking.forget()

    def _to(self, state: str, why: str) -> None:
        """Note the present state; it is written with the end of the look."""
        if state != self.standing.state:
            self.standing.since = round(time.time(), 3)
        self.standing.state, self.standing.why = state, why

    def _event(self, kind: str, why: str, **more: Any) -> None:
        self.standing.last_event = self.journal.event(kind, why, **more)

    def _trouble(self, what: str, why: str) -> None:
        """Say once what keeps the watchdog from its work."""
        if why and self._troubles.get(what) != why:
            self._troubles[what] = why
            self._event("trouble", why)
        elif not why:
            self._troubles.pop(what, None)

    def _save(self) -> None:
        """Write the state, where it is another one, and tell the gateways."""
        standing = self.standing
        standing.forget(boottime())
        standing.trouble = "; ".join([*self._troubles.values(), *filter(None, [self.journal.trouble])])
        self.agent.line = words.agent_line(standing.state, self.settings.action, standing.quarantine)
        made = standing.as_dict()
        if made == self._saved:
            return
        try:
            write_whole(self.where.state, made)
        except OSError as exc:
            print(f"{self.where.state} cannot be written: {exc}", file=sys.stderr, flush=True)
        else:
            self._saved = made

    # -- settings ------------------------------------------------------------------------------------------------

    def _load(self) -> settings.Settings:
        """Read the settings. Raises OSError, ValueError."""
        self._read_at = self.where.settings.stat().st_mtime_ns
        found = settings.parse(self.where.settings.read_text(encoding="utf-8"))
        if found.name != self.where.name:
            raise ValueError(f"{self.where.settings} should be of {self.where.name}, and is of {found.name}")
        return found

    def _take(self, found: settings.Settings) -> None:
        self.settings = found
        self.docker = DockerApi(found.docker_socket, DOCKER_TIMEOUT)
        self.journal = Journal(found.state_dir, found.name)
        self._others = Others(found, self.where)
        self._afresh()

    def _reload(self) -> None:
        """Take the settings when they changed; wrong ones change nothing."""
        try:
            if self.where.settings.stat().st_mtime_ns != self._read_at:
                self._take(self._load())
                self._trouble("settings", "")
        except (OSError, ValueError) as exc:
            self._trouble("settings", f"the settings were not taken: {exc}")
        self._listen()

    def _listen(self) -> None:
        try:
            self.agent.listen(self.settings.agent)
        except OSError as exc:
            self._trouble("agent", f"gateways cannot ask at {self.settings.agent}: {exc.strerror or exc}")
        else:
            self._trouble("agent", "")
