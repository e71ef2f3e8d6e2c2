# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy that asks watchdogs (agent-check): out at once, back again, and nothing where no watchdog answers."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import haproxy_program
import pytest
from gateway_scene import Echo, Gateway, begin, free_ports, render, running, until
from test_gateway_reload import helper  # noqa: F401 - a fixture

from ansible.module_utils.vllm_fleet.gateway import haproxy

KEY = "fleet-key-of-the-servers"
POOL = "acme_small"
HUNG = "down #hung: 3 requests, nothing has moved for 128 s\n"


class Watchdog(socketserver.ThreadingTCPServer):
    """Says one line to whoever connects, as the agent of a watchdog does."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        self.says, self.ended = "up\n", False
        super().__init__(("127.0.0.1", port), Line)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def end(self) -> None:
        self.ended = True
        self.shutdown()
        self.server_close()


class Line(socketserver.StreamRequestHandler):
    """Of a Watchdog."""

    server: Watchdog

    def handle(self) -> None:
        self.wfile.write(self.server.says.encode())


@pytest.fixture(scope="module", params=haproxy_program.PROGRAMS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, list[Echo], list[Watchdog], int]]:
    """Servers n1 and n2 with watchdogs, n3 without."""
    folder = tmp_path_factory.mktemp("agent")
    echoes = [Echo(f"n{number}", "acme/small", key=KEY) for number in (1, 2, 3)]
    dogs = [Watchdog(), Watchdog()]
    hosts: dict[str, Any] = {one.name: one.host for one in echoes}
    for one, dog in zip(echoes, dogs, strict=False):
        hosts[one.name] |= {"vllm_watchdog_enabled": True, "vllm_watchdog_port": dog.port}
    port, stats = free_ports(2)
    render(
        folder,
        hosts,
        gateway_port=port,
        gateway_local_offset=1,
        gateway_stats_port=stats,
        gateway_balance="leastconn",
    )
    try:
        with running(folder, "-W", program=request.param) as gateway:
            yield gateway, echoes, dogs, port
    finally:
        for dog in dogs:
            if not dog.ended:
                dog.end()
        for one in echoes:
            one.shutdown()
            one.server_close()


@pytest.fixture
def scene(made: Any) -> Any:
    """All are up, and both watchdogs say so."""
    gateway, echoes, dogs, _ = made
    for number, dog in enumerate(dogs):
        if dog.ended:
            dogs[number] = Watchdog(dog.port)
        dogs[number].says = "up\n"
    for one in echoes:
        one.delay = 0.0
    until(lambda: [one.agent for one in entries(gateway)] == ["up", "up", ""], "the watchdogs were asked")
    until(lambda: [one.status for one in entries(gateway)] == ["UP"] * 3, "all are up")
    return made


def entries(gateway: Gateway) -> list[haproxy.Server]:
    return [one for one in gateway.entries() if one.backend == POOL]


def entry(gateway: Gateway, name: str) -> haproxy.Server:
    return next(one for one in entries(gateway) if one.name == name)


def test_a_watchdog_takes_its_server_out_at_once_and_puts_it_back(scene: Any) -> None:
    gateway, echoes, dogs, port = scene
    for one in echoes:
        one.delay = 30.0  # /health goes on to answer
    clients = [begin(port, KEY) for _ in range(3)]
    until(lambda: [one.sessions for one in entries(gateway)] == [1, 1, 1], "each has a request")
    dogs[0].says = HUNG
    assert until(lambda: entry(gateway, "n1").status == "DOWN (agent)", "it is out") < 3
    # Its clients are told; those of others are left alone.
    until(lambda: entry(gateway, "n1").sessions == 0, "its request is ended")
    assert [one.sessions for one in entries(gateway)[1:]] == [1, 1]
    # HAProxy 3.0 closes the connection.
    assert [told[:11] in (b"HTTP/1.1 50", b"") for told in map(_told, clients) if told is not None] == [True]
    until(lambda: entry(gateway, "n1").agent == "down (hung: 3 requests, nothing has moved for 128 s)", "the reason")
    assert entry(gateway, "n1").check.startswith("L7OK")
    dogs[0].says = "up\n"
    assert until(lambda: entry(gateway, "n1").status == "UP", "it is back") < 3
    for client in clients:
        client.close()


def _told(client: Any) -> bytes | None:
    """What a client was told by now; None where it still waits."""
    client.settimeout(2)
    with contextlib.suppress(TimeoutError):
        return bytes(client.recv(100))
    return None


def test_a_rollout_drains_and_admits_as_without_a_watchdog(scene: Any) -> None:
    gateway, _, dogs, _ = scene
    haproxy.ask(gateway.socket, f"set server {POOL}/n1 state drain")
    until(lambda: entry(gateway, "n1").status.split()[0] == "DRAIN", "it is drained")
    # A watchdog that says up ends no drain.
    with pytest.raises(AssertionError, match="never"):
        until(lambda: entry(gateway, "n1").status.split()[0] != "DRAIN", "something else", 2.5)
    assert haproxy.admit(gateway.socket, "n1", 10.0) == (True, POOL)
    # Where a watchdog says that its server is out, a rollout does not overrule it, unless the watchdog is gone.
    dogs[0].says = HUNG
    until(lambda: entry(gateway, "n1").status == "DOWN (agent)", "it is out")
    assert haproxy.admit(gateway.socket, "n1", 1.5) == (True, None)
    dogs[0].end()
    until(lambda: entry(gateway, "n1").agent.startswith(haproxy.NO_ANSWER), "nobody answers")
    assert entry(gateway, "n1").status == "DOWN (agent)"
    assert haproxy.admit(gateway.socket, "n1", 10.0) == (True, POOL)


def test_a_watchdog_that_does_not_answer_changes_nothing(scene: Any) -> None:
    gateway, _, dogs, _ = scene
    dogs[1].end()
    until(lambda: entry(gateway, "n2").agent == "no answer (Connection refused)", "nobody answers")
    assert [one.status for one in entries(gateway)] == ["UP", "UP", "UP"]
    dogs[0].says = "\n"
    until(lambda: entry(gateway, "n1").agent != "up", "an empty answer")
    assert entry(gateway, "n1").status == "UP"


def test_a_reload_keeps_what_the_watchdogs_said(helper: Any, scene: Any) -> None:  # noqa: F811 - the fixture
    gateway, _, dogs, _ = scene
    helper.SOCKET, helper.STATE = gateway.socket, str(gateway.folder / "state")
    helper.CONFIGURATION = tuple(str(gateway.folder / name) for name in ("secrets.cfg", "gateway.cfg"))
    dogs[0].says = HUNG
    until(lambda: entry(gateway, "n1").status == "DOWN (agent)", "it is out")
    # What n2's watchdog says has to do with the new process only where that asks the same one.
    dogs[1].says = HUNG
    until(lambda: entry(gateway, "n2").status == "DOWN (agent)", "it is out")
    config = gateway.folder / "gateway.cfg"
    config.write_text(config.read_text().replace(f"agent-port {dogs[1].port} ", f"agent-port {free_ports(1)[0]} "))
    helper.reload(int(Path("/proc", gateway.pid, "stat").read_text().rpartition(")")[2].split()[1]))
    assert entry(gateway, "n1").status == "DOWN (agent)"
    until(lambda: entry(gateway, "n2").status == "UP", "nobody says that it is out")
    assert entry(gateway, "n1").status == "DOWN (agent)"
    dogs[0].says = "up\n"
    until(lambda: entry(gateway, "n1").status == "UP", "it is back")
