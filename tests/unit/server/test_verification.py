# SPDX-License-Identifier: Apache-2.0
"""When a server is verified, and what is said after wrong answers."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.server import verification

SAME = {"changed": False, "actions": [], "confirmed": True}
NEW = {"changed": True, "actions": ["create", "start"], "confirmed": False}


@pytest.mark.parametrize(
    ("result", "mode", "tags", "check_mode", "left_alone"),
    [
        (SAME, "deploy", ["all"], False, False),
        (NEW, "deploy", ["all"], False, False),
        (NEW, "deploy", ["all"], True, True),
        (SAME, "deploy", ["all"], True, False),
        ({}, "deploy", ["verify"], True, False),
        (SAME, "plan", ["all"], False, False),
        (NEW, "plan", ["all"], False, True),
        ({**SAME, "confirmed": False}, "plan", ["all"], False, True),
        ({**SAME, "actions": ["start"]}, "plan", ["rollout"], False, True),
        ({}, "plan", ["all"], False, False),
        (NEW, "plan", ("verify",), False, False),
        (NEW, "plan", ("verify",), True, True),
    ],
)
def test_a_server_that_would_change_is_left_alone(result, mode, tags, check_mode, left_alone):
    assert verification.will_change(result, mode, tags, check_mode=check_mode) is left_alone


BACK = {"container": {"status": "running"}}


@pytest.mark.parametrize(
    ("restored", "result", "says"),
    [
        (BACK, NEW, "The previous server is back and ready."),
        ({"container": None, "msg": "there is none."}, NEW, "It was left as it is: there is none."),
        ({**BACK, "failure": {}, "msg": "it stalled."}, NEW, "It was left as it is: it stalled."),
        ({"container": None}, NEW, "It was left as it is: there is no previous server to put back"),
        ({"skipped": True}, {**SAME, "actions": ["start"]}, "This run only started the server, which was good before;"),
        ({"skipped": True}, SAME, "The server itself was not touched by this run."),
    ],
)
def test_what_serves_after_wrong_answers(restored, result, says):
    assert verification.after_wrong_answers(restored, result).startswith(says)


def chat(engine="", error="timeout_idle"):
    """What vllm_chat returned of a request that failed."""
    return {"failed": True, "engine": engine, "results": [{"error": error}]}


@pytest.mark.parametrize(
    ("said", "more", "restart"),
    [
        (chat("hung"), {}, True),
        (chat("failing", "http_status"), {}, True),
        # It loads, or dies again and again: the watch of its wave finds out which.
        (chat("", "refused"), {}, False),
        (chat("", "reset"), {}, False),
        # Late is no reason, and neither is a wrong answer.
        (chat("busy"), {}, None),
        (chat("answers"), {}, None),
        (chat("", None), {}, None),
        # Nothing follows that could mend it.
        (chat("hung"), {"mode": "deploy"}, None),
        (chat("hung"), {"tags": ["verify"]}, None),
        (chat("hung"), {"tags": ["rollout", "verify"]}, True),
        # It is replaced anyhow, or was never good.
        (chat("hung"), {"result": {**SAME, "actions": ["start"]}}, None),
        (chat("hung"), {"result": {**SAME, "confirmed": False}}, None),
        (chat("hung"), {"ranks": 2}, None),
    ],
)
def test_a_server_without_an_answer_is_mended_by_its_wave(said, more, restart):
    call = {"result": SAME, "mode": "plan", "tags": ["all"], "ranks": 1, **more}
    found = verification.repair(said, call["result"], call["mode"], call["tags"], ranks=call["ranks"])
    assert found.get("restart") is restart
    assert bool(found.get("because")) is (restart is not None)


ASKED = {"restart": True, "silent": False, "because": "a restart was asked for", "asked": True}


@pytest.mark.parametrize(
    ("said", "more", "silent"),
    [
        # It does not listen: without a stop before the start, nothing would happen to it.
        (chat("", "refused"), {}, True),
        (chat("hung"), {}, True),
        (chat("failing", "http_status"), {}, False),
        (chat("busy"), {}, False),
        (chat("", "refused"), {"ranks": 2}, False),
        (chat("busy"), {"asked": {**ASKED, "silent": True}}, True),
    ],
)
def test_a_restart_that_was_asked_for_is_done_whatever_the_server_answers(said, more, silent):
    call = {"ranks": 1, "asked": ASKED, **more}
    assert verification.repair(said, SAME, "plan", ["all"], **call) == {**ASKED, "silent": silent}
    assert not verification.repair(chat("busy"), SAME, "deploy", ["all"], **call)


@pytest.mark.parametrize(
    ("wrong", "restart"),
    [(["adapters"], True), (["adapters", "content"], None), (["endpoint /docs"], None), ([], None)],
)
def test_a_server_that_lost_adapters_is_restarted_and_one_that_is_wrong_besides_is_not(wrong, restart):
    checks = [{"name": "status", "ok": True}, *({"name": name, "ok": False} for name in wrong)]
    said = {"failed": True, "checks": checks, "results": [{"error": None}]}
    found = verification.repair(said, SAME, "plan", ["all"], ranks=1)
    assert found.get("restart") is restart
    assert ("lost adapters" in found.get("because", "")) is bool(restart)
