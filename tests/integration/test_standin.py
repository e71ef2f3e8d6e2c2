# SPDX-License-Identifier: Apache-2.0
"""The stand-in is like what was recorded from vLLM 0.32.0, and does what it is ordered to do."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import standin

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "vllm-0.32.0-cpu"
PREFIX = re.compile(
    r"^\((?:APIServer|EngineCore|Worker\w*) pid=\d+\) (?:INFO|WARNING|ERROR) \d\d-\d\d [\d:]{8} \[\S+:\d+\] "
)


def vllm(*arguments, **behaviour):
    """Run to the end; returns the finished process."""
    environ = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "STANDIN_START_SECONDS": "0"}
    environ |= {f"STANDIN_{name.upper()}": str(value) for name, value in behaviour.items()}
    command = [standin.PYTHON, str(standin.SOURCE / "vllm"), *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=20, check=False)
    # Not text=True: it would turn the carriage returns of the bars into newlines.
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def get(url, path, method="GET", body=None, headers=None):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def question(**options):
    return {"model": "tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]} | options


# --- command line ---


def test_an_unknown_flag_is_refused_as_recorded():
    done = vllm("serve", "acme/tiny", "--gpu-mem-utilisation")
    assert done.returncode == 2
    recorded = (FIXTURES / "unknown_flag.log").read_text().splitlines()[-1]
    assert done.stderr.splitlines()[-1] == recorded.replace("api_server.py:", "vllm:")


def test_every_recorded_flag_is_listed_and_no_other():
    recorded = set(re.findall(r"(?<=[\[ ])--[a-z][\w-]+", (FIXTURES / "unknown_flag.log").read_text()))
    recorded -= {"--gpu-mem-utilisation"}
    listed = set(re.findall(r"(?<= )--[a-z][\w-]+", vllm("serve", "--help=all").stdout)) - {"--help"}
    assert listed == recorded
    assert {"--tensor-parallel-size", "--no-enforce-eager", "--shutdown-timeout"} <= listed


def test_help_by_word_and_version():
    assert "--max-model-len" in vllm("serve", "--help=max_model_len").stdout
    assert vllm("--version").stdout == "0.32.0\n"


def test_a_value_of_the_wrong_kind_is_refused():
    done = vllm("serve", "acme/tiny", "--port", "http")
    assert done.returncode == 2
    assert "argument --port: invalid int value: 'http'" in done.stderr


def test_real_flags_in_all_their_spellings_are_taken():
    arguments = (
        "-tp 8 --enable-expert-parallel --no-enable-prefix-caching --max_model_len 32k --dtype=float32 --revision"
    )
    arguments += (
        " abc --compilation-config.mode 3 --trust-remote-code --gpu-memory-utilization 0.9 --kv-cache-dtype fp8"
    )
    with standin.run_process(*arguments.split(), served="a") as running:
        status, body = get(running.url, "/v1/models")
        card = json.loads(body)["data"][0]
        assert (status, card["id"], card["root"], card["max_model_len"]) == (200, "a", "acme/tiny", 32000)
        assert "(Worker_TP0 pid=" in running.log


def test_a_misspelt_order_is_refused():
    done = vllm("serve", "acme/tiny", nonsens=1)
    assert done.returncode == 2
    assert "unknown variable STANDIN_NONSENS" in done.stderr


def test_the_readme_lists_every_order():
    source = (standin.SOURCE / "standin_vllm" / "behaviour.py").read_text()
    fields = re.findall(r"^    (\w+): (?:float|int|str|bool) = ", source, re.MULTILINE)
    readme = (standin.SOURCE / "README.md").read_text()
    assert len(fields) > 15
    assert [name for name in fields if f"`STANDIN_{name.upper()}`" not in readme] == []


def test_it_fails_where_a_file_says_so(tmp_path):
    assert vllm("serve", "acme/tiny", fail_if=tmp_path).returncode == 1


# --- start ---

MILESTONES = (
    r"version 0\.32\.0",
    r"non-default args: \{.*'model': ",
    r"Resolved architecture: LlamaForCausalLM",
    r"Using max model len \d+",
    r"Initializing a V1 LLM engine \(v0\.32\.0\) with config: model='",
    r"Starting to load model \S+\.\.\.",
    r"Loading safetensors checkpoint shards:   0% Completed \| 0/\d+ \[00:00<\?, \?it/s\]",
    r"Loading safetensors checkpoint shards: 100% Completed \| (\d+)/\1 \[00:0\d<00:0\d, +[\d.]+it/s\]",
    r"Loading weights took [\d.]+ seconds",
    r"[CG]PU KV cache size: [\d,]+ tokens, Maximum concurrency for [\d,]+ tokens per request: [\d.]+x",
    r"init engine \(profile, create kv cache, warmup model\) took [\d.]+ s",
    r"Starting vLLM server on http://\S+:\d+",
    r"Route: /v1/chat/completions, Methods: POST",
    r"INFO:     Application startup complete\.",
    r'INFO:     127\.0\.0\.1:\d+ - "GET /health HTTP/1\.1" 200 OK',
)


def places(text):
    return [match.start() if (match := re.search(milestone, text)) else milestone for milestone in MILESTONES]


def test_the_log_has_the_recorded_milestones_in_the_recorded_order():
    with standin.run_process("--enforce-eager") as running:
        ours = places(running.log)
        routes = set(re.findall(r"Route: (\S+), Methods: (.+)", running.log))
    recorded_log = (FIXTURES / "ready.log").read_text()
    recorded = places(recorded_log)
    assert recorded == sorted(recorded)
    assert ours == sorted(ours)
    assert routes <= set(re.findall(r"Route: (\S+), Methods: (.+)", recorded_log))


def test_logger_lines_go_to_stdout_and_bars_to_stderr():
    done = vllm("serve", "acme/tiny", "--port", str(standin.free_port()), die_after=0.01, die_exit=3)
    assert done.returncode == 3
    assert all(PREFIX.match(line) for line in done.stdout.splitlines())
    assert done.stderr.count("\rCapturing CUDA graphs") == 3
    assert "100% Completed | 4/4" in done.stderr
    assert not any(PREFIX.match(line) for line in done.stderr.splitlines())


def test_the_port_is_refused_until_the_load_is_over():
    with standin.run_process(ready=False, start_seconds=0.6) as running:
        begun = time.monotonic()
        refused = 0
        while True:
            try:
                status, body = get(running.url, "/health")
                break
            except ConnectionRefusedError:
                refused += 1
                time.sleep(0.02)
        assert (status, body) == (200, b"")
        assert refused > 5
        assert time.monotonic() - begun > 0.5


def test_a_taken_port_ends_the_start_as_recorded():
    with socket.create_server(("127.0.0.1", 0)) as owner:
        done = vllm("serve", "acme/tiny", "--host", "127.0.0.1", "--port", str(owner.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (FIXTURES / "port_in_use.log").read_text().splitlines()[-1]
    assert "Initializing a V1 LLM engine" not in done.stdout


def test_a_recorded_failure_is_replayed_to_both_streams():
    recorded = FIXTURES / "memory_utilization.log"
    done = vllm(
        "serve", "acme/tiny", "--port", str(standin.free_port()), fail_log=recorded, fail_exit=7, fail_at="load"
    )
    assert done.returncode == 7
    assert "Starting to load model acme/tiny" in done.stdout
    printed = done.stdout.splitlines() + done.stderr.splitlines()
    assert set(recorded.read_text().splitlines()) <= set(printed)
    assert done.stderr.rstrip().splitlines()[-1].startswith("RuntimeError: Engine core initialization failed")


def test_a_failure_without_a_log_has_a_root_cause_and_a_wrapper():
    done = vllm("serve", "acme/tiny", "--port", str(standin.free_port()), fail_at="compile")
    assert done.returncode == 1
    assert "Starting torch.compile" in done.stdout
    assert "RuntimeError: failure ordered at stage compile" in done.stdout
    assert "Engine core initialization failed. See root cause above." in done.stderr


@pytest.mark.parametrize(("busy", "least", "most"), [(0, 0.0, 0.02), (1, 0.03, 0.5)], ids=["hung", "busy"])
def test_a_silent_stage_says_nothing_and_works_only_when_told_to(busy, least, most):
    with standin.run_process(ready=False, stage_silent="load", busy_cpu=busy) as running:
        while "Starting to load model" not in running.log:
            time.sleep(0.01)
        log, cpu = running.log, cpu_seconds(running.process.pid)
        time.sleep(0.5)
        assert running.log == log
        assert least <= cpu_seconds(running.process.pid) - cpu <= most
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 130
        assert running.log.endswith("KeyboardInterrupt: terminated\n")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_silence_may_end_and_a_file_grow_in_it(tmp_path):
    grown = tmp_path / "blob.incomplete"
    with standin.run_process(stage_silent="shards", silent_seconds=0.3, grow_file=grown):
        assert grown.stat().st_size > 65536


# --- serving ---


def test_the_key_guards_v1_alone():
    with standin.run_process(VLLM_API_KEY="secret") as running:
        assert get(running.url, "/v1/models") == (401, b'{"error": "Unauthorized"}')
        assert get(running.url, "/v1/models", headers={"Authorization": "Bearer secret"})[0] == 200
        assert [get(running.url, path)[0] for path in ("/health", "/metrics", "/version", "/docs")] == [200] * 4
        assert "secret" not in running.log


def test_orders_change_what_it_does_while_it_serves():
    with standin.run_process(control=1) as running:

        def ask():
            return get(running.url, "/v1/chat/completions", "POST", question())[0]

        assert ask() == 200
        assert get(running.url, "/standin/slow", "POST", 0.5)[0] == 200
        began = time.monotonic()
        assert ask() == 200
        assert time.monotonic() - began >= 0.5
        assert get(running.url, "/standin/leak", "POST")[0] == 200
        assert [ask() for _ in range(4)] == [500, 200, 200, 500]
        assert get(running.url, "/standin/what", "POST")[0] == 404


def test_a_path_beside_v1_answers_without_the_key():
    with standin.run_process(VLLM_API_KEY="secret") as running:
        assert "Paris" in get(running.url, "/invocations", "POST", question())[1].decode()


@pytest.mark.parametrize("half", [False, True], ids=["close", "half"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_hangs_up_ends_its_request(stream, half):
    with standin.run_process("--max-num-seqs", "1", token_delay=30) as running:
        clients = []
        for _ in range(2):
            body = json.dumps({**question(), "stream": stream}).encode()
            clients.append(socket.create_connection(("127.0.0.1", running.port), timeout=5))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            clients[-1].sendall(head.encode() + body)

        def counted():
            return [gauge(running.url, f"num_requests_{name}") for name in ("running", "waiting")]

        until(lambda: counted() == [1, 1])
        for client in clients:
            client.shutdown(socket.SHUT_WR) if half else client.close()
        until(lambda: counted() == [0, 0])
        for client in clients:
            client.close()


def until(true):
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def gauge(url, name):
    return float(re.search(rf"^vllm:{name}{{.*}} (\S+)$", get(url, "/metrics")[1].decode(), re.MULTILINE)[1])


def test_metrics_count_running_and_waiting_requests():
    with standin.run_process("--max-num-seqs", "2", hang_request=1) as running:
        for _ in range(3):
            threading.Thread(target=fetch_quietly, args=(running.url,), daemon=True).start()
        until(lambda: sum(gauge(running.url, f"num_requests_{name}") for name in ("running", "waiting")) == 3)
        assert (gauge(running.url, "num_requests_running"), gauge(running.url, "num_requests_waiting")) == (2, 1)
        assert json.loads(get(running.url, "/load")[1]) == {"server_load": 3}


def fetch_quietly(url, answers=None):
    """Ask; what comes, or the class of what went wrong, is put into `answers`."""
    try:
        answer = get(url, "/v1/chat/completions", "POST", question())
    except (OSError, http.client.HTTPException) as error:
        answer = type(error)
    if answers is not None:
        answers.append(answer)


def test_never_healthy_listens_and_says_503():
    with standin.run_process(never_healthy=1, ready=False) as running:
        end = time.monotonic() + 5
        while "Application startup complete" not in running.log and time.monotonic() < end:
            time.sleep(0.02)
        assert get(running.url, "/health") == (503, b"")


# --- end ---


@pytest.mark.parametrize(("timeout", "finishes"), [(5, True), (0, False)], ids=["drain", "abort"])
def test_sigterm_drains_for_the_shutdown_timeout_and_ends_with_code_0(timeout, finishes):
    with standin.run_process("--shutdown-timeout", str(timeout), token_delay=0.1) as running:
        answers = []
        asking = threading.Thread(target=fetch_quietly, args=(running.url, answers))
        asking.start()
        end = time.monotonic() + 5
        while b"running{" not in (body := get(running.url, "/metrics")[1]) or not re.search(rb"running{.*} 1\.0", body):
            assert time.monotonic() < end
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        if finishes:
            while "shutdown triggered" not in running.log:
                time.sleep(0.01)
            assert get(running.url, "/health")[0] == 200
            status, body = get(running.url, "/v1/chat/completions", "POST", question())
            assert (status, b"cannot schedule new futures after shutdown" in body) == (500, True)
        assert running.process.wait(5) == 0
        asking.join(5)
        assert (answers[0][0] == 200 if isinstance(answers[0], tuple) else False) == finishes
        assert (time.monotonic() - begun > 0.3) == finishes
        assert f"stopping engine client mode={'drain' if finishes else 'abort'} timeout={timeout}s" in running.log


def test_sigterm_may_be_ignored():
    with standin.run_process(ignore_term=1) as running:
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert get(running.url, "/health")[0] == 200


def test_a_dead_engine_ends_the_process_with_code_0():
    with standin.run_process(die_after=0.2) as running:
        assert running.process.wait(5) == 0
        assert "EngineDeadError: EngineCore encountered an issue." in running.log
