# SPDX-License-Identifier: Apache-2.0
"""What chat_request.py and chat_wire.py make of bytes, chunks and answers, without a server."""

import json

import pytest

from ansible.module_utils.vllm_fleet.vllm import chat_options
from ansible.module_utils.vllm_fleet.vllm.chat_request import (
    Answer,
    ChatError,
    ChatRequest,
    ChatResult,
    Expectation,
    check_answer,
    error_text,
    shorten,
)
from ansible.module_utils.vllm_fleet.vllm.chat_wire import SSEParser

# --- server-sent events ---

STREAMS = {
    "vllm": (b'data: {"a": 1}\n\ndata: [DONE]\n\n', ['{"a": 1}', "[DONE]"]),
    "crlf": (b"data: one\r\n\r\ndata: two\r\n\r\n", ["one", "two"]),
    "cr_alone": (b"data: one\r\rdata: two\r\r", ["one", "two"]),
    "mixed_ends": (b"data: one\r\n\ndata: two\n\r\n", ["one", "two"]),
    "keep_alive_comment": (b": ping\n\ndata: one\n\n: ping\n\n", ["one"]),
    "no_space_after_colon": (b"data:one\n\ndata:  two\n\n", ["one", " two"]),
    "several_lines_of_one_event": (b"data: one\ndata: two\n\n", ["one\ntwo"]),
    "other_fields": (b"event: x\nid: 3\nretry: 10\ndata: one\n\n", ["one"]),
    "event_without_data": (b"data\n\ndata: one\n\n", ["one"]),
    "characters_of_several_bytes": ("data: L'Étoile ✨ 星\n\n".encode(), ["L'Étoile ✨ 星"]),
    "byte_order_mark": (b"\xef\xbb\xbfdata: one\n\n", ["one"]),
    "unfinished_event_is_held_back": (b"data: one\n\ndata: two\n", ["one"]),
    "colon_in_the_value": (b"data: a: b\n\n", ["a: b"]),
    "other_line_separators_are_text": ("data: a\u2028b\x0bc\n\n".encode(), ["a\u2028b\x0bc"]),
    "empty": (b"", []),
}


@pytest.mark.parametrize(("raw", "events"), STREAMS.values(), ids=STREAMS)
def test_events_come_out_the_same_wherever_the_bytes_are_cut(raw, events):
    cuts = [[raw], [raw[i : i + 1] for i in range(len(raw))], *([raw[:i], raw[i:]] for i in range(len(raw)))]
    for chunks in cuts:
        parser = SSEParser()
        assert [event for chunk in chunks for event in parser.feed(chunk)] == events, chunks


# --- answers ---


def chunk(**delta):
    finish = delta.pop("finish_reason", None)
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_a_streamed_chat_is_put_together():
    answer = Answer()
    brought_text = [
        answer.add(data)
        for data in (
            chunk(role="assistant", content=""),
            chunk(reasoning="hm"),
            chunk(content="Par"),
            chunk(content="is"),
            chunk(content=None, finish_reason="stop"),
            {"model": "m", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}},
        )
    ]
    assert brought_text == [False, True, True, True, False, False]
    assert (answer.content, answer.reasoning, answer.finish_reason, answer.model) == ("Paris", "hm", "stop", "m")
    assert answer.usage["total_tokens"] == 5


@pytest.mark.parametrize(
    "data",
    [
        {"model": "m", "choices": [{"message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}]},
        {"model": "m", "choices": [{"text": "Paris", "finish_reason": "stop"}]},
    ],
    ids=["chat", "completions"],
)
def test_a_whole_answer_is_taken_in(data):
    answer = Answer()
    assert answer.add(data)
    assert (answer.content, answer.finish_reason) == ("Paris", "stop")


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (
            {"error": {"message": "EngineCore encountered an issue", "code": 500}},
            "stream_error",
            "EngineCore encountered",
        ),
        ({"object": "error", "message": "too long"}, "stream_error", "too long"),
        ({"hello": "world"}, "bad_response", "hello"),
        ({"choices": "none"}, "bad_response", "choices"),
    ],
)
def test_what_is_no_answer_is_named(data, kind, words):
    with pytest.raises(ChatError, match=words) as caught:
        Answer().add(data)
    assert caught.value.kind == kind


def test_odd_types_inside_an_answer_do_not_end_in_a_traceback():
    answer = Answer()
    assert not answer.add(
        {"model": 3, "choices": [None, 7, {"delta": None}, {"delta": {"content": [1]}}], "usage": "no"}
    )
    assert answer.content == ""
    assert answer.usage == {}


# --- checks ---

GOOD_USAGE = {"prompt_tokens": 13, "completion_tokens": 8, "total_tokens": 21}


def checks_of(answer=None, request=None, expect=None, **measured):
    answer = {"content": "It is Paris.", "model": "m", "finish_reason": "stop", "usage": GOOD_USAGE} | (answer or {})
    asked = ChatRequest("http://h:1", "m", prompt="?", expect=Expectation(**(expect or {})), **(request or {}))
    result = ChatResult("http://h:1", "m", "chat", answer=Answer(**answer), **measured)
    result.checks = check_answer(asked, result)
    return result, {check.name for check in result.checks if not check.ok}


CASES = {
    "good": ({}, set()),
    "pattern_found": ({"expect": {"pattern": "Paris"}}, set()),
    "pattern_keeps_the_case": ({"expect": {"pattern": "paris"}}, {"pattern"}),
    "pattern_may_ignore_the_case": ({"expect": {"pattern": "(?i)paris"}}, set()),
    "empty": ({"answer": {"content": ""}}, {"min_chars"}),
    "white_space_is_empty": ({"answer": {"content": " \n\t "}}, {"min_chars"}),
    "empty_may_be_allowed": ({"answer": {"content": ""}, "expect": {"min_chars": 0}}, set()),
    "too_short": ({"expect": {"min_chars": 13}}, {"min_chars"}),
    "just_long_enough": ({"expect": {"min_chars": 12}}, set()),
    "no_finish_reason": ({"answer": {"finish_reason": None}}, {"finish_reason"}),
    "aborted": ({"answer": {"finish_reason": "abort"}}, {"finish_reason"}),
    "cut_though_a_stop_was_wanted": (
        {"answer": {"finish_reason": "length"}, "expect": {"finish_reason": ("stop",)}},
        {"finish_reason"},
    ),
    "no_usage": ({"answer": {"usage": {}}}, {"usage"}),
    "usage_does_not_add_up": ({"answer": {"usage": GOOD_USAGE | {"total_tokens": 22}}}, {"usage"}),
    "nothing_generated": (
        {"answer": {"usage": {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}}},
        {"usage"},
    ),
    "more_than_max_tokens": ({"request": {"max_tokens": 7}}, {"usage"}),
    "exactly_max_tokens": ({"request": {"max_tokens": 8}}, set()),
    "usage_of_another_type": ({"answer": {"usage": {"prompt_tokens": "5"}}}, {"usage"}),
    "first_token_in_time": ({"request": {"max_ttft": 1.0}, "ttft": 1.0}, set()),
    "first_token_late": ({"request": {"max_ttft": 1.0}, "ttft": 1.01}, {"max_ttft"}),
    "no_first_token": ({"request": {"max_ttft": 1.0}}, {"max_ttft"}),
    "fast_enough": ({"request": {"min_tokens_per_second": 10}, "tokens_per_second": 10.0}, set()),
    "too_slow": ({"request": {"min_tokens_per_second": 10}, "tokens_per_second": 9.9}, {"min_tokens_per_second"}),
    "rate_unknown": ({"request": {"min_tokens_per_second": 10}}, {"min_tokens_per_second"}),
}


@pytest.mark.parametrize(("case", "failed"), CASES.values(), ids=CASES)
def test_checks_fail_exactly_where_the_answer_is_wrong(case, failed):
    result, names = checks_of(**case)
    assert names == failed
    assert result.ok == (not failed)
    assert bool(result.message) == bool(failed)


def test_a_failed_check_reads_as_one_sentence_with_the_next_step():
    nonsense = "L'Étoile, la Marseillaise, " * 20
    result, _names = checks_of(answer={"content": nonsense}, expect={"pattern": "Paris"})
    assert result.message.startswith(
        "Verification of model 'm' at http://h:1 failed in check 'pattern': expected a match of /Paris/, "
        "got \"L'Étoile, la Marseillaise,"
    )
    assert (
        "... (540 characters) (finish_reason stop). The server runs but answers wrongly: compare dtype"
        in result.message
    )
    assert len(result.message) < 500


def test_all_failed_checks_are_named_in_the_message():
    result, _names = checks_of(answer={"content": "", "usage": {}}, expect={"pattern": "Paris"})
    assert "in check 'usage'" in result.message
    assert "(and 'min_chars', 'pattern' failed)" in result.message


def test_a_cut_answer_is_told_to_get_more_tokens():
    result, _names = checks_of(answer={"content": "It", "finish_reason": "length"}, expect={"pattern": "Paris"})
    assert result.message.endswith("raise max_tokens and ask again.")


def test_an_answer_that_is_all_thinking_is_told_to_get_more_tokens():
    result, names = checks_of(answer={"content": "", "reasoning": "The user asks", "finish_reason": "length"})
    assert names == {"min_chars"}
    assert "got 0 characters, and 13 characters of reasoning. The model spent its tokens on thinking" in result.message


# --- requests ---

REFUSED = {
    "no_scheme": ({"url": "127.0.0.1:8000"}, "must look like http://host:8000"),
    "no_host": ({"url": "http://"}, "must look like"),
    "port_out_of_range": ({"url": "http://h:99999"}, "cannot be read"),
    "port_zero": ({"url": "http://h:0"}, "must look like"),
    "query": ({"url": "http://h:1/?x=1"}, "must look like"),
    "empty_label": ({"url": "http://a..b:1"}, "cannot be read"),
    "password": ({"url": "http://me:hunter2@h:1"}, "must not carry a user or password"),
    "api": ({"api": "responses"}, "must be one of chat, completions"),
    "neither": ({"prompt": ""}, "Exactly one of messages and prompt"),
    "both": ({"messages": [{"role": "user", "content": "x"}]}, "Exactly one of messages and prompt"),
    "messages_to_completions": (
        {"api": "completions", "prompt": "", "messages": [{"role": "user", "content": "x"}]},
        "messages are for api chat",
    ),
    "max_tokens": ({"max_tokens": 0}, "at least 1, got 0"),
    "timeout": ({"timeout": 0}, "more than 0 seconds"),
    "ttft_without_stream": ({"stream": False, "max_ttft": 1}, "needs stream: true"),
    "key_with_line_break": ({"api_key": "hunter2\n"}, "printable ASCII"),
    "pattern": ({"expect": Expectation(pattern="(Paris")}, "no regular expression"),
    "endpoint": ({"endpoints": ("docs",)}, "begin with a slash"),
    "endpoint_with_space": ({"endpoints": ("/a b",)}, "without spaces"),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_sent_is_refused_in_one_sentence_without_secrets(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        ChatRequest(**{"url": "http://h:1", "prompt": "?"} | options)
    assert "hunter2" not in str(caught.value)


def test_the_key_is_not_in_the_repr():
    assert "hunter2" not in repr(ChatRequest("http://h:1", prompt="?", api_key="hunter2"))


def test_a_prompt_becomes_a_message_of_the_user_and_a_stream_asks_for_its_usage():
    body = ChatRequest("http://h:1", prompt="Why?").body
    assert body["messages"] == [{"role": "user", "content": "Why?"}]
    assert body["stream_options"] == {"include_usage": True}
    body = ChatRequest("http://h:1", prompt="Why?", api="completions", stream=False).body
    assert body["prompt"] == "Why?"
    assert "messages" not in body
    assert "stream_options" not in body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no such model", "code": 404}}, "no such model"),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body"]}]}, '[{"loc": ["body"]}]'),
        ({}, "{}"),
    ],
)
def test_the_servers_own_words_are_found(body, words):
    assert error_text(body) == words


def test_shown_content_is_one_line_and_quoted():
    assert shorten('two\n"lines"') == '"two \\"lines\\""'
    assert shorten("x" * 200, 10) == '"xxxxxxxxxx"... (200 characters)'


def test_results_are_plain_json():
    result, _names = checks_of(expect={"pattern": "Paris"}, ttft=0.1, tokens_per_second=3.0)
    again = json.loads(json.dumps(result.as_dict()))
    assert again["checks"][-1] == {
        "name": "pattern",
        "ok": True,
        "expected": "a match of /Paris/",
        "got": '"It is Paris." (finish_reason stop)',
    }


def test_the_modules_page_and_its_argument_spec_agree():
    import vllm_chat
    import yaml

    from ansible.module_utils.vllm_fleet.vllm import chat_options

    def flatten(options, below):
        for name, option in options.items():
            yield name, option.get("type"), option.get("elements"), option.get("default"), option.get("choices")
            for entry in flatten(option.get(below) or {}, below):
                yield (f"{name}.{entry[0]}", *entry[1:])

    documented = yaml.safe_load(vllm_chat.DOCUMENTATION)["options"]
    assert sorted(map(repr, flatten(documented, "suboptions"))) == sorted(
        map(repr, flatten(chat_options.argument_spec(), "options"))
    )
    assert yaml.safe_load(vllm_chat.EXAMPLES)
    returned = yaml.safe_load(vllm_chat.RETURN)
    result = chat_options.build_result([ChatResult("http://h:1", "m", "chat")], many=False)
    assert set(result) - {"changed"} == set(returned) - {"engine", "msg"}


def answer(**more):
    own = {"api": "chat", "name": "capital", "content": " Paris.\n", "finish_reason": "stop", "ttft": 0.1234}
    return {**own, "usage": {"completion_tokens": 7}, "tokens_per_second": 41.26, **more}


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ([], ""),
        ([answer()], "chat / capital: Paris.\n  (stop, 7 tokens, first after 0.12 s, 41.3 tokens/s)\n"),
        (
            [answer(ttft=None, tokens_per_second=None), answer(name="poem", ttft=2.0)],
            "chat / capital: Paris.\n  (stop, 7 tokens, 0.0 tokens/s)\n"
            "chat / poem: Paris.\n  (stop, 7 tokens, first after 2.0 s, 41.3 tokens/s)\n",
        ),
    ],
)
def test_the_answers_as_they_are_shown(results, text):
    assert chat_options.build_lines(results) == text
