#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Streaming chat requests, so many at a time, until told to stop: how many came back whole?

    load.py --url http://gateway1:8080 --model tiny --concurrency 8 --seconds 60 --json
    load.py --url http://gateway1:8080 --model tiny --until-file /tmp/stop

An answer counts when it has status 200, ends with `data: [DONE]` and has not been cut by a closed connection. Everything
else is an error (no whole head came back, or another status) or truncated (it broke off after it had begun). Nothing is
tried a second time. Connections are kept for as long as the server lets them, as clients in the field do. The standard
library alone; every wait is bounded.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REPLICA_HEADER = "x-vllm-replica"
# More would only repeat the first ones.
KEPT_FAILURES = 20


@dataclass
class Report:
    """What has been counted. `servers` are answers by the server that the gateway named, times are seconds."""

    requests: int = 0
    errors: int = 0
    truncated: int = 0
    elapsed: float = 0.0
    slowest: float = 0.0
    longest_gap: float = 0.0
    servers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether something was asked and everything was answered whole."""
        return self.requests > 0 and not self.errors and not self.truncated

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's types."""
        return {**vars(self), "servers": dict(self.servers)}

    def __str__(self) -> str:
        """One line, and one for each failure that was kept."""
        shares = ", ".join(f"{name} {count}" for name, count in sorted(self.servers.items())) or "unnamed"
        head = (
            f"{self.requests} requests in {self.elapsed:.1f} s: {self.errors} errors, {self.truncated} truncated; "
            f"slowest {self.slowest:.2f} s, longest gap between two events {self.longest_gap:.2f} s; by server: {shares}"
        )
        return "\n".join([head, *self.failures])


class TruncatedError(Exception):
    """The answer broke off after it had begun."""


class Load:
    """`concurrency` threads that ask, each one request after the other, between start() and stop().

    At most `max_requests` are sent and `max_seconds` gone by, whoever forgets to stop. `timeout` is the longest silence
    of one request.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        api_key: str = "",
        concurrency: int = 8,
        prompt: str = "Write a short poem about the stars.",
        max_tokens: int = 64,
        timeout: float = 60.0,
        max_requests: int = 100_000,
        max_seconds: float = 900.0,
        keep_alive: bool = True,
    ) -> None:
        """Nothing is sent yet. An empty `model` lets the server take the one it has."""
        self.report = Report()
        self._target = urlsplit(url)
        self._timeout = timeout
        self._left = max_requests
        self._max_seconds = max_seconds
        self._keep_alive = keep_alive
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._prompt = prompt
        self._options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0, "stream": True}
        self._options |= {"model": model} if model else {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._began = 0.0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(concurrency)]

    def start(self) -> Load:
        """Begin to ask."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> Report:
        """Send nothing more, wait for the answers that are under way, return what was counted."""
        self._stop.set()
        for thread in self._threads:
            thread.join(self._timeout + 10)
        self.report.elapsed = time.monotonic() - self._began
        return self.report

    def use(self, *, api_key: str) -> None:
        """Send further requests with another key."""
        self._headers = {**self._headers, "Authorization": f"Bearer {api_key}"}

    @property
    def alive(self) -> bool:
        """Whether a thread still asks."""
        return any(thread.is_alive() for thread in self._threads)

    def wait_for(self, more: int, seconds: float = 30.0) -> None:
        """Let so many further requests be answered; TimeoutError when they are not in that time."""
        wanted, end = self.report.requests + more, time.monotonic() + seconds
        while self.report.requests < wanted:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.report.requests} requests, not {wanted}, after {seconds:g} s\n{self.report}")
            time.sleep(0.02)

    def __enter__(self) -> Load:
        """Ask for the length of a block."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop at its end."""
        self.stop()

    def _work(self) -> None:
        connection = self._connection()
        while not self._stop.is_set() and time.monotonic() < self._began + self._max_seconds:
            with self._lock:
                if self._left <= 0:
                    break
                self._left -= 1
                number = self._left
            began = time.monotonic()
            failure, truncated, server, gap = "", False, "", 0.0
            try:
                server, gap = self._ask(connection, number)
            except TruncatedError as error:
                failure, truncated = str(error), True
            except (OSError, http.client.HTTPException) as error:
                failure = f"{type(error).__name__}: {error}"
            if failure or not self._keep_alive:
                connection.close()
                connection = self._connection()
            self._count(began, failure, truncated, server, gap)
        connection.close()

    def _count(self, began: float, failure: str, truncated: bool, server: str, gap: float) -> None:
        now = time.monotonic()
        with self._lock:
            report = self.report
            report.requests += 1
            report.slowest = max(report.slowest, now - began)
            report.longest_gap = max(report.longest_gap, gap)
            report.truncated += truncated
            report.errors += bool(failure) and not truncated
            if server:
                report.servers[server] += 1
            if failure and len(report.failures) < KEPT_FAILURES:
                report.failures.append(f"{now - self._began:.2f} s: {failure}")

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._target.scheme == "https" else http.client.HTTPConnection
        return kind(self._target.hostname or "", self._target.port, timeout=self._timeout)

    def _ask(self, connection: http.client.HTTPConnection, number: int) -> tuple[str, float]:
        """One request; the server's name and the longest silence inside the answer. Raises what went wrong.

        Each is a conversation of its own: a gateway sends one conversation to one server.
        """
        messages = [{"role": "user", "content": f"{self._prompt} ({number})"}]
        body = json.dumps({**self._options, "messages": messages})
        connection.request("POST", "/v1/chat/completions", body, self._headers)
        response = connection.getresponse()
        server = response.headers.get(REPLICA_HEADER, "")
        if response.status != 200:
            raise http.client.HTTPException(f"HTTP {response.status} {response.read(200)!r} from {server or 'nobody'}")
        done, gap, heard = False, 0.0, time.monotonic()
        try:
            for line in _lines(response):
                now = time.monotonic()
                gap, heard = max(gap, now - heard), now
                done = done or line == b"data: [DONE]"
        except (OSError, http.client.HTTPException) as error:
            raise TruncatedError(f"{type(error).__name__} in an answer of {server or 'nobody'}: {error}") from error
        if not done:
            raise TruncatedError(f"an answer of {server or 'nobody'} without [DONE]")
        return server, gap


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while line := response.readline():
        yield line.rstrip(b"\r\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when every request was answered whole."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True, help="root of the server or gateway")
    parser.add_argument("--model", default="")
    parser.add_argument("--api-key-file", type=Path, help="file with the key, so that it is in no process list")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=900.0, help="most seconds to ask (900)")
    parser.add_argument("--requests", type=int, default=100_000, help="most requests to send")
    parser.add_argument("--until-file", type=Path, help="stop as soon as this file exists")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=60.0, help="longest silence of one request, in seconds")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    load = Load(
        options.url,
        model=options.model,
        api_key=options.api_key_file.read_text(encoding="utf-8").strip() if options.api_key_file else "",
        concurrency=options.concurrency,
        max_tokens=options.max_tokens,
        timeout=options.timeout,
        max_requests=options.requests,
        max_seconds=options.seconds,
    ).start()
    with contextlib.suppress(KeyboardInterrupt):
        while load.alive and not (options.until_file and options.until_file.exists()):
            time.sleep(0.05)
    report = load.stop()
    print(json.dumps(report.as_dict()) if options.json else report, flush=True)
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
