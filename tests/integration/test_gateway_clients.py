# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy with keys as data: who may use what, how much, and how that changes under load."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import play
import pytest
from gateway_scene import (
    CHAT,
    FLEET,
    KEYS,
    PROGRAM,
    Echo,
    Gateway,
    ask,
    echoing,
    forget,
    free_ports,
    journal,
    logged,
    render,
    running,
    until,
)
from haproxy_program import PROGRAMS

from ansible.module_utils.vllm_fleet.gateway import door, haproxy, keys, usage

PYTHON = "ansible_python_interpreter=/usr/bin/python3"
WRONG = 12


@pytest.fixture(scope="module")
def echoes() -> Iterator[dict[str, Echo]]:
    """Two servers of one model and one of another."""
    small = (Echo(name, "acme/small", "small", key=FLEET) for name in ("n1", "n2"))
    with echoing(*small, Echo("n3", "acme/large", key=FLEET)) as made:
        yield made


@pytest.fixture(scope="module")
def described(
    echoes: dict[str, Echo], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of a gateway with a port for each of the two models, and what a Gateway has of it."""
    folder, log = tmp_path_factory.mktemp("clients"), journal()
    *two, stats = free_ports(3)
    ports = dict(zip(["small", "large"], two, strict=True))
    render(
        folder,
        {name: one.host for name, one in echoes.items()},
        log=f"127.0.0.1:{log.getsockname()[1]}",
        gateway_port=ports["small"],
        gateway_ports={"acme/large": ports["large"]},
        gateway_local_offset=1,
        gateway_stats_port=stats,
        gateway_keys=KEYS,
        gateway_paths=["/tokenize", "/v2/"],
        gateway_source_connections=20,
        gateway_failed_keys_per_minute=WRONG,
    )
    (folder / "keys.map.new").write_text((folder / "keys.map").read_text())
    with log:
        yield folder, {"ports": ports, "log": log}


@pytest.fixture(scope="module", params=PROGRAMS)
def gateway(described: tuple[Path, dict[str, Any]], request: pytest.FixtureRequest) -> Iterator[Gateway]:
    folder, more = described
    (folder / "keys.map").write_text((folder / "keys.map.new").read_text())
    with running(folder, program=request.param, **more) as made:
        yield made


def chat(port: int, key: str, **more: Any) -> tuple[int, Any, dict[str, str]]:
    """Status, answer and head of a chat."""
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], **more}).encode()
    status, text, head = ask(port, CHAT, "POST", body, Authorization=f"Bearer {key}")
    return status, json.loads(text), head


def test_the_servers_key_is_put_in_on_the_way_and_is_no_clients_key(gateway: Gateway) -> None:
    status, told, _ = chat(gateway.ports["small"], "key-of-all")
    assert (status, told["path"]) == (200, CHAT)
    assert chat(gateway.ports["small"], FLEET)[0] == 401
    # An administrator on loopback has the server's key.
    assert chat(gateway.ports["small"] + 1, FLEET)[0] == 200
    assert chat(gateway.ports["small"] + 1, "key-of-all")[0] == 401


def test_a_key_for_some_models_opens_no_other(gateway: Gateway) -> None:
    assert chat(gateway.ports["small"], "key-of-small")[0] == 200
    status, told, head = chat(gateway.ports["large"], "key-of-small")
    assert (status, head["content-type"]) == (403, "application/json")
    assert told["error"] == {
        "message": "This key may not use this model.",
        "type": "PermissionDeniedError",
        "param": None,
        "code": 403,
    }


def test_more_requests_than_a_key_has_in_a_minute_are_429_and_count_nothing(gateway: Gateway) -> None:
    answers = [chat(gateway.ports["small"], "key-of-few") for _ in range(6)]
    assert [status for status, _, _ in answers] == [200] * 3 + [429] * 3
    assert (answers[-1][1]["error"]["code"], answers[-1][2]["retry-after"]) == (429, "21")
    # It is the client's sum, whatever the model.
    assert chat(gateway.ports["large"], "key-of-few")[0] == 429


def test_more_requests_at_a_time_than_a_key_may_have_are_429(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    echoes["n3"].delay = 0.5
    try:
        with ThreadPoolExecutor(3) as pool:
            found = sorted(pool.map(lambda _: chat(gateway.ports["large"], "key-of-one")[0], range(3)))
    finally:
        echoes["n3"].delay = 0.0
    assert found == [200, 429, 429]
    assert chat(gateway.ports["large"], "key-of-one")[0] == 200, "its place is free again"


def test_a_right_key_is_found_right_without_a_request_of_its_client(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    """As playbooks/status.yml asks: it counts neither for limits nor in the log, and reaches no server."""
    forget(gateway)
    chats = sum(one.chats for one in echoes.values())
    doors = [{"host": "127.0.0.1", "port": port, "key": "key-of-few"} for port in gateway.ports.values()]
    assert [door.look(doors, tls=False) for _ in range(5)] == [[]] * 5
    assert sum(one.chats for one in echoes.values()) == chats
    shown = haproxy.ask(gateway.socket, "show table vllm-fleet-keys")
    assert [line for line in shown.splitlines() if "key=few " in line and "gpc0_rate(60000)=3" not in line] == [], shown
    (wrong,) = door.look([{**doors[0], "key": "wrong"}], tls=False)
    assert wrong.endswith("gives 401 with a right key")
    assert ask(gateway.ports["small"], "/v1/marks", "POST", b"{}", Authorization="Bearer key-of-all")[0] == 200
    assert gateway.log
    lines = []
    while not lines or " /v1/marks" not in lines[-1]:
        lines.append(gateway.log.recv(65536).decode())
    assert not [line for line in lines if "HEAD /v1/models" in line and "{few|" in line], lines


def test_a_source_of_many_wrong_keys_is_told_to_wait_and_a_right_key_opens_from_there(gateway: Gateway) -> None:
    ports = [gateway.ports[name] for name in ("small", "large")]
    # A request without a key is no wrong key.
    assert {ask(port, "/v1/models")[0] for port in ports for _ in range(WRONG)} == {401}
    answers = [chat(ports[number % 2], f"wrong-{number}") for number in range(WRONG + 10)]
    assert [status for status, _, _ in answers[-5:]] == [429] * 5
    assert {status for status, _, _ in answers} == {401, 429}
    assert (answers[-1][1]["error"]["message"], answers[-1][2]["retry-after"]) == (
        "Too many wrong keys came from this address.",
        "60",
    )
    assert chat(ports[0], "key-of-all")[0] == 200
    assert ask(ports[0], "/v1/models")[0] == 401
    haproxy.ask(gateway.socket, "clear table vllm-fleet-sources")


def test_paths_that_are_listed_pass_with_a_key(gateway: Gateway) -> None:
    auth = {"Authorization": "Bearer key-of-all"}
    for path, status in (
        ("/tokenize", 200),
        ("/v2/rerank", 200),
        ("/v2/", 404),
        ("/tokenize/x", 404),
        ("/v2/../x", 404),
    ):
        assert ask(gateway.ports["small"], path, "POST", b"{}", **auth)[0] == status, path
    assert ask(gateway.ports["small"], "/tokenize", "POST", b"{}")[0] == 401


def test_one_source_does_not_take_all_places(gateway: Gateway) -> None:
    open_ones: list[Any] = []
    try:
        for _ in range(40):
            with contextlib.suppress(OSError):
                open_ones.append(socket.create_connection(("127.0.0.1", gateway.ports["small"]), timeout=5))
        with pytest.raises(OSError):
            chat(gateway.ports["small"], "key-of-all")
        assert chat(gateway.ports["small"] + 1, FLEET)[0] == 200
    finally:
        for one in open_ones:
            one.close()
    until(lambda: _answers(gateway), "the source has places again", 5)


def _answers(gateway: Gateway) -> bool:
    try:
        return chat(gateway.ports["small"], "key-of-all")[0] == 200
    except OSError:
        return False


def change(folder: Path, content: str) -> list[dict[str, Any]]:
    """Run the module gateway_keys in check mode, then twice; its results."""
    given = {"path": str(folder / "keys.map"), "content": content, "socket": str(folder / "haproxy.sock")}
    tasks: list[dict[str, Any]] = [
        {"name": "Change", "gateway_keys": given, "check_mode": check, "diff": True, "register": f"done{number}"}
        for number, check in enumerate((True, False, False))
    ]
    copy = {"content": "{{ [done0, done1, done2] | to_json }}", "dest": str(folder / "done.json"), "mode": "0600"}
    tasks.append({"name": "Note", "ansible.builtin.copy": copy})
    made = {"name": "Change", "hosts": "localhost", "gather_facts": False, "tasks": tasks}
    (folder / "keys.yml").write_text(json.dumps([made]))
    done = subprocess.run(
        [play.PLAYBOOK, "-i", "localhost,", "-c", "local", "-e", PYTHON, "-vvv", str(folder / "keys.yml")],
        capture_output=True,
        text=True,
        env=play.environment(),
        cwd=play.ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Neither a key nor its hash is in what a run says, however loud it is.
    for line in content.splitlines():
        assert line.partition(" ")[0] not in done.stdout, "a hash is shown"
    found: list[dict[str, Any]] = json.loads((folder / "done.json").read_text())
    return found


def test_keys_change_under_load_without_a_reload(gateway: Gateway) -> None:
    path = gateway.folder / "keys.map"
    before = path.read_text()
    pools = [{"name": "acme_small", "names": ["acme/small"], "key": True, "head": "n1"}]
    added = [*KEYS, {"name": "new", "key": "key-of-new", "models": ["acme/small"]}]
    after = keys.key_map({}, pools, [entry for entry in added if entry["name"] != "one"])
    pid = gateway.pid
    stop, lost = threading.Event(), []

    def load() -> int:
        count = 0
        while not stop.wait(0.01):
            status = chat(gateway.ports["small"], "key-of-all")[0]
            lost.extend([status] * (status != 200))
            count += 1
        return count

    with ThreadPoolExecutor(2) as clients:
        runs = [clients.submit(load) for _ in range(2)]
        try:
            would, did, again = change(gateway.folder, after)
        finally:
            stop.set()
    asked = sum(run.result() for run in runs)
    print(f"{asked} requests while keys changed, {len(lost)} lost")
    assert (lost, asked > 50) == ([], True)
    assert [one["changed"] for one in (would, did, again)] == [True, True, False]
    assert would["diff"]["after"] == did["diff"]["after"] == "new: added\none: removed\n"
    assert chat(gateway.ports["small"], "key-of-new")[0] == 200
    assert chat(gateway.ports["small"], "key-of-one")[0] == 401
    assert (path.read_text(), path.stat().st_mode & 0o777) == (after, 0o600)
    assert haproxy.map_text(gateway.socket, str(path)) == after
    assert gateway.pid == pid
    # What the process lost, such as a map that was changed by hand, is set right again.
    haproxy.ask(gateway.socket, f"clear map {path}")
    assert chat(gateway.ports["small"], "key-of-all")[0] == 401
    sums = haproxy.sums({str(path): after})
    assert haproxy.survey(gateway.socket, PROGRAM, sums, sums.get, sums)["differing"] == [str(path)]
    assert haproxy.replace_map(gateway.socket, str(path), after)
    assert haproxy.survey(gateway.socket, PROGRAM, sums, sums.get, sums)["differing"] == []
    many = keys.key_map({}, pools, [{"name": f"client-{n}", "key": f"key-{n}"} for n in range(200)])
    assert haproxy.replace_map(gateway.socket, str(path), many)
    assert haproxy.replace_map(gateway.socket, str(path), before)


def test_no_key_of_a_client_is_anywhere(gateway: Gateway) -> None:
    texts = [(gateway.folder / name).read_text() for name in ("gateway.cfg", "secrets.cfg", "keys.map")]
    words = Path("/proc", gateway.pid, "cmdline").read_text()
    for entry in KEYS:
        assert not any(entry["key"] in text for text in [*texts, words])


def test_the_log_says_who_used_what_and_neither_key_nor_prompt(gateway: Gateway) -> None:
    forget(gateway)
    body = json.dumps({"messages": [{"role": "user", "content": "a secret question"}], "model": "acme/large"}).encode()
    auth = {"Authorization": "Bearer key-of-all"}
    assert ask(gateway.ports["small"], "/v1/who", "POST", body, **auth)[0] == 200
    (line,) = logged(gateway, 1, "/v1/who")
    assert not any(word in line for word in ("key-of-all", "secret", keys.digest("key-of-all")))
    found = usage.read_line(line)
    assert found
    assert {name: found[name] for name in ("key", "model", "tokens_in", "tokens_out", "with_tokens", "errors")} == {
        "key": "all",
        "model": "acme/large",
        "tokens_in": 11,
        "tokens_out": 7,
        "with_tokens": 1,
        "errors": 0,
    }


def test_tokens_of_streams_and_large_answers_are_read_and_clients_write_nothing(
    gateway: Gateway, echoes: dict[str, Echo]
) -> None:
    """A stream's last part and the end of 5 MB name them; what a model or a client says does not."""
    usual = {"prompt_tokens": 21, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    forged = {"content": '"usage": {"prompt_tokens": 99}'}
    parts = [
        {"choices": [forged], "usage": None},
        *({"choices": [{"n": n}], "usage": None} for n in range(500)),
    ]
    answers = {
        "stream": [f"data: {json.dumps(part)}\n\n" for part in [*parts, {"choices": [], "usage": usual}, "[DONE]"]],
        "silent": [f"data: {json.dumps(part)}\n\n" for part in [*parts, "[DONE]"]],
        "large": [json.dumps({"choices": [{**forged, "text": "y" * 5_000_000}], "usage": usual})],
        "responses": [json.dumps({"usage": {"input_tokens": 21, "output_tokens": 3}, "output": ["x"]})],
        "nonsense": ['{"usage": {"prompt_tokens": "many", "completion_tokens": -1}}'],
        "broken": ['{"usage": {"prompt_tokens": 21'],
    }
    words = {"x-vllm-model": 'x|y} "POST', "User-Agent": "a\tb{c|1|2|3} GET /"}
    paths = [f"/v1/tokens/{kind}?api_key=secret" for kind in answers]
    forget(gateway)
    try:
        for (_, made), path in zip(answers.items(), paths, strict=True):
            echoes["n3"].parts = made
            auth = {"Authorization": "Bearer key-of-all", **words}
            status, text, _ = ask(gateway.ports["large"], path, "POST", b'{"model": "z|1|2|3} x"}', **auth)
            assert (status, text) == (200, "".join(made))
        found = logged(gateway, len(answers), "/v1/tokens/")
    finally:
        echoes["n3"].parts = []
    assert not any("secret" in line for line in found)
    read = [usage.read_line(line) for line in found]
    assert [
        one and (one["key"], one["model"], one["with_tokens"], one["tokens_in"], one["tokens_out"]) for one in read
    ] == [
        ("all", "acme/large", 1, 21, 3),
        ("all", "acme/large", 0, 0, 0),
        ("all", "acme/large", 1, 21, 3),
        ("all", "acme/large", 1, 21, 3),
        ("all", "acme/large", 0, 0, 0),
        ("all", "acme/large", 0, 0, 0),
    ]
    assert all(one and sum(one["first"].values()) == 1 for one in read)
