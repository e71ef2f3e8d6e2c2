# SPDX-License-Identifier: Apache-2.0
"""At which ports a gateway listens, which paths pass, and which numbers servers have."""

from __future__ import annotations

import re

import pytest

from ansible.module_utils.vllm_fleet.gateway import fronts


def pool(model, *names, closed=True):
    base = model.replace("/", "_")
    return {"name": base, "base": base, "model": model, "names": [model, *names], "closed": closed}


def made(*pools, ports=None):
    problems: list[str] = []
    found = fronts.fronts(list(pools), 8080, ports or {}, 10000, problems)
    return [(one["name"], one["port"], [p["model"] for p in one["pools"]], one["default"]) for one in found], problems


def test_one_model_has_the_port_and_gets_everything():
    assert made(pool("org/a")) == ([("front-org_a", 8080, ["org/a"], "org_a")], [])


def test_models_without_a_port_of_their_own_share_one_that_all_models_are_behind():
    found, problems = made(pool("a"), pool("b"), pool("c"), ports={"b": 8081})
    assert found == [("front-all-models", 8080, ["a", "c", "b"], ""), ("front-b", 8081, ["b"], "b")]
    assert problems == []


def test_the_last_model_without_a_port_gets_what_names_no_model():
    found, _ = made(pool("a"), pool("b"), ports={"b": 8081})
    assert found == [("front-a", 8080, ["a", "b"], "a"), ("front-b", 8081, ["b"], "b")]


def test_with_a_port_for_each_model_there_is_no_shared_one():
    found, _ = made(pool("a"), pool("b"), ports={"a": 8081, "b": 8082})
    assert [one[1] for one in found] == [8081, 8082]


def test_names_that_two_models_share_are_refused_at_a_shared_port():
    two = [pool("a", "chat"), pool("b", "chat")]
    made(*two)
    assert fronts.same_names(two) == [
        "a and b both serve the name chat, so a request could mean either: take it out of one served-model-name, give "
        "each model its own port in gateway_ports, or give each a share in gateway_split."
    ]
    made(*two, ports={"b": 8081})
    assert fronts.same_names(two) == []


def test_a_name_that_two_models_share_may_have_shares():
    two = [pool("a", "chat"), pool("org/b", "chat")]
    made(*two)
    split = {"chat": {"a": 90, "org/b": "10"}}
    assert (fronts.same_names(two, split), fronts.odd_splits(two, split)) == ([], [])
    assert fronts.splits(two, split) == {"chat": [{"pool": "a", "below": 90}, {"pool": "org_b", "below": 100}]}
    assert fronts.splits(two[:1], {"x": {"org/b": 100}}) == {}


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ({"chat": {"a": 90, "org/b": 9}}, "the shares of chat are not whole numbers that add up to 100"),
        ({"chat": {"a": 99.5, "org/b": 0.5}}, "the shares of chat are not whole numbers"),
        ({"chat": {"a": "\u00b2", "org/b": 98}}, "the shares of chat are not whole numbers"),
        ({"chat": 50}, "chat needs its models with a share each"),
        ({"chat": {"a": 50, "c": 50}}, "c does not serve chat; a, org/b does"),
        ({"other": {"a": 100}}, "a does not serve other; none does"),
    ],
)
def test_what_is_no_split(split, says):
    two = [pool("a", "chat"), pool("org/b", "chat")]
    assert any(says in problem for problem in fronts.odd_splits(two, split))
    fronts.splits(two, split)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"gpt": "c"}, "gpt stands for c, which no host of group vllm serves; served are a, chat, org/b"),
        ({"chat": "a"}, "chat is the name of a model that is served"),
        ({"gpt": "other", "other": "a"}, "gpt stands for other"),
        ({"it's": "a"}, "has quotes, a backslash"),
        ({"a\\b": "a"}, "has quotes, a backslash"),
        ({"": "a"}, "or nothing at all"),
        ({"gpt": "a", "mini": "chat"}, ""),
    ],
)
def test_an_alias_stands_for_a_name_that_is_served(given, says):
    two = [pool("a", "chat"), pool("org/b", "chat")]
    problems = fronts.odd_aliases(two, given)
    assert says in problems[0] if says else problems == []
    assert fronts.aliases(two[:1], {"gpt": "a", "mini": "chat", "x": "org/b"}) == {"a": ["gpt"], "chat": ["mini"]}


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("/v1/chat/completions", True),
        ("/tokenize", True),
        ("/tokenize/", False),
        ("/tokenizer", False),
        ("/v2/rerank", True),
        ("/v2/a/b/", True),
        ("/v2/", False),
        ("/v2/../x", False),
        ("/v2/%2e", False),
        ("/invocations", False),
    ],
)
def test_which_paths_pass(path, passes):
    assert bool(re.search(fronts.path_pattern(["/tokenize", "/v2/"]), path)) is passes


@pytest.mark.parametrize("path", ["tokenize", "/", "//x", "/a b", "/x'", "/../x", "/%41", "", None])
def test_what_is_no_path(path):
    assert len(fronts.odd_paths([path])) == 1


def test_a_servers_number_depends_on_its_name_alone():
    assert fronts.odd_paths(["/tokenize", "/v2/"]) == []
    some, more = fronts.server_ids(["n2", "n1"]), fronts.server_ids(["n0", "n1", "n2", "n3"])
    assert {name: more[name] for name in some} == some
    assert all(0 < number < 2**31 for number in more.values())
    # CRC-32 meets for these two.
    assert len(set(fronts.server_ids(["plumless", "buckeroo"]).values())) == 2
