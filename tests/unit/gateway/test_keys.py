# SPDX-License-Identifier: Apache-2.0
"""gateway_keys: what is refused, and the map that HAProxy reads."""

from __future__ import annotations

import hashlib

import pytest

from ansible.module_utils.vllm_fleet.gateway import keys

POOLS = [
    {"name": "org_small", "names": ["org/small", "small"], "key": True, "head": "n1"},
    {"name": "large", "names": ["large"], "key": True, "head": "n2"},
    {"name": "open", "names": ["open"], "key": False, "head": "n3"},
]
SECRETS = {"org_small": "k", "large": "k", "open": ""}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest().upper()


def test_a_map_has_a_line_for_each_key_by_its_hash():
    text = keys.key_map(
        SECRETS,
        POOLS,
        [
            {"name": "a", "key": "one"},
            {"name": "b", "key": "two", "models": ["small", "large"], "requests_per_minute": "60", "concurrent": 4},
        ],
    )
    assert sorted(text.splitlines()) == sorted([f"{sha('one')} a|0|0|*", f"{sha('two')} b|60|4|,org_small,large,"])
    assert text.splitlines() == sorted(text.splitlines())


def test_without_keys_each_servers_key_opens_its_pool():
    assert keys.key_map(SECRETS, POOLS, []) == f"{sha('k')} fleet|0|0|,org_small,large,\n"
    two = {**SECRETS, "large": "17"}
    assert set(keys.key_map(two, POOLS, []).splitlines()) == {
        f"{sha('k')} fleet|0|0|,org_small,",
        f"{sha('17')} fleet|0|0|,large,",
    }
    assert keys.key_map(SECRETS, POOLS[2:], []) == ""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([{"key": "k"}], "entry 1 needs a name of letters"),
        ([{"name": "a|b", "key": "k"}], "a|b needs a name of letters"),
        ([{"name": "a", "key": "k"}, {"name": "a", "key": "l"}], "a is there twice"),
        (
            [{"name": "a", "key": "k"}, {"name": "b", "key": "k"}],
            "b has the key of a: give each client a key of its own",
        ),
        ([{"name": "a"}], "a has no key, or one that no header can carry"),
        ([{"name": "a", "key": "two words"}], "a has no key, or one that no header can carry"),
        ([{"name": "a", "key": "k\n"}], "a has no key, or one that no header can carry"),
        ([{"name": "a", "key": "k", "rpm": 1}], "a has rpm, which means nothing here: known are name, key, models"),
        ([{"name": "a", "key": "k", "concurrent": 0}], "a has concurrent 0: give a whole number of at least 1"),
        ([{"name": "a", "key": "k", "requests_per_minute": "1.5"}], "a has requests_per_minute '1.5'"),
        ([{"name": "a", "key": "k", "concurrent": 2**31}], "a has concurrent 2147483648"),
        ([{"name": "a", "key": "k", "concurrent": "\u00b2"}], "a has concurrent"),
        ([{"name": "a", "key": "k", "models": "large"}], "a needs a list of models"),
        ([{"name": "a", "key": "k", "models": []}], "a needs a list of models"),
        (
            [{"name": "a", "key": "k", "models": ["x"]}],
            "a may use x, which no host of group vllm serves; served are large",
        ),
    ],
)
def test_what_is_refused_without_the_key(given, says):
    found = keys.problems(given, POOLS)
    assert any(says in problem for problem in found), found
    assert not any("two words" in problem for problem in found)


def test_what_is_accepted():
    assert keys.problems([{"name": "a@b.c", "key": "k", "models": None, "concurrent": None}], POOLS) == []


def test_changes_are_said_by_name():
    before = keys.key_map({}, POOLS, [{"name": "a", "key": "1"}, {"name": "b", "key": "2"}])
    after = keys.key_map({}, POOLS, [{"name": "a", "key": "1", "concurrent": 2}, {"name": "c", "key": "3"}])
    assert keys.changes(before, after) == ["a: a|0|2|* instead of a|0|0|*", "b: removed", "c: added"]
    assert keys.changes(before, before) == []


def test_while_a_key_changes_both_open_both_generations():
    old = {**POOLS[0], "name": "org_small:2", "kept": True, "heirs": ["org_small"]}
    text = keys.key_map({**SECRETS, "org_small:2": "old"}, [*POOLS, old], [])
    assert set(text.splitlines()) == {
        f"{sha('k')} fleet|0|0|,org_small,org_small:2,large,",
        f"{sha('old')} fleet|0|0|,org_small,org_small:2,",
    }


def test_a_name_that_two_pools_share_opens_neither_pool_to_the_clients_of_the_other():
    a, b = ({"name": f"org_{one}", "names": [f"org/{one}", "chat"], "adapters": []} for one in "ab")
    old = {**a, "name": "org_a:2", "kept": True, "heirs": ["org_a"]}
    text = keys.key_map({"org_a": "new", "org_a:2": "old", "org_b": "b"}, [a, b, old], [])
    assert set(text.splitlines()) == {
        f"{sha('new')} fleet|0|0|,org_a,org_a:2,",
        f"{sha('old')} fleet|0|0|,org_a,org_a:2,",
        f"{sha('b')} fleet|0|0|,org_b,",
    }


def test_who_could_use_an_old_generation_goes_on_to():
    old = {"name": "before", "names": ["before"], "kept": True}
    before = f"{sha('1')} a|0|0|,before,\n{sha('2')} b|0|0|,large,\n"
    given = [{"name": name, "key": key, "models": ["large"]} for name, key in (("a", "1"), ("b", "2"))]
    text = keys.key_map(SECRETS, [*POOLS, old], given, before)
    assert set(text.splitlines()) == {f"{sha('1')} a|0|0|,large,before,", f"{sha('2')} b|0|0|,large,"}
