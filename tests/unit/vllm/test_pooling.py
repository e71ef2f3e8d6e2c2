# SPDX-License-Identifier: Apache-2.0
"""Models that do not write: what is sent, what is right, and in which words what is wrong is told. And the picture."""

from __future__ import annotations

import base64
import json
import struct
import zlib

import hostile
import pytest

from ansible.module_utils.vllm_fleet.vllm import chat, chat_options, motion, picture, pooling
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest, Expectation
from ansible.module_utils.vllm_fleet.vllm.endpoint import Endpoint
from ansible.module_utils.vllm_fleet.watchdog import ask
from ansible.module_utils.vllm_fleet.watchdog.settings import Settings

DOCUMENTS = ("bread", "Paris", "car")
USAGE = {"prompt_tokens": 9, "total_tokens": 9, "completion_tokens": 0}


def vectors(*given, usage=USAGE):
    data = [{"index": at, "object": "embedding", "embedding": one} for at, one in enumerate(given)]
    return {"object": "list", "model": "m", "data": data[::-1], "usage": usage}


def ranked(*given):
    results = [{"index": at, "document": {"text": "x"}, "relevance_score": one} for at, one in given]
    return {"id": "x", "model": "m", "usage": {"prompt_tokens": 9, "total_tokens": 9}, "results": results}


GOOD = vectors([1, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0, 1])


def asked(answer, api="embeddings", first=2, documents=DOCUMENTS):
    """Ask a server that answers with this JSON; the result, and the body that it got."""
    got = []

    def serve(head):
        got.append(head)
        return hostile.answer(json.dumps(answer).encode())

    with hostile.server(serve) as port:
        request = ChatRequest(
            f"http://127.0.0.1:{port}",
            model="m",
            api=api,
            query="capital?",
            documents=documents,
            expect=Expectation(first=first),
            timeout=10,
        )
        return chat.chat(request)


@pytest.mark.parametrize(
    ("answer", "api", "says"),
    [
        (GOOD, "embeddings", "4 vectors of 3 numbers; the nearest first: 2 (0.994), 1 (0.000), 3 (0.000)"),
        (
            ranked((1, 0.98), (0, 0.1), (2, -3.5)),
            "rerank",
            "3 documents scored; the nearest first: 2 (0.980), 1 (0.100)",
        ),
    ],
)
def test_a_right_answer_passes_and_says_what_came(answer, api, says):
    found = asked(answer, api)
    assert found.ok, found.message
    assert says in found.answer.content
    (first, second) = chat_options.build_lines([found.as_dict()]).splitlines()
    assert first.startswith(f"{api} / : ") and second.startswith("  (9 tokens, ")


@pytest.mark.parametrize(
    ("answer", "api", "check", "got"),
    [
        (vectors([1, 0], [0, 1], [0, 1]), "embeddings", "vectors", "3 vectors for 4 texts"),
        (vectors([1, 0], [0, 1], [0, 1], [0, 1, 2]), "embeddings", "vectors", "4 vectors of 2 and 3 numbers"),
        (vectors([1, 0], [0, 1], [0, 0], [0, 1]), "embeddings", "vectors", "a vector of zeros"),
        (vectors([1, 0], [0, None], [1, 0], [0, 1]), "embeddings", "vectors", "numbers that are not finite"),
        (vectors([1, 2], [1, 2], [2, 4], [1, 2]), "embeddings", "vectors", "the same vector for different texts"),
        (vectors([1, 0], [1, 0], [0, 1], [0, 1]), "embeddings", "first", "1 (1.000), 2 (0.000), 3 (0.000)"),
        (vectors([1, 0], [0, 1], [1, 0], [0, 1], usage={}), "embeddings", "usage", "no usage"),
        (
            vectors([1, 0], [0, 1], [1, 0], [0, 1], usage={"prompt_tokens": 3, "total_tokens": 4}),
            "embeddings",
            "usage",
            "3 of 4",
        ),
        ({"object": "list", "model": "m"}, "embeddings", "answer", "JSON without data"),
        (ranked((0, 0.9), (1, 0.1), (2, 0.2)), "rerank", "first", "1 (0.900), 3 (0.200), 2 (0.100)"),
        (ranked((0, 0.9), (1, 0.1)), "rerank", "vectors", "for 3 documents"),
        (ranked((0, 0.9), (1, 0.1), (1, 0.2)), "rerank", "vectors", "for 3 documents"),
        (ranked((0, 0.5), (1, 0.5), (2, 0.5)), "rerank", "vectors", "the same score for all 3 documents"),
        ({"results": [1], "model": "m"}, "rerank", "answer", "JSON without results"),
        ({**GOOD, "model": "other"}, "embeddings", "model", "model 'other'"),
    ],
)
def test_a_wrong_answer_fails_the_check_that_names_it(answer, api, check, got):
    found = asked(answer, api)
    failed = {one.name: one.got for one in found.checks if not one.ok}
    assert got in failed[check], failed
    assert found.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"api": "embeddings"}, "api embeddings needs a query"),
        ({"api": "rerank", "query": "x"}, "api rerank needs documents"),
        ({"api": "rerank", "query": "x", "documents": ["y"], "prompt": "z"}, "takes a query and documents"),
        ({"api": "embeddings", "query": "x", "documents": ["y"], "expect": {"first": 2}}, "one of the 1 documents"),
        ({"api": "chat", "prompt": "x", "query": "y"}, "are for api embeddings and rerank"),
        ({"api": "embeddings", "query": "x", "max_ttft": 1.0}, "max_ttft needs stream"),
        ({"api": "completions", "prompt": "x", "image": "red"}, "image goes with a prompt of api chat"),
        ({"api": "chat", "prompt": "x", "image": "pink"}, "image must be one of red, green, blue"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, words):
    assert words in chat_options.wrong_request({"expect": {}, **options})


def test_the_second_look_and_the_watchdog_ask_through_the_same_api():
    request = ChatRequest("http://127.0.0.1:1", api="rerank", query="x", documents=("y",), timeout=1)
    seen = []

    def answers(plain):
        seen.append((plain.api, plain.query, plain.documents))
        return chat.ChatResult(url=plain.url, model="m", api=plain.api)

    assert motion.look(request, answers) == "answers"
    assert seen == [("rerank", "Hi", ("Hi",))]
    one = {"name": "x", "query": "x"}
    settings = {api: Settings("s", "/s", 1.0, requests=({"api": api, **one},)).api for api in ("chat", *pooling.PATHS)}
    assert settings == {"chat": "completions", "embeddings": "embeddings", "rerank": "rerank"}
    assert Settings("s", "/s", 1.0).api == "completions"
    with hostile.server(lambda _: hostile.answer(b"{}")) as port:
        where = ask.Question(Endpoint("127.0.0.1", port, ()), "m", "embeddings")
        assert ask.token(where, None, 5.0) == "token"


@pytest.mark.parametrize("colour", picture.COLOURS)
def test_the_picture_is_a_png_of_its_colour(colour):
    (part, text) = picture.content("Which colour?", colour)
    assert text == {"type": "text", "text": "Which colour?"}
    data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) < 1000
    at, found = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        found[kind], at = body, at + 12 + length
    assert list(found) == [b"IHDR", b"IDAT", b"IEND"]
    rows = zlib.decompress(found[b"IDAT"])
    assert rows == (b"\0" + bytes(picture.COLOURS[colour]) * picture.SIDE) * picture.SIDE
    body = ChatRequest("http://x", prompt="Which colour?", image=colour).body
    assert body["messages"][0]["content"][1] == text


@pytest.mark.parametrize(
    ("api", "data"),
    [
        ("embeddings", {"data": [{"index": [], "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}]}),
        ("embeddings", {"data": [{"index": 0, "embedding": [10**400]}, {"index": 1, "embedding": [1.0]}]}),
        ("embeddings", {"data": [{"index": n, "embedding": [1e154] * 20} for n in (0, 1)]}),
        ("rerank", {"results": [{"index": {}, "relevance_score": 1}]}),
        ("rerank", {"results": [{"index": 0, "relevance_score": 10**400}]}),
    ],
)
def test_values_of_another_kind_are_no_answer(api, data):
    with pytest.raises(pooling.Unreadable, match="another kind"):
        pooling.scores(api, ["a"], data)
