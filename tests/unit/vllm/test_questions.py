# SPDX-License-Identifier: Apache-2.0
"""Questions with known answers, and the figures of answers and loads."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.vllm_fleet.vllm import questions
from ansible.module_utils.vllm_fleet.vllm.chat_request import Answer, ChatError, ChatResult

ROOT = Path(__file__).parents[3]
SERVER = {"url": "http://127.0.0.1:8000", "model": "m", "timeout": 5.0}
KINDS = {"chat": ["chat"], "completions": ["completions"], "pooled": ["embeddings", "rerank"]}


def asked(kind):
    return yaml.safe_load((ROOT / f"models/questions/{kind}.yml").read_text())


@pytest.mark.parametrize(("kind", "api"), [(kind, api) for kind, apis in KINDS.items() for api in apis])
def test_twenty_questions_of_each_kind_that_can_be_asked(kind, api):
    found = [{"api": api, **one} for one in asked(kind)]
    assert len({one["name"] for one in found}) == len(found) == 20
    assert [questions.question_fault(one) for one in found] == [""] * 20
    for one in found:
        assert questions.request(one, SERVER).api == api


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_a_server_that_repeats_its_question_knows_no_answer(kind):
    for one in asked(kind):
        assert not re.search(one["pattern"], one["prompt"], re.IGNORECASE | re.MULTILINE), one["name"]


def test_the_stand_in_knows_the_questions_of_chat_and_gets_a_share_of_them_wrong():
    sys.path.insert(0, str(ROOT / "tests/standin"))
    from standin_vllm.answers import answer

    for share, right in ((0, 20), (0.3, 14), (1, 1)):
        good = [bool(re.search(one["pattern"], answer(one["prompt"], share), re.IGNORECASE)) for one in asked("chat")]
        assert sum(good) == right, dict(zip([one["name"] for one in asked("chat")], good, strict=True))
        assert good[0], "what a verification asks is right"


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"prompt": "p", "pattern": "x"}, "needs a name"),
        ({"name": "n", "prompt": "p"}, "needs a pattern"),
        ({"name": "n", "prompt": "p", "pattern": "("}, "question 'n': "),
        ({"name": "n", "pattern": "x"}, "question 'n': 'prompt'"),
        ({"name": "n", "api": "rerank", "query": "q", "documents": ["a"], "first": 2}, "expect.first is 2"),
        ({"name": "n", "api": "nothing", "prompt": "p", "pattern": "x"}, "api must be one of"),
    ],
)
def test_a_question_that_cannot_be_asked(question, says):
    assert says in questions.question_fault(question)


def result(content="", reasoning="", error=None, **more):
    made = ChatResult(url="u", model="m", api="chat", error=error, **more)
    made.answer = Answer(content=content, reasoning=reasoning, usage={"completion_tokens": 10})
    return made


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (result("It is Paris."), True),
        (result("it is PARIS"), True),
        (result("", reasoning="The user wants Paris"), True),  # a model that thinks had no tokens left
        (result("L'Étoile, la Marseillaise"), False),
        (result("Paris", error=ChatError("truncated", "", "")), False),
    ],
)
def test_what_counts_as_right(answer, right):
    assert questions.right({"pattern": "Paris"}, answer) is right


def test_figures_of_answers_hold_no_text_of_a_server():
    one = {"name": "capital", "prompt": "p", "pattern": "Paris"}
    found = questions.answers([one, {**one, "name": "other"}], [result("Paris \x1b[2J"), result("Lyon")])
    assert (found["asked"], found["right"], found["errors"]) == (2, 1, 0)
    assert found["each"]["capital"] == [True, questions.mark(result(" Paris   \x1b[2J"))]
    assert found["each"]["other"][1] == questions.mark(result("Lyon"))
    assert re.fullmatch("[0-9a-f]{12}", found["each"]["capital"][1])
    again = questions.answers([one], [result("Paris")])
    assert again["of"] == questions.identity([one]) != found["of"]


def test_figures_of_a_run():
    good = [result(ttft=seconds, tokens_per_second=50.0) for seconds in (0.1, 0.2, 0.4)]
    bad = result(error=ChatError("http_status", "", ""))
    assert questions.run([*good, bad], 2.0) == {
        "ttft": 0.2,
        "itl": 0.02,
        "tokens_per_second": 15.0,
        "requests": 4,
        "errors": 1,
    }
    assert questions.run([bad], 2.0)["tokens_per_second"] is None


def test_prompts_of_a_load_have_the_asked_length_and_no_common_beginning():
    load = {"input_tokens": 50, "output_tokens": 7}
    first, second = (questions.load_request(load, number, SERVER) for number in ("a-0-1", "a-0-2"))
    assert len(first.prompt.split()) == 51
    assert first.prompt.split()[0] != second.prompt.split()[0]
    assert first.body | {"prompt": ""} == {
        "prompt": "",
        "max_tokens": 7,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
