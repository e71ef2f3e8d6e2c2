# SPDX-License-Identifier: Apache-2.0
"""Plans, and what is left when a run is killed between any two of their actions."""

from __future__ import annotations

import itertools

import pytest

from ansible.module_utils.vllm_fleet.container import plan
from ansible.module_utils.vllm_fleet.container.compare import Difference
from ansible.module_utils.vllm_fleet.container.plan import Existing, Trust

CHANGED = [Difference("args.max-model-len", 1024, 512)]
POLICY = [Difference("restart_policy", "no", "always")]


def box(ident="c", *, running=True, trust=Trust.CONFIRMED):
    return Existing(ident, running, trust)


@pytest.mark.parametrize(
    ("state", "found", "current", "previous", "actions", "watch"),
    [
        ("started", [], None, None, ("create", "start"), True),
        ("started", [], box(), None, (), True),
        ("started", [], box(running=False), None, ("start",), True),
        ("started", POLICY, box(), None, ("update",), True),
        ("started", POLICY, box(running=False), None, ("update", "start"), True),
        ("started", CHANGED, box(), None, ("stop", "keep", "create", "start"), True),
        ("started", CHANGED + POLICY, box(), None, ("stop", "keep", "create", "start"), True),
        ("started", CHANGED, box(running=False), None, ("keep", "create", "start"), True),
        ("started", CHANGED, box(), box("p", running=False), ("stop", "remove_previous", "keep", "create", "start"), True),
        # An interrupted change: the waiting one was verified, the current one never was, so the waiting one stays.
        ("started", CHANGED, box(trust=Trust.READY), box("p", running=False), ("stop", "remove", "create", "start"), True),
        ("started", CHANGED, box(trust=Trust.UNKNOWN), box("p", running=False, trust=Trust.READY), ("stop", "remove", "create", "start"), True),
        # What is known to fail is not kept for a fall-back.
        ("started", CHANGED, box(running=False, trust=Trust.FAILED), None, ("remove", "create", "start"), True),
        ("started", CHANGED, box(trust=Trust.FAILED), box("p", running=False, trust=Trust.READY), ("stop", "remove", "create", "start"), True),
        # Somebody started the waiting one: one server at a time.
        ("started", [], box(), box("p"), ("stop_previous",), True),
        ("started", CHANGED, box(), box("p"), ("stop_previous", "stop", "remove_previous", "keep", "create", "start"), True),
        ("started", [], None, box("p"), ("stop_previous", "create", "start"), True),
        ("stopped", [], box(), box("p"), ("stop", "stop_previous"), False),
        ("absent", [], None, box("p"), ("stop_previous", "remove_previous"), False),
        ("stopped", [], box(), None, ("stop",), False),
        ("stopped", [], box(running=False), None, (), False),
        ("stopped", [], None, None, (), False),
        ("absent", [], box(), box("p", running=False), ("stop", "remove", "remove_previous"), False),
        ("absent", [], None, None, (), False),
        ("restored", [], box(), box("p", running=False), ("stop", "remove", "unkeep", "start"), True),
        ("restored", [], None, box("p", running=False), ("unkeep", "start"), True),
        ("confirmed", [], box(), None, (), False),
    ],
)  # fmt: skip
def test_plan(state, found, current, previous, actions, watch):
    assert plan.make(state, found, current, previous) == plan.Plan(actions, watch)


def test_an_interrupted_restore_is_carried_on():
    assert plan.make("restored", [], box("old", running=False), None, "old").actions == ("start",)
    assert plan.make("restored", [], box("old"), None, "old") == plan.Plan((), watch=True)
    with pytest.raises(plan.NothingToRestore):
        plan.make("restored", [], box("new"), None, "old")


def test_nothing_to_restore_is_said():
    with pytest.raises(plan.NothingToRestore):
        plan.make("restored", [], box(), None)


@pytest.mark.parametrize(
    ("previous", "current", "actions"),
    [
        (None, box(trust=Trust.UNKNOWN), ("stop",)),
        (None, box(trust=Trust.CONFIRMED), ()),
        (None, None, ()),
        (box("p"), box(trust=Trust.UNKNOWN), ("stop", "remove", "unkeep", "start")),
        (box("p", trust=Trust.UNKNOWN), box(trust=Trust.UNKNOWN), ("stop", "remove", "unkeep", "start")),
        (box("p"), None, ("unkeep", "start")),
        # What is known to fail is not started to fail once more.
        (box("p", trust=Trust.FAILED), box(trust=Trust.UNKNOWN), ("stop",)),
        (box("p", trust=Trust.UNKNOWN), box(trust=Trust.FAILED), ("stop", "remove", "unkeep", "start")),
        # A good server that fails today is not exchanged for an older release.
        (box("p"), box(trust=Trust.CONFIRMED), ()),
    ],
)
def test_after_a_failure(previous, current, actions):
    assert plan.on_failure(previous, current).actions == actions


class World:
    """Docker in miniature: what each action does to what exists."""

    def __init__(self, current, previous):
        self.boxes = {"name": current, "previous": previous}
        self.deleted = []
        self.made = 0

    def do(self, action):
        boxes, now = self.boxes, self.boxes["name"]
        if action == "stop":
            boxes["name"] = Existing(now.id, False, now.trust)
        elif action in ("remove", "remove_previous"):
            slot = "name" if action == "remove" else "previous"
            self.deleted.append(boxes[slot])
            boxes[slot] = None
        elif action == "keep":
            assert boxes["previous"] is None, "the name of the kept container is taken"
            boxes["previous"], boxes["name"] = now, None
        elif action == "unkeep":
            assert boxes["name"] is None
            boxes["name"], boxes["previous"] = boxes["previous"], None
        elif action == "create":
            assert boxes["name"] is None
            self.made += 1
            boxes["name"] = Existing(f"new{self.made}", False)
        elif action == "start":
            boxes["name"] = Existing(now.id, True, now.trust)

    @property
    def running(self):
        return [b for b in self.boxes.values() if b and b.running]


def started(world):
    """Plan a deployment in this world: what was made by this test is as desired, everything else is not."""
    current = world.boxes["name"]
    found = CHANGED if current and not current.id.startswith("new") else []
    return plan.make("started", found, current, world.boxes["previous"])


STARTS = [
    (current, previous)
    for current, previous in itertools.product(
        [None, *(box("old", running=r, trust=k) for r in (True, False) for k in Trust)],
        [None, *(box("older", running=False, trust=k) for k in Trust)],
    )
]


@pytest.mark.parametrize(("current", "previous"), STARTS)
def test_a_run_killed_anywhere_is_taken_up_by_the_next_and_loses_nothing(current, previous):
    best = max((b.trust for b in (current, previous) if b), default=Trust.UNKNOWN)
    for killed_after in range(len(started(World(current, previous)).actions) + 1):
        world = World(current, previous)
        for action in started(world).actions[:killed_after]:
            world.do(action)
            assert len(world.running) <= 1
        for action in started(world).actions:
            world.do(action)
            assert len(world.running) <= 1
        assert world.boxes["name"].id.startswith("new")
        assert world.boxes["name"].running
        kept = [b for b in world.boxes.values() if b and b.trust == best]
        assert best <= Trust.UNKNOWN or kept, f"the last good one was deleted (killed after {killed_after})"


@pytest.mark.parametrize(("current", "previous"), [s for s in STARTS if s[0] or s[1]])
def test_a_failed_start_killed_anywhere_ends_with_the_best_one_kept(current, previous):
    best = max(b.trust for b in (current, previous) if b)
    world = World(current, previous)
    for action in started(world).actions:
        world.do(action)
    back = plan.on_failure(world.boxes["previous"], world.boxes["name"]).actions
    for killed_after in range(len(back) + 1):
        world = World(current, previous)
        for action in started(world).actions:
            world.do(action)
        for action in back[:killed_after]:
            world.do(action)
            assert len(world.running) <= 1
        assert best <= Trust.UNKNOWN or any(b and b.trust == best for b in world.boxes.values())
        for action in started(world).actions:
            world.do(action)
            assert len(world.running) <= 1
        assert best <= Trust.UNKNOWN or any(b and b.trust == best for b in world.boxes.values())
