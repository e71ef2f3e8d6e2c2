# SPDX-License-Identifier: Apache-2.0
"""Verification against a running server: the stand-in as a process, once in a container, and the module itself."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import standin

from ansible.module_utils.vllm_fleet.vllm.chat import chat, chat_all
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest, Expectation

ROOT = Path(__file__).resolve().parents[2]
CAPITAL = "What is the capital of France?"
PARIS = Expectation(pattern="Paris")


def ask(url, **options):
    return chat(ChatRequest(url, **({"prompt": CAPITAL, "expect": PARIS, "timeout": 10} | options)))


def failed(result):
    return [check.name for check in result.checks if not check.ok]


@pytest.fixture(scope="module")
def server():
    with standin.run_process(token_delay=0.01) as running:
        yield running


# --- answers that are right ---


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_right_answer_passes(server, api, stream):
    result = ask(server.url, model="tiny", api=api, stream=stream, endpoints=("/docs", "/v1/models"))
    assert result.ok, result.message
    assert result.answer.content == "The capital of France is Paris."
    assert result.answer.finish_reason == "stop"
    assert result.answer.usage["completion_tokens"] == 7
    assert [check.name for check in result.checks][-2:] == ["endpoint /docs", "endpoint /v1/models"]
    assert (result.ttft is not None) == stream


def test_times_are_those_of_the_tokens(server):
    """Ten milliseconds a token: the first after one pause (for the role), the rest at fewer than 100 a second."""
    result = ask(server.url, max_ttft=5, min_tokens_per_second=5)
    assert result.ok, result.message
    assert 0.01 <= result.ttft < result.elapsed
    assert 5 < result.tokens_per_second <= 7 / 0.05


def test_an_unnamed_model_is_the_first_one_served(server):
    result = ask(server.url + "/v1/")
    assert result.ok, result.message
    assert result.model == "tiny"


def test_an_alias_is_the_same_model():
    with standin.run_process("--served-model-name", "first", "second") as running:
        result = ask(running.url, model="second")
        assert result.ok, result.message
        assert result.answer.model == "first"


def test_a_cut_answer_is_finished_by_length(server):
    result = ask(server.url, prompt="A poem about the stars", max_tokens=5, expect=Expectation(finish_reason=("stop",)))
    assert failed(result) == ["finish_reason"]
    assert result.answer.content == "The stars above, a silent"
    assert "Raise max_tokens" in result.message


# --- answers that are wrong, all of them with HTTP 200 ---


def test_fluent_nonsense_with_http_200_fails_the_pattern():
    with standin.run_process(nonsense=1) as running:
        result = ask(running.url)
    assert result.status == 200
    assert result.answer.finish_reason == "stop"
    assert failed(result) == ["pattern"]
    assert "expected a match of /Paris/, got \"L'Étoile, la Marseillaise" in result.message


def test_an_empty_answer_fails():
    with standin.run_process(empty=1) as running:
        result = ask(running.url, expect=Expectation(), max_ttft=5)
    assert failed(result) == ["min_chars", "max_ttft"]
    assert "got 0 characters" in result.message


@pytest.mark.parametrize("kind", ["close", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_answer_that_breaks_off_fails_though_its_text_would_do(kind, stream):
    with standin.run_process(drop_stream=kind) as running:
        result = ask(running.url, stream=stream, expect=Expectation())
    assert failed(result) == ["answer"]
    assert result.error.kind in {"close": ("truncated",), "reset": ("reset", "truncated")}[kind]
    assert "look at its log and exit code" in result.message
    if kind == "close":  # a reset throws away what the client has not read yet
        assert bool(result.answer.content) == stream


# --- no answer ---


def test_a_model_that_is_not_served_is_told_what_is():
    with standin.run_process(serve_model="acme/other") as running:
        result = ask(running.url, model="tiny", endpoints=("/v1/models",))
    assert failed(result) == ["status", "endpoint /v1/models"]
    assert result.error.kind == "model_not_served"
    assert "The model `tiny` does not exist" in result.message
    assert "The server serves acme/other" in result.message


@pytest.mark.parametrize(("key", "words"), [("", "wants a key, none was sent"), ("hunter2", "is not the server's")])
def test_a_wrong_key_is_told_and_never_shown(key, words):
    with standin.run_process(VLLM_API_KEY="correct-horse") as running:
        result = ask(running.url, api_key=key)
        assert ask(running.url, api_key="correct-horse", endpoints=("/v1/models",)).ok
    assert result.error.kind == "unauthorized"
    assert words in result.message
    assert "hunter2" not in result.message + json.dumps(result.as_dict())


def test_a_request_that_hangs_ends_at_the_timeout_and_stops_the_rest():
    with standin.run_process(hang_request=1) as running:
        request = ChatRequest(running.url, model="tiny", prompt=CAPITAL, timeout=0.5)
        begun = time.monotonic()
        results = chat_all([request, request])
        assert time.monotonic() - begun < 1.5
    assert [result.error.kind for result in results] == ["timeout_idle"]
    assert "no byte of an answer within 0.5 s" in results[0].message


def test_a_stream_that_falls_silent_ends_at_the_timeout():
    with standin.run_process(hang_request="stream") as running:
        result = ask(running.url, model="tiny", timeout=0.6)
    assert result.error.kind == "timeout_idle"
    assert "fell silent" in result.message
    assert result.answer.content.startswith("The capital")


def test_an_answer_too_slow_for_the_timeout_is_not_called_hung():
    with standin.run_process(token_delay=0.15) as running:
        result = ask(running.url, model="tiny", timeout=0.6)
    assert result.error.kind == "timeout_total"
    assert "Raise timeout or lower max_tokens" in result.message


def test_a_request_that_the_server_refuses_shows_its_own_words():
    with standin.run_process("--max-model-len", "12") as running:
        result = ask(running.url)
    assert (result.status, result.error.kind) == (400, "http_status")
    assert "maximum context length is 12 tokens" in result.message


def test_names_of_adapters_must_be_listed(server):
    assert ask(server.url, listed=("tiny",)).ok
    result = ask(server.url, listed=("tiny", "support", "sql"))
    assert failed(result) == ["adapters"]
    assert "expected tiny, support, sql in /v1/models, got not support, sql" in result.message
    assert "playbooks/restart.yml" in result.message


def test_a_missing_endpoint_fails_by_its_name(server):
    result = ask(server.url, endpoints=("/docs", "/nowhere"))
    assert failed(result) == ["endpoint /nowhere"]
    assert "expected HTTP 200, got HTTP 404" in result.message


def read_request(connection):
    """All of it: a connection closed with unread bytes is reset, and what was sent may be lost with it."""
    with connection.makefile("rb") as file:
        headers = http.client.parse_headers(file) if file.readline() else {}
        file.read(int(headers.get("Content-Length", 0)))


@contextlib.contextmanager
def peer(answer, *, read=read_request, wrap=lambda connection: connection):
    """Somebody on a port who sends these bytes to everyone and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), wrap(connection) as connection:
                    read(connection)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def response(body, kind="text/event-stream", status="200 OK", length=None):
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode() + body


CHUNK = b'data: {"model": "tiny", "choices": [{"delta": {"content": "Paris"}, "finish_reason": "stop"}]}\n\n'
PEERS = {
    "hangs_up": (b"", "closed", "does not listen yet"),
    "not_http": (b"SSH-2.0-OpenSSH_9.2\r\n", "bad_response", "not HTTP"),
    "web_page": (response(b"<html>login</html>", "text/html"), "bad_response", "text/html that is no JSON object"),
    "not_json_inside": (response(b"data: {oops\n\n"), "bad_response", "{oops"),
    "no_done": (response(CHUNK), "truncated", "without [DONE]"),
    "short_body": (response(CHUNK, length=500), "truncated", "in the middle of the answer"),
    "error_inside": (
        response(b'data: {"error": {"message": "EngineCore encountered an issue", "code": 500}}\n\ndata: [DONE]\n\n'),
        "stream_error",
        "EngineCore encountered an issue",
    ),
    "gateway": (
        response(b"<h1>503</h1>", "text/html", "503 Service Unavailable"),
        "http_status",
        "503 is a dead engine",
    ),
    "redirect": (response(b"", status="301 Moved Permanently\r\nLocation: https://x/"), "http_status", "https://x/"),
    "not_found_anywhere": (response(b"nope", "text/plain", "404 Not Found"), "http_status", "root of an OpenAI"),
}


@pytest.mark.parametrize(("answer", "kind", "words"), PEERS.values(), ids=PEERS)
def test_strange_peers_are_named(answer, kind, words):
    with peer(answer) as url:
        result = ask(url, model="tiny", timeout=5)
    assert not result.ok
    assert result.error.kind == kind, result.message
    assert words in result.message


def test_nobody_on_the_port():
    result = ask(f"http://127.0.0.1:{standin.free_port()}", model="tiny")
    assert result.error.kind == "refused"
    assert "vLLM opens its port only when the model is loaded" in result.message


def test_an_unknown_host_name():
    result = ask("http://no-such-host.invalid:8000", model="tiny")
    assert result.error.kind == "dns", result.message
    assert "no address for the host of no-such-host.invalid:8000" in result.message


def test_tls_to_a_server_without():
    with peer(response(b""), read=lambda connection: connection.recv(65536)) as url:
        result = ask(url.replace("http://", "https://"), model="tiny", timeout=5)
    assert result.error.kind == "tls", result.message
    assert "write http://" in result.message


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with the openssl program")
def test_a_certificate_must_be_trusted(tmp_path, monkeypatch):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {certificate} "
        "-days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1".split(),
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    answer = response(CHUNK + b"data: [DONE]\n\n")
    with peer(answer, wrap=lambda connection: context.wrap_socket(connection, server_side=True)) as plain_url:
        url = plain_url.replace("http://", "https://")
        result = ask(url, model="tiny", timeout=5)
        assert result.error.kind == "tls", result.message
        assert "Install the issuing CA" in result.message
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert ask(url, model="tiny", timeout=5).answer.content == "Paris"


def test_a_host_that_drops_connections():
    """A full backlog: the kernel lets further connections wait, as a packet filter would."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        result = ask(f"http://127.0.0.1:{full.getsockname()[1]}", model="tiny", timeout=0.3)
        for each in waiting:
            each.close()
    assert result.error.kind == "timeout_connect", result.message


# --- in a container ---


@pytest.mark.engine
def test_the_stand_in_as_an_image_behind_a_published_port():
    import docker

    client = docker.from_env()
    container = client.containers.create(
        standin.build_image(client, "openai"),
        ["acme/tiny", "--served-model-name", "tiny", "--shutdown-timeout", "5"],
        name=f"vllm-fleet-test-{uuid.uuid4().hex[:8]}",
        environment={"STANDIN_START_SECONDS": "1"},
        ports={"8000/tcp": ("127.0.0.1", 0)},
    )
    try:
        container.start()
        container.reload()
        url = f"http://127.0.0.1:{container.ports['8000/tcp'][0]['HostPort']}"
        loading = ask(url, model="tiny", timeout=1)
        assert not loading.ok
        assert loading.error.kind in ("refused", "closed", "reset"), loading.message
        standin.wait_until_healthy(url)
        result = ask(url, model="tiny", endpoints=("/docs", "/v1/models", "/metrics"))
        assert result.ok, result.message
        assert b"Starting to load model acme/tiny..." in container.logs(stderr=False)
        assert b"4/4 [" in container.logs(stdout=False)
        container.stop(timeout=10)
        assert container.wait()["StatusCode"] == 0
    finally:
        container.remove(force=True)
        client.close()


# --- the module ---


def run_module(check=False, **options):
    """Run `ansible localhost -m vllm_chat`; returns whether it succeeded, its result, and all that was printed."""
    command = [str(Path(sys.executable).with_name("ansible")), "localhost", "-i", "localhost,", "-c", "local"]
    command += ["-e", "ansible_python_interpreter=/usr/bin/python3", "-m", "vllm_chat", "-a", json.dumps(options)]
    done = subprocess.run(
        [*command, "-vvv", *(["--check"] if check else [])],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    found = re.search(r"^localhost \| (SUCCESS|FAILED!) => (\{.*^\})", done.stdout, re.DOTALL | re.MULTILINE)
    assert found, printed
    return found[1] == "SUCCESS", json.loads(found[2]), printed


def test_module_asks_everything_in_one_task_in_check_mode_too():
    with standin.run_process("--api-key", "correct-horse") as running:
        good, result, printed = run_module(
            check=True,
            url=running.url,
            api_key="correct-horse",
            endpoints=["/docs", "/v1/models"],
            requests=[
                {"name": "capital", "prompt": CAPITAL, "expect": {"pattern": "Paris"}},
                {"name": "poem", "messages": [{"role": "user", "content": "A poem about the stars"}], "max_ttft": 5},
                {"api": "completions", "prompt": "The capital of France is", "stream": False},
            ],
        )
        assert running.log.count("POST /v1/") == 3
        assert running.log.count("GET /docs") == 1
    assert good, printed
    assert result["changed"] is False
    assert result["content"] == "The capital of France is Paris."
    assert [each["name"] for each in result["results"]] == ["capital", "poem", "3"]
    assert result["results"][1]["content"].startswith("The stars above")
    assert result["results"][2]["ttft"] is None
    assert {check["request"] for check in result["checks"]} == {"capital", "poem", "3"}
    assert all(check["ok"] for check in result["checks"])
    assert "correct-horse" not in printed


def test_module_fails_on_nonsense_and_still_returns_everything():
    with standin.run_process(nonsense=1) as running:
        good, result, printed = run_module(url=running.url, prompt=CAPITAL, expect={"pattern": "Paris"})
    assert not good
    assert result["changed"] is False
    assert result["msg"].startswith(f"Verification of model 'tiny' at {running.url} failed in check 'pattern'")
    assert result["content"].startswith("L'Étoile")
    assert [check["name"] for check in result["checks"] if not check["ok"]] == ["pattern"]
    assert result["usage"]["total_tokens"] == 37
    assert "Traceback" not in printed


def test_module_names_the_request_that_failed_and_does_not_knock_on_a_closed_door():
    url = f"http://127.0.0.1:{standin.free_port()}"
    good, result, _printed = run_module(
        url=url, requests=[{"name": "capital", "prompt": CAPITAL}, {"name": "poem", "prompt": "A poem"}]
    )
    assert not good
    assert f"(first served) at {url} for 'capital' failed in check 'answer'" in result["msg"]
    assert result["msg"].endswith("1 further request was not sent.")
    assert len(result["results"]) == 1


def test_module_refuses_bad_input_before_it_sends_anything(server):
    before = server.log
    good, result, _printed = run_module(
        url=server.url, requests=[{"name": "capital", "prompt": CAPITAL, "expect": {"pattern": "(Paris"}}]
    )
    assert not good
    assert result["msg"].startswith("Nothing was sent: Request 'capital': pattern '(Paris' is no regular expression")
    assert server.log == before
