# SPDX-License-Identifier: Apache-2.0
"""A start, watched: from which stage to which, until which verdict, in one piece and in slices."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise

import pytest
import standin
from fake_hf_cache import FakeCache
from vllm_server_tools import facts, outcome

from ansible.module_utils.vllm_fleet.server import watch

pytestmark = pytest.mark.engine

ORDER = (
    *("starting", "configuring", "downloading weights", "loading weights", "compiling", "allocating kv cache"),
    *("capturing graphs", "starting api", "ready"),
)
SILENT = {"STANDIN_STAGE_SILENT": "load"}


def slices(server, seconds=0.4, limit=60, **options):
    """Run to the end in slices, as the action plugin does; every result."""
    results = [server.run(slice_seconds=seconds, **options)]
    while results[-1].get("pending"):
        assert len(results) < limit, "the slices do not come to an end"
        token = json.loads(json.dumps(results[-1]["token"]))  # it travels as JSON
        results.append(server.run(slice_seconds=seconds, token=token, **options))
    return results


def test_ready_with_its_stages(server):
    result = server.ready(env={"STANDIN_START_SECONDS": 0.5})
    stages = [stage["stage"] for stage in result["stages"]]
    assert stages == list(ORDER)
    times = [stage["at"] for stage in result["stages"]]
    assert times == sorted(times)
    assert 0.4 < times[-1] < result["elapsed"]
    assert result["downtime"] is None
    assert result["container"]["status"] == "running"
    assert server.served()["data"][0]["id"] == "acme/tiny"


def test_ready_means_listed_under_the_served_name(server):
    server.ready(args={"served-model-name": ["tiny", "alias"]})
    assert {card["id"] for card in server.served()["data"]} == {"tiny", "alias"}


def test_a_key_is_used_for_the_question(server):
    server.ready(api_key="canary-key-1")
    assert server.served(key="canary-key-1")["data"]


def test_a_key_in_the_environment_is_used_for_the_question(server):
    server.ready(env={"VLLM_API_KEY": "canary-key-1"})
    assert server.served(key="canary-key-1")["data"]


def test_a_key_that_nobody_told_is_a_verdict(server):
    """As from a file of --config: it is up and answers 401 for ever."""
    script = ["sh", "-c", 'VLLM_API_KEY=other exec vllm serve "$@"', "sh"]
    result = server.run(entrypoint=script, ready_timeout=1e6, stall_timeout=1e6)
    assert result["failure"]["class"] == "bad_argument", result["msg"]
    assert "401" in result["msg"] and "vllm_server_api_key" in result["msg"]


# --- older than the patience with a start ---


@pytest.mark.parametrize("what", ["update", "stop_previous", "unpause"])
def test_a_server_that_has_served_for_long_is_asked_before_it_is_judged(server, docker_client, what):
    """It is older than ready_timeout, as every server is after an hour."""
    server.ready(labels={"release": "1"}, stop_timeout=2)
    server.fixed = {"stop_timeout": 2, "labels": {"release": "2"}, "ready_timeout": 2.0}
    if what == "stop_previous":
        server.port, old = standin.free_port(), server.port
    server.ready(ready_timeout=60.0)
    first = server.id()
    wait_until(lambda: watch.process_age(server.inspect()["State"]["Pid"]) > 2.5)
    change = {"restart_policy": "always"} if what == "update" else {}
    if what == "stop_previous":
        docker_client.api.start(server.id(".previous"))
        assert server.port != old
    if what == "unpause":
        docker_client.api.pause(first)
    result = server.run(**change)
    assert not result.get("failed"), result["msg"]
    assert result["actions"] == [{"unpause": "start"}.get(what, what)]
    assert server.id() == first and server.served()["data"]


# --- slow and silent ---


def test_a_silence_shorter_than_the_limit_passes(server):
    result = server.ready(env=SILENT | {"STANDIN_SILENT_SECONDS": 1.5}, stall_timeout=20.0)
    assert result["stages"][-1]["at"] > 1.5


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "sliced"])
def test_a_silent_start_that_computes_is_not_stalled(server, sliced):
    """No line for twice the limit, only CPU used. Docker's statistics come once a second, hence not quicker."""
    options = {"env": SILENT | {"STANDIN_SILENT_SECONDS": 6, "STANDIN_BUSY_CPU": 1}, "stall_timeout": 3.0}
    result = slices(server, seconds=2.0, **options)[-1] if sliced else server.run(**options)
    assert not result.get("failed"), result["msg"]
    assert result["stages"][-1]["at"] > 6


def test_a_silent_start_whose_cache_grows_is_not_stalled(server):
    """The Hub's downloads print nothing: the blobs of the model's folder are watched."""
    cache = FakeCache(server.folder / "hf", repo_id="acme/tiny")
    blob = f"/root/.cache/huggingface/hub/{cache.repo.name}/blobs/new.incomplete"
    grow = SILENT | {"STANDIN_SILENT_SECONDS": 5, "STANDIN_GROW_FILE": blob, "HF_HUB_OFFLINE": 0}
    result = server.run(env=grow, hf_cache=str(cache.cache), stall_timeout=2.5)
    assert not result.get("failed"), result["msg"]


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "sliced"])
def test_a_silent_hang_is_stalled(server, sliced):
    # Longer than a start is silent by itself on a busy machine.
    options = {"env": SILENT, "stall_timeout": 3.0, "ready_timeout": 1e6}
    result = slices(server, **options)[-1] if sliced else server.run(**options)
    assert result["failed"]
    assert result["failure"]["class"] == "stalled"
    assert "downloading weights" in result["failure"]["cause"]
    assert result["container"]["status"] == "exited"


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "sliced"])
def test_a_server_that_never_gets_healthy_runs_into_the_ready_timeout(server, sliced):
    """It is not stalled: the probes' own lines in its log are no sign of life, and no sign of death."""
    options = {"env": {"STANDIN_NEVER_HEALTHY": 1}, "ready_timeout": 5.0, "stall_timeout": 1e6}
    result = slices(server, **options)[-1] if sliced else server.run(**options)
    assert result["failure"]["class"] == "ready_timeout"
    assert "503" in result["failure"]["cause"]


def test_a_server_that_answers_503_and_does_nothing_is_stalled(server):
    """The access log says GET /health for ever; nothing else moves."""
    result = server.run(env={"STANDIN_NEVER_HEALTHY": 1}, ready_timeout=30.0, stall_timeout=2.5)
    assert result["failure"]["class"] == "stalled"


def test_another_model_than_asked_for(server):
    result = server.run(env={"STANDIN_SERVE_MODEL": "acme/other"}, ready_timeout=1e6, stall_timeout=1e6)
    assert result["failure"]["class"] == "wrong_model_served"
    assert "acme/other" in result["failure"]["cause"]


# --- death ---


def test_a_death_ends_the_watch_whatever_the_limits(server):
    options = {"env": {"STANDIN_FAIL_AT": "shards", "STANDIN_FAIL_EXIT": 3}, "ready_timeout": 1e6, "stall_timeout": 1e6}
    result = server.run(**options)
    assert result["failed"]
    assert result["failure"]["exit_code"] == 3
    assert result["failure"]["class"] == "unknown"
    assert "failure ordered at stage shards" in result["msg"]
    assert "Engine core initialization failed" not in result["failure"]["cause"]
    assert server.running() == []


def test_killed_by_a_signal(server):
    process = server.spawn(env=SILENT)
    wait_until(lambda: server.id() and "Starting to load model" in server.log())
    server.client.api.kill(server.id(), signal="SIGKILL")
    _, result = outcome(process)
    assert result["failed"]
    assert result["failure"]["exit_code"] == 137
    assert result["failure"]["class"] in ("host_memory", "stopped_by_signal")


def wait_until(condition, seconds=120.0):
    """Wait until something of Docker's is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true within {seconds} s"
        time.sleep(0.02)


# --- slices ---


def test_slices_resume_where_the_last_one_ended(server):
    # On a busy machine a slice of less than a second takes three.
    results = slices(server, env={"STANDIN_START_SECONDS": 6, "STANDIN_SHARDS": 6})
    assert len(results) > 2
    last = results[-1]
    assert not last.get("failed"), last["msg"]
    assert (last["changed"], last["actions"]) == (True, ["create", "start"])
    assert [stage["stage"] for stage in last["stages"]] == list(ORDER)
    # Every line of the log is shown once, whatever the cuts.
    lines = [line for result in results for line in result["log_lines"] if "GET /" not in line]
    shards = [line for line in lines if "Loading safetensors checkpoint shards" in line]
    assert len(shards) == len(set(shards)) == 7
    news = [item["stage"] for result in results for item in result["progress"]["news"]]
    assert news[0] == "starting" and news[-1] == "ready"
    assert all(ORDER.index(a) <= ORDER.index(b) for a, b in pairwise(news)), news


def test_a_restart_between_two_slices_is_seen(server):
    """The start that was watched has failed, though a newer one runs; the reason is in the older one's log."""
    error = "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2)."
    env = {"STANDIN_START_SECONDS": 2, "STANDIN_FAIL_AT": "kv_cache", "STANDIN_FAIL_TEXT": error}
    first = server.run(env=env, slice_seconds=0.4, restart_policy="no")
    assert first["pending"]
    wait_until(lambda: not server.inspect()["State"]["Running"])
    server.engine.start(server.id())
    result = server.run(env=env, slice_seconds=0.4, restart_policy="no", token=first["token"])
    assert result["failed"]
    assert result["failure"]["class"] == "bad_parallelism", result["msg"]
    assert server.running() == []


def test_a_crash_loop_between_two_slices_is_seen(server):
    """Docker's policy restarts it quicker than the next slice comes."""
    env = {"STANDIN_START_SECONDS": 1, "STANDIN_FAIL_AT": "kv_cache"}
    first = server.run(env=env, slice_seconds=0.3)
    assert first["pending"]
    wait_until(lambda: server.inspect()["RestartCount"] >= 2)
    result = server.run(env=env, slice_seconds=0.3, token=first["token"])
    assert result["failed"]
    assert "failure ordered at stage kv_cache" in result["msg"]
    assert server.running() == [], "a failed first deployment must not go on in a loop"


def test_a_death_between_two_slices_is_seen(server):
    first = server.run(env=SILENT, slice_seconds=0.6)
    assert first["pending"]
    server.client.api.kill(server.id(), signal="SIGTERM")
    wait_until(lambda: not server.inspect()["State"]["Running"] or server.inspect()["RestartCount"])
    result = server.run(env=SILENT, slice_seconds=0.6, token=first["token"])
    assert result["failure"]["class"] == "stopped_by_signal"


def test_a_container_that_vanishes_between_two_slices(server, docker_client):
    first = server.run(env=SILENT, slice_seconds=0.6)
    docker_client.api.remove_container(server.id(), force=True)
    result = server.run(env=SILENT, slice_seconds=0.6, token=first["token"])
    assert result["failed"]
    assert "disappeared" in result["msg"]


def test_an_interrupted_run_is_taken_up(server):
    """The controller went away in the middle: run again, and only the watch goes on."""
    options = {"env": {"STANDIN_START_SECONDS": 2.5}}
    first = server.run(slice_seconds=0.5, **options)
    assert first["pending"]
    started = server.inspect()["State"]["StartedAt"]
    check = server.check(**options)
    assert facts(check) == (False, [], [])
    second = server.run(**options)
    assert not second.get("failed"), second["msg"]
    assert facts(second) == (False, [], [])
    assert server.inspect()["State"]["StartedAt"] == started
    assert [stage["stage"] for stage in second["stages"]] == list(ORDER)


def test_a_run_that_is_stopped_before_it_started_anything_changes_only_what_is_left(server):
    """create, then nothing: the next run has only `start` to do, and says so."""
    assert outcome(server.spawn(kill_after=1)) == (-9, None)
    check, real = server.check(), server.ready()
    assert facts(check) == facts(real)
    assert real["actions"] == ["start"]


def test_two_runs_at_once_wait_for_each_other(server):
    options = {"env": {"STANDIN_START_SECONDS": 1.5}}
    runs = [server.spawn(**options), server.spawn(**options)]
    results = [outcome(run)[1] for run in runs]
    assert [result.get("failed") for result in results] == [None, None]
    assert sorted(result["changed"] for result in results) == [False, True]
    assert len(server.picture()) == 1


# --- on the terminal ---


def test_progress_on_the_terminal_is_one_line_for_each_stage(server):
    run = server.ansible(env={"STANDIN_START_SECONDS": 12, "STANDIN_SHARDS": 8}, watch_slice=1.0)
    assert run.returncode == 0, run.stdout + run.stderr
    shown = run.stdout.partition("localhost | ")[0]
    lines = [line for line in shown.splitlines() if line]
    assert all(re.match(r"\[localhost\] .* \(\d+ s.*\)", line) for line in lines), shown
    stages = [re.sub(r"^\[localhost\] ([a-z ]+?)( container| \d| \().*", r"\1", line) for line in lines]
    assert all(ORDER.index(a) <= ORDER.index(b) for a, b in pairwise(stages)), shown
    assert stages[0] == "starting" and stages[-1] == "ready"
    assert re.search(r"loading weights \d/8", shown)
    assert not re.search(r"FAILED|RETRYING|retries left", run.stdout + run.stderr)
    result = run.stdout.partition("localhost | ")[2]
    for internal in ("token", "pending", "log_lines", "progress"):
        assert f"\n    {internal}:" not in result


def test_a_quiet_start_shows_its_last_log_line(server):
    run = server.ansible(env=SILENT | {"STANDIN_SILENT_SECONDS": 10}, watch_slice=1.0)
    assert re.search(
        r"\[localhost\] downloading weights.* \(\d+ s.*\) \| .*Starting to load model acme/tiny", run.stdout
    ), run.stdout


def test_verbose_shows_the_log(server):
    run = server.ansible("-v", env={"STANDIN_START_SECONDS": 0.2})
    assert run.returncode == 0
    assert "Resolved architecture: LlamaForCausalLM" in run.stdout
    quiet = server.ansible()
    assert "Resolved architecture" not in quiet.stdout
