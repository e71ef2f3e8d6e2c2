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


def box(ident="c", *, running=True, trust=Trust.CONFIRMED, unused=False, remembered=True):
    return Existing(ident, running, trust, unused=unused, remembered=remembered)


@pytest.mark.parametrize(
    ("state", "labels", "unused"),
    [
        ({"Status": "created", "StartedAt": "0001-01-01T00:00:00Z"}, {"io.vllm-fleet.server": "vllm"}, True),
        ({"Status": "created", "StartedAt": "0001-01-01T00:00:00Z"}, {}, False),  # made by hand
        ({"Status": "exited", "StartedAt": "2026-01-01T00:00:00Z"}, {"io.vllm-fleet.server": "vllm"}, False),
    ],
)
def test_a_container_is_unused_where_a_killed_run_created_it(state, labels, unused):
    container = {"Id": "c", "State": {"Running": False, **state}, "Config": {"Labels": labels}}
    assert Existing.of(container, Trust.UNKNOWN).unused is unused


@pytest.mark.parametrize(
    ("state", "found", "current", "previous", "actions", "watch"),
    [
        ("started", [], None, None, ("create", "start"), True),
        ("started", [], box(), None, (), True),
        ("started", [], box(running=False), None, ("start",), True),
        ("started", POLICY, box(), None, ("update",), True),
        ("started", POLICY, box(running=False), None, ("update", "start"), True),
        ("started", CHANGED, box(), None, ("create", "stop", "keep", "rename", "start"), True),
        ("started", CHANGED + POLICY, box(), None, ("create", "stop", "keep", "rename", "start"), True),
        ("started", CHANGED, box(running=False), None, ("create", "keep", "rename", "start"), True),
        ("started", CHANGED, box(), box("p", running=False), ("create", "stop", "remove_previous", "keep", "rename", "start"), True),
        # An interrupted change: the waiting one was verified, the current one never was, so the waiting one stays.
        ("started", CHANGED, box(trust=Trust.READY), box("p", running=False), ("create", "stop", "remove", "rename", "start"), True),
        ("started", CHANGED, box(trust=Trust.UNKNOWN), box("p", running=False, trust=Trust.READY), ("create", "stop", "remove", "rename", "start"), True),
        # One that was created and never started takes no one's place.
        ("started", CHANGED, box(running=False, trust=Trust.UNKNOWN, unused=True), None, ("create", "remove", "rename", "start"), True),
        ("started", CHANGED, box(running=False, trust=Trust.UNKNOWN, unused=True), box("p", running=False, trust=Trust.UNKNOWN), ("create", "remove", "rename", "start"), True),
        # What is known to fail is not kept for a fall-back.
        ("started", CHANGED, box(running=False, trust=Trust.FAILED), None, ("create", "remove", "rename", "start"), True),
        ("started", CHANGED, box(trust=Trust.FAILED), box("p", running=False, trust=Trust.READY), ("create", "stop", "remove", "rename", "start"), True),
        # Somebody started the waiting one: one server at a time.
        ("started", [], box(), box("p"), ("stop_previous",), True),
        ("started", CHANGED, box(), box("p"), ("create", "stop_previous", "stop", "remove_previous", "keep", "rename", "start"), True),
        ("started", [], None, box("p"), ("create", "stop_previous", "start"), True),
        ("stopped", [], box(), box("p"), ("stop", "stop_previous"), False),
        ("absent", [], None, box("p"), ("stop_previous", "remove_previous"), False),
        ("stopped", [], box(), None, ("stop",), False),
        ("stopped", [], box(running=False), None, (), False),
        ("stopped", [], None, None, (), False),
        ("absent", [], box(), box("p", running=False), ("stop", "remove", "remove_previous"), False),
        ("absent", [], None, None, (), False),
        ("restored", [], box(), box("p", running=False), ("stop", "remove", "unkeep", "start"), True),
        ("restored", [], None, box("p", running=False), ("unkeep", "start"), True),
        ("restarted", [], box(), box("p", running=False), ("stop", "start"), True),
        ("restarted", [], box(running=False), None, ("start",), True),
        ("restarted", [], box(), box("p"), ("stop_previous", "stop", "start"), True),
        ("confirmed", [], box(), None, (), False),
    ],
)  # fmt: skip
def test_plan(state, found, current, previous, actions, watch):
    assert plan.make(state, found, current, previous) == plan.Plan(actions, watch)


@pytest.mark.parametrize(
    ("state", "found", "current", "actions"),
    [
        ("started", [], box(), ("remove_next",)),
        ("started", CHANGED, box(), ("remove_next", "create", "stop", "keep", "rename", "start")),
        ("started", CHANGED, box(running=False), ("remove_next", "create", "keep", "rename", "start")),
        ("started", [], None, ("remove_next", "create", "start")),
        ("stopped", [], box(), ("remove_next", "stop")),
        ("absent", [], None, ("remove_next",)),
        ("confirmed", [], box(), ()),
    ],
)
def test_what_a_killed_run_left_is_removed_first(state, found, current, actions):
    assert plan.make(state, found, current, None, left=True).actions == actions


CREATED = {"Status": "created", "StartedAt": "0001-01-01T00:00:00Z", "Running": False}


@pytest.mark.parametrize(
    ("labels", "state", "ours"),
    [
        ({"io.vllm-fleet.server": "vllm"}, CREATED, True),
        ({"io.vllm-fleet.server": "vllm"}, {**CREATED, "StartedAt": ""}, True),
        ({"io.vllm-fleet.server": "vllm"}, {**CREATED, "Status": "running", "Running": True}, False),
        ({"io.vllm-fleet.server": "vllm"}, {"Status": "exited", "StartedAt": "2026-01-01T00:00:00Z"}, False),
        # Another server of that name, between its creation and its start.
        ({"io.vllm-fleet.server": "vllm.next"}, CREATED, False),
        ({}, CREATED, False),
        (None, CREATED, False),
    ],
)
def test_only_what_this_project_made_and_never_started_counts_as_left_over(labels, state, ours):
    assert plan.left_over({"State": state, "Config": {"Labels": labels}}, "vllm") is ours
    assert not plan.left_over(None, "vllm")


def test_an_interrupted_restore_is_carried_on():
    assert plan.make("restored", [], box("old", running=False), None, "old").actions == ("start",)
    assert plan.make("restored", [], box("old"), None, "old") == plan.Plan((), watch=True)
    with pytest.raises(plan.NothingToRestore):
        plan.make("restored", [], box("new"), None, "old")


def test_nothing_to_restore_is_said():
    with pytest.raises(plan.NothingToRestore):
        plan.make("restored", [], box(), None)


def test_nothing_to_restart_is_said():
    with pytest.raises(plan.NothingToRestart):
        plan.make("restarted", [], None, box("p"))


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


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("trust", [Trust.UNKNOWN, Trust.READY])  # ready: it answers right now
def test_where_the_memory_cannot_be_read_both_containers_stay(running, trust):
    current = box(running=running, trust=trust, remembered=False)
    previous = box("p", running=False, trust=Trust.UNKNOWN, remembered=False)
    with pytest.raises(plan.Unsure):
        plan.make("started", CHANGED, current, previous)
    assert "remove" not in " ".join(plan.make("started", [], current, previous).actions)
    assert plan.on_failure(previous, current) == plan.Plan((), watch=False)
    # One alone is kept in any case, and what this run has made and what never ran is known.
    assert "keep" in plan.make("started", CHANGED, current, None).actions
    assert "unkeep" in plan.on_failure(previous, box("new", trust=Trust.UNKNOWN)).actions
    unused = box("n", running=False, trust=Trust.UNKNOWN, unused=True, remembered=False)
    assert "remove_previous" not in plan.make("started", CHANGED, unused, previous).actions


class World:
    """Docker in miniature: what each action does to what exists."""

    def __init__(self, current, previous):
        self.boxes = {"name": current, "previous": previous, "next": None}
        self.deleted = []
        self.made = 0

    def do(self, action):
        boxes, now = self.boxes, self.boxes["name"]
        if action == "stop":
            boxes["name"] = Existing(now.id, False, now.trust)
        elif action in ("remove", "remove_previous", "remove_next"):
            slot = {"remove": "name"}.get(action, action.removeprefix("remove_"))
            self.deleted.append(boxes[slot])
            boxes[slot] = None
        elif action == "keep":
            assert boxes["previous"] is None, "the name of the kept container is taken"
            boxes["previous"], boxes["name"] = now, None
        elif action == "unkeep":
            assert boxes["name"] is None
            boxes["name"], boxes["previous"] = boxes["previous"], None
        elif action == "create":
            slot = "next" if now else "name"
            assert boxes[slot] is None
            self.made += 1
            boxes[slot] = Existing(f"new{self.made}", False)
        elif action == "rename":
            assert boxes["name"] is None
            boxes["name"], boxes["next"] = boxes["next"], None
        elif action == "start":
            boxes["name"] = Existing(now.id, True, now.trust)

    @property
    def running(self):
        return [b for b in self.boxes.values() if b and b.running]


def started(world):
    """Plan a deployment in this world: what was made by this test is as desired, everything else is not."""
    current = world.boxes["name"]
    found = CHANGED if current and not current.id.startswith("new") else []
    return plan.make("started", found, current, world.boxes["previous"], left=world.boxes["next"] is not None)


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
        assert world.boxes["next"] is None
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
