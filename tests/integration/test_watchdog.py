# SPDX-License-Identifier: Apache-2.0
"""The watchdog's program against real containers: it finds a server that hangs, and only that, and brings it back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import standin
from vllm_server_tools import ROOT

from ansible.module_utils.vllm_fleet.watchdog.pack import pack

SILENCE = 2.0
INTERVAL = 0.2


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The archive, as a node has it."""
    file = tmp_path_factory.mktemp("watchdog") / "watchdog.pyz"
    file.write_bytes(pack(ROOT / "module_utils" / "vllm_fleet"))
    return file


class Watched:
    """A server, its watchdog, and what can be seen of both."""

    def __init__(self, server: Any, program: Path) -> None:
        self.server, self.program = server, program
        self.settings_dir, self.run_dir = server.folder / "etc", server.folder / "run"
        self.settings_dir.mkdir()
        self.agent_port = standin.free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = server.folder / "watchdog.log"
        self.configure()

    def configure(self, **changes: Any) -> None:
        given = {
            "name": self.server.name,
            "state_dir": str(self.server.state_dir),
            "silence": SILENCE,
            "interval": INTERVAL,
            "stop_timeout": 1,
            "ready_timeout": 60,
            "stall_timeout": 60,
            "model": "acme/tiny",
            "agent": {"address": "127.0.0.1", "port": self.agent_port},
            "verify": {
                "timeout": 10,
                "requests": [{"prompt": "The capital of France?", "expect": {"pattern": "Paris"}}],
            },
            **changes,
        }
        (self.settings_dir / f"{self.server.name}.json").write_text(json.dumps(given))

    def start(self) -> None:
        places = ["--settings-dir", str(self.settings_dir), "--run-dir", str(self.run_dir)]
        command = [standin.PYTHON, str(self.program), *places, "run", self.server.name]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait(10)
            self.process = None

    # -- what can be seen --

    @property
    def state(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            return json.loads((self.run_dir / self.server.name / "watchdog.json").read_text())
        return {"state": None}

    @property
    def events(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError):
            lines = (self.server.state_dir / self.server.name / "events" / "events.jsonl").read_text().splitlines()
            return [json.loads(line) for line in lines]
        return []

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def agent(self) -> str:
        with socket.create_connection(("127.0.0.1", self.agent_port), timeout=2) as connection:
            return connection.makefile("rb").read().decode()

    def wait(self, true: Callable[[], Any], seconds: float = 20.0) -> float:
        """Wait until something is so; return the seconds that it took."""
        begun = time.monotonic()
        while not true():
            gone = time.monotonic() - begun
            assert gone < seconds, f"not after {gone:.1f} s: {self.state}\n{self.log.read_text()}"
            time.sleep(0.05)
        return time.monotonic() - begun

    def until(self, *states: str, seconds: float = 20.0) -> float:
        return self.wait(lambda: self.state["state"] in states, seconds)

    # -- what is done to the server --

    def post(self, path: str, body: Any = None, timeout: float = 60.0) -> bytes:
        data = json.dumps(body or {}).encode()
        url = f"http://127.0.0.1:{self.server.port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=timeout) as answer:
            return answer.read()

    def ask(self, words: int = 400) -> threading.Thread:
        """Ask for a long answer in the background."""

        def work() -> None:
            with contextlib.suppress(OSError):
                self.post("/v1/completions", {"prompt": "word " * words, "max_tokens": words})

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def hang(self) -> None:
        self.post("/standin/stop")

    def started_at(self) -> str:
        return self.server.inspect()["State"]["StartedAt"]


@pytest.fixture
def watched(server, program):
    made = Watched(server, program)
    yield made
    made.kill()


def serving(watched, *, start=True, env=None, **settings):
    """Bring the server and its watchdog."""
    watched.server.ready(env={"STANDIN_CONTROL": "1", **(env or {})})
    watched.configure(**settings)
    if start:
        watched.start()
        watched.until("serving")


def test_a_server_that_hangs_while_it_works_is_restarted_verified_and_back(watched):
    serving(watched, env={"STANDIN_TOKEN_DELAY": "0.05", "VLLM_API_KEY": "sk-secret-of-the-server"})
    assert watched.agent() == "up\n"
    first = watched.started_at()
    request = urllib.request.Request(
        f"http://127.0.0.1:{watched.server.port}/v1/completions",
        json.dumps({"prompt": "word " * 900, "max_tokens": 900}).encode(),
        {"Authorization": "Bearer sk-secret-of-the-server"},
    )

    def ask():
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=60).read()

    threading.Thread(target=ask, daemon=True).start()
    # Longer than the silence: it works.
    time.sleep(SILENCE + 1)
    assert (watched.state["state"], watched.started_at()) == ("serving", first)
    watched.hang()
    assert watched.wait(lambda: watched.agent() != "up\n") <= SILENCE + 2
    assert watched.agent() in ("down #hung\n", "down #restarting\n")
    watched.until("serving")
    assert watched.agent() == "up\n"
    assert watched.started_at() != first
    assert watched.kinds() == ["started", "hung", "out", "evidence", "restart", "restarted", "back"]
    hung = watched.events[1]
    assert "while 1 requests ran and 0 waited, and a request for one token got no answer" in hung["why"]
    folder = Path(watched.events[3]["evidence"])
    assert folder.stat().st_mode & 0o77 == 0
    kept = {path.name: path.read_text() for path in folder.iterdir()}
    assert {"metrics-1.txt", "metrics-2.txt", "processes-1.txt", "processes-2.txt", "log.txt", "container.json"} <= set(
        kept
    )
    assert "vllm:num_requests_running" in kept["metrics-2.txt"]
    assert ": state S," in kept["processes-1.txt"] and "Started server process" in kept["log.txt"]
    assert "sk-secret" not in "".join(kept.values()) + watched.log.read_text() + json.dumps(watched.state)
    assert len(watched.state["restarts"]) == 1


def test_a_server_that_hangs_while_idle_and_one_whose_frontend_hangs(watched):
    serving(watched)
    watched.hang()
    assert watched.wait(lambda: watched.agent() != "up\n") <= SILENCE + 2
    watched.until("serving")
    assert watched.events[1]["why"].startswith("the engine did nothing for 2 s, and a request for one token")
    os.kill(watched.server.inspect()["State"]["Pid"], signal.SIGSTOP)
    assert watched.wait(lambda: watched.agent() != "up\n") <= SILENCE + 3
    watched.until("serving")
    assert [event["why"] for event in watched.events if event["kind"] == "hung"][1].startswith(
        "/metrics has not answered"
    )


def test_what_is_busy_slow_paused_locked_or_drained_is_left_alone(watched):
    serving(watched, env={"STANDIN_TOKEN_DELAY": "2"}, action="restart")
    first = watched.started_at()
    watched.ask(4)
    time.sleep(SILENCE + 2)
    assert watched.state["state"] == "serving"
    note = watched.run_dir / watched.server.name / "rollout"
    note.write_text("")
    watched.until("left_alone")
    assert watched.agent() == "up\n"
    watched.hang()
    time.sleep(SILENCE + 1)
    with (watched.server.state_dir / watched.server.name / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A note that nobody took away does not hold for ever.
        os.utime(note, (time.time() - 3700, time.time() - 3700))
        watched.wait(lambda: watched.state["why"] == "a run of vllm_server works on the server")
        time.sleep(SILENCE)
        assert (watched.state["state"], watched.agent(), watched.started_at()) == ("left_alone", "up\n", first)
    assert not {"hung", "out"} & set(watched.kinds())
    watched.wait(lambda: "hung" in watched.kinds(), SILENCE + 4)


def test_restarts_are_limited_and_other_actions_end_earlier(watched):
    serving(watched, action="observe", restarts=1)
    watched.hang()
    watched.until("hung")
    assert watched.agent() == "up\n"
    watched.post("/standin/go_on")
    watched.until("serving")
    watched.configure(action="drain", restarts=1)
    watched.hang()
    watched.until("out")
    assert watched.agent() == "down #out\n"
    # The next watchdog says the same, before it has looked.
    watched.kill(signal.SIGTERM)
    watched.start()
    watched.wait(lambda: watched.kinds().count("started") == 2)
    assert watched.agent() == "down #out\n"
    watched.post("/standin/go_on")
    watched.until("serving")
    watched.configure(action="restart", restarts=1)
    watched.hang()
    watched.wait(lambda: "restarted" in watched.kinds())
    watched.until("serving")
    watched.hang()
    watched.wait(lambda: "limit" in watched.kinds())
    first = watched.started_at()
    time.sleep(SILENCE)
    assert (watched.state["state"], watched.agent(), watched.started_at()) == ("out", "down #out\n", first)
    assert watched.kinds().count("limit") == 1
    assert "it was restarted 1 times within the last hour" in watched.state["why"]


def test_a_restart_that_is_killed_is_taken_up(watched):
    serving(watched)
    watched.hang()
    watched.wait(lambda: "restart" in watched.kinds())
    watched.kill()
    assert watched.state["state"] == "restarting"
    watched.start()
    watched.wait(lambda: "started" in watched.kinds()[1:])
    assert watched.agent() == "down #restarting\n"
    watched.until("serving")
    assert watched.kinds()[-1] == "back"
    assert len(watched.state["restarts"]) == 1
    # Its second half alone.
    watched.hang()
    watched.wait(lambda: watched.kinds().count("restart") >= 2 and watched.state["state"] == "restarting")
    for child in Path(f"/proc/{watched.process.pid}/task/{watched.process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    watched.until("serving")
    assert watched.kinds()[-1] == "back"


def test_a_server_that_answers_wrongly_after_its_restart_stays_out(watched):
    serving(watched, verify={"timeout": 10, "requests": [{"prompt": "x", "expect": {"pattern": "Madrid"}}]})
    watched.hang()
    watched.wait(lambda: "failed" in watched.kinds())
    watched.until("out")
    time.sleep(SILENCE / 2)
    assert watched.agent() == "down #out\n"
    assert "Madrid" in watched.state["why"]
    # A new start is verified before it is let in, and a new container is its deployment's affair.
    watched.configure()
    watched.server.client.api.restart(watched.server.id(), timeout=0)
    watched.until("serving")
