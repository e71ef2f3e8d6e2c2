# SPDX-License-Identifier: Apache-2.0
"""Replaced in place, put back on failure or on request, ended gracefully; the last good server is never lost."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import standin
from vllm_server_tools import facts, outcome

pytestmark = pytest.mark.engine

BAD = {"env": {"STANDIN_FAIL_AT": "load"}}
PREVIOUS = ".previous"
REPLACED = ["create", "stop", "keep", "rename", "start"]
PUT_BACK = ["stop", "remove", "unkeep", "start"]


def release(number, **more):
    """A release that differs from every other one."""
    return {"labels": {"release": str(number)}, **more}


def labels(server, suffix=""):
    """The release that a container is of."""
    info = server.inspect(suffix)
    return info and info["Config"]["Labels"].get("release")


# --- replace ---


def test_the_replaced_server_is_kept(server):
    old = server.ready(**release(1))["container"]["id"]
    result = server.ready(**release(2))
    assert result["actions"] == REPLACED
    assert result["rolled_back"] is False
    assert server.id(PREVIOUS) == old
    assert server.running() == [server.name]
    third = server.ready(**release(3))
    assert third["actions"] == ["create", "stop", "remove_previous", "keep", "rename", "start"]
    assert [labels(server), labels(server, PREVIOUS)] == ["3", "2"]
    assert len(server.picture()) == 2


def test_downtime_is_the_time_from_stop_to_ready(server):
    assert server.ready(**release(1))["downtime"] is None
    result = server.ready(**release(2, env={"STANDIN_START_SECONDS": 1.5}))
    assert 1.5 < result["downtime"] <= result["elapsed"]
    assert server.ready(**release(2, env={"STANDIN_START_SECONDS": 1.5}))["downtime"] is None


def test_a_request_that_runs_is_finished_before_the_old_server_ends(server):
    server.ready(**release(1, env={"STANDIN_TOKEN_DELAY": 0.25}))
    assert "--shutdown-timeout" in server.inspect()["Config"]["Cmd"]
    answers = []

    def ask():
        body = {"model": "acme/tiny", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            answers.append(json.load(response)["choices"][0]["message"]["content"])

    asking = threading.Thread(target=ask)
    asking.start()
    end = time.monotonic() + 120
    while server.served("/load")["server_load"] < 1:
        assert time.monotonic() < end
    result = server.ready(**release(2))
    asking.join(20)
    assert answers == ["The capital of France is Paris."]
    assert result["actions"] == REPLACED


def test_a_server_that_does_not_end_is_killed_after_its_own_stop_timeout(server):
    """The old one's timeout counts, not the new one's."""
    server.ready(**release(1, env={"STANDIN_IGNORE_TERM": 1}, stop_timeout=2))
    assert server.ready(**release(2, stop_timeout=3600))["downtime"] >= 2
    assert server.inspect(PREVIOUS)["State"]["ExitCode"] == 137


def test_no_shutdown_timeout_for_a_vllm_that_does_not_know_it(server):
    """Only flags that the image lists are passed; here it cannot be asked."""
    result = server.run(entrypoint=["python3", "-c", "raise SystemExit(3)"])
    assert "--shutdown-timeout" not in server.inspect()["Config"]["Cmd"]
    assert result["failed"]


# --- back on failure ---


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "sliced"])
def test_the_old_server_comes_back(server, sliced):
    old = server.ready(**release(1))["container"]["id"]
    phases = []
    if sliced:
        options = release(2, env=BAD["env"] | {"STANDIN_START_SECONDS": 4})
        result = server.run(slice_seconds=0.3, **options)
        while result.get("pending"):
            phases.append(result["progress"]["phase"])
            token = json.loads(json.dumps(result["token"]))
            result = server.run(slice_seconds=0.3, token=token, **options)
        assert phases and phases == sorted(phases, reverse=True)
    else:
        result = server.run(**release(2, **BAD))
    assert result["failed"] and result["rolled_back"] is True
    assert result["actions"] == [*REPLACED, *PUT_BACK]
    assert "failure ordered at stage load" in result["msg"]
    assert result["msg"].endswith("The previous server is back and ready.")
    assert result["container"]["id"] == server.id() == old
    assert server.running() == [server.name]
    assert server.served()["data"]
    assert result["downtime"] > 0
    assert [stage["stage"] for stage in result["stages"]][-1] != "ready", "the stages are those of the failed start"
    assert Path(result["log_file"]).read_text()
    # And it is as if nothing had been tried.
    assert facts(server.ready(**release(1))) == (False, [], [])


def test_the_same_bad_change_again_fails_the_same_way(server):
    old = server.ready(**release(1))["container"]["id"]
    first, second = server.run(**release(2, **BAD)), server.run(**release(2, **BAD))
    for result in (first, second):
        assert result["rolled_back"] is True
        assert result["actions"] == [*REPLACED, *PUT_BACK]
    assert server.id() == old


def test_an_older_release_is_not_needed_when_the_latest_comes_back(server):
    """Two releases kept; the failing third costs the oldest one, not the one that served."""
    server.ready(**release(1))
    second = server.ready(**release(2))["container"]["id"]
    result = server.run(**release(3, **BAD))
    assert result["rolled_back"] and server.id() == second


def test_neither_comes_up(server, engine):
    """The old one cannot come back: both reasons are told, and nothing runs in a loop behind the user's back."""
    from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle

    server.ready(**release(1, env={"STANDIN_GROW_FILE": "/data/x"}, volumes=[f"{server.folder}:/data"]))

    def break_the_old_one(action):
        if action == "create":  # its port is taken when it is its turn to come back
            server.blocker = server.client.api.create_container(
                server.image,
                command=["sleep", "60"],
                name=server.name.replace("it-", "blocker-"),
                ports=[80],
                host_config=server.client.api.create_host_config(port_bindings={80: ("127.0.0.1", server.port)}),
            )["Id"]
        if action == "unkeep":
            server.client.api.start(server.blocker)

    try:
        options = server.parsed(**release(2, **BAD))
        result = Lifecycle(options, engine, host="node7", after_action=break_the_old_one).run()
    finally:
        server.client.api.remove_container(server.blocker, force=True)
    assert result["failed"] and result["rolled_back"] is False
    assert "failure ordered at stage load" in result["msg"]
    assert "could not be put back" in result["msg"]
    assert "port is already allocated" in result["msg"]
    assert labels(server) == "1"
    assert server.ready(**release(1, env={"STANDIN_GROW_FILE": "/data/x"}, volumes=[f"{server.folder}:/data"]))


def test_a_failed_first_deployment_is_left_stopped_and_the_next_one_works(server):
    result = server.run(**release(1, **BAD))
    assert result["failed"] and result["rolled_back"] is False
    assert result["actions"] == ["create", "start", "stop"]
    assert server.inspect()["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    time.sleep(0.5)  # longer than Docker's first delay before a restart
    assert server.inspect()["State"]["Status"] == "exited"
    check = server.check(**release(2))
    good = server.ready(**release(2))
    assert facts(check) == facts(good)
    assert labels(server) == "2"
    assert server.running() == [server.name]


def test_a_start_known_to_fail_is_not_what_a_failure_falls_back_to(server):
    """Two bad releases, one after the other: the first one is not started again when the second fails."""
    server.run(**release(1, **BAD))
    result = server.run(**release(2, env={"STANDIN_FAIL_AT": "shards"}))
    assert result["failed"] and result["rolled_back"] is False
    assert result["actions"].count("start") == 1, result["actions"]
    assert "failure ordered at stage shards" in result["msg"]
    assert "previous" not in result["msg"]
    assert server.running() == []
    assert server.ready(**release(3))["container"]["status"] == "running"
    # What never worked is not kept for a fall-back either.
    assert labels(server, PREVIOUS) is None


def test_the_same_failed_container_may_be_started_again(server):
    """Its cause may lie outside of it (a full disk, a taken GPU): the same command again tries again."""
    missing = server.folder / "later"
    missing.mkdir()
    options = release(
        1, env={"STANDIN_FAIL_LOG": "/later/log", "STANDIN_FAIL_AT": "load"}, volumes=[f"{missing}:/later"]
    )
    (missing / "log").write_text("ValueError: not yet\n")
    assert server.run(**options)["failed"]
    again = server.run(**options)
    assert again["actions"] == ["start", "stop"]
    assert again["failed"]


def test_a_crash_loop_does_not_delay_the_old_server(server):
    """Docker starts the failed one again before it is stopped; that one hears no SIGTERM in its first moments."""
    server.ready(**release(1, stop_timeout=3600))
    result = server.run(**release(2, stop_timeout=3600, **BAD))
    assert result["rolled_back"] is True


def test_an_old_server_that_never_worked_either_is_not_left_in_a_loop(server):
    """What is put back was still loading when it was replaced, and fails now."""
    options = release(1, env={"STANDIN_FAIL_LOG": "/later/log", "STANDIN_FAIL_AT": "load"})
    volume = server.folder / "later"
    volume.mkdir()
    (volume / "log").write_text("ValueError: the first one's own fault\n")
    first = {**options, "volumes": [f"{volume}:/later"]}
    first["env"] = first["env"] | {"STANDIN_STAGE_SILENT": "config", "STANDIN_SILENT_SECONDS": 4}
    assert server.run(slice_seconds=0.5, **first)["pending"]
    result = server.run(**release(2, **BAD))
    assert result["failed"] and result["rolled_back"] is False
    assert "failure ordered at stage load" in result["msg"] and "did not become ready" in result["msg"]
    assert labels(server) == "1"
    assert server.running() == []


def test_a_start_that_hangs_is_replaced_by_the_old_one(server):
    old = server.ready(**release(1))["container"]["id"]
    result = server.run(**release(2, env={"STANDIN_STAGE_SILENT": "shards"}, stall_timeout=1.5))
    assert result["failure"]["class"] == "stalled"
    assert result["rolled_back"] and server.id() == old


def blocked(server, action, block):
    """Run release 2 while ``block`` is called after an action, so that the next one is refused by Docker."""
    from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle

    def after(done):
        if done == action:
            block()

    return Lifecycle(server.parsed(**release(2)), server.engine, host="node7", after_action=after).run()


def test_an_action_that_docker_refuses_does_not_cost_the_old_server(server):
    """The name for the old one is taken in the last moment: it is started again, under its own."""
    old = server.ready(**release(1))["container"]["id"]
    name = server.name + PREVIOUS
    result = blocked(server, "stop", lambda: server.client.api.create_container(server.image, name=name))
    assert result["failed"] and result["rolled_back"] is True
    assert result["actions"] == ["create", "stop", "remove_next", "start"]
    assert server.id(".next") is None
    assert "already in use" in result["failure"]["cause"]
    assert server.id() == old and server.running() == [server.name]


def test_a_new_container_that_somebody_removes_while_the_old_one_stops(server):
    """As `docker container prune` does with all that do not run."""
    old = server.ready(**release(1))["container"]["id"]
    result = blocked(server, "keep", lambda: server.client.api.remove_container(server.id(".next")))
    assert result["failed"] and result["rolled_back"] is True
    assert result["actions"] == ["create", "stop", "keep", "unkeep", "start"]
    assert server.id() == old and server.running() == [server.name]


def test_a_refused_update_leaves_the_server_alone(server, engine, monkeypatch):
    from ansible.module_utils.vllm_fleet.container.engine import EngineError

    def refuse(self, container, policy):
        raise EngineError("update container: no")

    old = server.ready(**release(1))["container"]["id"]
    before = server.picture()
    monkeypatch.setattr(type(engine), "update_restart_policy", refuse)
    result = server.run(**release(1, restart_policy="always"))
    assert result["failed"] and "update container: no" in result["msg"]
    assert (result["changed"], result["actions"]) == (False, [])
    assert server.picture() == before and server.id() == old


def test_a_predecessor_that_somebody_started_is_stopped_first(server, docker_client):
    """Only one server has room on the GPUs."""
    server.fixed["stop_timeout"] = 2  # it is stopped in its first moments, see test_vllm_server_kill.py
    server.ready(**release(1))
    server.port, first_port = standin.free_port(), server.port
    server.ready(**release(2))
    docker_client.api.start(server.id(PREVIOUS))
    assert len(server.running()) == 2
    check = server.check(**release(2))
    result = server.ready(**release(2))
    assert facts(check) == facts(result)
    assert (result["changed"], result["actions"]) == (True, ["stop_previous"])
    assert server.running() == [server.name]
    docker_client.api.start(server.id(PREVIOUS))
    assert server.ready(**release(3))["actions"][:2] == ["create", "stop_previous"]
    assert server.running() == [server.name]
    assert first_port != server.port


# --- back on request ---


def test_restored_on_request(server):
    old = server.ready(**release(1))["container"]["id"]
    new = server.ready(**release(2))["container"]["id"]
    before = server.picture()
    check = server.check(state="restored")
    assert server.picture() == before
    result = server.run(state="restored")
    assert not result.get("failed"), result.get("msg")
    assert facts(check) == facts(result)
    assert result["actions"] == ["stop", "remove", "unkeep", "start"]
    assert result["differences"] == [
        {"name": "container", "current": new[:12], "desired": old[:12]},
    ]
    assert server.id() == old
    assert server.running() == [server.name]
    assert server.served()["data"]
    assert "Application startup complete" in Path(result["log_file"]).read_text(), "the removed server's log is kept"
    nothing = server.run(state="restored")
    assert nothing["failed"] and "nothing was touched" in nothing["msg"]
    assert server.running() == [server.name]


def test_restored_without_model_and_image(server):
    """The verification's rescue knows the container's name alone."""
    server.ready(**release(1))
    server.ready(**release(2))
    run = server.ansible(state="restored", image=None, model=None)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "[localhost] restoring, ready" in run.stdout
    assert labels(server) == "1"


def test_confirmed_protects_the_server_that_was_verified(server):
    server.ready(**release(1))
    assert server.run(state="confirmed")["confirmed"] is True
    server.ready(**release(2))
    third = server.ready(**release(3))
    assert third["actions"] == ["create", "stop", "remove", "rename", "start"]
    assert [labels(server), labels(server, PREVIOUS)] == ["3", "1"]
    assert third["confirmed"] is False
    result = server.run(state="confirmed")
    assert (result["changed"], result["actions"], result["confirmed"]) == (False, [], True)
    server.ready(**release(4))
    assert [labels(server), labels(server, PREVIOUS)] == ["4", "3"]


def test_a_confirmed_server_that_fails_today_is_not_exchanged_for_an_older_one(server):
    server.ready(**release(1))
    server.run(state="confirmed")
    server.ready(**release(2))
    server.run(state="confirmed")
    current = server.id()
    server.client.api.stop(current, timeout=5)
    (server.state_dir / "x").write_text("")
    result = server.run(**release(2), ready_timeout=0.01)
    assert result["failed"] and result["rolled_back"] is False
    assert server.id() == current and labels(server, PREVIOUS) == "1"


def test_nothing_to_confirm(server):
    assert "tart it first" in server.run(state="confirmed")["msg"]
    server.ready()
    server.run(state="stopped")
    assert "tart it first" in server.run(state="confirmed")["msg"]
    assert server.check()["confirmed"] is False


# --- end and beginning ---


def test_absent_removes_the_predecessor_too_and_keeps_caches_and_logs(server):
    server.run(**release(0, **BAD))
    server.ready(**release(1))
    server.ready(**release(2))
    result = server.run(state="absent")
    assert set(result["actions"]) == {"stop", "remove", "remove_previous"}
    assert server.picture() == {}
    assert list((server.state_dir / "engine-cache").iterdir())
    assert list((server.state_dir / server.name / "logs").iterdir())


def test_the_engines_cache_is_the_images_and_the_models(server, standin_openai_image):
    def source():
        return next(m["Source"] for m in server.inspect()["Mounts"] if m["Destination"] == "/root/.cache/vllm")

    server.ready(**release(1))
    first = source()
    server.ready(**release(2))
    assert source() == first
    server.ready(**release(2, model="acme/other"))
    other_model = source()
    server.ready(**release(2, image=standin_openai_image))
    assert len({first, other_model, source()}) == 3


def test_an_engine_that_dies_while_serving_is_brought_back(server):
    """vLLM ends with exit code 0 then, so `on-failure` would not do."""
    options = release(1, env={"STANDIN_DIE_AFTER": 3.0})
    server.ready(**options)
    end = time.monotonic() + 120
    while not server.inspect()["RestartCount"]:
        assert time.monotonic() < end, "Docker did not restart it"
        time.sleep(0.05)
    result = server.run(**options)
    assert not result.get("failed"), result["msg"]
    assert facts(result) == (False, [], [])


def test_a_lost_connection_in_the_middle_of_a_restore(server):
    """The caller dies while the old server comes back: the next run sees what is there and goes on from it."""
    old = server.ready(**release(1, env={"STANDIN_START_SECONDS": 1.5}))["container"]["id"]
    bad = release(2, **BAD)
    result = server.run(slice_seconds=0.3, **bad)
    while result.get("pending") and result["progress"]["phase"] != "restore":
        result = server.run(slice_seconds=0.3, token=result["token"], **bad)
    assert result["pending"]
    again = server.run(**bad)
    assert again["failed"] and again["rolled_back"]
    assert server.id() == old
    assert server.running() == [server.name]


def test_an_answer_that_was_lost_does_not_make_a_failure_a_success(server):
    """The slice that failed and put the old server back is asked again, with the token from before it."""
    old = server.ready(**release(1, env={"STANDIN_START_SECONDS": 1.5}))["container"]["id"]
    bad = release(2, env={"STANDIN_START_SECONDS": 1.5, "STANDIN_FAIL_AT": "kv_cache"})
    result = server.run(slice_seconds=0.3, **bad)
    while result.get("pending") and result["progress"]["phase"] != "restore":
        token = json.dumps(result["token"])
        result = server.run(slice_seconds=0.3, token=json.loads(token), **bad)
    assert result["pending"] and server.id() == old
    again = server.run(token=json.loads(token), **bad)
    assert again["failed"] and again["rolled_back"], again
    assert "failure ordered at stage kv_cache" in again["msg"]
    assert again["failure"] == result["token"]["failure"]
    assert again["actions"] == result["token"]["actions"]
    assert Path(again["log_file"]).read_text()
    assert server.running() == [server.name] and server.id() == old


def test_a_server_that_another_run_replaced_meanwhile_is_not_taken_for_the_watched_one(server):
    slow = release(1, env={"STANDIN_START_SECONDS": 3})
    first = server.run(slice_seconds=0.3, **slow)
    other = server.ready(**release(2))["container"]["id"]
    result = server.run(slice_seconds=0.3, token=first["token"], **slow)
    assert result["failed"] and "was replaced by" in result["msg"]
    assert server.id() == other and server.running() == [server.name]


def test_a_rank_tries_its_new_container_and_leaves_everything_as_it_is(server):
    from ansible.module_utils.vllm_fleet.replica.rank_lifecycle import RankLifecycle, Step

    def tried(**more):
        return RankLifecycle(server.parsed(**release(2, **more)), server.engine, step=Step("try"), host="node7").run()

    server.ready(**release(1))
    before = server.picture()
    done = tried()
    assert done["pending"] and not done.get("failed")
    assert done["actions"] == ["create", "remove_next"]
    refused = tried(security_opts=["nonsense=1"])
    assert refused["failed"] and not refused.get("pending")
    assert "security_opts: Docker does not take it" in refused["msg"]
    assert (refused["changed"], refused["actions"]) == (False, [])
    assert server.picture() == before


def test_a_rank_that_is_told_twice_to_go_back_goes_back_once(server):
    """The answer to the first time was lost: the one that came back must not be taken for the one that failed."""
    from ansible.module_utils.vllm_fleet.replica.rank_lifecycle import RankLifecycle, Step

    def step(name, token=None):
        options = server.parsed(**release(2, **BAD))
        token = json.loads(json.dumps(token))
        return RankLifecycle(options, server.engine, step=Step(name), host="node7", token=token).run()

    old = server.ready(**release(1))["container"]["id"]
    failed = step("go", step("hold")["token"])
    assert "failure ordered at stage load" in failed["failure"]["cause"]
    first, second = step("give_up", failed["token"]), step("give_up", failed["token"])
    assert first["pending"] and second["pending"], second
    assert server.id() == old
    back = step("go", second["token"])
    assert back["rolled_back"] is True and back["actions"] == first["token"]["actions"] + ["start"]
    assert server.running() == [server.name]


@pytest.mark.parametrize("key", [None, "canary-key-1"])
def test_a_server_from_a_script_comes_back_from_a_failed_replacement(server, docker_client, key):
    """Somebody's own `docker run ... bash -c 'vllm serve ...'`: what it serves, and its key, is not known from outside."""
    guarded = f" --api-key {key}" if key else ""
    made = docker_client.api.create_container(
        server.image,
        name=server.name,
        entrypoint=["bash", "-c"],
        command=[f"exec vllm serve acme/own{guarded}"],
        environment={"STANDIN_START_SECONDS": "0"},
        ports=[8000],
        host_config=docker_client.api.create_host_config(port_bindings={8000: ("127.0.0.1", server.port)}),
    )
    docker_client.api.start(made["Id"])
    server.wait_for_log("Application startup complete")
    result = server.run(**release(2, **BAD))
    assert result["failed"] and result["rolled_back"], result["msg"]
    assert server.id() == made["Id"]
    assert server.served(key=key)["data"][0]["id"] == "acme/own"


def test_progress_says_that_it_restores(server):
    server.ready(**release(1))
    run = server.ansible(**release(2, **BAD))
    assert run.returncode == 2
    lines = [line for line in run.stdout.splitlines() if line.startswith("[localhost]")]
    assert any(line.startswith("[localhost] restoring, starting") for line in lines), run.stdout
    assert lines[-1].startswith("[localhost] restoring, ready")
    assert "rolled_back: true" in run.stdout
    assert re.search(r"The previous server\s+is back and ready", run.stdout)


def test_a_killed_controller_leaves_no_second_run(server):
    """The module is killed while it watches a replacement: the next run takes up the watch, and keeps the old one."""
    server.ready(**release(1))
    old = server.id()
    options = release(2, env={"STANDIN_START_SECONDS": 2})
    process = server.spawn(**options)
    end = time.monotonic() + 120
    while not (labels(server) == "2" and "Starting to load model" in server.log()):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    assert outcome(process) == (-9, None)
    result = server.ready(**options)
    assert (result["changed"], result["actions"]) == (False, [])
    assert server.id(PREVIOUS) == old


# --- restarted on request ---


def hang(server):
    """Stop the server's processes as they are: its port stays open and nothing answers."""
    server.client.api.kill(server.id(), signal="SIGSTOP")


def test_restarted_on_request(server):
    made = server.ready(**release(1))["container"]["id"]
    server.run(state="confirmed")
    started = server.inspect()["State"]["StartedAt"]
    hang(server)
    check = server.check(state="restarted")
    assert server.inspect()["State"]["StartedAt"] == started
    # As the watchdog calls it: it knows the name, and no more of what the server was started with.
    result = server.run(state="restarted", image=None, model=None, port=8000, stop_timeout=1)
    assert not result.get("failed"), result.get("msg")
    assert facts(check) == facts(result)
    assert result["actions"] == ["stop", "start"]
    assert result["differences"] == [{"name": "state", "current": "running", "desired": "restarted"}]
    assert (server.id(), result["confirmed"]) == (made, True)
    now = server.inspect()["State"]["StartedAt"]
    assert now != started
    assert server.served()["data"]
    # Somebody was quicker than this run.
    late = server.run(state="restarted", image=None, model=None, started_at=started)
    assert (late["actions"], late["changed"], late.get("failed", False)) == ([], False, False)
    assert server.inspect()["State"]["StartedAt"] == now
    again = server.run(state="restarted", image=None, model=None, started_at=now, stop_timeout=1)
    assert again["actions"] == ["stop", "start"]


def test_a_stopped_server_is_started_by_a_restart(server):
    server.ready(**release(1))
    server.run(state="stopped")
    result = server.run(state="restarted", image=None, model=None)
    assert (result["actions"], server.running()) == (["start"], [server.name])


def test_a_restart_in_slices_goes_on_where_it_was(server):
    server.ready(**release(1, env={"STANDIN_START_SECONDS": 1.5}))
    bare = {"state": "restarted", "image": None, "model": None, "port": 8000, "stop_timeout": 1}
    result = server.run(slice_seconds=0.4, **bare)
    assert result["pending"]
    while result.get("pending"):
        result = server.run(slice_seconds=0.4, token=result["token"], **bare)
    assert not result.get("failed"), result.get("msg")
    assert result["actions"] == ["stop", "start"]
    assert server.served()["data"]


def test_a_good_server_that_does_not_come_back_after_a_restart_is_diagnosed_and_kept(server, tmp_path):
    # Fails from its second start on, as with weights that were lost meanwhile.
    script = 'if [ -e /state/again ]; then echo "OSError: [Errno 28] No space left on device" >&2; exit 1; fi; touch /state/again; exec vllm serve "$@"'
    given = {"entrypoint": ["sh", "-c", script, "sh"], "volumes": [f"{tmp_path}:/state"], "restart_policy": "no"}
    made = server.ready(**release(1, **given))["container"]["id"]
    server.run(state="confirmed")
    result = server.run(state="restarted", image=None, model=None, stop_timeout=1)
    assert result["failed"]
    assert result["failure"]["class"] == "disk_full"
    assert server.id() == made, "it is still the best there is"


def test_nothing_to_restart(server):
    result = server.run(state="restarted")
    assert result["failed"] and "there is no container" in result["msg"]
