# SPDX-License-Identifier: Apache-2.0
"""One image on many hosts: who wants the same, who acts, who lacks it; tables."""

from __future__ import annotations

from typing import Any

import pytest

from ansible.module_utils.vllm_fleet.container import image_fleet

ABSENT: dict[str, Any] = {"present": False, "content": ""}
FAILED: dict[str, Any] = {"failed": True, "msg": "no engine"}


def has(content: str = "c1") -> dict[str, Any]:
    return {"present": True, "content": content}


@pytest.mark.parametrize(
    ("probes", "same"),
    [
        ([], False),
        ([has()], True),
        ([has(), has()], True),
        ([has(), has("c2")], False),
        ([has(), ABSENT], False),
        ([ABSENT, ABSENT], False),
        ([has(), FAILED], False),
    ],
)
def test_all_have_the_same_image(probes: list[dict[str, Any]], same: bool) -> None:
    assert image_fleet.same_everywhere(iter(probes)) is same


ONE = {"a": "x", "b": "x", "c": "x"}
TWO = {"a": "x", "b": "y", "c": "x"}


@pytest.mark.parametrize(
    ("wants", "me", "fleet", "build_host", "group", "leader", "builder"),
    [
        (ONE, "b", ["a", "b", "c"], "", "abc", "a", "a"),
        (ONE, "b", ["c", "a", "b"], "", "abc", "c", "c"),  # the order of the inventory, not of the play
        (ONE, "b", ["z", "a", "b"], "", "abc", "a", "z"),  # a run that is limited to other nodes
        (ONE, "b", ["a", "c"], "", "abc", "a", "a"),  # a host outside of the fleet
        (ONE, "b", [], "", "abc", "a", "a"),
        (ONE, "b", ["a", "b", "c"], "localhost", "abc", "a", "localhost"),
        (ONE, "b", ["a", "b", "c"], "c", "abc", "c", "c"),
        (TWO, "c", ["b", "a", "c"], "", "ac", "a", "a"),  # another image's host is left out
        (TWO, "b", ["a", "b", "c"], "", "b", "b", "b"),
        (TWO, "b", ["z", "a", "b"], "", "b", "b", "z"),
        ({"a": "", "b": "x"}, "b", ["a", "b"], "", "b", "b", "b"),  # a host that did not say what it wants
    ],
)
def test_who_acts(
    wants: dict[str, str], me: str, fleet: list[str], build_host: str, group: str, leader: str, builder: str
) -> None:
    found = image_fleet.actors(wants, me, fleet=fleet, build_host=build_host)
    assert found == image_fleet.Actors(list(group), leader, builder)


@pytest.mark.parametrize(
    ("probes", "needed"),
    [
        ({"a": has(), "b": ABSENT, "c": has("c2"), "d": has()}, ["b", "c"]),
        ({"a": ABSENT, "b": has()}, []),  # the builder has it by now
        ({"b": {"present": False, "content": "c1"}}, ["b"]),
    ],
)
def test_who_needs_the_builder_s_image(probes: dict[str, dict[str, Any]], needed: list[str]) -> None:
    assert image_fleet.receivers(probes, "a", "c1") == needed


def test_a_probe_that_failed_says_nothing_of_who_needs_the_image() -> None:
    with pytest.raises(KeyError):
        image_fleet.receivers({"a": has(), "b": FAILED}, "a", "c1")


def test_different_images_are_named_by_host() -> None:
    ids = {"a": "sha256:" + "1" * 64, "b": "sha256:" + "2" * 64, "c": ""}
    assert image_fleet.told_apart(ids) == "a has 111111111111, b has 222222222222, c has none"
