# SPDX-License-Identifier: Apache-2.0
"""What a run does where Docker refuses an action or its answer is lost, and what it says of an interrupted run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible.module_utils.vllm_fleet.common.failure import FailureClass
from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container import plan
from ansible.module_utils.vllm_fleet.container.engine import EngineError
from ansible.module_utils.vllm_fleet.container.spec import LABEL_SERVER, Image
from ansible.module_utils.vllm_fleet.replica.rank_lifecycle import RankLifecycle, Step
from ansible.module_utils.vllm_fleet.server import lifecycle, recover
from ansible.module_utils.vllm_fleet.server.observe import Observation
from ansible.module_utils.vllm_fleet.server.options import ServerOptions

IMAGE = Image("vllm:1", "sha256:" + "1" * 64)
CREATE_FIRST = plan.Plan(("create", "stop", "keep", "rename", "start"), watch=True)


class Docker:
    """An engine with containers by their names; ``deaf`` is an action that it does, and whose answer is lost."""

    def __init__(self, deaf=""):
        self.there, self.deaf = {}, deaf

    def put(self, name, ident, *, status="created", server="vllm"):
        self.there[name] = {
            "Id": ident,
            "Name": f"/{name}",
            "Image": IMAGE.id,
            "Config": {"Labels": {LABEL_SERVER: server}},
            "State": {"Running": status == "running", "Status": status, "StartedAt": "0001-01-01T00:00:00Z"},
        }
        if status != "created":
            self.there[name]["State"]["StartedAt"] = "2026-01-01T00:00:00Z"

    def _name(self, ident):
        return next(name for name, one in self.there.items() if one["Id"] == ident)

    def _done(self, action):
        if action == self.deaf:
            self.deaf = ""
            raise EngineError(f"{action}: the Docker engine did not answer: it ended")

    def container(self, name):
        found = self.there.get(name)
        return found or next((one for one in self.there.values() if one["Id"] == name), None)

    def create(self, spec, image, name=None):
        self.put(name or "vllm", "new")
        return "new"

    def rename(self, ident, name):
        self.there[name] = self.there.pop(self._name(ident)) | {"Name": f"/{name}"}
        self._done(f"rename to {name}")

    def remove(self, ident):
        self.there.pop(self._name(ident), None)

    def start(self, ident):
        self.there[self._name(ident)]["State"] |= {"Running": True, "Status": "running"}

    def stop(self, ident, timeout):
        self.there[self._name(ident)]["State"] |= {"Running": False, "Status": "exited"}

    def image(self, ref):
        return IMAGE

    def servers(self):
        return {"vllm": "running"}

    def running(self):
        return []

    def log(self, *_, **__):
        return b""

    def wait(self, timeout):
        pass


class Watched(lifecycle.Lifecycle):
    """A run that ends where it would watch a start."""

    def _watch(self, current):
        return self._result(current, failed=bool(self.state.failure), msg=self.state.msg)


@pytest.fixture
def run(tmp_path):
    def make(docker, **more):
        options = ServerOptions(model="org/m", rocm=False, state_dir=str(tmp_path))
        return Watched(replace(options, **more), docker, host="node7")

    return make


def seen_of(docker, made, **more):
    return Observation("vllm", "started", docker.container("vllm"), docker.container("vllm.previous"), made, **more)


def test_a_new_name_whose_answer_was_lost_is_given_back_to_the_old_server(run):
    docker = Docker(deaf="rename to vllm")
    docker.put("vllm", "old", status="running")
    going = run(docker)
    seen = seen_of(docker, CREATE_FIRST, spec=_Spec(), image=IMAGE)
    with pytest.raises(EngineError) as lost:
        going._apply(CREATE_FIRST.actions, seen)
    done = going._not_started(str(lost.value), seen)
    assert done["failed"] and done["container"]["id"] == "old"
    assert {name: one["Id"] for name, one in docker.there.items()} == {"vllm": "old"}
    assert docker.there["vllm"]["State"]["Running"]


class _Spec:
    volumes = ()
    command = ()


REFUSED = Refused(FailureClass.BAD_ARGUMENT, "capabilities: no", "correct it; nothing was touched")


LEFT = [
    # What a killed run left, the note of what it stopped, what a refused run does.
    ({"vllm": "exited", "vllm.next": "created"}, "vllm", ["start", "remove_next"]),
    ({"vllm.previous": "exited", "vllm.next": "created"}, "vllm.previous", ["unkeep", "start", "remove_next"]),
    ({"vllm": "created", "vllm.previous": "exited"}, "vllm.previous", ["remove", "unkeep", "start"]),
    # The one that had the name was the worse one, and is removed already.
    ({"vllm.previous": "exited", "vllm.next": "created"}, "gone", ["unkeep", "start", "remove_next"]),
    # Without a note a person may have stopped it.
    ({"vllm": "exited", "vllm.next": "created"}, "", []),
    ({"vllm": "running", "vllm.next": "created"}, "vllm", []),
    ({"vllm": "exited", "vllm.previous": "running"}, "vllm", []),
    ({"vllm": "exited", "vllm.previous": "exited"}, "vllm.previous", []),
    ({"vllm.next": "created"}, "gone", []),
]


def left_by_a_killed_run(going, docker, containers, stopped, started="2026-01-01T00:00:00Z"):
    for name, status in containers.items():
        docker.put(name, name, status=status)
    if stopped:
        going.context.node.note_stopping((stopped, started))
    going._fresh = lambda: _raise(REFUSED)


@pytest.mark.parametrize(("containers", "stopped", "actions"), LEFT)
def test_a_refused_run_brings_back_what_a_killed_one_had_stopped(run, containers, stopped, actions):
    docker = Docker()
    planned = run(docker)
    left_by_a_killed_run(planned, docker, containers, stopped)
    planned.context.check_mode = True
    before = {name: dict(one["State"]) for name, one in docker.there.items()}
    predicted = planned.run()
    assert {name: one["State"] for name, one in docker.there.items()} == before
    going = run(docker)
    going._fresh = planned._fresh
    done = going.run()
    assert done["failed"] and "capabilities: no" in done["msg"]
    assert (recover.BROUGHT_BACK in done["msg"]) == bool(actions)
    assert (done["actions"], done["changed"]) == (actions, bool(actions))
    assert (predicted["actions"], predicted["changed"]) == (actions, bool(actions))
    if actions:
        assert docker.there["vllm"]["State"]["Running"] and list(docker.there) == ["vllm"]
        assert going.context.node.stopping() is None


def test_a_server_that_somebody_started_since_is_left_as_it_is(run):
    docker = Docker()
    going = run(docker)
    left_by_a_killed_run(going, docker, LEFT[0][0], "vllm", started="2025-12-31T00:00:00Z")
    done = going.run()
    assert done["actions"] == [] and not docker.there["vllm"]["State"]["Running"]


def test_a_plan_says_the_command_for_no_run_follows_it(run):
    docker = Docker()
    going = run(docker)
    left_by_a_killed_run(going, docker, *LEFT[0][:2])
    going.asks = going.context.check_mode = True
    done = going.run()
    assert "bring it back with `docker start vllm` on node7" in done["msg"]
    assert (done["actions"], done["changed"]) == ([], False)


@pytest.mark.parametrize(
    ("containers", "stopped", "said"),
    [
        (*LEFT[0][:2], "`docker start vllm` on node7"),
        (*LEFT[1][:2], "`docker rename vllm.previous vllm && docker start vllm` on node7"),
        (*LEFT[2][:2], "`docker rm vllm && docker rename vllm.previous vllm && docker start vllm` on node7"),
        (*LEFT[4][:2], ""),
    ],
)
def test_a_refused_rank_only_says_how_its_server_comes_back(rank, containers, stopped, said):
    docker = Docker()
    going = rank(docker)
    left_by_a_killed_run(going, docker, containers, stopped)
    done = going.run()
    assert done["failed"] and done["actions"] == []
    assert (said in done["msg"]) if said else "is stopped" not in done["msg"]


def test_a_refused_creation_does_not_call_a_stopped_server_untouched(run):
    docker = Docker()
    docker.put("vllm", "old", status="exited")
    docker.put("vllm.next", "left")
    made = plan.Plan(("remove_next", "create", "keep", "rename", "start"), watch=True)
    seen = seen_of(docker, made, left=docker.container("vllm.next"))
    going = run(docker)
    going.state.actions = ["remove_next"]
    docker.remove("left")
    going.context.node.note_stopping(("old", "2026-01-01T00:00:00Z"))
    done = going._not_started("create container vllm.next: invalid CapAdd: unknown capability: X", seen)
    assert "capabilities" in done["msg"] and "was not touched" not in done["msg"]
    assert recover.BROUGHT_BACK in done["msg"]
    assert done["actions"] == ["remove_next", "start"] and docker.there["vllm"]["State"]["Running"]


FIRST = plan.Plan(("create", "start"), watch=True)


@pytest.fixture
def rank(tmp_path):
    def make(docker):
        options = ServerOptions(model="org/m", rocm=False, state_dir=str(tmp_path))
        return RankLifecycle(options, docker, step=Step("try"), host="node7")

    return make


def test_a_rank_without_a_server_tries_its_first_container_too(rank):
    """Its partners have servers, and are not to stop for what Docker refuses here."""
    docker = Docker()
    docker.put("vllm.previous", "old", status="exited")
    going = rank(docker)
    assert going._apply(FIRST.actions, seen_of(docker, FIRST, spec=_Spec(), image=IMAGE)) is None
    assert going.state.actions == ["create", "remove_next"]
    assert list(docker.there) == ["vllm.previous"]
    done = rank(docker)._not_started("create container vllm.next: invalid CapAdd: x", seen_of(docker, FIRST))
    assert done["failed"] and not done.get("pending") and "capabilities" in done["msg"]
    assert list(docker.there) == ["vllm.previous"]


def test_a_rank_without_a_server_leaves_the_container_of_someone_else(rank):
    docker = Docker()
    docker.put("vllm.next", "other", server="another")
    seen = seen_of(docker, FIRST, spec=_Spec(), image=IMAGE, name_taken=True)
    assert rank(docker)._apply(FIRST.actions, seen) is None
    assert list(docker.there) == ["vllm.next"]


def _raise(error):
    raise error
