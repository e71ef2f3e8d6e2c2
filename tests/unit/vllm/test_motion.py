# SPDX-License-Identifier: Apache-2.0
"""What two readings of the counters and the request between them say of an engine."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.vllm import motion
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatError, ChatRequest, ChatResult
from ansible.module_utils.vllm_fleet.vllm.motion import Page

LATE = ChatError("timeout_idle", "", "")
BROKEN = ChatError("http_status", "", "", 500)


@pytest.mark.parametrize(
    ("before", "error", "after", "engine"),
    [
        (Page((7,)), None, Page((8,)), "answers"),
        (Page((7,)), None, Page((7,)), "answers"),
        (Page((7,)), LATE, Page((7,)), "hung"),
        (Page((7,)), ChatError("timeout_total", "", ""), Page((7,)), "hung"),
        (Page((7,)), LATE, Page((9,)), "busy"),
        # The HTTP process hangs, too.
        (Page(late=True), LATE, Page(late=True), "hung"),
        (Page(late=True), LATE, Page((7,)), ""),
        # Statistics are off, or a gateway keeps them to itself.
        (Page(), LATE, Page(), ""),
        (Page((7,)), BROKEN, Page((7,)), "failing"),
        # It fails some requests and computes others.
        (Page((7,)), BROKEN, Page((9,)), "busy"),
        (Page((7,)), ChatError("http_status", "", "", 503), Page((7,)), ""),
        (Page(), ChatError("truncated", "", ""), Page(), "failing"),
        # Meanwhile it ended.
        (Page((7,)), ChatError("reset", "", ""), Page(), ""),
        (Page(), ChatError("http_status", "", "", 404), Page(), ""),
        (Page(), ChatError("refused", "", ""), Page(), ""),
    ],
)
def test_judge(before, error, after, engine):
    assert motion.judge(before, error, after) == engine
    assert engine == "" or motion.SAYS[engine]


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (None, False),
        (LATE, True),
        (BROKEN, True),
        (ChatError("http_status", "", "", 503), False),
        (ChatError("http_status", "", "", 404), False),
        (ChatError("refused", "", ""), False),
        # It loads, behind a port of Docker's.
        (ChatError("reset", "", ""), False),
        (ChatError("closed", "", ""), False),
        (ChatError("unauthorized", "", "", 401), False),
        (ChatError("truncated", "", ""), True),
    ],
)
def test_a_second_look_is_for_silence_and_errors_of_the_server(error, worth):
    assert motion.worth_a_look(error) is worth


def test_the_second_request_is_a_plain_one(monkeypatch):
    asked = []
    pages = iter([Page((7,)), Page((7,))])
    monkeypatch.setattr(motion, "_page", lambda _: next(pages))
    request = ChatRequest(
        "http://h:1", "m", "chat", prompt="Describe this.", max_tokens=300, endpoints=("/docs",), timeout=300
    )

    def chat(one):
        asked.append(one)
        return ChatResult(one.url, one.model, one.api, error=LATE)

    assert motion.look(request, chat) == "hung"
    (plain,) = asked
    assert (plain.prompt, plain.max_tokens, plain.endpoints, plain.timeout) == ("Hi", 1, (), motion.SECOND)
