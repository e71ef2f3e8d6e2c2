# SPDX-License-Identifier: Apache-2.0
"""A server that drips, floods, nests or sends what is no text: every exchange with it ends in time, with a reason."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

import hostile
import pytest

from ansible.module_utils.vllm_fleet.common import exchange
from ansible.module_utils.vllm_fleet.common.received import parsed
from ansible.module_utils.vllm_fleet.gateway import door, drain
from ansible.module_utils.vllm_fleet.server import watch
from ansible.module_utils.vllm_fleet.server.outcome import Limits
from ansible.module_utils.vllm_fleet.vllm import chat, readiness
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest
from ansible.module_utils.vllm_fleet.vllm.endpoint import Endpoint
from ansible.module_utils.vllm_fleet.watchdog import ask
from ansible.module_utils.vllm_fleet.weights import swarm

HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "drips its headers": lambda _: hostile.dripped(HEAD + b"x-slow: "),
    "drips its body": lambda _: hostile.dripped(HEAD + b"Content-Length: 100000\r\n\r\n"),
    "drips a chunk's length": lambda _: hostile.dripped(HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
    "continues for ever": lambda _: hostile.continued(),
}
LIMIT = 0.4
#: What one exchange may take of a busy machine beyond its limit.
MORE = 2.0


def took(work):
    began = time.monotonic()
    found = work()
    assert time.monotonic() - began < LIMIT * 2 + MORE  # readiness asks twice
    return found


@pytest.mark.parametrize("says", ENDLESS.values(), ids=ENDLESS)
def test_no_exchange_outlasts_its_limit(says, monkeypatch):
    monkeypatch.setattr(door, "TIMEOUT", LIMIT)
    monkeypatch.setattr(drain, "METRICS_TIMEOUT", LIMIT)
    with hostile.server(says) as port:
        where, url = Endpoint("127.0.0.1", port, ("m",)), f"http://127.0.0.1:{port}"
        answer = took(lambda: readiness.ask(where, LIMIT))
        assert (answer.ready, answer.wrong) == (False, False)
        assert took(lambda: ask.engines(where, LIMIT)) is None
        assert took(lambda: ask.token(ask.Question(where, "m"), None, LIMIT)) == "none"
        result = took(lambda: chat.chat(ChatRequest(url=url, model="m", prompt="Hi", timeout=LIMIT)))
        assert result.error.kind in ("timeout_idle", "timeout_total")
        assert took(lambda: drain.look_at_server(url)).requests == 1
        took(lambda: door.look([{"host": "127.0.0.1", "port": port}], tls=False))


def test_a_resolver_that_never_answers_keeps_nobody_waiting(monkeypatch):
    over, real = threading.Event(), socket.getaddrinfo

    def silent(*given, **more):
        if not more.get("flags"):
            over.wait(60)
        return real(*given, **more)

    monkeypatch.setattr(exchange.socket, "getaddrinfo", silent)
    monkeypatch.setattr(drain, "METRICS_TIMEOUT", LIMIT)
    monkeypatch.setattr(swarm, "CONNECT_TIMEOUT", LIMIT)
    url = "http://node.example:8000"
    try:
        assert not took(lambda: readiness.ask(Endpoint("node.example", 8000, ("m",)), LIMIT)).ready
        result = took(lambda: chat.chat(ChatRequest(url=url, model="m", prompt="Hi", timeout=LIMIT)))
        said = "no address for the host of node.example:8000 (the resolver did not answer in time)"
        assert (result.error.kind, said in str(result.error)) == ("dns", True), result.error
        assert not took(lambda: drain.look_at_server(url)).requests
        with contextlib.suppress(swarm.SwarmError):  # a machine without a private address
            took(lambda: swarm.own_address("", "node.example", ""))
    finally:
        over.set()


class Container:
    """One that computes for ever."""

    def __init__(self):
        self.cpu = 0

    def container(self, name):
        state = {"StartedAt": "2026-01-01T00:00:00Z", "Running": True, "Pid": os.getpid(), "Status": "running"}
        return {"Id": name, "State": state}

    def follow(self, *_, **__):
        pass

    def usage(self, _):
        self.cpu += 10**10
        return self.cpu, 0


def watched(endpoint, asked=readiness.ask, limits=None, wake=None):
    return watch.Watch(
        Container(), "c", endpoint, limits or Limits(LIMIT, 900.0), run_age=0.0, ask=asked, wake=wake
    ).run()


def test_a_watch_ends_with_a_server_that_drips():
    with hostile.server(ENDLESS["drips its headers"]) as port:
        out = watched(Endpoint("127.0.0.1", port, ("m",)), lambda endpoint: readiness.ask(endpoint, LIMIT))
    assert out.verdict == "ready_timeout"
    assert out.detail.startswith("TimeoutError: timed out")


def test_a_watch_ends_though_no_probe_does(monkeypatch):
    monkeypatch.setattr(watch, "ANSWER_GRACE", LIMIT)
    never = threading.Event()
    out = watched(Endpoint("127.0.0.1", 1, ("m",)), lambda _: never.wait())
    assert out.verdict == "ready_timeout"
    assert out.detail.startswith("no probe has ended")


def test_a_probe_that_raises_is_an_answer_and_the_next_one_is_asked():
    asked = []

    def ask_once(_):
        asked.append(1)
        if len(asked) == 1:
            raise MemoryError
        return readiness.Answer(ready=True)

    assert watched(Endpoint("127.0.0.1", 1, ("m",)), ask_once, Limits(60.0, 900.0)).verdict == "ready"
    detail = watched(Endpoint("127.0.0.1", 1, ("m",)), lambda _: 1 // 0).detail
    assert detail.startswith("the answer cannot be read (ZeroDivisionError)")


def test_a_pulse_and_a_folder_that_raise_end_no_watch(monkeypatch):
    monkeypatch.setattr(Container, "usage", lambda *_: 1 // 0)
    monkeypatch.setattr(Path, "exists", lambda _: (_ for _ in ()).throw(PermissionError("no")))
    late = [readiness.Answer(detail="not yet")] * 5
    asked = lambda _: late.pop() if late else readiness.Answer(ready=True)  # noqa: E731
    assert watched(Endpoint("127.0.0.1", 1, ("m",)), asked, Limits(60.0, 900.0), Path("/nowhere")).verdict == "ready"


# -- what is no text, and what is too deep ---------------------------------------------------------------------------

DEEP = b"[" * 200_000
HALF = rb'{"choices": [{"message": {"content": "\ud83d"}}], "data": [{"id": "\uDC00"}]}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (DEEP, "nested too deeply"),
        (HALF, "no Unicode"),
        (b'"\xff"', "no Unicode"),
        (b"{", "Expecting"),
        ("\\ud800", "Expecting"),
    ],
)
def test_json_that_cannot_be_worked_with_is_refused_as_what_is_no_json(text, why):
    with pytest.raises(ValueError, match=why):
        parsed(text)


@pytest.mark.parametrize("text", [rb'"\ud83d\ude00"', '"\\ud83d\\ude00"'])
def test_a_whole_pair_is_a_character(text):
    assert parsed(text) == "😀"


@pytest.mark.parametrize(("body", "why"), [(DEEP, "nested too deeply"), (HALF, "no Unicode")], ids=["deep", "half"])
def test_such_a_reply_is_a_diagnosed_failure(body, why):
    with hostile.server(lambda _: hostile.answer(body)) as port:
        url = f"http://127.0.0.1:{port}"
        for stream in (False, True):
            request = ChatRequest(url=url, model="m", prompt="Hi", timeout=5, stream=stream, endpoints=("/v1/models",))
            found = chat.probe([request], many=False)
            assert why in found["msg"]
            json.dumps(found, ensure_ascii=False).encode()
        assert readiness.ask(Endpoint("127.0.0.1", port, ("m",)), 5.0).wrong
        assert not ask.paused(Endpoint("127.0.0.1", port, ("m",)), 5.0)
    events = b"data: " + body + b"\n\ndata: [DONE]\n\n"
    with hostile.server(lambda _: hostile.answer(events, "text/event-stream")) as port:
        request = ChatRequest(url=f"http://127.0.0.1:{port}", model="m", prompt="Hi", timeout=5)
        assert why in chat.probe([request], many=False)["msg"]


def test_a_refusal_that_is_nested_is_shown_as_text():
    refusal = [b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(DEEP), DEEP]
    with hostile.server(lambda _: refusal) as port:
        request = ChatRequest(url=f"http://127.0.0.1:{port}", model="m", prompt="Hi", timeout=5)
        assert "HTTP 500" in chat.chat(request).message


def test_a_key_that_no_header_can_have_is_said_without_it():
    where = Endpoint("127.0.0.1", 1, ("m",), api_key="canary\nX-Evil: 1")
    with hostile.server(lambda _: hostile.answer(b"{}")) as port:
        answer = readiness.ask(Endpoint(where.host, port, where.names, api_key=where.api_key), 2.0)
        assert "API key" in answer.detail
        assert "canary" not in answer.detail
        assert ask.token(ask.Question(Endpoint(where.host, port, (), api_key=where.api_key), "m"), None, 2.0) == "none"
