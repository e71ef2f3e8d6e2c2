# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy with the role's configuration, in front of stand-in servers: who gets in, and who is waited for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standin
from gateway_scene import Gateway, ask, begin, free_ports, render, running, until
from haproxy_program import PROGRAMS

from ansible.module_utils.vllm_fleet.gateway import drain, haproxy
from ansible.module_utils.vllm_fleet.vllm.chat import chat
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest, Expectation

# Everything that some language between inventory and HAProxy reads as its own.
KEY = r"""k"e'y$HOME${PATH}%%d%[env(PATH)]\x41{{,;#}"""
PROTECTED = {"Authorization": f"Bearer {KEY}"}
CAPITAL = "What is the capital of France?"
QUESTION = {"messages": [{"role": "user", "content": CAPITAL}]}


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of a gateway with two pools, `closed` with a key and `open` with none, and what a Gateway has of it."""
    folder = tmp_path_factory.mktemp("gateway")
    *two, stats = free_ports(3)
    ports = {**dict(zip(["closed", "open"], two, strict=True)), "local": 1}
    slow = {"token_delay": 0.2}
    with (
        standin.run_process(model="m", served="closed", VLLM_API_KEY=KEY, **slow) as closed,
        standin.run_process(model="m", served="open", **slow) as opened,
    ):
        servers = {"closed": closed, "open": opened}
        hosts = {
            f"{pool}1": {"vllm_server_model": pool, "vllm_server_port": server.port, "vllm_server_bind": "127.0.0.1"}
            for pool, server in servers.items()
        }
        # A text that is not templated again, as one from a vault.
        hosts["closed1"]["vllm_server_api_key"] = "{{ lookup('ansible.builtin.env', 'TEST_KEY') }}"
        render(
            folder,
            hosts,
            {"TEST_KEY": KEY},
            gateway_ports={pool: ports[pool] for pool in servers},
            gateway_local_offset=ports["local"],
            gateway_stats_port=stats,
            # A frozen server is to be down within the time of a test.
            gateway_check_timeout=2,
        )
        yield folder, {"ports": ports, "servers": servers}


@pytest.fixture(scope="module", params=PROGRAMS)
def gateway(described: tuple[Path, dict[str, Any]], request: pytest.FixtureRequest) -> Iterator[Gateway]:
    folder, more = described
    with running(folder, program=request.param, **more) as made:
        yield made


@pytest.fixture(autouse=True)
def settled(gateway: Gateway) -> None:
    """Pool `closed` has its own server, ready and up, whatever the test before (or this one's first run) left."""
    own = gateway.servers["closed"]
    assert own.process.poll() is None, own.log
    haproxy.locate(gateway.socket, "closed", "closed1", own.port)
    haproxy.ask(gateway.socket, "set server closed/closed1 state ready")
    until(lambda: gateway.entry("closed").status == "UP", "its server is up")


def fall_silent(client: socket.socket, how: str) -> None:
    if how == "half":
        client.shutdown(socket.SHUT_WR)
        return
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# -- who is waited for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_client_that_gives_up_leaves_nothing_to_wait_for(gateway: Gateway, how: str, stream: bool) -> None:
    client = begin(gateway.ports["closed"], KEY, stream=stream)
    until(lambda: gateway.left("closed") == (1, 1), "the request runs")
    fall_silent(client, how)
    assert until(lambda: gateway.left("closed") == (0, 0), "nothing is left") < 1
    client.close()


def test_a_paused_server_ends_its_requests_and_its_drain(gateway: Gateway) -> None:
    server = gateway.servers["closed"]
    client = begin(gateway.ports["closed"], KEY)
    until(lambda: gateway.left("closed") == (1, 1), "the request runs")
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        haproxy.ask(gateway.socket, "set server closed/closed1 state drain")
        look = lambda: drain.look_at_gateway(gateway.socket, "closed", "closed1")  # noqa: E731
        outcome = drain.wait(look, 15, 30)
        assert (outcome.drained, outcome.look.requests) == (True, 0), outcome
        # Its client is told, and not left alone for as long as an answer may be silent. HAProxy 3.0 closes the connection.
        told = client.recv(100)
        assert told.startswith(b"HTTP/1.1 50") or not told, told
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
        client.close()
        haproxy.ask(gateway.socket, "set server closed/closed1 state ready")
    until(lambda: gateway.entry("closed").status == "UP", "it is up again")


# -- where a server is -------------------------------------------------------------------------------------------------


def test_a_server_moves_to_another_port_while_a_stream_goes_on_at_the_old_one(gateway: Gateway) -> None:
    old = gateway.entry("closed").address
    where = (gateway.socket, "closed", "closed1")
    with standin.run_process(model="m", served="closed", VLLM_API_KEY=KEY) as other:
        client = begin(gateway.ports["closed"], KEY, stream=True)
        until(lambda: gateway.left("closed") == (1, 1), "the request runs")
        try:
            assert haproxy.locate(*where, other.port)
            assert not haproxy.locate(*where, other.port), "it is there already"
            assert gateway.entry("closed").address == f"127.0.0.1:{other.port}"
            status, _, _ = ask(
                gateway.ports["closed"], "/v1/chat/completions", "POST", json.dumps(QUESTION).encode(), **PROTECTED
            )
            assert status == 200
            assert "POST /v1/chat/completions" in other.log
            assert b"".join(iter(lambda: client.recv(65536), b"")).rstrip(b"\r\n0").endswith(b"[DONE]")
            assert gateway.entry("closed").status == "UP"
        finally:
            haproxy.locate(*where, int(old.rpartition(":")[2]))
            client.close()
    with pytest.raises(haproxy.SocketError, match="has no server closed/closed9"):
        haproxy.locate(gateway.socket, "closed", "closed9", 1)


# -- who gets in -------------------------------------------------------------------------------------------------------

REFUSED = [
    "/",
    "/v1",
    "/v1/",
    "/V1/models",
    "/v2/models",
    "/v1x/models",
    "/invocations",
    "/tokenize",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/version",
    "/ping",
    "/load",
    "/health/",
    "/health?x",
    "/scale_elastic_ep",
    "/inference/v1/generate",
    "//v1/models",
    "/v1//models",
    "/./v1/models",
    "/v1/../invocations",
    "/v1/..",
    "/v1/./models",
    "/v1/%2e%2e/invocations",
    "/v1/%2E%2E%2finvocations",
    "/v1/..%2finvocations",
    "/%76%31/models",
    "/v1/models/%00",
    "/v1\\..\\invocations",
    "/v1/..;/invocations",
    "http://127.0.0.1/invocations",
    "*",
]


@pytest.mark.parametrize("pool", ["closed", "open"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_what_is_not_below_v1_is_not_there(gateway: Gateway, pool: str, method: str) -> None:
    for place in ("", "local"):
        port = gateway.ports[pool] + (gateway.ports["local"] if place else 0)
        for path in REFUSED:
            status, body, head = ask(port, path, method, json.dumps(QUESTION).encode(), **PROTECTED)
            assert (status, head.get("x-vllm-replica")) in ((404, None), (400, None)), (path, body)
            if status == 404:
                assert head["content-type"] == "application/json"
                told = json.loads(body)["error"]
                assert (told["code"], told["type"], told["param"]) == (404, "NotFoundError", None)
    assert "invocations" not in gateway.servers[pool].log.partition("startup complete")[2]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer none",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.swapcase()}",
        f"Bearer  {KEY}",
        f"Bearer,{KEY}",
        f"Basic {KEY}",
        KEY,
    ],
)
def test_without_the_key_nothing_reaches_a_server(gateway: Gateway, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("HEAD", "/v1/models")):
        status, body, head = ask(gateway.ports["closed"], path, method, json.dumps(QUESTION).encode(), **headers)
        assert (status, head["content-type"]) == (401, "application/json")
        assert method == "HEAD" or json.loads(body) == {"error": "Unauthorized"}
        assert "x-vllm-replica" not in head


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_key_opens_whatever_is_in_it(gateway: Gateway, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {KEY}"}
    body = json.dumps(QUESTION).encode()
    status, answer, head = ask(gateway.ports["closed"], "/v1/chat/completions", "POST", body, **headers)
    assert (status, head["x-vllm-replica"]) == (200, "closed1"), answer
    assert "Paris" in answer
    assert ask(gateway.ports["closed"], "/v1/models?x=%2e", **headers)[0] == 200


def test_a_client_that_begins_with_http2_is_refused(gateway: Gateway) -> None:
    """Its connection would be kept, and count once for many requests."""
    with socket.create_connection(("127.0.0.1", gateway.ports["open"]), timeout=10) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_pool_without_a_key_asks_for_none(gateway: Gateway) -> None:
    assert ask(gateway.ports["open"], "/v1/models")[0] == 200
    assert ask(gateway.ports["open"], "/v1/models", **PROTECTED)[0] == 200


@pytest.mark.parametrize("pool", ["closed", "open"])
def test_a_browser_may_ask_before_its_request_and_no_server_is_asked(gateway: Gateway, pool: str) -> None:
    """OPTIONS, without a key."""
    wants = {"Origin": "https://app.example", "Access-Control-Request-Headers": "authorization,content-type"}
    status, body, head = ask(gateway.ports[pool], "/v1/chat/completions", "OPTIONS", **wants)
    assert (status, body, "x-vllm-replica" in head) == (204, "", False)
    assert head["access-control-allow-origin"] == "*"
    assert head["access-control-allow-headers"] == wants["Access-Control-Request-Headers"]
    assert "POST" in head["access-control-allow-methods"]
    assert "OPTIONS" not in gateway.servers[pool].log


def test_an_administrator_gets_by_to_the_server_which_checks_the_key_itself(gateway: Gateway) -> None:
    local = gateway.ports["closed"] + gateway.ports["local"]
    wish = {"x-vllm-fleet-server": "closed1"}
    status, body, head = ask(local, "/v1/models", **wish)
    assert (status, json.loads(body), head["x-vllm-replica"]) == (401, {"error": "Unauthorized"}, "closed1")
    assert ask(local, "/v1/models", **wish, **PROTECTED)[0] == 200
    # As a rollout asks for a new server.
    expect = Expectation(pattern="Paris", headers={"x-vllm-replica": "closed1"})
    url = f"http://127.0.0.1:{local}"
    result = chat(
        ChatRequest(url, model="closed", prompt=CAPITAL, api_key=KEY, headers=wish, expect=expect, timeout=20)
    )
    assert result.ok, result.message


def test_the_gateways_own_health_needs_no_key(gateway: Gateway) -> None:
    assert ask(gateway.ports["closed"], "/health")[0] == 200
    haproxy.ask(gateway.socket, "set server closed/closed1 state drain")
    try:
        status, body, head = ask(gateway.ports["closed"], "/health")
        assert (status, head["content-type"]) == (503, "application/json")
        assert json.loads(body)["error"]["code"] == 503
    finally:
        haproxy.ask(gateway.socket, "set server closed/closed1 state ready")


def test_the_key_is_in_one_file_alone(gateway: Gateway) -> None:
    assert KEY not in (gateway.folder / "gateway.cfg").read_text()
    said = haproxy.ask(gateway.socket, "show env")
    assert "VLLM_FLEET_KEY" not in said
    assert "PATH=" in said
    environ = Path("/proc", gateway.pid, "environ").read_bytes()
    assert b"VLLM_FLEET_KEY" not in environ


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_a_large_body_passes(gateway: Gateway) -> None:
    body = json.dumps({**QUESTION, "filler": "x" * 5_000_000}).encode()
    status, answer, _ = ask(gateway.ports["closed"], "/v1/chat/completions", "POST", body, **PROTECTED)
    assert (status, "Paris" in answer) == (200, True), answer[:200]


def test_a_head_that_comes_drop_by_drop_is_cut_off(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.ports["closed"]), timeout=0.2) as client:
        client.sendall(HEAD.encode() + b"X: ")
        began, answer = time.monotonic(), b""
        while not answer:
            assert time.monotonic() < began + 20, "it is let go on"
            client.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                answer = client.recv(4096)
    assert (answer.split()[1], time.monotonic() > began + 1) == (b"408", True)


def test_a_body_that_never_comes_holds_neither_a_place_nor_a_server(gateway: Gateway) -> None:
    for headers, status in (({}, b"401"), (PROTECTED, b"408")):
        client = socket.create_connection(("127.0.0.1", gateway.ports["closed"]), timeout=10)
        lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Length: 10"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        assert gateway.entry("closed").sessions == 0
        answer = client.recv(4096)
        assert (answer.split()[1], b"content-type: application/json" in answer) == (status, True)
        client.close()


# -- hostile requests --------------------------------------------------------------------------------------------------

HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
BODY = json.dumps(QUESTION).encode()
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
SECOND = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
LENGTH = f"Content-Length: {len(BODY)}\r\n"


HOSTILE = [
        # 0: whatever the server says, which takes no chunks here.
        # Two lengths: a server that believed the other one would take the rest for a request.
        ("Transfer-Encoding: chunked\r\n" + LENGTH, CHUNKED + SECOND, 0),
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", CHUNKED + SECOND, 0),
        (LENGTH, BODY + SECOND, 200),
        (LENGTH + LENGTH, BODY + SECOND, 200),
        (LENGTH + "Content-Length: 4\r\n", BODY, 400),
        ("Content-Length: +4\r\n", BODY, 400),
        ("Content-Length: 99999999999999999999999\r\n", BODY, 400),
        ("Transfer-Encoding: xchunked\r\n" + LENGTH, BODY, 400),
        ("Transfer-Encoding: chunked, identity\r\n", CHUNKED, 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKED, 400),
        ("Transfer-Encoding : chunked\r\n", CHUNKED, 400),
        ("Transfer-Encoding: gzip, chunked\r\n", CHUNKED, 422),
        ("Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\n" + BODY, 400),
        (LENGTH + "X: a\rY: b\r\n", BODY, 400),
        (LENGTH + "Host: y\r\n", BODY, 400),
        (LENGTH + "".join(f"X-{n}: a\r\n" for n in range(200)), BODY, 400),
        (LENGTH + f"X: {'a' * 60_000}\r\n", BODY, 200),
        (LENGTH + f"X: {'a' * 200_000}\r\n", BODY, 400),
        # The last key counts, and it is the one key that goes on.
        (LENGTH + "Authorization: Bearer other\r\n", BODY, 401),
        (LENGTH + "x-vllm-fleet-backend: open\r\nx-vllm-fleet-server: open1\r\n", BODY, 200),
]  # fmt: skip


@pytest.mark.parametrize(("more", "body", "status"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_request_that_can_be_read_in_two_ways_is_one_or_none(
    gateway: Gateway, more: str, body: bytes, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.ports["closed"]), timeout=20) as client:
        client.sendall(f"{HEAD}{more}\r\n".encode() + body)
        answer = b""
        # With bytes that nobody read the connection is reset; the answer came before.
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                answer += part
    found = [int(line.split()[1]) for line in answer.splitlines() if line.startswith(b"HTTP/1.1 ")]
    assert (len(found), status in (0, *found)) == (1, True), answer[:200]
    assert (b"x-vllm-replica: closed1" in answer) == (status in (0, 200))
    assert all("invocations" not in server.log.partition("startup complete")[2] for server in gateway.servers.values())
