# SPDX-License-Identifier: Apache-2.0
"""Lines as vLLM 0.32.0 writes them: its logger and the access log to stdout, bars and uvicorn's own to stderr."""

from __future__ import annotations

import os
import re
import sys
import threading
import time

LOGGER_PREFIX = re.compile(r"^\(\w[\w-]* pid=\d+\) (INFO|WARNING|ERROR) ")


class Log:
    """Writes whole lines, one at a time, from any thread. The other processes of a vLLM are made-up pids."""

    def __init__(self, tensor_parallel_size: int = 1, *, headless: bool = False) -> None:
        """Name the processes: with one GPU the worker is `Worker`, with more the first one is `Worker_TP0`."""
        self._lock = threading.Lock()
        pid = os.getpid()
        self._processes = {
            "api": f"{'MainProcess' if headless else 'APIServer'} pid={pid}",
            "engine": f"EngineCore pid={pid + 89}",
            "worker": f"Worker{'_TP0' if tensor_parallel_size > 1 else ''} pid={pid + 131}",
        }

    def out(self, line: str) -> None:
        """One line to stdout."""
        with self._lock:
            print(line, flush=True)

    def err(self, line: str) -> None:
        """One line to stderr."""
        with self._lock:
            print(line, file=sys.stderr, flush=True)

    def bar(self, text: str, end: str = "") -> None:
        """A progress bar that overwrites itself, on stderr: no newline until it is full."""
        with self._lock:
            print(f"\r{text}", end=end, file=sys.stderr, flush=True)

    def line(self, process: str, source: str, message: str, level: str = "INFO") -> None:
        """A logger line of `process` (api, engine or worker) from `source`, as file.py:123."""
        stamp = time.strftime("%m-%d %H:%M:%S")
        self.out(f"({self._processes[process]}) {level} {stamp} [{source}] {message}")

    def replay(self, text: str) -> None:
        """Print a recorded log, each line to the stream that it came from."""
        for line in text.splitlines():
            (self.out if LOGGER_PREFIX.match(line) else self.err)(line)

    def traceback(self, file: str, number: int, function: str, error: str) -> None:
        """A traceback of the API server: without the logger's prefix, on stderr."""
        self.err("Traceback (most recent call last):")
        self.err(
            f'  File "/opt/venv/lib/python3.11/site-packages/vllm/entrypoints/{file}", line {number}, in {function}'
        )
        self.err(error)

    def engine_death(self) -> None:
        """What the API server says when its engine process is gone."""
        self.line(
            "api",
            "core_client.py:817",
            "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup",
            "WARNING",
        )
        self.line("api", "async_llm.py:906", "AsyncLLM output_handler failed.", "ERROR")
        self.line("api", "async_llm.py:906", "Traceback (most recent call last):", "ERROR")
        self.line(
            "api",
            "async_llm.py:906",
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
            "See stack trace (above) for the root cause.",
            "ERROR",
        )

    def shutdown_begins(self, timeout: int) -> None:
        """The lines after SIGTERM, before the requests are drained or aborted."""
        mode = "drain" if timeout else "abort"
        self.line("api", "launcher.py:254", "[shutdown] API server: shutdown triggered")
        self.line(
            "api", "launcher.py:270", f"[shutdown] API server: stopping engine client mode={mode} timeout={timeout}s"
        )
        self.line("engine", "core.py:1454", "[shutdown] EngineCore: trigger received signal=SIGTERM")
        self.line("engine", "core.py:1635", f"[shutdown] EngineCore: start mode={mode} timeout={timeout}s")

    def shutdown_ends(self) -> None:
        """The last lines of a clean stop."""
        self.line(
            "engine", "core.py:1666", "[shutdown] EngineCore: request processing complete; starting resource teardown"
        )
        self.line("api", "launcher.py:279", "[shutdown] API server: engine client stopped")
        self.line("api", "launcher.py:304", "[shutdown] API server: shutting down FastAPI HTTP server")
        for line in ("Shutting down", "Waiting for application shutdown.", "Application shutdown complete."):
            self.err(f"INFO:     {line}")
