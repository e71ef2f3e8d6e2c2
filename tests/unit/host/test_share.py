# SPDX-License-Identifier: Apache-2.0
"""Which server of a node gets which GPUs and CPUs: tables, and what holds whatever is asked for."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from ansible.module_utils.vllm_fleet.host import share
from ansible.module_utils.vllm_fleet.host.share import CPU, GPU, NoPlace, Server, Unit, Wish

SEED = 20261130
#: Eight whole GPUs, four at each of two NUMA nodes, all linked alike.
EIGHT = [Unit(i, i // 4, f"0000:{i:02x}:00.0", {other: 15 for other in range(8) if other != i}) for i in range(8)]
#: The same cut into eight partitions each.
PARTITIONS = [Unit(i, i // 32, f"0000:{i // 8:02x}:00.0") for i in range(64)]
#: Two sockets of 24 cores with two threads each, numbered as Linux does.
THREADS = [Unit(i, i % 48 // 24, f"core {i % 48}") for i in range(96)]


def servers(**wishes):
    """Servers by name, in that order; a wish is a count or a list."""
    return [Server(name, share.wish(value, GPU)) for name, value in wishes.items()]


def placed(units, given, kind=GPU):
    """Place one after the other, each with what those before it got; return the sets by name."""
    there = list(given)
    for at, server in enumerate(there):
        if server.described and server.wish:
            got = share.place(kind, units, there, server.name)
            there[at] = replace(server, has=got, holds=frozenset(got))
    return {server.name: server.has for server in there}


TABLE = [
    ({"a": 1}, {"a": [0]}),
    ({"a": 8}, {"a": range(8)}),
    ({"a": 1, "b": 1, "c": 1}, {"a": [0], "b": [1], "c": [2]}),
    # The largest first, whatever the order of the inventory; what is left of a NUMA node is used.
    ({"a": 1, "b": 4, "c": 2, "d": 1}, {"b": range(4), "c": [4, 5], "a": [6], "d": [7]}),
    ({"a": 1, "b": 2}, {"b": [0, 1], "a": [2]}),
    # No set of three spans two NUMA nodes as long as one is free in one of them.
    ({"a": 3, "b": 3, "c": 2}, {"a": [0, 1, 2], "b": [4, 5, 6], "c": [3, 7]}),
    # A list is obeyed, and the others go around it.
    ({"a": 2, "b": [1]}, {"a": [2, 3], "b": [1]}),
    ({"a": "4-5,7", "b": 4}, {"a": [4, 5, 7], "b": range(4)}),
]


@pytest.mark.parametrize(("wishes", "sets"), TABLE)
def test_eight_gpus(wishes, sets):
    assert placed(EIGHT, servers(**wishes)) == {name: tuple(units) for name, units in sets.items()}


def test_partitions_of_one_device_stay_together():
    got = placed(PARTITIONS, servers(a=8, b=4, c=4, d=1, e=16))
    assert got == {
        "e": tuple(range(16)),
        "a": tuple(range(16, 24)),
        "b": tuple(range(24, 28)),
        "c": tuple(range(28, 32)),
        "d": (32,),
    }
    # Where no whole device is free, those of one NUMA node are taken.
    parts = [Server(f"one{at}", Wish(1, (at * 8,)), (at * 8,), frozenset({at * 8})) for at in range(8)]
    assert share.place(GPU, PARTITIONS, [*parts, Server("a", Wish(8))], "a") == (*range(1, 8), 9)


def test_both_threads_of_a_core_and_cores_of_one_socket():
    got = placed(THREADS, servers(a=4, b=2, c=40, d=1, e=[95]), CPU)
    assert got["c"] == (*range(20), *range(48, 68))
    assert got["a"] == (20, 21, 68, 69)
    assert got["b"] == (22, 70)
    assert got["d"] == (23,)
    assert got["e"] == (95,)


def test_a_gpu_is_missing():
    seven = [unit for unit in EIGHT if unit.index != 5]
    assert placed(seven, servers(a=4, b=3)) == {"a": (0, 1, 2, 3), "b": (4, 6, 7)}
    with pytest.raises(NoPlace, match="names GPU 5, which this node does not have"):
        placed(seven, servers(a=[4, 5]))
    # One that had it gets another, and keeps the rest.
    had = Server("a", Wish(2), (4,), frozenset({4}))
    assert share.place(GPU, seven, [had], "a") == (4, 6)


def test_memory_of_a_stranger_is_avoided_where_possible():
    foreign = [replace(unit, against="pid 4711 (train.py)" if unit.index in (0, 1) else "") for unit in EIGHT]
    assert placed(foreign, servers(a=2)) == {"a": (2, 3)}
    assert placed(foreign, servers(a=6)) == {"a": (2, 3, 4, 5, 6, 7)}
    assert placed(foreign, servers(a=7)) == {"a": (1, 2, 3, 4, 5, 6, 7)}
    assert placed(foreign, servers(a=[0])) == {"a": (0,)}
    with pytest.raises(NoPlace, match=r"GPU 0-1 pid 4711 \(train.py\), GPU 2-7 b"):
        placed(foreign, servers(b="2-7", a=3))


def one(name, wanted, has=(), *, described=True, holds=None):
    """A server that has units already."""
    return Server(name, wanted, tuple(has), frozenset(has if holds is None else holds), described)


def test_growing_keeps_and_shrinking_gives_back():
    neighbour = one("b", Wish(2), (2, 3))
    assert share.place(GPU, EIGHT, [one("a", Wish(2), (0,)), neighbour], "a") == (0, 1)
    assert share.place(GPU, EIGHT, [one("a", Wish(4), (0, 1)), neighbour], "a") == (0, 1, 4, 5)
    assert share.place(GPU, EIGHT, [one("a", Wish(2), (1, 4, 5)), neighbour], "a") == (4, 5)
    assert share.place(GPU, EIGHT, [one("a", Wish(3), range(8))], "a") == (0, 1, 2)
    with pytest.raises(NoPlace, match="asks for 7 GPUs, and 6 of 8 are free"):
        share.place(GPU, EIGHT, [one("a", Wish(7), (0, 1)), neighbour], "a")
    # What it has is kept, though another set costs less; also of a list that became a count.
    assert share.place(GPU, EIGHT, [one("a", Wish(2), (3, 6))], "a") == (3, 6)


def test_of_what_a_record_alone_says_nothing_is_given_twice():
    """The container of `a` is gone, and it is to have less."""
    torn = one("a", Wish(1), (0, 1), holds=())
    for there in ([torn, one("b", Wish(1, (0,)))], [torn, one("b", Wish(1, (0,)), (0,))]):
        assert [share.place(GPU, EIGHT, there, name) for name in "ab"] == [(1,), (0,)]
    there = [torn, one("b", Wish(4))]
    assert [share.place(GPU, EIGHT, there, name) for name in "ab"] == [(4,), (0, 1, 2, 3)]
    # What its container has is its own.
    there = [one("a", Wish(1), (0, 1)), one("b", Wish(1, (0,)))]
    assert share.place(GPU, EIGHT, there, "a") == (0,)
    with pytest.raises(NoPlace, match="GPU 0, which a has and keeps"):
        share.place(GPU, EIGHT, there, "b")


def test_a_partition_grows_on_its_device():
    assert share.place(GPU, PARTITIONS, [one("a", Wish(8), (60,))], "a") == tuple(range(56, 64))
    used = [one("a", Wish(4), (8,)), one("b", Wish(6), range(10, 16))]
    assert share.place(GPU, PARTITIONS, used, "a") == (0, 1, 8, 9)


REFUSED = [
    # A neighbour's container still has it, and is to have others.
    (
        [one("a", Wish(1, (1,))), one("b", Wish(1, (2,)), (1,))],
        "GPU 1 is still used by b",
        "replace that first (--limit with the host of b)",
    ),
    # It is to go on having it.
    ([one("a", Wish(1, (1,))), one("b", Wish(1), (1,))], "GPU 1, which b has and keeps", "give b a list"),
    ([one("a", Wish(1, (1,))), one("b", Wish(2, (1, 2)))], "a and of b both name GPU 1", "give each server its own"),
    (
        [one("a", Wish(1, (1,))), one("old", None, (1,), described=False)],
        "GPU 1 is used by old, which no host of the inventory describes",
        "playbooks/teardown.yml",
    ),
    (
        [one("a", Wish(4)), one("old", None, range(6), described=False)],
        "asks for 4 GPUs, and 2 of 8 are free. GPUs of this node: GPU 0-5 old (not described), GPU 6-7 free",
        "no host of the inventory describes old: remove it",
    ),
    ([one("a", Wish(2)), one("b", Wish(1), (0,), holds=range(7))], "1 of 8 is free", "replace b first"),
    ([one("a", Wish(9))], "asks for 9 GPUs, and 8 of 8 are free", "ask for fewer"),
    ([one("a", Wish(2)), one("b", Wish(7))], "and 1 of 8 is free. GPUs of this node: GPU 0-6 b, GPU 7 free", "fewer"),
]


@pytest.mark.parametrize(("there", "why", "remedy"), REFUSED)
def test_a_refusal_says_why_and_what_to_do(there, why, remedy):
    with pytest.raises(NoPlace) as refused:
        share.place(GPU, EIGHT, there, "a")
    assert why in refused.value.why
    assert remedy in refused.value.remedy


WISHES = [
    (None, None),
    (2, Wish(2)),
    ("2", Wish(2)),
    ([3], Wish(1, (3,))),
    (["0", 2], Wish(2, (0, 2))),
    ("0-3,8", Wish(5, (0, 1, 2, 3, 8))),
    ("1,", "expected"),
    (0, "expected"),
    (-1, "expected"),
    (True, "expected"),
    (1.5, "expected"),
    ([], "expected"),
    ([1, 1], "expected"),
    ([-1], "expected"),
    ("all", "expected"),
    ({"a": 1}, "expected"),
]


@pytest.mark.parametrize(("value", "meaning"), WISHES)
def test_how_a_wish_is_written(value, meaning):
    if isinstance(meaning, str):
        with pytest.raises(NoPlace, match=f"vllm_server_gpus: {meaning} a count"):
            share.wish(value, GPU)
    else:
        assert share.wish(value, GPU) == meaning


def scene(dice):
    """A machine, and wishes that it can hold."""
    units = dice.choice([EIGHT, EIGHT, PARTITIONS, THREADS])
    foreign = {dice.randrange(len(units)) for _ in range(dice.choice([0, 0, 2]))}
    units = [replace(unit, against="pid 1" if unit.index in foreign else "") for unit in units]
    left, wishes = [unit.index for unit in units], []
    while left and len(wishes) < 7:
        size = min(len(left), dice.choice([1, 1, 2, 2, 3, 4, 8, 16]))
        listed = tuple(sorted(dice.sample(left, size))) if dice.random() < 0.25 else None
        gone = listed or left[-size:]
        left = [index for index in left if index not in gone]
        wishes.append(Wish(size, listed))
    return units, [Server(f"s{at}", wanted) for at, wanted in enumerate(wishes)]


@pytest.mark.parametrize("seed", range(40))
def test_whoever_is_placed_first_all_get_the_same(seed):
    dice = random.Random(SEED + seed)  # noqa: S311
    units, there = scene(dice)
    answers = set()
    for _ in range(4):
        now = {server.name: server for server in there}
        for name in dice.sample(list(now), len(now)):
            got = share.place(GPU, units, list(now.values()), name)
            now[name] = replace(now[name], has=got, holds=frozenset(got))
        assert_apart(now.values())
        # And once more, from what is there.
        assert all(share.place(GPU, units, list(now.values()), name) == server.has for name, server in now.items())
        answers.add(tuple(server.has for server in now.values()))
    assert len(answers) == 1


@pytest.mark.parametrize("seed", range(20))
def test_sets_never_overlap_whatever_changes(seed):
    """Wishes change, containers are replaced later or never, servers come and go."""
    dice = random.Random(SEED + seed)  # noqa: S311
    units = dice.choice([EIGHT, PARTITIONS])
    now: dict[str, Server] = {}
    for step in range(60):
        name = dice.choice([*now, f"new{step}"])
        size = dice.choice([1, 1, 2, 3, 4])
        listed = tuple(sorted(dice.sample(range(len(units)), size))) if dice.random() < 0.3 else None
        before = now.get(name, Server(name))
        now[name] = replace(before, wish=Wish(size, listed), described=True)
        try:
            got = share.place(GPU, units, list(now.values()), name)
        except NoPlace:
            continue
        # The old container has its own until the new one was verified.
        now[name] = replace(now[name], has=got, holds=frozenset(got) | before.holds)
        if dice.random() < 0.7:
            now[name] = replace(now[name], holds=frozenset(got))
        if dice.random() < 0.1:
            now[name] = replace(now[name], described=False)
        if dice.random() < 0.1:
            del now[name]
        assert_apart(now.values())


def assert_apart(there):
    """No two hold the same."""
    for server, other in itertools.combinations(there, 2):
        assert not server.holds & other.holds, (server, other)
