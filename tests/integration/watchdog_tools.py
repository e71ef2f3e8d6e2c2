# SPDX-License-Identifier: Apache-2.0
"""A server under test with the watchdog's program beside it, as a node has it, but for systemd."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import standin
from vllm_server_tools import ROOT

from ansible.module_utils.vllm_fleet.watchdog.pack import pack

#: Seconds without a sign of life, and between two looks: short, for tests.
SILENCE, INTERVAL = 2.0, 0.2


#: Runs the program with a clock that is off by the seconds in a file; the monotonic ones go on, as in a node.
SHIFTED = """
import sys, time
from pathlib import Path
program, clock, right, parts = sys.argv[1], Path(sys.argv[2]), time.time, time.gmtime
time.time = lambda: right() + float(clock.read_text())
time.gmtime = lambda seconds=None: parts(time.time() if seconds is None else seconds)
sys.argv = [program, *sys.argv[3:]]
sys.path.insert(0, program)
from vllm_fleet.watchdog.main import main
sys.exit(main(sys.argv[1:]))
"""


class Watched:
    """A server, its watchdog, and what can be seen of both."""

    def __init__(self, server: Any) -> None:
        """Pack the program; nothing is started. ``kill`` ends what was."""
        self.server, self.program = server, server.folder / "watchdog.pyz"
        self.program.write_bytes(pack(ROOT / "module_utils" / "vllm_fleet"))
        self.settings_dir, self.run_dir = server.folder / "etc", server.folder / "run"
        self.settings_dir.mkdir(exist_ok=True)
        self.agent_port = standin.free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = server.folder / f"{server.name}.log"
        self.clock: Path | None = None
        self.roots: list[str] = []
        self.configure()

    def configure(self, **changes: Any) -> None:
        """Write the settings."""
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
        """Start the program."""
        places = ["--settings-dir", str(self.settings_dir), "--run-dir", str(self.run_dir), *self.roots]
        shifted = ["-c", SHIFTED, str(self.program), str(self.clock)] if self.clock else [str(self.program)]
        command = [standin.PYTHON, *shifted, *places, "run", self.server.name]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the program."""
        if self.process:
            self.process.send_signal(number)
            self.process.wait(10)
            self.process = None

    # -- what can be seen --

    @property
    def state(self) -> dict[str, Any]:
        """What its state file says."""
        with contextlib.suppress(OSError):
            return json.loads((self.run_dir / self.server.name / "watchdog.json").read_text())
        return {"state": None}

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events."""
        with contextlib.suppress(OSError):
            lines = (self.server.state_dir / self.server.name / "events" / "events.jsonl").read_text().splitlines()
            return [json.loads(line) for line in lines]
        return []

    def kinds(self) -> list[str]:
        """Their kinds."""
        return [event["kind"] for event in self.events]

    def usage(self) -> tuple[int, float]:
        """Memory of the program that stays (PSS, bytes) and the seconds of CPU that it took."""
        assert self.process
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        memory = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return memory, (int(fields[11]) + int(fields[12])) / 100

    def agent(self) -> str:
        """What a gateway is told."""
        with socket.create_connection(("127.0.0.1", self.agent_port), timeout=2) as connection:
            return connection.makefile("rb").read().decode()

    def says(self, line: str) -> None:
        """Wait until the agent, which may have just been started, says so."""

        def so() -> bool:
            with contextlib.suppress(ConnectionError):
                return self.agent() == line
            return False

        self.wait(so)

    def wait(self, true: Callable[[], Any], seconds: float = 20.0) -> float:
        """Wait until something is so; return the seconds that it took."""
        begun = time.monotonic()
        while not true():
            gone = time.monotonic() - begun
            assert gone < seconds, f"not after {gone:.1f} s: {self.state}\n{self.log.read_text()}"
            time.sleep(0.05)
        return time.monotonic() - begun

    def until(self, *states: str, seconds: float = 20.0) -> float:
        """Wait until the state is one of these."""
        return self.wait(lambda: self.state["state"] in states, seconds)

    # -- what is done to the server --

    def post(self, path: str, body: Any = None, timeout: float = 60.0) -> bytes:
        """Ask the server."""
        data = json.dumps(body or {}).encode()
        url = f"http://127.0.0.1:{self.server.port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=timeout) as answer:
            return answer.read()

    def get(self, path: str) -> bytes:
        """Read a page of the server."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}{path}", timeout=10) as answer:
            return answer.read()

    def ask(self, words: int = 400) -> threading.Thread:
        """Ask for a long answer in the background."""

        def work() -> None:
            with contextlib.suppress(OSError):
                self.post("/v1/completions", {"prompt": "word " * words, "max_tokens": words})

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def first(self) -> None:
        """Let the engine do its first step."""
        headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-secret-of-the-server"}
        body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
        url = f"http://127.0.0.1:{self.server.port}/v1/completions"
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60).read()

    def hang(self) -> None:
        """Stop the stand-in's engine."""
        self.post("/standin/stop")

    def started_at(self) -> str:
        """When the container was started."""
        return self.server.inspect()["State"]["StartedAt"]
