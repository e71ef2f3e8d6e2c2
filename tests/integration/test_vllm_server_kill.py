# SPDX-License-Identifier: Apache-2.0
"""A run killed (SIGKILL) after any of its actions, and in the middle of its watch: the next one ends where it should.

At every moment at most one of the two containers runs, and the last one that was good is never deleted.
"""

from __future__ import annotations

import threading
import time

import pytest
from vllm_server_tools import Forks, Server, facts, names, outcome

from ansible.module_utils.vllm_fleet.container.plan import Trust
from ansible.module_utils.vllm_fleet.server.state import NodeState

pytestmark = pytest.mark.engine
PREVIOUS, NEXT = ".previous", ".next"
BAD = {"STANDIN_FAIL_AT": "load"}


def release(number, **more):
    """A release that differs from every other one."""
    return {"labels": {"release": str(number)}, **more}


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Quick processes to be killed."""
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick(server, forks):
    """Stops that take no time of their own.

    A container that is stopped in its first moments, before its process has a handler, ends only when it is killed.
    """
    server.forks = forks
    server.fixed["stop_timeout"] = 1


class Guard:
    """Looks at the containers all the time, and remembers what must never be seen."""

    def __init__(self, server: Server, good: str | None) -> None:
        self.server, self.good, self.wrong = server, good, []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self) -> None:
        while not self.done.is_set():
            now = self.server.client.api.containers(all=True, filters={"name": self.server.name})
            running = [c["Names"] for c in now if c["State"] in ("running", "restarting")]
            if len(running) > 1:
                self.wrong.append(f"two run at once: {running}")
            if self.good and self.good not in [c["Id"] for c in now]:
                self.wrong.append("the last good container is gone")
                return
            self.done.wait(0.03)

    def __enter__(self) -> Guard:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join(5)
        assert not self.wrong, self.wrong[0]


def killed(server, after, **options):
    """Run until it is killed after its ``after``-th action."""
    assert server.forks.run(server.options(**options), after) == (-9, None)
    assert len(server.running()) <= 1


def labels(server, suffix=""):
    """The release that a container is of."""
    info = server.inspect(suffix)
    return info and info["Config"]["Labels"].get("release")


def wait_until(condition, seconds=120.0):
    """Wait until something of Docker's is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true within {seconds} s"
        time.sleep(0.02)


# --- a first deployment ---


@pytest.mark.parametrize("after", [1, 2])
def test_first_deployment(server, after):
    killed(server, after, **release(1))
    result = server.ready(**release(1))
    assert result["actions"] == (["start"] if after == 1 else [])
    assert list(server.picture()) == server.running() == [server.name]
    assert facts(server.run(**release(1))) == (False, [], [])


@pytest.mark.parametrize("after", [1, 2, 3])
def test_first_deployment_that_fails(server, after):
    options = release(1, env=BAD)
    killed(server, after, **options)
    result = server.run(**options)
    assert result["failed"] and "failure ordered" in result["msg"]
    assert server.running() == []
    # What is left of it is no obstacle for one that works.
    server.ready(**release(2))
    assert server.running() == [server.name]


# --- a replacement ---


def prepare(server, *, with_previous, confirmed=False):
    """A ready release 1, and with it a release 0 that was ready once; the id of release 1."""
    server.ready(**release(1))
    if with_previous:
        config = server.inspect()["Config"]
        made = server.client.api.create_container(
            server.image, name=server.name + PREVIOUS, command=config["Cmd"], labels={"release": "0"}
        )
        existing = (server.id(), made["Id"])
        NodeState(str(server.state_dir), server.name).note_trust(made["Id"], Trust.READY, existing)
    if confirmed:
        server.run(state="confirmed")
    return server.id()


REPLACE = [(False, after) for after in range(1, 6)] + [(True, after) for after in range(1, 7)]


@pytest.mark.parametrize(("with_previous", "after"), REPLACE)
def test_replacement(server, with_previous, after):
    old = prepare(server, with_previous=with_previous)
    with Guard(server, old):
        killed(server, after, **release(2))
        server.ready(**release(2))
    assert [labels(server), labels(server, PREVIOUS)] == ["2", "1"]
    assert server.id(PREVIOUS) == old
    assert server.running() == [server.name]
    assert set(server.picture()) == {server.name, server.name + PREVIOUS}
    assert facts(server.run(**release(2))) == (False, [], [])


@pytest.mark.parametrize("after", [1, 3, 5])
def test_replacement_given_up(server, after):
    """Instead of the same again, the user goes back to what was before."""
    prepare(server, with_previous=False)
    killed(server, after, **release(2))
    check, result = server.check(**release(1)), server.ready(**release(1))
    assert facts(check) == facts(result)
    assert ("next" in names(result)) == (after < 4)
    assert labels(server) == "1"
    assert server.running() == [server.name]
    assert server.id(NEXT) is None
    assert facts(server.run(**release(1))) == (False, [], [])


@pytest.mark.parametrize(
    ("after", "state", "actions"),
    [
        (1, "stopped", ["remove_next", "stop"]),
        (3, "absent", ["remove_next", "remove_previous"]),
        (3, "restored", ["remove_next", "unkeep", "start"]),
    ],
)
def test_replacement_that_another_request_ends(server, after, state, actions):
    old = prepare(server, with_previous=False)
    killed(server, after, **release(2))
    assert server.id(NEXT), "or else there is nothing to remove"
    check, result = server.check(state=state), server.run(state=state)
    assert facts(check) == facts(result)
    assert result["actions"] == actions
    assert server.id(NEXT) is None
    assert server.id() == (None if state == "absent" else old)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_replacement_changed(server, after):
    """And once more something else: what was never ready does not push out what was."""
    old = prepare(server, with_previous=False)
    with Guard(server, old):
        killed(server, after, **release(2, env={"STANDIN_START_SECONDS": 5}))
        server.ready(**release(3))
    assert [labels(server), labels(server, PREVIOUS)] == ["3", "1"]
    assert server.id(PREVIOUS) == old


# --- a replacement whose next run is refused ---

REFUSED = {"volumes": ["/nowhere/at/all:/data"]}


def refused(server, **options):
    """A run that is refused before it touches anything of its own; check mode says beforehand what it does."""
    check = server.check(**options, **REFUSED)
    result = server.run(**options, **REFUSED)
    assert result["failed"] and "/nowhere/at/all" in result["msg"]
    assert (check["changed"], check["actions"]) == (result["changed"], result["actions"])
    return result


@pytest.mark.parametrize(
    ("with_previous", "after", "actions"),
    [
        (False, 1, []),
        (False, 2, ["start", "remove_next"]),
        (False, 3, ["unkeep", "start", "remove_next"]),
        (False, 4, ["remove", "unkeep", "start"]),
        (True, 3, ["start", "remove_next"]),
        (True, 5, ["remove", "unkeep", "start"]),
    ],
)
def test_replacement_and_then_a_refusal(server, with_previous, after, actions):
    """The old server comes back: while the mistake is mended, it serves."""
    old = prepare(server, with_previous=with_previous)
    with Guard(server, old):
        killed(server, after, **release(2))
        result = refused(server, **release(3))
        assert result["actions"] == actions
        assert result["rolled_back"] is bool(actions)
        assert (server.id(), server.running()) == (old, [server.name])
        server.wait_for_log("Application startup complete")
        assert server.served()["data"]
        assert refused(server, **release(3))["actions"] == []
        server.ready(**release(3))
    assert server.id(PREVIOUS) == old


@pytest.mark.parametrize(("after", "again"), [(1, False), (2, True)])
def test_a_server_that_a_person_stopped_is_not_started_by_a_refused_run(server, after, again):
    old = prepare(server, with_previous=False)
    killed(server, after, **release(2))
    if again:
        server.engine.start(old)
    server.engine.stop(old, 1)
    assert refused(server, **release(3))["actions"] == []
    assert server.running() == []


def test_a_refusal_that_is_killed_while_it_brings_the_old_server_back(server):
    old = prepare(server, with_previous=False)
    killed(server, 4, **release(2))
    for after in (1, 2):
        killed(server, after, **release(3), **REFUSED)
    refused(server, **release(3))
    assert (server.id(), server.running()) == (old, [server.name])
    assert facts(server.run(**release(1))) == (False, [], [])


# --- a replacement that fails ---


# With a predecessor only the first actions differ.
FAILS = [(False, after) for after in range(1, 10)] + [(True, after) for after in (1, 3, 4, 10)]


@pytest.mark.parametrize(("with_previous", "after"), FAILS)
def test_replacement_that_fails(server, with_previous, after):
    old = prepare(server, with_previous=with_previous, confirmed=with_previous)
    bad = release(2, env=BAD)
    with Guard(server, old):
        killed(server, after, **bad)
        result = server.run(**bad)
    assert result["failed"] and "failure ordered" in result["msg"]
    assert result["rolled_back"] is True
    assert server.id() == old
    assert server.running() == [server.name]
    assert server.served()["data"]


@pytest.mark.parametrize("after", [7, 9])
def test_replacement_that_fails_is_corrected(server, after):
    """Killed while it restored; the next run brings a release that works."""
    old = prepare(server, with_previous=False)
    with Guard(server, old):
        killed(server, after, **release(2, env=BAD))
        server.ready(**release(3))
    assert [labels(server), labels(server, PREVIOUS)] == ["3", "1"]
    assert server.running() == [server.name]


# --- back on request ---


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_restored(server, after):
    old = prepare(server, with_previous=False)
    server.ready(**release(2))
    with Guard(server, old):
        killed(server, after, state="restored")
        result = server.run(state="restored")
    assert not result.get("failed"), result["msg"]
    assert server.id() == old
    assert list(server.picture()) == server.running() == [server.name]
    assert server.run(state="restored")["failed"], "there is nothing more to restore"


@pytest.mark.parametrize("after", [2, 3])
def test_restored_interrupted_then_deployed(server, after):
    """A new release ends the interrupted request: going back then means going back from the new one."""
    prepare(server, with_previous=False)
    server.ready(**release(2))
    killed(server, after, state="restored")
    server.ready(**release(3))
    assert [labels(server), labels(server, PREVIOUS)] == ["3", "1"]
    assert server.running() == [server.name]
    assert not server.run(state="restored").get("failed")
    assert labels(server) == "1"
    assert server.run(state="restored")["failed"]


# --- the rest ---


@pytest.mark.parametrize("after", [1, 2, 3])
def test_absent(server, after):
    prepare(server, with_previous=True)
    killed(server, after, state="absent")
    server.run(state="absent")
    assert server.picture() == {}


def test_update(server):
    server.ready()
    killed(server, 1, restart_policy="always")
    assert facts(server.ready(restart_policy="always")) == (False, [], [])
    assert server.inspect()["HostConfig"]["RestartPolicy"]["Name"] == "always"


@pytest.mark.parametrize("moment", ["loading", "restoring"])
def test_killed_in_the_middle_of_the_watch(server, moment):
    old = prepare(server, with_previous=True)
    slow = {"STANDIN_START_SECONDS": 1.5}
    if moment == "restoring":
        server.ready(**release(3, env=slow))
        old = server.id()
    options = release(2, env=slow | (BAD if moment == "restoring" else {}))
    with Guard(server, old):
        process = server.spawn(**options)
        wait_until(lambda: labels(server) == "2" and "Starting to load" in server.log())
        if moment == "restoring":
            wait_until(lambda: labels(server) == "3" and server.running())
        process.kill()
        assert outcome(process) == (-9, None)
        result = server.run(**options)
    if moment == "loading":
        assert not result.get("failed"), result["msg"]
        assert (result["actions"], labels(server)) == ([], "2")
    else:
        assert result["failed"] and result["rolled_back"]
        assert server.id() == old
    assert server.running() == [server.name]
