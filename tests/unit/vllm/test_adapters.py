# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters: from the variable to flags, requests and findings, by tables."""

import pytest

from ansible.module_utils.vllm_fleet.vllm import adapters, cli

ONE, TWO = "1" * 40, "2" * 40
GIVEN = {"support": {"repo": "acme/support-lora", "revision": ONE}, "acme/sql": {"repo": "acme/sql", "revision": TWO}}


def test_flags_for_a_server_that_has_none():
    found = adapters.lay_over({"max_model_len": 512}, adapters.parse(GIVEN), "/c")
    assert found == {
        "max_model_len": 512,
        "enable-lora": True,
        "lora-modules": [
            f"acme/sql=/c/hub/models--acme--sql/snapshots/{TWO}",
            f"support=/c/hub/models--acme--support-lora/snapshots/{ONE}",
        ],
        "max-loras": 2,
    }
    assert cli.adapter_names(found) == ["acme/sql", "support"] == adapters.names(GIVEN)
    assert adapters.paths(found)["support"].endswith(ONE)
    assert adapters.lay_over({"a": 1}, [], "/c") == {"a": 1}


def test_flags_of_the_user_stay():
    own = {"max_loras": 1, "lora_modules": "mine=/a", "enable-lora": True, "max-lora-rank": 64}
    found = adapters.lay_over(own, adapters.parse({"support": GIVEN["support"]}), "/c")
    assert (found["max_loras"], found["enable-lora"], found["max-lora-rank"]) == (1, True, 64)
    assert "max-loras" not in found and "lora_modules" not in found
    assert cli.adapter_names(found) == ["mine", "support"]
    with pytest.raises(adapters.AdapterError, match="mine stands in vllm_server_adapters and in lora-modules"):
        adapters.lay_over(own, adapters.parse({"mine": GIVEN["support"]}), "/c")
    # As objects, which vLLM takes as well.
    objects = {"lora-modules": ['{"name": "mine", "path": "/a"}']}
    assert adapters.paths(adapters.lay_over(objects, adapters.parse(GIVEN), "/c")).keys() == GIVEN.keys()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1], "is a list of 1 (not shown); expected"),
        ("support", "is a text of 7 characters (not shown); expected"),
        ({"a b": GIVEN["support"]}, "'a b' is no name that clients can ask for"),
        ({"a=b": GIVEN["support"]}, "is no name"),
        ({"a,b": GIVEN["support"]}, "is no name"),
        ({"--port": GIVEN["support"]}, "is no name"),
        ({"a" * 97: GIVEN["support"]}, "is no name"),
        ({"a": "acme/lora"}, "a is a text of 9 characters (not shown); expected {repo: org/lora, revision: commit}"),
        (
            {"a": {"repo": "acme/lora", "revision": "main"}},
            "expected a commit, 40 hexadecimal digits, because a branch",
        ),
        ({"a": {"repo": "acme/lora"}}, "has the revision ''"),
        ({"a": {"repo": "/models/lora", "revision": ONE}}, "expected its id on the Hub"),
        ({"a": {"repo": "acme/lora", "revision": ONE, "rank": 8}}, "a has rank; known are base, list_digest, repo"),
        ({"a": {"repo": "acme/lora", "revision": ONE, "verify": {"model": "b"}}}, "has in verify model; known are"),
        ({str(n): GIVEN["support"] for n in range(201)}, "has 201 adapters"),
    ],
)
def test_what_an_inventory_cannot_say(given, words):
    with pytest.raises(adapters.AdapterError) as error:
        adapters.parse(given)
    assert words in str(error.value)
    assert adapters.names(given) == []


def test_one_request_to_each():
    asked = [{"name": "capital", "prompt": "?", "api": "completions", "max_tokens": 64, "expect": {"pattern": "Paris"}}]
    own = {
        "sql": {
            "repo": "a/b",
            "revision": ONE,
            "verify": {"messages": [{"role": "user"}], "expect": {"pattern": "SELECT"}},
        }
    }
    first, second = adapters.requests(adapters.parse({"a": GIVEN["support"], **own}), asked)
    assert first == {
        "name": "adapter a", "model": "a", "prompt": "?", "api": "completions", "max_tokens": 16, "expect": {},
    }  # fmt: skip
    assert "prompt" not in second and second["expect"] == {"pattern": "SELECT"} and second["model"] == "sql"
    assert adapters.requests(adapters.parse({"a": GIVEN["support"]}), [])[0]["prompt"] == "Hello"


def judged(args=None, served=("acme/big",), cached=True, given=None):
    found = adapters.judge(adapters.parse(GIVEN if given is None else given), args or {}, served, cached=cached)
    return [(one.level, one.got) for one in found]


@pytest.mark.parametrize(
    ("options", "level", "words"),
    [
        ({}, "ok", "acme/sql, support"),
        ({"served": ["support"]}, "refused", "support, a name of the model itself"),
        ({"cached": False}, "refused", "none"),
        ({"args": {"enable_lora": False}}, "refused", "enable-lora: false"),
        ({"args": {"max-lora-rank": 24}}, "refused", "24"),
        ({"args": {"max-lora-rank": "64"}}, "ok", "support"),
        ({"args": {"max-loras": 1}}, "ok", "acme/sql, support; requests to more than 1 at a time wait"),
        ({"args": {"max-loras": 0}}, "refused", "0"),
        ({"args": {"max-loras": 2, "max-cpu-loras": 1}}, "refused", "1"),
    ],
)
def test_the_inventory_alone(options, level, words):
    ((found, got),) = judged(**options)
    assert (found, words in got) == (level, True), got
    assert judged(given={}) == []


FILE = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": "acme/big", "bias": "none", "modules_to_save": None}


@pytest.mark.parametrize(
    ("change", "args", "level", "words"),
    [
        ({}, {}, "ok", "rank 16"),
        ({"r": 64}, {}, "refused", "64"),
        ({"r": 64}, {"max_lora_rank": 64}, "ok", "rank 64"),
        ({"rank_pattern": {"q_proj": 33}}, {"max-lora-rank": 32}, "refused", "33"),
        ({"r": 1024}, {}, "refused", "1024"),
        ({"r": None}, {}, "refused", "r: None"),
        ({"r": True}, {}, "refused", "r: True"),
        ({"r": "16\x1b[31m"}, {}, "refused", "r: 16"),
        ({"base_model_name_or_path": "acme/other"}, {}, "warning", "one for acme/other"),
        ({"base_model_name_or_path": None}, {}, "ok", "rank 16"),
        ({"peft_type": "IA3"}, {}, "refused", "peft_type IA3"),
        ({"use_dora": True, "lora_bias": True}, {}, "refused", "use_dora, lora_bias"),
        ({"bias": "all"}, {}, "refused", "bias all"),
        ({"modules_to_save": ["lm_head"]}, {}, "refused", "modules_to_save"),
        ({"modules_to_save": ["score"]}, {}, "ok", "rank 16"),
    ],
)
def test_the_file_of_an_adapter(change, args, level, words):
    (found,) = adapters.judge_file(adapters.parse(GIVEN)[1], {**FILE, **change}, args, "acme/big")
    assert (found.level, words in found.got) == (level, True), found
    assert found.what == "adapter support"


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_is_none(content):
    (found,) = adapters.judge_file(adapters.parse(GIVEN)[1], content, {}, "acme/big")
    assert found.level == "refused" and "no JSON object" in found.got


def test_a_base_that_the_user_names_is_no_warning():
    (adapter,) = adapters.parse({"a": {**GIVEN["support"], "base": "acme/other"}})
    other = {**FILE, "base_model_name_or_path": "acme/other"}
    (found,) = adapters.judge_file(adapter, other, {}, "acme/big-fp8")
    assert found.level == "ok"


def test_the_remedy_names_the_smallest_rank_that_does():
    (found,) = adapters.judge_file(adapters.parse(GIVEN)[1], {**FILE, "r": 33}, {}, "acme/big")
    assert found.remedy == "set vllm_server_args: {max-lora-rank: 64}"
