# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy to which clients speak HTTP/2: curl, with all its requests of one call on one connection."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gateway_scene import (
    CHAT,
    FLEET,
    KEYS,
    REQUESTS,
    Echo,
    Gateway,
    certificate,
    echoing,
    forget,
    free_ports,
    helper_program,
    journal,
    logged,
    render,
    running,
    service_helper,
    until,
)
from haproxy_program import PROGRAMS

from ansible.module_utils.vllm_fleet.gateway import haproxy

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with the openssl program")
PLACES = 24


@pytest.fixture(scope="module")
def echoes() -> Iterator[dict[str, Echo]]:
    """Two servers of one model and one of another."""
    small = (Echo(name, "acme/small", key=FLEET) for name in ("small1", "small2"))
    with echoing(*small, Echo("large1", "acme/large", key=FLEET)) as made:
        yield made


@pytest.fixture(scope="module")
def described(
    echoes: dict[str, Echo], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of a gateway in front of them, and what a Gateway has of it."""
    folder, log = tmp_path_factory.mktemp("http2"), journal()
    port, stats = free_ports(2)
    render(
        folder,
        {name: one.host for name, one in echoes.items()},
        log=f"127.0.0.1:{log.getsockname()[1]}",
        gateway_port=port,
        gateway_local_offset=1,
        gateway_stats_port=stats,
        gateway_certificate=str(certificate(folder)),
        gateway_http2=True,
        gateway_keys=KEYS,
        gateway_aliases={"gpt-5": "acme/large"},
        gateway_source_connections=PLACES,
        gateway_request_timeout=20,
    )
    with log:
        yield folder, {"ports": {"all": port}, "log": log}


@pytest.fixture(scope="module", params=PROGRAMS)
def gateway(described: tuple[Path, dict[str, Any]], request: pytest.FixtureRequest) -> Iterator[Gateway]:
    folder, more = described
    with running(folder, "-W", program=request.param, **more) as made:
        yield made


@dataclass(frozen=True)
class Ask:
    """A request: its body (none for GET), its key, its path, seconds that it may take, more words of curl."""

    body: Any = None
    key: str = "key-of-all"
    path: str = CHAT
    seconds: float = 30
    words: Sequence[str] = ()


@dataclass
class Answer:
    """Of a request: its status (000 for none), HTTP's version, curl's exit code, new connections, and what came."""

    status: int
    version: str
    code: int
    connections: int
    body: str = ""
    head: dict[str, str] = field(default_factory=dict)

    @property
    def told(self) -> Any:
        return json.loads(self.body)


def ask(gateway: Gateway, asks: Sequence[Ask], at_once: int = 1, http: str = "--http2") -> list[Answer]:
    """Answers, in order. All go over one connection, ``at_once`` of them at a time."""
    folder = gateway.folder / f"curl-{threading.get_ident()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    calls = []
    for number, one in enumerate(asks):
        words = [f"url = https://127.0.0.1:{gateway.ports['all']}{one.path}", http.removeprefix("--"), "insecure"]
        words += ["path-as-is", f"max-time = {one.seconds}", f"output = {folder}/{number}.body"]
        words += [f"dump-header = {folder}/{number}.head", *one.words]
        words.append(f'write-out = "{number} %{{http_code}} %{{http_version}} %{{exitcode}} %{{num_connects}}\\n"')
        words += [f'header = "Authorization: Bearer {one.key}"'] * bool(one.key)
        if one.body is not None:
            data = one.body if isinstance(one.body, bytes) else json.dumps(one.body).encode()
            place = folder / hashlib.sha256(data).hexdigest()
            place.write_bytes(data)
            words += [f"data-binary = @{place}", 'header = "Expect:"']
        calls.append("\n".join(words))
    (folder / "calls").write_text("\nnext\n".join(calls))
    parallel = ["--parallel", "--parallel-max", str(at_once)] if at_once > 1 else []
    done = subprocess.run(
        ["curl", "--no-progress-meter", *parallel, "--config", str(folder / "calls")],
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[int, Answer] = {}
    for line in done.stdout.splitlines():
        number, status, version, code, connections = line.split()
        body, head = folder / f"{number}.body", folder / f"{number}.head"
        made = Answer(int(status), version, int(code), int(connections))
        made.body = body.read_text() if body.exists() else ""
        lines = head.read_text().splitlines() if head.exists() else []
        made.head = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        found[int(number)] = made
    assert sorted(found) == list(range(len(asks))), done.stdout + done.stderr
    return [found[number] for number in range(len(asks))]


def talk(text: str, model: str = "acme/small") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def test_a_client_that_offers_http2_gets_it_and_keeps_its_connection(gateway: Gateway) -> None:
    answers = ask(gateway, [Ask(talk("hi"))] * 3)
    assert [(one.status, one.version, one.connections) for one in answers] == [
        (200, "2", 1),
        (200, "2", 0),
        (200, "2", 0),
    ]
    (old,) = ask(gateway, [Ask(talk("hi"))], http="--http1.1")
    assert (old.status, old.version, old.head["connection"]) == (200, "1.1", "close")


def test_requests_of_all_kinds_arrive_whole(gateway: Gateway) -> None:
    kinds = []
    for path, body, chunked in REQUESTS.values():
        # Without a length, as HTTP/2 allows.
        words = ['header = "Content-Length:"'] if chunked else []
        words += [
            'header = "Content-Type: %s"'
            % ("multipart/form-data; boundary=B" if "audio" in path else "application/json")
        ]
        kinds.append(Ask(body, path=path, words=words))
    for at_once in (1, len(kinds)):
        for name, one, answer in zip(REQUESTS, kinds, ask(gateway, kinds, at_once), strict=True):
            assert (answer.status, answer.version) == (200, "2"), (name, answer)
            assert answer.told["sha256"] == hashlib.sha256(one.body).hexdigest(), name


def test_an_alias_is_replaced(gateway: Gateway) -> None:
    wanted = hashlib.sha256(json.dumps(talk("hi", "acme/large")).encode()).hexdigest()
    words = ['header = "Content-Length:"']
    for answer in ask(gateway, [Ask(talk("hi", "gpt-5")), Ask(talk("hi", "gpt-5"), words=words)]):
        assert (answer.status, answer.told["server"], answer.told["sha256"]) == (200, "large1", wanted)


def test_who_gets_in_and_how_often(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    large, big = talk("hi", "acme/large"), talk("x" * 100_000)
    asks = [
        Ask(talk("hi"), key=""),
        Ask(talk("hi"), key=FLEET),
        Ask(large, key="key-of-small"),
        Ask(talk("hi", "none")),
    ]
    assert [one.status for one in ask(gateway, asks)] == [401, 401, 403, 404]
    few = ask(gateway, [Ask(big, key="key-of-few")] * 5)
    assert [one.status for one in few] == [200, 200, 200, 429, 429]
    assert (few[-1].told["error"]["code"], few[-1].head["retry-after"]) == (429, "21")
    echoes["small1"].delay = echoes["small2"].delay = 0.5
    try:
        one = ask(gateway, [Ask(talk("hi"), key="key-of-one")] * 3, at_once=3)
    finally:
        echoes["small1"].delay = echoes["small2"].delay = 0.0
    assert sorted(answer.status for answer in one) == [200, 429, 429]
    chats = sum(server.chats for server in echoes.values())
    for path in (
        "/invocations",
        "/metrics",
        "/v1/../invocations",
        "//v1/models",
        "/v1/%2e%2e/invocations",
        "/v1/./models",
    ):
        assert [answer.status for answer in ask(gateway, [Ask(path=path), Ask({}, path=path)])] == [404, 404], path
    assert sum(server.chats for server in echoes.values()) == chats
    (health,) = ask(gateway, [Ask(path="/health", key="")])
    assert (health.status, health.version) == (200, "2")


def test_conversations_of_one_connection_have_a_server_each(gateway: Gateway) -> None:
    asks = [Ask(talk(f"conversation {number}")) for number in range(12)] * 2
    servers = [answer.told["server"] for answer in ask(gateway, asks)]
    assert servers[:12] == servers[12:]
    assert set(servers) == {"small1", "small2"}


class Frames:
    """A client that writes HTTP/2 by hand, as no library would: RFC 9113, headers as literals of RFC 7541."""

    def __init__(self, gateway: Gateway) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        self.client = context.wrap_socket(socket.create_connection(("127.0.0.1", gateway.ports["all"]), timeout=20))
        self.client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(4, 0, 0)

    def send(self, kind: int, flags: int, stream: int, content: bytes = b"") -> None:
        self.client.sendall(struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content)

    def ask(self, stream: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        """Send a request. A header that begins with a colon replaces the usual one."""
        usual = {":method": "POST", ":scheme": "https", ":path": CHAT, ":authority": "x"}
        lines = [*{**usual, **{name: value for name, value in headers if name in usual}}.items()]
        lines += [
            ("authorization", "Bearer key-of-all"),
            *((name, value) for name, value in headers if name not in usual),
        ]
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in lines
        )
        self.send(1, 4, stream, block)
        self.send(0, 1, stream, body)

    def ended(self) -> bool:
        """Whether the last stream has its answer, its reset, or no connection any more."""
        with contextlib.suppress(OSError):
            while head := self.client.recv(9):
                size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                while size:
                    size -= len(self.client.recv(size))
                if kind == 3 or (kind in (0, 1) and flags & 1):
                    return True
        return True


def test_a_request_that_is_given_up_ends_at_the_server_and_the_others_go_on(
    gateway: Gateway, echoes: dict[str, Echo]
) -> None:
    def left() -> int:
        return sum(one.sessions for one in gateway.entries())

    echoes["large1"].delay = 2.5
    client = Frames(gateway)
    try:
        for stream in (1, 3):
            client.ask(stream, body=json.dumps(talk("hi", "acme/large")).encode())
        until(lambda: left() == 2, "both run")
        client.send(3, 0, 1, struct.pack(">I", 8))
        assert until(lambda: left() == 1, "one is given up") < 1
        client.client.close()
        assert until(lambda: left() == 0, "the connection is gone") < 1
    finally:
        echoes["large1"].delay = 0.0


SECOND = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
HOSTILE = [
    [("content-length", "2")],
    [("content-length", "2"), ("content-length", "9")],
    [("transfer-encoding", "chunked")],
    [("x", "a\r\nx-vllm-fleet-server: large1")],
    [("x", "a\r\n\r\nPOST /invocations HTTP/1.1\r\nHost: x")],
    [("x: a\r\ny", "b")],
    [("X", "a")],
    [("connection", "content-length")],
    [(":method", "CONNECT")],
    [(":method", "POST /invocations HTTP/1.1\r\nHost: x\r\n\r\nPOST")],
    [(":path", "/invocations")],
    [(":path", "/v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\nPOST /invocations")],
    [(":path", "https://x/invocations")],
    [(":path", "*")],
    [(":path", "")],
    [(":scheme", "https://x/invocations?")],
    [(":authority", "x/invocations?")],
]


@pytest.mark.parametrize("headers", HOSTILE, ids=range(len(HOSTILE)))
def test_no_request_becomes_two_or_another_one(
    gateway: Gateway, echoes: dict[str, Echo], headers: list[tuple[str, str]]
) -> None:
    """On its way to a server it is HTTP/1.1."""
    before = {name: (one.chats, len(one.paths)) for name, one in echoes.items()}
    client = Frames(gateway)
    client.ask(1, *headers, body=json.dumps(talk("hi")).encode() + SECOND)
    assert client.ended()
    client.client.close()
    assert sum(one.chats - before[name][0] for name, one in echoes.items()) <= 1
    seen = [path for name, one in echoes.items() for path in one.paths[before[name][1] :]]
    assert set(seen) <= {CHAT}, seen


def test_one_source_does_not_take_all_places_by_one_connection(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    echoes["large1"].delay = 1.0
    try:
        answers = ask(gateway, [Ask(talk("hi", "acme/large"))] * (PLACES + 8), at_once=PLACES + 8)
    finally:
        echoes["large1"].delay = 0.0
    # Refused before the body is there; see above.
    counts = Counter(one.status or 429 for one in answers)
    assert counts == {200: PLACES, 429: 8}


def test_a_stream_and_its_tokens_are_in_the_log(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    parts = ['data: {"choices": []}\n\n', 'data: {"usage": {"prompt_tokens": 5, "completion_tokens": 9}}\n\n']
    echoes["large1"].parts = [*parts, "data: [DONE]\n\n"]
    forget(gateway)
    try:
        (answer,) = ask(gateway, [Ask(talk("marked", "acme/large"), path="/v1/marked")])
    finally:
        echoes["large1"].parts = []
    assert answer.body == "".join([*parts, "data: [DONE]\n\n"])
    (line,) = logged(gateway, 1, "/v1/marked")
    assert "{all|acme/large|" in line
    assert "|5|9} POST /v1/marked" in line


def test_a_reload_and_a_drain_lose_nothing_of_a_client_that_minds_goaway(
    gateway: Gateway, echoes: dict[str, Echo], described: tuple[Path, dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    folder, _ = described
    helper, program = service_helper(folder), request.node.callspec.params["gateway"]
    helper.PROGRAM = helper_program(folder, program)
    for one in echoes.values():
        one.delay = 0.2
    chats = sum(one.chats for one in echoes.values())
    try:
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(ask, gateway, [Ask(talk(f"talk {number}")) for number in range(160)], 10)
            until(lambda: sum(one.chats for one in echoes.values()) > chats + 30, "requests run")
            worker = gateway.pid
            helper.reload(gateway.process.pid)
            assert gateway.pid != worker
            haproxy.ask(gateway.socket, "set server acme_small/small1 state drain")
            # What the old worker still gets from the old connection, it may send there.
            until(lambda: not gateway.entry("acme_small").sessions, "it is drained")
            before = echoes["small1"].chats
            answers = run.result()
            assert echoes["small1"].chats <= before + 10
    finally:
        haproxy.ask(gateway.socket, "set server acme_small/small1 state ready")
        for one in echoes.values():
            one.delay = 0.0
    lost = [answer for answer in answers if answer.status != 200]
    connections = sum(answer.connections for answer in answers)
    print(f"{len(answers)} requests over a reload, {len(lost)} lost, {connections} connections")
    assert (lost, {answer.version for answer in answers}) == ([], {"2"})
    assert connections >= 2
