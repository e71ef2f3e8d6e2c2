# SPDX-License-Identifier: Apache-2.0
"""The second half of the watchdog: keeps evidence, restarts the server as a deployment would, and verifies it.

A process of its own, which the resident program starts and outlives. What it came to stands in restart.json; without
that file it was ended from outside, and the next one goes on with what it finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..container.api import DockerApi, DockerRefused, DockerUnavailable
from ..container.inspected import Inspected, command_line, ident, running, secrets_of
from ..server import endpoint
from ..server.lifecycle import perform
from ..server.options import ARGUMENTS
from ..server.run import RunState
from ..vllm import chat, cli, metrics
from ..vllm.chat_options import build_message
from . import evidence, settings
from .journal import Journal, boottime, read, write_whole
from .others import Others
from .places import Places
from .standing import Standing

#: Seconds of one slice under the server's lock; another run gets in between.
SLICE = 10.0
#: Seconds between two looks at a lock that another run holds. The kernel tells nobody when it is free.
LOCK_LOOK = 0.5
#: Parent's death signal, of prctl(2).
_PDEATHSIG = 1


class _Stop(Exception):
    """The restart ends here: ``outcome`` is left_alone, failed or again."""

    def __init__(self, outcome: str, why: str, **more: Any) -> None:
        super().__init__(why)
        self.found = {"outcome": outcome, "why": why, **more}


def main(where: Places, verb: str) -> int:
    """Do ``restart`` or ``evidence``; return the exit code. Raises OSError, ValueError for settings."""
    # Two of them at a time would restart the server twice.
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    found = Restart(where).run(verb)
    write_whole(where.result, found)
    return 0 if found["outcome"] in ("back", "evidence") else 1


class Restart:
    """One restart of one server."""

    def __init__(self, where: Places) -> None:
        """Read the settings and how the server stands. Raises OSError, ValueError."""
        self.where = where
        self.settings = settings.parse(where.settings.read_text(encoding="utf-8"))
        self.standing = Standing.of(read(where.state))
        self.docker = DockerApi(self.settings.docker_socket)
        self.journal = Journal(self.settings.state_dir, self.settings.name)
        self.others = Others(self.settings, where)
        self.event: dict[str, Any] = {}
        self.folder: Path | None = None
        self.begun = boottime()

    def run(self, verb: str) -> dict[str, Any]:
        """Do it; return what it came to: outcome (back, failed, left_alone, again, evidence), why, and more."""
        try:
            found = self._evidence() if verb == "evidence" else self._restart()
        except _Stop as stop:
            found = stop.found
        except (DockerUnavailable, DockerRefused) as exc:
            found = {"outcome": "again", "why": str(exc)}
        return {**found, "event": self.event}

    def _note(self, kind: str, why: str, **more: Any) -> None:
        self.event = self.journal.event(kind, why, **more)

    # -- the steps -------------------------------------------------------------------------------------------------

    def _evidence(self) -> dict[str, Any]:
        """Keep evidence. A full disk, and whatever else goes wrong with it, is said and passed over."""
        container = self.docker.container(self.settings.name)
        if container is None or not running(container):
            return {"outcome": "evidence", "why": "the container does not run"}
        begun = time.monotonic()
        try:
            folder = self.folder = self.journal.new_evidence()
            files = evidence.collect(self.docker, container, folder)
        except OSError as exc:
            self._note("trouble", f"evidence cannot be kept: {exc.strerror or exc}")
        else:
            seconds = round(time.monotonic() - begun, 1)
            self._note("evidence", ", ".join(files), evidence=str(folder), seconds=seconds)
        return {"outcome": "evidence", "why": ""}

    def _goes_on(self) -> bool:
        """Whether the two pages of the evidence show a step. Of several engines another one may have done it."""
        pages = []
        for name in ("metrics-1.txt", "metrics-2.txt"):
            with contextlib.suppress(OSError):
                pages.append(metrics.engines((self.folder / name).read_text(encoding="utf-8")) if self.folder else {})
        if len(pages) < len(("before", "after")) or any(len(page) != 1 for page in pages):
            return False
        before, after = pages
        return before.keys() == after.keys() and all(before[name].signature != after[name].signature for name in before)

    def _restart(self) -> dict[str, Any]:
        if self.standing.hung and not self.standing.resumed:
            self._evidence()
            if self._goes_on():
                raise _Stop("left_alone", "the engine went on while evidence was kept")
        container = self._free()
        token = None
        if running(container) and container["State"].get("StartedAt") != self.standing.hung:
            # It was started since: an earlier restart that was interrupted, Docker's policy, or a person.
            token = RunState(current=ident(container), actions=["start"]).as_token()
        else:
            self._note("restart", self.standing.why)
        result = self._slices(container, token)
        container = self.docker.container(self.settings.name) or container
        key = {"container": ident(container), "started_at": container["State"].get("StartedAt")}
        seconds = round(boottime() - self.begun, 1)
        if result.get("failed"):
            failure = result.get("failure") or {}
            why = str(result.get("msg"))
            self._note("failed", why, seconds=seconds, **{"class": failure.get("class"), "log": result.get("log_file")})
            # Where the container never was the good one, the lifecycle has put its predecessor back.
            outcome = "left_alone" if result.get("rolled_back") else "failed"
            raise _Stop(outcome, why, **key, **{"class": failure.get("class")})
        wrong = self._verify(container)
        if wrong:
            self._note("failed", wrong, seconds=seconds)
            raise _Stop("failed", wrong, **key)
        why = f"the server was restarted, is ready and answered {len(self.settings.requests)} verification requests"
        self._note("restarted", why, seconds=seconds)
        return {"outcome": "back", "why": why, **key}

    def _free(self) -> Inspected:
        """Wait until no module works on the server, and return its container. Raises _Stop where it is another one."""
        while self.others.locked():
            time.sleep(LOCK_LOOK)
        container = self.docker.container(self.settings.name)
        if container is None:
            raise _Stop("left_alone", "the container was removed by somebody else")
        if ident(container) != self.standing.container:
            raise _Stop("left_alone", "the container was replaced by somebody else")
        if not running(container) and not self.standing.resumed:
            raise _Stop("left_alone", "the container was stopped by somebody else")
        return container

    def _slices(self, container: Inspected, token: Mapping[str, Any] | None) -> dict[str, Any]:
        """Restart and watch, in calls of the same length as a deployment's; return the last one's result."""
        params = self._params(container)
        while True:
            result = perform({**params, "watch_token": token}, check_mode=False, secrets=tuple(secrets_of(container)))
            if not result.get("pending"):
                break
            token = result["token"]
            self.standing.resumed = True  # from here on it may be seen stopped: its own policy restarts it
            self._free()
        if result.get("failed"):
            # Docker may have gone away, or another run have come between: neither is a fault of the server.
            self.docker.ping()
            if self.others.locked():
                raise _Stop("again", "another run came in between")
            now, left = self.docker.container(self.settings.name), result.get("container") or {}
            if now is None or ident(now) != left.get("id"):
                self._free()  # says who did that
        return result

    def _params(self, container: Inspected) -> dict[str, Any]:
        """Return the options of the module vllm_server that restart this container; the rest is for a diagnosis."""
        started = cli.started(command_line(container))
        config, place = container.get("Config") or {}, endpoint.of_container(container)
        given = {
            "name": self.settings.name,
            "state": "restarted",
            "mode": "deploy",
            "image": config.get("Image"),
            "model": started.command.model or self.settings.model,
            "args": dict(started.command.flags),
            "port": place.port if place else 0,
            "stop_timeout": self.settings.stop_timeout,
            "ready_timeout": self.settings.ready_timeout,
            "stall_timeout": self.settings.stall_timeout,
            "state_dir": self.settings.state_dir,
            "docker_host": f"unix://{self.settings.docker_socket}",
            "watch_slice": SLICE,
        }
        return {**{name: option.get("default") for name, option in ARGUMENTS.items()}, **given}

    def _verify(self, container: Inspected) -> str:
        """Ask what a deployment asks. Returns what was wrong, empty where nothing was."""
        place = endpoint.of_container(container)
        if place is None:
            return "the container has no port that can be asked"
        requests = settings.verification(self.settings, place)
        results = chat.chat_all(requests)
        return build_message(results, len(requests))
