# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy under load that is reloaded by the helper of its service, as after an upgrade of this project."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import itertools
import json
import re
import shutil
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import haproxy_program
import pytest
from gateway_scene import (
    REQUESTS,
    Echo,
    Gateway,
    ask,
    certificate,
    free_ports,
    helper_program,
    render,
    running,
    service_helper,
    until,
)

from ansible.module_utils.vllm_fleet.gateway import haproxy

KEY = "fleet-key-of-the-servers"


@pytest.fixture
def helper(tmp_path: Path) -> Any:
    """The program that the service calls, with places of the test."""
    return service_helper(tmp_path)


@pytest.fixture
def echoes() -> Iterator[list[Echo]]:
    made = [Echo(f"n{number}", "acme/small", key=KEY) for number in (1, 2, 3)]
    yield made
    for one in made:
        one.shutdown()
        one.server_close()


def chat(port: int, text: str) -> tuple[int, str]:
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    status, _, head = ask(port, "/v1/chat/completions", "POST", body, Authorization=f"Bearer {KEY}")
    return status, head.get("x-vllm-replica", "")


def test_an_older_configuration_is_taken_over_under_load(helper: Any, echoes: list[Echo], tmp_path: Path) -> None:
    """States of servers stay, ports are those of the file, no request is lost."""
    port, stats = free_ports(2)
    render(
        tmp_path,
        {one.name: one.host for one in echoes},
        gateway_port=port,
        gateway_local_offset=1,
        gateway_stats_port=stats,
    )
    config = tmp_path / "gateway.cfg"
    new = config.read_text()
    # As it was before servers had numbers of their own, and a weight.
    config.write_text(re.sub(r"(    server .*) id \d+", r"\1", new).replace(" weight 16", ""))
    with running(tmp_path, "-W") as gateway, Echo("n3", "acme/small", key=KEY) as moved:
        haproxy.ask(gateway.socket, "set server acme_small/n1 state drain")
        haproxy.ask(gateway.socket, "set server acme_small/n2 state maint")
        # n3 is replaced: the new file has another port.
        config.write_text(re.sub(r"(server n3 127.0.0.1):\d+", rf"\1:{moved.server_port}", new))
        stop = threading.Event()

        def load(client: int) -> list[tuple[int, str]]:
            answers = []
            while not stop.wait(0.005):
                answers.append(chat(port, f"{client} {len(answers)}"))
            return answers

        with ThreadPoolExecutor(3) as clients:
            runs = [clients.submit(load, number) for number in range(3)]
            try:
                helper.reload(gateway.process.pid)
                until(lambda: moved.chats > 20, "requests arrive at the new port")
            finally:
                stop.set()
        answers = [answer for run in runs for answer in run.result()]
        lost = [answer for answer in answers if answer != (200, "n3")]
        print(f"{len(answers)} requests over a reload, {len(lost)} lost")
        assert (lost, len(answers) > 30) == ([], True)
        assert {one.name: one.status for one in gateway.entries() if one.backend == "acme_small"} == {
            "n1": "DRAIN",
            "n2": "MAINT",
            "n3": "UP",
        }
        for one in echoes:
            assert haproxy.ask(gateway.socket, f"get weight acme_small/{one.name}").startswith("16 (initial 16)")
        assert (tmp_path / "state").read_text() == "1\n"
        haproxy.ask(gateway.socket, "set server acme_small/n1 state ready")
        until(lambda: chat(port, "again")[0] == 200, "it serves")


def send(port: int, path: str, body: bytes, *, chunked: bool) -> tuple[int, str]:
    """Status of an answer, and the sum of the body that arrived."""
    kind = "multipart/form-data; boundary=B" if "audio" in path else "application/json"
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    parts = (body[at : at + 30_000] for at in range(0, len(body), 30_000))
    try:
        connection.request("POST", path, parts if chunked else body, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, str(json.loads(answer.read()).get("sha256"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


@pytest.mark.parametrize("program", haproxy_program.PROGRAMS)
def test_requests_of_all_kinds_over_a_change_of_the_balance(helper: Any, tmp_path: Path, program: str) -> None:
    """Each arrives whole, by either way to choose a server, and while HAProxy is reloaded."""
    helper.PROGRAM = helper_program(tmp_path, program)
    port, stats = free_ports(2)
    made = [Echo("n1", "acme/small", key=KEY), Echo("n2", "acme/small", key=KEY), Echo("big3", "acme/large", key=KEY)]
    hosts = {one.name: one.host for one in made}
    given = {
        "gateway_port": port,
        "gateway_local_offset": 1,
        "gateway_stats_port": stats,
        "gateway_request_timeout": 20,
    }
    render(tmp_path, hosts, **given)
    counts: Counter[str] = Counter()
    lost: list[tuple[str, int, str]] = []
    with running(tmp_path, "-W", program=program) as gateway:
        stop = threading.Event()

        def load() -> None:
            for name in itertools.cycle(REQUESTS):
                path, body, chunked = REQUESTS[name]
                status, found = send(port, path, body, chunked=chunked)
                lost.extend([(name, status, found)] * ((status, found) != (200, hashlib.sha256(body).hexdigest())))
                counts[name] += 1
                if stop.wait(0.1):
                    return

        with ThreadPoolExecutor(3) as clients:
            runs = [clients.submit(load) for _ in range(3)]
            try:
                render(tmp_path, hosts, **given, gateway_balance="leastconn")
                assert "balance hash" not in (tmp_path / "gateway.cfg").read_text()
                helper.reload(gateway.process.pid)
                enough = sum(counts.values()) + 15
                until(lambda: sum(counts.values()) > enough, "requests after it", 60)
            finally:
                stop.set()
        for run in runs:
            run.result()
    for one in made:
        one.shutdown()
        one.server_close()
    print(f"{sum(counts.values())} requests over a change of the balance, {len(lost)} lost: {dict(counts)}")
    assert (lost, set(counts)) == ([], set(REQUESTS))


def test_what_is_written_down_of_servers(helper: Any) -> None:
    answer = (
        "1\n# be_id be_name srv_id srv_name\n"
        "3 pool 1 n1 192.0.2.1 2 8 1 1 17 15 3 2 6 0 0 1 - 8000 - 0 0 - - 0\n"
        "3 pool 2 gone 192.0.2.2 2 0 1 1 17 15 3 2 6 0 0 1 - 8000 - 0 0 - - 0\n\n"
    )
    config = "backend pool\n    server n1 [2001:db8::1]:8100 id 4\nfrontend x\n    server n1 192.0.2.9:1\n"
    # One that is new there begins as down, and an administrator's word holds for it.
    config += "backend pool:2\n    server n1 [2001:db8::1]:8100 id 4\n    server n9 192.0.2.9:1 id 5\n"
    new = (
        "0 pool:2 4 n1 2001:db8::1 0 8 1 1 0 17 2 0 6 0 0 1 - 8100 -\n"
        "0 pool:2 5 n9 192.0.2.9 0 0 1 1 0 17 2 0 6 0 0 1 - 1 -\n"
    )
    assert helper.states("1\n", config) == "1\n"
    # Without a predecessor: a server of one backend may serve at once, one of two has the key of one of them.
    assert helper.completed("1\n", config) == (
        "1\n0 pool 4 n1 2001:db8::1 0 0 1 1 0 17 2 0 6 0 0 1 - 8100 -\n"
        + new.splitlines(keepends=True)[0].replace(" 0 8 ", " 0 0 ")
    )
    said = "1\n3 pool 4 n1 2001:db8::1 2 0 1 1 17 15 3 2 6 0 0 1 - 8100 -\n"
    assert helper.completed(said, config) == said + new.splitlines(keepends=True)[0].replace(" 0 8 ", " 0 0 ")
    assert helper.completed("", config).startswith("1\n0 pool 4 n1")
    assert helper.states(answer, config) == "1\n3 pool 1 n1 192.0.2.1 2 8 1 1 17 15 3 2 6 0 0 1 - 8100 -\n" + new


def test_a_haproxy_that_died_in_a_change_begins_with_no_server_by_a_wrong_key(helper: Any, tmp_path: Path) -> None:
    """The run after it knows of no server where it is: it keeps the old pool for all of them."""
    port, stats = free_ports(2)
    given = {"gateway_port": port, "gateway_local_offset": 1, "gateway_stats_port": stats}
    # The second one is replaced already.
    made = [Echo("n1", "acme/small", key=KEY), Echo("n2", "acme/next", "acme/small", key="next")]
    old, new = (
        {one.name: {**one.host, **made[0].host, "vllm_server_port": one.server_port} for one in made} for _ in "ab"
    )
    for host in new.values():
        args = {**host["vllm_server_args"], "served-model-name": ["acme/next", "acme/small"]}
        host |= {"vllm_server_api_key": "next", "vllm_server_args": args, "vllm_server_model": "acme/next"}
    render(tmp_path, old, **given)
    text = base64.b64encode((tmp_path / "secrets.cfg").read_bytes()).decode()
    render(tmp_path, new, **given, __gateway_secrets_file={"content": text}, __gateway_servers=[])
    both = {f"{pool}/{one.name}" for pool in ("acme_small", "acme_next") for one in made}
    asks = [("acme/small", KEY), ("acme/next", "next")]
    for program in haproxy_program.PROGRAMS:
        Path(helper.STATE).unlink(missing_ok=True)
        helper.begin()
        state, answers = Path(helper.STATE).read_text(), Counter[tuple[str, int]]()
        with running(tmp_path, program=program, state=state, wait=False) as gateway:
            until(lambda: Path(helper.SOCKET).exists(), "it runs")

            def served(gateway: Gateway = gateway, answers: Counter[tuple[str, int]] = answers) -> bool:
                for model, key in asks:
                    body = json.dumps({"model": model}).encode()
                    with contextlib.suppress(OSError):  # it does not listen yet
                        status, _, _ = ask(port, "/v1/chat/completions", "POST", body, Authorization=f"Bearer {key}")
                        answers[model, status] += 1
                return all(answers[model, 200] > 20 for model, _ in asks)

            until(served, f"both are served: {answers}")
            states = {f"{one.backend}/{one.name}": one.status for one in gateway.entries() if one.name in old}
        assert {status for _, status in answers} <= {200, 503}, answers
        assert states == {**dict.fromkeys(both, "DOWN"), "acme_small/n1": "UP", "acme_next/n2": "UP"}
    for one in made:
        one.shutdown()
        one.server_close()


def test_a_new_key_and_name_over_a_reload_with_servers_replaced_one_by_one(helper: Any, tmp_path: Path) -> None:
    """Clients with the old key and name, and some with the new ones, until the old pool is forgotten."""
    port, stats = free_ports(2)
    # A busy machine answers checks late.
    given = {"gateway_port": port, "gateway_local_offset": 1, "gateway_stats_port": stats}
    given |= {"gateway_check_timeout": 10, "gateway_check_fall": 4, "gateway_request_timeout": 20}
    old = [Echo(f"n{number}", "acme/small", key=KEY) for number in (1, 2)]
    hosts = {one.name: one.host for one in old}
    render(tmp_path, hosts, **given)

    def again(gateway: Gateway) -> None:
        """What the next run of the role writes, with the new key and name."""
        text = base64.b64encode((tmp_path / "secrets.cfg").read_bytes()).decode()
        seen = [entry.as_dict() for entry in gateway.entries()]
        wanted = {
            name: {
                **host,
                "vllm_server_api_key": "next",
                "vllm_server_args": {**host["vllm_server_args"], "served-model-name": ["acme/next", "acme/small"]},
                "vllm_server_model": "acme/next",
            }
            for name, host in hosts.items()
        }
        render(tmp_path, wanted, **given, __gateway_secrets_file={"content": text}, __gateway_servers=seen)
        helper.reload(gateway.process.pid)

    def states(gateway: Gateway) -> dict[str, str]:
        return {f"{one.backend}/{one.name}": one.status for one in gateway.entries() if one.name in hosts}

    with running(tmp_path, "-W") as gateway, ThreadPoolExecutor(4) as clients:

        def busy(name: str) -> int:
            return sum(entry.sessions for entry in gateway.entries() if entry.name == name)

        stop, moved = threading.Event(), threading.Event()

        def load(model: str, key: str) -> list[tuple[int, str]]:
            answers = []
            while not stop.wait(0.005):
                key = "next" if moved.is_set() else key
                body = json.dumps({"model": model, "messages": [{"role": "user", "content": str(len(answers))}]})
                status, told, _ = ask(
                    port, "/v1/chat/completions", "POST", body.encode(), Authorization=f"Bearer {key}"
                )
                answers.append((status, told))
            return answers

        runs = [clients.submit(load, "acme/small", KEY) for _ in range(3)]
        try:
            again(gateway)
            assert states(gateway) == {
                "acme_next/n1": "DOWN",
                "acme_next/n2": "DOWN",
                "acme_small/n1": "UP",
                "acme_small/n2": "UP",
            }
            for one in old:
                for backend in ("acme_small", "acme_next"):
                    haproxy.ask(gateway.socket, f"set server {backend}/{one.name} state drain")
                until(lambda name=one.name: not busy(name), "it is idle")
                one.shutdown()
                one.server_close()
                if one is old[-1]:
                    moved.set()
                Echo(one.name, "acme/next", "acme/small", key="next", port=one.server_port)
                assert haproxy.admit(gateway.socket, one.name, 20.0) == (True, "acme_next")
                if one is old[0]:
                    again(gateway)
                    assert states(gateway)["acme_small/n2"] == "UP"
                    runs.append(clients.submit(load, "acme/next", "next"))
            again(gateway)
            assert states(gateway) == {"acme_next/n1": "UP", "acme_next/n2": "UP"}
        finally:
            stop.set()
        answers = [answer for run in runs for answer in run.result()]
    lost = [answer for answer in answers if answer[0] != 200]
    print(f"{len(answers)} requests over a new key and name, {len(lost)} lost")
    assert (lost, len(answers) > 100) == ([], True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with the openssl program")
@pytest.mark.parametrize("program", haproxy_program.PROGRAMS)
def test_a_client_that_offers_http2_gets_http1_and_a_connection_for_each_request(
    echoes: list[Echo], tmp_path: Path, program: str
) -> None:
    """Without gateway_http2."""
    (port, stats), pem = free_ports(2), certificate(tmp_path)
    given = {"gateway_port": port, "gateway_local_offset": 1, "gateway_stats_port": stats}
    render(tmp_path, {one.name: one.host for one in echoes}, gateway_certificate=str(pem), **given)
    context = ssl.create_default_context(cafile=pem)
    context.check_hostname = False
    context.set_alpn_protocols(["h2", "http/1.1"])
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
    request = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    request += f"Content-Length: {len(body)}\r\n\r\n{body}"
    with (
        running(tmp_path, program=program),
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain) as client,
    ):
        assert client.selected_alpn_protocol() == "http/1.1"
        client.sendall(request.encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer.lower()
