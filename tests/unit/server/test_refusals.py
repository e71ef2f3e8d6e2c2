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
from ansible.module_utils.vllm_fleet.server import lifecycle
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


@pytest.mark.parametrize(
    ("containers", "said"),
    [
        ({"vllm": "exited", "vllm.next": "created"}, "`docker start vllm` on node7"),
        (
            {"vllm.previous": "exited", "vllm.next": "created"},
            "`docker rename vllm.previous vllm && docker start vllm`",
        ),
        # Without the new container beside it, a person may have stopped it.
        ({"vllm": "exited"}, ""),
        ({"vllm": "running", "vllm.next": "created"}, ""),
        ({"vllm.next": "created"}, ""),
    ],
)
def test_a_refusal_says_what_an_interrupted_run_left_stopped(run, containers, said):
    docker = Docker()
    for name, status in containers.items():
        docker.put(name, name, status=status)
    going = run(docker)
    going._fresh = lambda: _raise(REFUSED)
    done = going.run()
    assert done["failed"] and "capabilities: no" in done["msg"]
    assert (said in done["msg"]) if said else "is stopped" not in done["msg"]
    assert done["actions"] == []


def test_a_refused_creation_does_not_call_a_stopped_server_untouched(run):
    docker = Docker()
    docker.put("vllm", "old", status="exited")
    docker.put("vllm.next", "left")
    made = plan.Plan(("remove_next", "create", "keep", "rename", "start"), watch=True)
    seen = seen_of(docker, made, left=docker.container("vllm.next"))
    going = run(docker)
    going.state.actions = ["remove_next"]
    docker.remove("left")
    done = going._not_started("create container vllm.next: invalid CapAdd: unknown capability: X", seen)
    assert "capabilities" in done["msg"] and "was not touched" not in done["msg"]
    assert "`docker start vllm` on node7" in done["msg"]


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
