# SPDX-License-Identifier: Apache-2.0
"""The watchdog's program against real containers: it finds a server that hangs, and only that, and brings it back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import trees
from vllm_server_tools import Server
from watchdog_tools import SILENCE, Watched


@pytest.fixture
def watched(server):
    made = Watched(server)
    yield made
    made.kill()


def serving(watched, *, start=True, env=None, args=None, **settings):
    """Bring the server and its watchdog."""
    watched.server.ready(env={"STANDIN_CONTROL": "1", **(env or {})}, args=args or {})
    watched.configure(**settings)
    # An engine's first step may take longer, and is done here.
    watched.first()
    if start:
        watched.start()
        watched.until("serving")


def test_a_server_that_hangs_while_it_works_is_restarted_verified_and_back(watched):
    serving(watched, env={"STANDIN_TOKEN_DELAY": "0.05", "VLLM_API_KEY": "sk-secret-of-the-server"})
    assert watched.agent() == "up\n"
    first = watched.started_at()
    request = urllib.request.Request(
        f"http://127.0.0.1:{watched.server.port}/v1/completions",
        json.dumps({"prompt": "word " * 900, "max_tokens": 900}).encode(),
        {"Authorization": "Bearer sk-secret-of-the-server"},
    )

    def ask():
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=60).read()

    threading.Thread(target=ask, daemon=True).start()
    # Longer than the silence: it works.
    time.sleep(SILENCE + 1)
    assert (watched.state["state"], watched.started_at()) == ("serving", first)
    watched.hang()
    assert watched.wait(lambda: watched.agent() != "up\n") <= SILENCE + 2
    assert watched.agent() in ("down #hung\n", "down #restarting\n")
    watched.until("serving")
    watched.wait(lambda: watched.agent() == "up\n")
    assert watched.started_at() != first
    assert watched.kinds() == ["started", "hung", "out", "evidence", "restart", "restarted", "back"]
    hung = watched.events[1]
    assert "while 1 requests ran and 0 waited, and a request for one token got no answer" in hung["why"]
    folder = Path(watched.events[3]["evidence"])
    assert folder.stat().st_mode & 0o77 == 0
    kept = {path.name: path.read_text() for path in folder.iterdir()}
    assert {"metrics-1.txt", "metrics-2.txt", "processes-1.txt", "processes-2.txt", "log.txt", "container.json"} <= set(
        kept
    )
    assert "vllm:num_requests_running" in kept["metrics-2.txt"]
    assert ": state S," in kept["processes-1.txt"] and "Started server process" in kept["log.txt"]
    assert "sk-secret" not in "".join(kept.values()) + watched.log.read_text() + json.dumps(watched.state)
    assert len(watched.state["restarts"]) == 1


def test_a_server_without_statistics_is_told_and_left_alone(watched):
    serving(watched, args={"disable-log-stats": True})
    first = watched.started_at()
    watched.hang()
    watched.wait(lambda: "hung" in watched.kinds())
    watched.until("left_alone")
    # As long as it gives no answer it is told once.
    time.sleep(2 * SILENCE)
    assert (watched.agent(), watched.started_at()) == ("up\n", first)
    assert watched.kinds() == ["started", "hung"]
    assert "its statistics are off" in watched.events[1]["why"]


def test_what_is_busy_slow_paused_locked_or_drained_is_left_alone(watched):
    serving(watched, env={"STANDIN_TOKEN_DELAY": "2"}, action="restart")
    first = watched.started_at()
    watched.ask(4)
    time.sleep(SILENCE + 2)
    assert watched.state["state"] == "serving"
    note = watched.run_dir / watched.server.name / "rollout"
    note.write_text("")
    watched.until("left_alone")
    assert watched.agent() == "up\n"
    watched.hang()
    time.sleep(SILENCE + 1)
    with (watched.server.state_dir / watched.server.name / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A note that nobody took away does not hold for ever.
        os.utime(note, (time.time() - 3700, time.time() - 3700))
        watched.wait(lambda: watched.state["why"] == "a run of vllm_server works on the server")
        time.sleep(SILENCE)
        assert (watched.state["state"], watched.agent(), watched.started_at()) == ("left_alone", "up\n", first)
    assert not {"hung", "out"} & set(watched.kinds())
    watched.wait(lambda: "hung" in watched.kinds(), SILENCE + 4)


def test_restarts_are_limited_and_other_actions_end_earlier(watched):
    serving(watched, action="observe", restarts=1)
    watched.hang()
    watched.until("hung")
    assert watched.agent() == "up\n"
    watched.post("/standin/go_on")
    watched.until("serving")
    watched.configure(action="drain", restarts=1)
    watched.hang()
    watched.until("out")
    assert watched.agent() == "down #out\n"
    # The next watchdog says the same, before it has looked.
    watched.kill(signal.SIGTERM)
    watched.start()
    watched.wait(lambda: watched.kinds().count("started") == 2)
    assert watched.agent() == "down #out\n"
    watched.post("/standin/go_on")
    watched.until("serving")
    watched.configure(action="restart", restarts=1)
    watched.hang()
    watched.wait(lambda: "restarted" in watched.kinds())
    watched.until("serving")
    watched.hang()
    watched.wait(lambda: "limit" in watched.kinds())
    first = watched.started_at()
    time.sleep(SILENCE)
    assert (watched.state["state"], watched.agent(), watched.started_at()) == ("out", "down #out\n", first)
    assert watched.kinds().count("limit") == 1
    assert "it was restarted 1 times within the last hour" in watched.state["why"]
    # A wave that mends it has drained it, and verifies it itself: the gateways may admit it at once.
    (watched.run_dir / watched.server.name / "rollout").write_text("")
    watched.server.run(state="restarted", image=None, model=None, stop_timeout=1)
    watched.says("up\n")
    watched.until("left_alone")


def test_a_restart_that_is_killed_is_taken_up(watched, tmp_path):
    docker = tmp_path / "docker.sock"
    docker.symlink_to("/var/run/docker.sock")
    serving(watched, docker_socket=str(docker))
    # Its frontend hangs, too.
    os.kill(watched.server.inspect()["State"]["Pid"], signal.SIGSTOP)
    assert watched.wait(lambda: watched.agent() != "up\n") <= 2 * SILENCE + 2
    watched.wait(lambda: "restart" in watched.kinds())
    assert watched.events[1]["why"].startswith("/metrics has not answered")
    watched.kill()
    assert watched.state["state"] == "restarting"
    watched.start()
    watched.wait(lambda: "started" in watched.kinds()[1:])
    assert watched.agent() == "down #restarting\n"
    watched.until("serving")
    assert watched.kinds()[-1] == "back"
    assert len(watched.state["restarts"]) == 1
    # Its second half alone, and then Docker is away, and events cannot be kept.
    watched.hang()
    watched.wait(lambda: watched.state["state"] == "restarting" and watched.kinds()[-1] in ("evidence", "restart"))
    events = watched.server.state_dir / watched.server.name / "events"
    events.rename(tmp_path / "kept")
    events.write_text("in the way")
    docker.unlink()
    for child in Path(f"/proc/{watched.process.pid}/task/{watched.process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    watched.wait(lambda: "no Docker engine answers" in watched.state["trouble"])
    assert "events cannot be kept" in watched.state["trouble"]
    assert watched.agent() == "down #restarting\n"
    docker.symlink_to("/var/run/docker.sock")
    watched.until("serving")
    assert (watched.agent(), watched.state["last_event"]["kind"]) == ("up\n", "back")


def test_a_clock_that_is_set_makes_no_server_hang_and_hides_no_hang(watched, tmp_path):
    watched.clock = tmp_path / "clock"
    watched.clock.write_text("0")
    request = {"timeout": 10, "requests": [{"prompt": "capital of France", "max_tokens": 1}]}
    serving(watched, env={"STANDIN_TOKEN_DELAY": "1.5"}, verify=request)
    first = watched.started_at()
    watched.ask(12)
    for seconds in ("-3600", "3600"):
        watched.clock.write_text(seconds)
        time.sleep(SILENCE + 1)
        assert (watched.state["state"], watched.started_at()) == ("serving", first)
    watched.hang()
    watched.clock.write_text("-3600")
    assert watched.wait(lambda: watched.agent() != "up\n") <= SILENCE + 2
    watched.until("serving")
    assert watched.kinds() == ["started", "hung", "out", "evidence", "restart", "restarted", "back"]
    # Restarts of an hour are those of an hour, whatever the clock says.
    assert len(watched.state["restarts_boot"]) == 1
    assert watched.events[-1]["seconds"] < 30


def test_one_of_two_servers_of_a_node_is_restarted_while_the_disk_is_full(watched, server, tmp_path):
    other = Server(server.engine, server.client, server.image, tmp_path)
    beside = Watched(other)
    events = server.state_dir / server.name / "events"
    try:
        serving(watched)
        serving(beside)
        first = beside.started_at()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(events)], check=True)
        (events / "fill").write_bytes(b"x" * 4096 * 4)
        watched.hang()
        watched.wait(lambda: watched.agent() != "up\n")
        assert beside.agent() == "up\n"
        watched.wait(lambda: watched.state["last_event"].get("kind") == "back")
        assert "No space left on device" in watched.state["trouble"]
        assert (watched.agent(), beside.state["state"], beside.started_at()) == ("up\n", "serving", first)
        assert beside.kinds() == ["started"]
    finally:
        watched.kill()
        beside.kill()
        other.close()
        subprocess.run(["umount", "-l", str(events)], check=False, capture_output=True)


def take(port):
    """Take a port in the moment in which it is free."""
    deadline = time.monotonic() + 20
    while True:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # its old connections do not count
        try:
            made.bind(("127.0.0.1", port))
        except OSError:
            made.close()
            assert time.monotonic() < deadline, "the port never came free"
            time.sleep(0.001)
        else:
            made.listen()
            return made


def test_a_server_that_answers_wrongly_or_not_at_all_after_its_restart_stays_out(watched):
    serving(watched, verify={"timeout": 10, "requests": [{"prompt": "x", "expect": {"pattern": "Madrid"}}]})
    watched.hang()
    watched.wait(lambda: "failed" in watched.kinds())
    watched.until("out")
    time.sleep(SILENCE / 2)
    assert watched.agent() == "down #out\n"
    assert "Madrid" in watched.state["why"]
    # A new start is verified before it is let in, and a new container is its deployment's affair.
    watched.configure()
    watched.server.client.api.restart(watched.server.id(), timeout=0)
    watched.until("serving")
    # Why it does not start is found as in a deployment.
    watched.hang()
    with take(watched.server.port):
        watched.wait(lambda: watched.kinds().count("failed") == 2)
        watched.until("out")
    assert (watched.events[-1]["class"], watched.state["failure_class"]) == ("port_taken", "port_taken")
    assert str(watched.server.port) in watched.state["why"]


def test_a_node_with_a_sick_gpu_is_in_quarantine_until_it_is_well(watched, tmp_path):
    tree, log = trees.Tree(tmp_path / "node"), tmp_path / "kmsg"
    for number in (0, 1):
        tree.add_gpu(number)
    log.touch()
    os.mknod(tmp_path / "kfd", 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null by another name
    watched.server.fixed = {
        "accelerator": "rocm",
        "devices": [f"{tmp_path}/kfd:/dev/kfd"],
        "ulimits": ["nofile=1024"],
        "sysfs_root": str(tree.sys),
        "gpu_memory_policy": "off",
    }
    watched.roots = ["--sysfs", str(tree.sys), "--kernel-log", str(log)]
    serving(watched)
    first = watched.started_at()
    assert watched.agent() == "up\n"
    errors = tree.write(tree.device_dir(0) / "ras/umc_err_count", "ue: 1\nce: 4")
    watched.says("down #quarantine\n")
    watched.wait(lambda: watched.state.get("quarantine"))
    assert watched.state["quarantine"] == "GPU 0000:05:00.0 has 1 uncorrectable error of memory or logic"
    assert (watched.state["state"], watched.started_at()) == ("serving", first), "nothing helps but a reset or a reboot"
    watched.kill()
    watched.start()
    watched.says("down #quarantine\n")
    errors.write_text("ue: 0\nce: 0\n")
    watched.says("up\n")
    with log.open("a") as kernel:
        kernel.write("3,1,5,-;amdgpu 0000:26:00.0: amdgpu: GPU reset begin!\n")
        kernel.write("3,2,6,-;amdgpu 0000:26:00.0: amdgpu: GPU reset end with ret = -22\n")
    watched.says("down #quarantine\n")
    with log.open("a") as kernel:
        kernel.write("6,3,7,-;amdgpu 0000:26:00.0: amdgpu: GPU reset(2) succeeded!\n")
    tree.write(tree.device_dir(1) / "current_link_width", 8)
    watched.says("up\n")
    watched.wait(lambda: "gpu" in watched.kinds())
    shutil.rmtree(tree.device_dir(1))
    watched.says("down #quarantine\n")
    watched.wait(lambda: watched.kinds().count("quarantine") == 3)
    kinds = [kind for kind in watched.kinds() if kind not in ("started", "left_alone")]
    assert kinds == ["quarantine", "released", "quarantine", "released", "gpu", "quarantine"]
    said = [event["why"] for event in watched.events if event["kind"] in ("gpu", "quarantine")]
    assert said[1:] == [
        "GPU 0000:26:00.0 could not be reset, as the kernel's log says",
        "the link of GPU 0000:26:00.0 runs at x8 of x16",
        "GPU 0000:26:00.0 is gone from the PCI bus",
    ]
