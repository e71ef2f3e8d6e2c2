# SPDX-License-Identifier: Apache-2.0
"""The watch, with the engine, the clock and HTTP given by hand: no waiting, every order of events."""

from __future__ import annotations

import http.client
import math
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest

from ansible.module_utils.vllm_fleet.container.engine import EngineError
from ansible.module_utils.vllm_fleet.server import watch
from ansible.module_utils.vllm_fleet.server.outcome import Limits, Token
from ansible.module_utils.vllm_fleet.vllm import readiness
from ansible.module_utils.vllm_fleet.vllm.endpoint import Endpoint

START = datetime(2026, 11, 22, 10, 0, 0, tzinfo=timezone.utc)
STARTED_AT = "2026-11-22T10:00:00.500000000Z"
WHERE = Endpoint("127.0.0.1", 1, ("m",))
LOADING = "(EngineCore pid=1) INFO 11-22 10:00:05 [gpu_model_runner.py:1] Starting to load model org/m..."
SHARDS = "Loading safetensors checkpoint shards:  25% Completed | 41/163 [00:10<00:30, 4.0it/s]"


def line(seconds, text):
    """A log line as Docker sends it, `seconds` after the start."""
    at = START + timedelta(seconds=int(seconds))
    return f"{at:%Y-%m-%dT%H:%M:%S}.600000000Z {text}\n".encode()


class Clock:
    """Time that passes only when the watch waits: each look at it is a quarter of a second, or ``step``."""

    def __init__(self, step=0.25):
        self.now, self.step = 1000.0, step

    def __call__(self):
        self.now += self.step
        return self.now


class Docker:
    """One container, and what its streams bring."""

    def __init__(self, items=(), *, running=True, started_at=STARTED_AT, usage=None, state=None):
        self.items, self.usage_now, self.followed = list(items), usage, []
        self.state = {"Running": running, "StartedAt": started_at, "Pid": 0, "Status": "running", **(state or {})}

    def container(self, name):
        return {"State": self.state}

    def follow(self, container, since, sink, streams=("event", "log")):
        self.followed.append(list(streams))
        for item in self.items:
            sink.put(item)

    def usage(self, container):
        return self.usage_now


def run(
    docker,
    answers=(),
    *,
    limits=None,
    token=None,
    idle=False,
    endpoint=WHERE,
    clock=None,
    partners_idle=None,
    feed=None,
    run_age=math.inf,
):
    """Watch; `answers` are given to the HTTP probe one after the other, the last one for ever."""
    left = list(answers) or [readiness.Answer(detail="ConnectionRefusedError")]
    lock = threading.Lock()

    def ask(_):
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    limits = limits or Limits(ready_timeout=1e8, stall_timeout=1e8)
    one = watch.Watch(
        docker,
        "c",
        endpoint,
        limits,
        token=token,
        idle=idle,
        run_age=run_age,
        offline=True,
        partners_idle=partners_idle,
        feed=feed,
        clock=clock or Clock(),
        ask=ask,
    )
    return one.run()


NOT_YET = readiness.Answer(detail="refused")
READY = readiness.Answer(ready=True)


def test_ready_is_what_http_says():
    out = run(Docker([("log", line(5, LOADING))]), [NOT_YET, NOT_YET, READY])
    assert out.verdict == "ready"
    assert out.stages[-1]["stage"] == "ready"


def test_a_server_that_serves_something_else_is_not_ready():
    out = run(Docker(), [readiness.Answer(wrong=True, detail="expected m, got other")])
    assert (out.verdict, out.detail) == ("wrong_model_served", "expected m, got other")


def test_death_ends_the_watch_with_the_last_words_of_the_log():
    die = {"Action": "die", "Actor": {"Attributes": {"exitCode": "1"}}}
    items = [("event", die), ("log", line(3, "ValueError: too late but not lost")), ("log_end", None)]
    docker = Docker(items, state={"FinishedAt": "2026-11-22T10:00:03.500000000Z"})
    out = run(docker)
    assert (out.verdict, out.exit_code) == ("exited", 1)
    assert "ValueError: too late but not lost" in out.new_lines
    assert out.elapsed == 3.0


def test_a_log_that_ended_before_the_death_was_known_is_not_waited_for(monkeypatch):
    drained = []
    monkeypatch.setattr(watch.Watch, "_drain", lambda self, last: drained.append(last))
    die = {"Action": "die", "Actor": {"Attributes": {"exitCode": "1"}}}
    out = run(Docker([("log", line(3, "ValueError: last words")), ("log_end", None), ("event", die)]))
    assert (out.verdict, out.exit_code, drained) == ("exited", 1, [])
    assert out.new_lines == ["ValueError: last words"]


def test_a_container_that_is_dead_already_is_not_waited_for():
    docker = Docker(running=False, state={"Status": "exited", "ExitCode": 137, "OOMKilled": True})
    out = run(docker)
    assert (out.verdict, out.exit_code, out.oom_killed) == ("exited", 137, True)


def test_a_restart_between_two_slices_is_a_failed_start():
    token = Token("c", "2026-11-22T09:00:00Z")
    assert run(Docker(), [READY], token=token).verdict == "restarting"


def test_a_broken_log_stream_of_a_running_server_is_no_death():
    assert run(Docker([("log_end", None)]), [NOT_YET, NOT_YET, READY]).verdict == "ready"


def test_a_load_of_an_hour_passes():
    """A shard every twenty seconds, no CPU to speak of between them, the default patience with silence."""
    clock = Clock(step=10.0)
    text = "Loading safetensors checkpoint shards:  25% Completed | {}/180 [00:10<00:30, 4.0it/s]"
    shards = [("log", line(20 * n, text.format(n))) for n in range(1, 181)]
    one = watch.Watch(
        Docker(shards, usage=(0, 0)), "c", WHERE, Limits(1e8, 900.0), offline=True, clock=clock,
        ask=lambda _: READY if clock.now > 1000 + 3600 else NOT_YET,
    )  # fmt: skip
    assert one.run().verdict == "ready"
    assert clock.now > 1000 + 3600


class Restarting(Docker):
    """An engine that goes away in the middle of a watch, and is back when it was looked for twice."""

    def __init__(self, items, *, back=True, **more):
        super().__init__([("log", line(1, "before")), ("log_end", None), ("event_end", None)], **more)
        self.later, self.back, self.looks = items, back, 0

    def container(self, name):
        self.looks += 1
        if 1 < self.looks <= 4 or (self.looks > 1 and not self.back):
            raise EngineError("no Docker engine answers")
        return super().container(name)

    def follow(self, container, since, sink, streams=("event", "log")):
        if self.followed:
            self.items = self.later
        super().follow(container, since, sink, streams)


def test_an_engine_that_restarts_costs_nothing():
    docker = Restarting([("log", line(1, "before")), ("log", line(2, "after"))])
    answers = [NOT_YET] * 30 + [READY]  # three seconds
    out = run(docker, answers)
    assert out.verdict == "ready"
    assert docker.followed == [["event", "log"], ["event", "log"]]
    assert out.new_lines == ["before", "after"]


def test_a_death_after_the_engine_restarted_is_seen():
    die = {"Action": "die", "Actor": {"Attributes": {"exitCode": "3"}}}
    out = run(Restarting([("event", die), ("log", line(2, "last words")), ("log_end", None)]))
    assert (out.verdict, out.exit_code) == ("exited", 3)
    assert out.new_lines == ["before", "last words"]


def test_a_death_while_the_engine_was_away_is_seen():
    docker = Restarting([])
    ended = {"Running": False, "Status": "exited", "ExitCode": 4, "FinishedAt": "2026-11-22T10:00:03.500000000Z"}
    look = docker.container

    def container(name):
        if docker.looks >= 4:
            docker.state |= ended
        return look(name)

    docker.container = container
    out = run(docker)
    assert (out.verdict, out.exit_code, out.elapsed) == ("exited", 4, 3.0)


def test_an_engine_that_does_not_come_back_is_told(monkeypatch):
    monkeypatch.setattr(watch, "ENGINE_RETRY_TIMEOUT", 0.5)
    with pytest.raises(EngineError, match="no Docker engine answers"):
        run(Restarting([], back=False))


def test_nothing_moving_is_stalled():
    out = run(Docker(usage=(5, 5)), limits=Limits(1e8, 2.0))
    assert out.verdict == "stalled"


@pytest.mark.parametrize("moves", ["log", "cpu", "io"])
def test_whatever_moves_is_not_stalled(moves):
    docker = Docker(usage=(0, 0))

    def usage(_):
        cpu, moved = docker.usage_now
        docker.usage_now = (cpu + (10**9 if moves == "cpu" else 0), moved + (1 if moves == "io" else 0))
        return docker.usage_now

    docker.usage = usage
    if moves == "log":
        docker.follow = lambda c, s, sink: threading.Thread(
            target=lambda: [(sink.put(("log", line(1, "still here"))), time.sleep(0.05)) for _ in range(60)],
            daemon=True,
        ).start()
    # Three times as long as the patience with a server in which nothing moves.
    out = run(docker, limits=Limits(1e8, 0.8, 2.4), clock=time.monotonic)
    assert out.verdict == "pending"


def test_an_alarm_in_the_log_ends_the_slice():
    one = watch.Watch(
        Docker([("log", line(5, "rank 1 has ended; ending"))]),
        "c",
        None,
        Limits(1e8, 1e8, 1e6),
        alarm=b"; ending",
    )
    out = one.run()
    assert (out.verdict, out.alarmed) == ("pending", True)


@pytest.mark.parametrize(("partners_idle", "verdict"), [(None, "stalled"), (50.0, "stalled"), (1.0, "pending")])
def test_a_rank_is_not_stalled_while_another_node_gets_on(partners_idle, verdict):
    """It has not moved for 30 s of the 20 that it may; its partners are heard of between two slices."""
    token = Token("c", STARTED_AT, active=watch.time.time() - watch.epoch(STARTED_AT) - 30.0)
    limits = Limits(1e12, 20.0, 2.0)
    out = run(Docker(usage=(0, 0)), limits=limits, token=token, partners_idle=partners_idle)
    assert out.verdict == verdict
    assert out.idle == pytest.approx(3.0 if verdict == "pending" else 30.0, abs=2.0)


@pytest.mark.parametrize("page", ["/health HTTP/1.1 503", "/v1/models HTTP/1.1 500"])
def test_the_probes_own_echo_in_the_log_is_no_sign_of_life(page):
    echo = ("log", line(1, f'INFO: 127.0.0.1 - "GET {page}'))
    assert run(Docker([echo] * 2000, usage=(5, 5)), limits=Limits(1e8, 2.0)).verdict == "stalled"


def test_patience_has_an_end():
    out = run(Docker(), [readiness.Answer(detail="/health answers 503")], limits=Limits(0.3, 1e8))
    # The recorded start is long ago, so the limit is over with the first answer; it counts from the start, not the call.
    assert (out.verdict, out.detail) == ("ready_timeout", "/health answers 503")


@pytest.mark.parametrize("idle", [True, False], ids=["nothing started", "unpaused"])
def test_a_server_that_ran_before_is_not_judged_by_its_age(idle):
    """It is days old and does not answer the first probes, for it is busy."""
    limits = Limits(3600.0, 1e8)
    out = run(Docker(), [NOT_YET, NOT_YET, NOT_YET, READY], limits=limits, idle=idle, run_age=0.0)
    assert out.verdict == "ready"


def test_patience_with_a_server_that_ran_before_counts_from_the_run_over_all_slices():
    limits = Limits(60.0, 1e8, 20.0)
    first = run(Docker(), limits=limits, idle=True, run_age=1.0, clock=Clock(1.0))
    assert first.verdict == "pending"
    age = time.time() - watch.epoch(STARTED_AT)
    token = Token(**first.token_dict())
    assert token.since == pytest.approx(age - 1.0, abs=5.0)
    token.since -= 100.0  # as if the slices had taken so long
    out = run(Docker(), limits=limits, token=token)
    assert out.verdict == "ready_timeout"
    assert "s old when this run began" in out.detail


def test_a_token_of_another_container_says_nothing_of_this_one():
    stale = Token("other", STARTED_AT, shown=1e6, heard=1e6, active=5.0)
    out = run(Docker([("log", line(5, LOADING))]), limits=Limits(1e8, 1e8, 5.0), token=stale)
    assert [n.stage for n in out.news] == ["starting", "loading weights"]
    assert out.token.container == "c"


def test_a_key_that_the_server_does_not_take_is_a_verdict():
    out = run(Docker(), [NOT_YET, readiness.Answer(locked=True, detail="/health answers 200 but /v1/models 401")])
    assert (out.verdict, out.detail) == ("locked", "/health answers 200 but /v1/models 401")


def test_a_slice_leaves_all_that_the_next_one_needs():
    docker = Docker([("log", line(5, LOADING)), ("log", line(16, SHARDS))])
    first = run(docker, limits=Limits(1e8, 1e8, 5.0))
    assert first.verdict == "pending"
    assert [n.stage for n in first.news] == ["starting", "loading weights"]
    assert first.news[-1].detail == "41/163"
    assert first.describe == "loading weights 41/163"
    second = run(docker, limits=Limits(1e8, 1e8, 5.0), token=Token(**first.token_dict()))
    assert second.news == []
    assert second.describe == "loading weights 41/163"
    assert second.stages == first.stages


class Slow(Docker):
    """Hands out the log later than the server answers."""

    def follow(self, container, since, sink, streams=("event", "log")):
        threading.Timer(0.2, super().follow, (container, since, sink, streams)).start()


def test_a_slice_that_begins_when_the_server_is_ready_still_knows_its_stages():
    first = run(Docker([("log", line(5, LOADING))]), limits=Limits(1e8, 1e8, 5.0))
    late = Slow([("log", line(5, LOADING)), ("log", line(16, SHARDS))])
    last = run(late, [READY], limits=Limits(1e8, 1e8, 5.0), token=Token(**first.token_dict()), clock=time.monotonic)
    assert [stage["stage"] for stage in last.stages] == ["starting", "loading weights", "ready"]
    assert len(last.new_lines) == 1
    silent = run(Docker(), [READY], limits=Limits(1e8, 1e8, 5.0), token=Token(**first.token_dict()))
    assert silent.verdict == "ready", "a log that says nothing is not waited for without end"


def test_what_a_slice_told_the_next_one_does_not_tell_again():
    """Two lines of one stage are one line on the terminal; the second of them is told with it."""
    docker = Docker([("log", line(5, LOADING)), ("log", line(16, SHARDS.replace("41/163", "163/163")))])
    first = run(docker, limits=Limits(1e8, 1e8, 5.0))
    assert [(n.stage, round(n.at), n.detail) for n in first.news[1:]] == [("loading weights", 5, "163/163")]
    assert run(docker, limits=Limits(1e8, 1e8, 5.0), token=Token(**first.token_dict())).news == []


def test_a_change_of_stage_ends_a_slice_early():
    clock_ticks = run(Docker([("log", line(5, LOADING))]), limits=Limits(1e8, 1e8, 3600.0))
    assert clock_ticks.verdict == "pending"


def test_news_that_are_told_meanwhile_end_no_slice():
    told = []
    docker = Docker([("log", line(5, LOADING)), ("log", line(16, SHARDS))])
    out = run(docker, limits=Limits(1e8, 1e8, 4.0), clock=Clock(0.05), feed=lambda news: told.append(list(news)))
    assert out.verdict == "pending"
    assert out.idle > 2.0  # the slice went on to its end
    assert [[n.stage for n in news] for news in told] == [["starting", "loading weights"]]
    assert out.news == told[-1]


def test_a_server_that_was_ready_before_is_asked_once():
    docker = Docker()
    docker.follow = None  # would be called
    out = run(docker, [READY], idle=True)
    assert (out.verdict, out.news) == ("ready", [])


def test_lines_of_an_earlier_run_of_the_container_do_not_count():
    old = b"2026-11-22T09:59:59.000000000Z " + SHARDS.encode() + b"\n"
    out = run(Docker([("log", old)]), limits=Limits(1e8, 1e8, 0.5))
    assert out.describe == "starting"


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("1970-01-01T00:00:01.500000000Z", 1.5),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("0001-01-01T00:00:00Z", 0.0),
        ("", 0.0),
    ],
)
def test_dockers_time(stamp, seconds):
    assert watch.epoch(stamp) == seconds


def test_a_process_is_as_old_as_the_kernel_says():
    import os

    age = watch.process_age(os.getpid())
    assert age is not None
    assert 0 <= age < 3600 * 24
    assert watch.process_age(0) is None


@pytest.mark.parametrize(
    ("body", "names", "root", "ready", "wrong"),
    [
        (b'{"data":[{"id":"m","root":"org/m"}]}', ("m",), "org/m", True, False),
        (b'{"data":[{"id":"m"}]}', ("m",), "org/m", True, False),
        (b'{"data":[{"id":"m","root":"org/other"}]}', ("m",), "org/m", False, True),
        (b'{"data":[{"id":"m","root":"/c/hub/models--org--m/snapshots/abc"}]}', ("m",), "org/m", True, False),
        (b'{"data":[{"id":"x","root":"org/m"}]}', ("m",), "org/m", False, True),
        (b'{"data":[]}', ("m",), None, False, True),
        (b"<html>", ("m",), None, False, True),
        (b"[1]", ("m",), None, False, True),
        # Whose make is not known may serve anything.
        (b'{"data":[{"id":"x","root":"org/m"}]}', (), None, True, False),
        (b'{"data":[]}', (), None, False, True),
    ],
)
def test_the_served_model_must_be_the_one_asked_for(body, names, root, ready, wrong):
    answer = readiness.judge_models(body, names, root)
    assert (answer.ready, answer.wrong) == (ready, wrong)


@pytest.mark.parametrize(
    ("names", "status", "ready", "locked"),
    [(("m",), 401, False, True), (("m",), 403, False, True), (("m",), 404, False, False), ((), 401, True, True)],
)
def test_a_server_that_wants_another_key(monkeypatch, names, status, ready, locked):
    monkeypatch.setattr(readiness, "_get", lambda where, path, _: (200, b"") if path == "/health" else (status, b""))
    answer = readiness.ask(Endpoint("127.0.0.1", 1, names))
    assert (answer.ready, answer.wrong, answer.locked) == (ready, False, locked)


@pytest.mark.parametrize("tls", [True, False])
def test_a_server_that_speaks_https_is_asked_so(tls):
    connection = readiness.connection(Endpoint("127.0.0.1", 1, (), tls=tls), 1.0)
    assert (connection.default_port == http.client.HTTPS_PORT) is tls
