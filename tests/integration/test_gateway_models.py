# SPDX-License-Identifier: Apache-2.0
"""A real HAProxy with one address for several models: which model a request means, and which of its servers gets it."""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway_scene import Echo, Gateway, ask, check, echoing, free_ports, render, running, until
from haproxy_program import PROGRAMS

from ansible.module_utils.vllm_fleet.gateway import haproxy

KEY = "fleet-key-of-the-servers"
AUTH = {"Authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"
SMALL = {"small1", "small2", "small3", "small4"}


@pytest.fixture(scope="module")
def echoes() -> Iterator[dict[str, Echo]]:
    """Four servers of one model, one of another, one of a third; two share a name."""
    small = (Echo(name, "acme/small", "little", key=KEY) for name in sorted(SMALL))
    others = (Echo(f"{name}1", f"acme/{name}", "chat", key=KEY) for name in ("large", "next"))
    with echoing(*small, *others) as made:
        yield made


def start(folder: Path, hosts: dict[str, Any], **variables: Any) -> int:
    """Render a gateway in front of them; its port."""
    port, stats = free_ports(2)
    given: dict[str, Any] = {
        "gateway_port": port,
        "gateway_local_offset": 1,
        "gateway_stats_port": stats,
        "gateway_split": {"chat": {"acme/large": 80, "acme/next": 20}},
        "gateway_aliases": {"gpt-5": "acme/large", "open/gpt": "acme/large", "gpt-5-mini": "chat"},
        "gateway_queue_limit": 4,
        "gateway_queue_timeout": 3,
        "gateway_server_maxconn": 8,
    }
    render(folder, hosts, **{**given, **variables})
    return port


def hosts_of(echoes: dict[str, Echo]) -> dict[str, Any]:
    """Their variables in group vllm."""
    return {name: one.host for name, one in echoes.items()}


@pytest.fixture(scope="module")
def described(echoes: dict[str, Echo], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The files of a gateway in front of them, and its port."""
    folder = tmp_path_factory.mktemp("models")
    return folder, start(folder, hosts_of(echoes))


@pytest.fixture(scope="module", params=PROGRAMS)
def gateway(described: tuple[Path, int], request: pytest.FixtureRequest) -> Iterator[Gateway]:
    folder, port = described
    with running(folder, program=request.param, ports={"all": port}) as made:
        yield made


def post(gateway: Gateway, body: Any, path: str = CHAT, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, answer and head."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, text, head = ask(gateway.ports["all"], path, "POST", data, **AUTH, **headers)
    return status, json.loads(text), head


def alone(gateway: Gateway, body: Any, path: str = CHAT, **headers: str) -> str:
    """The server that answers while it has no other request: with one it might have its share."""
    status, told, _ = post(gateway, body, path, **headers)
    assert status == 200, told
    until(lambda: all(one.sessions == 0 for one in gateway.entries()), "nothing is open")
    return str(told["server"])


def talk(text: Any, *more: Any, system: str = "You are helpful.", model: str = "acme/small") -> dict[str, Any]:
    """A conversation that begins with a text of its user."""
    turns = [
        {"role": role, "content": said} for role, said in zip(["user", "assistant"] * 9, [text, *more], strict=False)
    ]
    return {"messages": [{"role": "system", "content": system}, *turns] if system else turns, "model": model}


# -- which model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "servers"),
    [
        ("acme/small", SMALL),
        ("little", SMALL),
        ("small-lora", SMALL),
        ("large-lora", {"large1"}),
        ("acme/large", {"large1"}),
        ("acme/next", {"next1"}),
    ],
)
def test_the_body_says_which_model(gateway: Gateway, model: str, servers: set[str]) -> None:
    for path, body in (
        (CHAT, talk("hi", model=model)),
        (CHAT, {"model": model, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
        ("/v1/completions", {"prompt": "hi", "model": model}),
        ("/v1/embeddings", {"input": ["hi", "ho"], "model": model}),
        ("/v1/responses", {"input": "hi", "model": model}),
    ):
        status, told, _ = post(gateway, body, path)
        assert (status, told["path"], told["server"] in servers) == (200, path, True), told


def test_a_form_says_which_model(gateway: Gateway) -> None:
    sound = (
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n' + b"\0" * 99
    )
    for field in (
        b'Content-Disposition: form-data; name="model"',
        b"Content-Disposition: form-data; name=model\r\nX-Y: z",
    ):
        parts = [field + b"\r\n\r\nacme/large", sound]
        body = b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B--\r\n"
        form = {"Content-Type": "multipart/form-data; boundary=B"}
        assert post(gateway, body, "/v1/audio/transcriptions", **form)[1]["server"] == "large1"


def test_an_unknown_model_is_told_which_are_known(gateway: Gateway) -> None:
    status, told, head = post(gateway, talk("hi", model="gpt-4o"))
    assert (status, head["content-type"], told["error"]["code"]) == (404, "application/json", 404)
    assert told["error"]["message"] == (
        "The model does not exist. Served are: acme/small, little, small-lora, acme/large, chat, large-lora, gpt-5, "
        "open/gpt, gpt-5-mini, acme/next, next-lora."
    )
    assert post(gateway, {"messages": []})[0] == 400
    assert post(gateway, b"no JSON")[0] == 400
    assert ask(gateway.ports["all"], "/v1/responses/resp_1", **AUTH)[0] == 400


def test_a_slash_may_have_a_backslash(gateway: Gateway) -> None:
    """As some encoders write it. One that stands behind another backslash is none."""
    escaped = json.dumps(talk("https://example.org", model="acme/large")).replace("/", "\\/")
    assert post(gateway, escaped.encode())[1]["server"] == "large1"
    assert post(gateway, b'{"x": "C:\\\\users \\\\\\/", "model": "acme\\/large"}')[1]["server"] == "large1"
    assert post(gateway, b'{"model": "acme\\\\/large"}')[0] == 404


def test_many_models_and_adapters_fit_into_the_configuration(tmp_path: Path) -> None:
    """HAProxy reads 64 words of a line."""
    hosts: dict[str, Any] = {
        f"n{number}": {
            "vllm_server_model": f"-{number}",
            "vllm_server_port": 8000 + number,
            "vllm_server_api_key": KEY,
            "vllm_server_bind": "127.0.0.1",
        }
        for number in range(20)
    }
    hosts["n0"]["vllm_server_args"] = {"lora-modules": [f"adapter-{number}=/x" for number in range(200)]}
    start(tmp_path, hosts, gateway_split={}, gateway_aliases={f"alias {n}": "-0" for n in range(200)})
    for program in PROGRAMS:
        check(tmp_path, program)


def test_models_may_have_the_names_of_the_configurations_own_sections(tmp_path: Path) -> None:
    names = ["vllm-fleet-keys", "vllm-fleet-sources", "vllm-fleet-statistics", "vllm-fleet-keys:2", "all-models", "x"]
    names += ["front-x", "front-all-models", "MASTER", "GLOBAL", "defaults", "global"]
    odd = [
        "-f",
        "--",
        "#",
        "100%",
        "$HOME",
        "${HOME}",
        "%[env(PATH)]",
        "a b",
        "\u4f60\u597d",
        "\\",
        "*",
        ",",
        "|1|2|,x,",
        "`id`",
    ]
    hosts: dict[str, Any] = {
        f"n{number}": {
            "vllm_server_model": name,
            "vllm_server_port": 8000 + number,
            "vllm_server_api_key": KEY,
            "vllm_server_bind": "127.0.0.1",
        }
        for number, name in enumerate([*names, *(f"{one}{n}" for n, one in enumerate(odd))])
    }
    start(tmp_path, hosts, gateway_split={}, gateway_aliases={}, gateway_ports={"all-models": free_ports(1)[0]})
    for program in PROGRAMS:
        check(tmp_path, program)


def test_a_header_says_which_model_where_no_body_can(gateway: Gateway) -> None:
    header = {"x-vllm-model": "acme/large"}
    status, text, _ = ask(gateway.ports["all"], "/v1/responses/resp_1", **AUTH, **header)
    assert (status, json.loads(text)["server"], json.loads(text)["model"]) == (200, "large1", None)


def test_all_models_are_listed(gateway: Gateway) -> None:
    status, text, _ = ask(gateway.ports["all"], "/v1/models", **AUTH)
    listed = json.loads(text)
    assert (status, listed["object"]) == (200, "list")
    served = "acme/small little small-lora acme/large chat large-lora gpt-5 open/gpt gpt-5-mini acme/next next-lora"
    assert [one["id"] for one in listed["data"]] == served.split()
    assert ask(gateway.ports["all"], "/v1/models")[0] == 401


# -- aliases -----------------------------------------------------------------------------------------------------------

LARGE = b'{"model": "acme/large", "messages": [{"role": "user", "content": "hi"}]}'


def sized(size: int, model: str) -> bytes:
    """A body with as many letters of a prompt."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "x" * size}]}).encode()


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (LARGE.replace(b"acme/large", b"gpt-5"), LARGE),
        (LARGE.replace(b"acme/large", b"open/gpt"), LARGE),
        (LARGE.replace(b"acme/large", b"open\\/gpt"), LARGE),
        (b'{"messages":[{"model":"gpt-5","content":"\\"model\\": {[\\\\"}], "model"\n:\t"gpt-5"}',
         b'{"messages":[{"model":"gpt-5","content":"\\"model\\": {[\\\\"}], "model"\n:\t"acme/large"}'),
        *[(sized(size, "gpt-5"), sized(size, "acme/large")) for size in (129_000, 130_000, 130_900, 131_000, 5_000_000)],
    ],
)  # fmt: skip
def test_an_alias_is_replaced_and_nothing_else(gateway: Gateway, sent: bytes, wanted: bytes) -> None:
    status, told, _ = post(gateway, sent)
    digest = hashlib.sha256(wanted).hexdigest()
    assert (status, told["server"], told["size"], told["sha256"]) == (200, "large1", len(wanted), digest)
    parts = [sent[place : place + 50_000] for place in range(0, len(sent), 50_000)]
    chunked = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in [*parts, b""])
    with socket.create_connection(("127.0.0.1", gateway.ports["all"]), timeout=20) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode() + chunked)
        answer = client.makefile("rb").read().decode()
    assert digest in answer


def test_an_alias_is_replaced_in_a_form_and_follows_a_split(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    form = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n--B--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    _, told, _ = post(gateway, form % b"gpt-5", "/v1/audio/transcriptions", **kind)
    assert (told["server"], told["sha256"]) == ("large1", hashlib.sha256(form % b"acme/large").hexdigest())
    answers = [post(gateway, {"model": "gpt-5-mini"})[1] for _ in range(40)]
    assert {one["server"] for one in answers} == {"large1", "next1"}
    assert {one["sha256"] for one in answers} == {hashlib.sha256(b'{"model": "chat"}').hexdigest()}
    # A header finds the pool; a body without a name has none to replace, and one behind the buffer is refused.
    assert post(gateway, {"messages": []}, **{"x-vllm-model": "gpt-5"})[1]["server"] == "large1"
    late = json.dumps({"messages": "x" * 200_000, "model": "gpt-5"}).encode()
    with socket.create_connection(("127.0.0.1", gateway.ports["all"]), timeout=20) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nx-vllm-model: gpt-5\r\n"
        client.sendall(f"{head}Content-Length: {len(late)}\r\n\r\n".encode() + late[:150_000])
        assert " 413 " in client.recv(4096).decode().splitlines()[0]


@pytest.mark.parametrize("size", [200_000, 5_000_000])
def test_a_body_larger_than_the_buffer_finds_its_model_or_says_why_not(gateway: Gateway, size: int) -> None:
    messages = [{"role": "user", "content": "x" * size}]
    first = json.dumps({"model": "acme/large", "messages": messages}).encode()
    last = json.dumps({"messages": messages, "model": "acme/large"}).encode()
    status, told, _ = post(gateway, first)
    assert (status, told["server"], told["size"]) == (200, "large1", len(first))
    assert post(gateway, last, **{"x-vllm-model": "acme/large"})[1]["size"] == len(last)
    # Its sender may be cut off before it reads why; HAProxy reads on for a while.
    with socket.create_connection(("127.0.0.1", gateway.ports["all"]), timeout=20) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(last)}\r\n\r\n"
        client.sendall(head.encode() + last[:150_000])
        answer = client.recv(4096).decode()
    assert " 413 " in answer.splitlines()[0]
    assert "send model before the messages, or the header x-vllm-model" in answer


@pytest.mark.parametrize("size", [20, 300_000])
def test_a_chunked_upload_finds_its_model(gateway: Gateway, size: int) -> None:
    data = json.dumps({"model": "acme/large", "messages": [{"role": "user", "content": "x" * size}]}).encode()
    chunks = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    body = b"".join(f"{len(one):x}\r\n".encode() + one + b"\r\n" for one in chunks) + b"0\r\n\r\n"
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.ports["all"]), timeout=20) as client:
        client.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b'"server": "large1"' in answer
    assert f'"size": {len(data)}'.encode() in answer


def test_a_name_of_two_models_goes_to_both_by_their_shares(gateway: Gateway) -> None:
    counts = Counter(post(gateway, talk("hi", model="chat"))[1]["server"] for _ in range(200))
    assert 15 <= counts["next1"] <= 70, counts
    assert counts["large1"] + counts["next1"] == 200
    session = {"x-session-id": "one"}
    assert len({post(gateway, talk("hi", model="chat"), **session)[1]["server"] for _ in range(20)}) == 1


def test_an_administrator_chooses_the_server_at_the_address_of_all_models(gateway: Gateway) -> None:
    for server, model in (("small3", "acme/small"), ("next1", "acme/next")):
        wish = {"x-vllm-fleet-server": server}
        body = json.dumps(talk("hi", model=model)).encode()
        status, text, head = ask(gateway.ports["all"] + 1, CHAT, "POST", body, **AUTH, **wish)
        assert (status, json.loads(text)["server"], head["x-vllm-replica"]) == (200, server, server)


# -- which server ------------------------------------------------------------------------------------------------------

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def test_a_conversation_stays_with_one_server_and_conversations_spread(gateway: Gateway) -> None:
    """Whatever all clients share before it."""
    first: Counter[str] = Counter()
    for number in range(60):
        begin = f"conversation {number}"
        bodies = [
            talk(begin),
            talk(begin, "answer", "again"),
            talk(begin, "answer", "again", "answer", "and again", system="S" * 5000),
            talk(begin, system=""),
        ]
        servers = {alone(gateway, body) for body in bodies}
        assert len(servers) == 1, (number, servers)
        first.update(servers)
    assert set(first) == SMALL
    assert max(first.values()) < 30, first


@pytest.mark.parametrize(
    ("path", "make"),
    [
        (CHAT, lambda n: talk([{"type": "text", "text": f"words {n}"}, PICTURE])),
        (CHAT, lambda n: talk([PICTURE, {"type": "text", "text": f"words {n}"}], system="")),
        (CHAT, lambda n: {**talk("the same"), "prompt_cache_key": f"key {n}"}),
        ("/v1/completions", lambda n: {"prompt": f"words {n}", "model": "little"}),
        ("/v1/completions", lambda n: {"prompt": [f"words {n}", "more"], "model": "little"}),
        ("/v1/responses", lambda n: {"input": f"words {n}", "model": "little"}),
        ("/v1/responses", lambda n: {"input": [{"role": "user", "content": f"words {n}"}], "model": "little"}),
        (CHAT, lambda n: {"model": "little", "messages": [{"role": "user", "content": f"words {n}" + "x" * 200_000}]}),
        # As encoders write it: \\uXXXX for what is not ASCII, \\/ for a slash.
        (CHAT, lambda n: talk(f"W\u00f6rter \u4f60\u597d {n} \U0001f600 C:\\users")),
        (CHAT, lambda n: talk([{"type": "text", "text": f"\u201cwords\u201d {n}"}], system="\u00e9")),
        (CHAT, lambda n: json.dumps(talk(f"https://example.org/{n}")).replace("/", "\\/").encode()),
    ],
)
def test_what_a_conversation_is_known_by(gateway: Gateway, path: str, make: Any) -> None:
    found = []
    for number in range(12):
        servers = {alone(gateway, make(number), path) for _ in range(2)}
        assert len(servers) == 1, number
        found.append(servers.pop())
    assert len(set(found)) > 1, found


@pytest.mark.parametrize("listed", [False, True], ids=["text", "parts"])
def test_a_conversation_of_responses_may_grow(gateway: Gateway, listed: bool) -> None:
    for number in range(12):
        said = f"words {number}"
        first = {"role": "user", "content": [{"type": "input_text", "text": said}] if listed else said}
        more = [{"role": "assistant", "content": "answer"}, {"role": "user", "content": "again"}]
        bodies = [{"model": "little", "input": [first, *more[:count]]} for count in (0, 1, 2)]
        assert len({alone(gateway, body, "/v1/responses") for body in bodies}) == 1, number


def test_what_is_no_conversation_goes_round(gateway: Gateway) -> None:
    for body in ({"model": "little"}, {"model": "little", "messages": []}):
        assert len({alone(gateway, body) for _ in range(12)}) > 1, body


def test_a_session_of_a_header_comes_before_the_text(gateway: Gateway) -> None:
    session = {"x-session-id": "a session"}
    assert len({alone(gateway, talk(f"text {n}"), **session) for n in range(12)}) == 1


def test_a_server_that_comes_back_has_its_conversations_back(gateway: Gateway) -> None:
    before = {n: alone(gateway, talk(f"talk {n}")) for n in range(30)}
    haproxy.ask(gateway.socket, "set server acme_small/small2 state drain")
    try:
        without = {n: alone(gateway, talk(f"talk {n}")) for n in range(30)}
    finally:
        haproxy.ask(gateway.socket, "set server acme_small/small2 state ready")
    assert "small2" not in without.values()
    assert {n for n in before if before[n] != without[n]} == {n for n in before if before[n] == "small2"}
    assert {n: alone(gateway, talk(f"talk {n}")) for n in range(30)} == before


def test_no_server_gets_much_more_than_its_share(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    """Of a conversation that everybody has: bounded load."""
    for name in SMALL:
        echoes[name].delay = 0.4
    try:
        with ThreadPoolExecutor(20) as clients:
            counts = Counter(clients.map(lambda _: post(gateway, talk("hello"))[1]["server"], range(20)))
    finally:
        for name in SMALL:
            echoes[name].delay = 0.0
    assert max(counts.values()) <= 8, counts
    assert len(counts) >= 3, counts


# -- retries and limits ------------------------------------------------------------------------------------------------


def test_a_server_without_a_place_hands_the_request_on(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    echoes["small1"].status = 503
    try:
        echoes["small1"].chats = 0
        answers = [post(gateway, talk(f"full {n}")) for n in range(20)]
        assert {status for status, _, _ in answers} == {200}
        assert {told["server"] for _, told, _ in answers} == SMALL - {"small1"}
        assert echoes["small1"].chats > 0
        for name in SMALL:
            echoes[name].status = 503
        status, _, head = post(gateway, talk("full"))
        assert (status, head["retry-after"]) == (503, "5")
        # What may have been computed is not sent again.
        for name in SMALL:
            echoes[name].status, echoes[name].chats = 500, 0
        assert post(gateway, talk("broken"))[0] == 500
        assert sum(echoes[name].chats for name in SMALL) == 1
    finally:
        for name in SMALL:
            echoes[name].status = 200


def test_too_many_that_wait_are_429_at_once(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    """Eight at the server, four that wait."""
    echoes["large1"].delay = 1.0
    try:
        with ThreadPoolExecutor(20) as clients:
            runs = [clients.submit(post, gateway, talk("busy", model="acme/large")) for _ in range(20)]
            until(lambda: any(run.done() for run in runs), "the first ones are refused")
            early = [run.result() for run in runs if run.done()]
            answers = [run.result() for run in runs]
    finally:
        echoes["large1"].delay = 0.0
    assert {status for status, _, _ in early} == {429}
    assert early[0][2]["retry-after"] == "5"
    assert Counter(status for status, _, _ in answers) == {200: 12, 429: 8}


def test_who_waits_too_long_is_told_to_come_back(gateway: Gateway, echoes: dict[str, Echo]) -> None:
    echoes["large1"].delay = 4.0
    try:
        with ThreadPoolExecutor(9) as clients:
            answers = list(clients.map(lambda _: post(gateway, talk("busy", model="acme/large")), range(9)))
    finally:
        echoes["large1"].delay = 0.0
    assert Counter(status for status, _, _ in answers) == {200: 8, 503: 1}
    ((told, head),) = [(told, head) for status, told, head in answers if status == 503]
    assert (told["error"]["code"], head["retry-after"]) == (503, "5")


def test_one_model_with_sessions_and_aliases(echoes: dict[str, Echo], tmp_path: Path) -> None:
    """No body has to name the one model. A retry has the name of the model, too."""
    few = {name: echoes[name].host for name in sorted(SMALL)}
    aliases = {"gpt-5": "acme/small"}
    port = start(tmp_path, few, gateway_balance="session", gateway_split={}, gateway_aliases=aliases)
    for program in PROGRAMS:
        with running(tmp_path, program=program, ports={"all": port}) as other:
            check_one_model(other, echoes)


def check_one_model(other: Gateway, echoes: dict[str, Echo]) -> None:
    """What one model has to do."""
    assert len({alone(other, talk("the same")) for _ in range(12)}) > 1
    assert len({alone(other, talk(f"text {n}"), **{"x-session-id": "s"}) for n in range(4)}) == 1
    assert "gpt-5" in [one["id"] for one in json.loads(ask(other.ports["all"], "/v1/models", **AUTH)[1])["data"]]
    assert post(other, {"prompt": "hi"})[0] == 200
    echoes["small1"].status, echoes["small1"].chats = 503, 0
    try:
        told = [post(other, {"model": "gpt-5"})[1] for _ in range(8)]
    finally:
        echoes["small1"].status = 200
    assert echoes["small1"].chats > 0
    assert {one["sha256"] for one in told} == {hashlib.sha256(b'{"model": "acme/small"}').hexdigest()}
    assert "small1" not in {one["server"] for one in told}
