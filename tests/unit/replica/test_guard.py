# SPDX-License-Identifier: Apache-2.0
"""Ranks that live and die together: real guards, real processes, loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

GUARD = Path(__file__).resolve().parents[3] / "module_utils/vllm_fleet/replica/guard.py"
SLEEP = [sys.executable, "-c", "import time; print('serving', flush=True); time.sleep(60)"]


class Rank:
    """One guard with what it runs."""

    def __init__(self, rank, port, command=SLEEP, ident="r1", size=2, script="", stderr=subprocess.STDOUT):
        words = [sys.executable, str(GUARD), "--rank", str(rank), "--size", str(size), "--head", "127.0.0.1"]
        words += ["--port", str(port), "--id", ident, *(["--exec", script] if script else []), "--", *command]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.said = ""

    def hears(self, text):
        while text not in self.said:
            line = self.process.stdout.readline()
            assert line, f"{text!r} was never said:\n{self.said}"
            self.said += line
        return self

    def ends(self, seconds=15):
        code = self.process.wait(seconds)
        self.said += self.process.stdout.read()
        return code

    def children(self):
        task = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return [int(p) for p in Path(task).read_text().split()]


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start():
    made = []

    def make(*args, **named):
        made.append(Rank(*args, **named))
        return made[-1]

    yield make
    for rank in made:
        rank.process.kill()
        rank.process.wait()
        rank.process.stdout.close()


def test_no_rank_starts_before_all_are_there(start, port):
    worker = start(1, port).hears("waiting for the head")
    head = start(0, port).hears("rank 1 is here")
    head.hears("serving")
    worker.hears("serving")


@pytest.mark.parametrize(("dies", "other"), [(0, 1), (1, 0)])
def test_a_rank_that_dies_takes_the_others_with_it(start, port, dies, other):
    ranks = [start(0, port), start(1, port)]
    for rank in ranks:
        rank.hears("serving")
    server = ranks[dies].children()[0]
    os.kill(server, signal.SIGKILL)
    assert ranks[dies].ends() == 128 + signal.SIGKILL
    assert ranks[other].ends() == 75
    assert f"rank {dies} has ended; ending, so that all ranks start again together" in ranks[other].said


def test_the_word_is_in_both_streams_before_the_server_hears_of_it(start, port):
    """Docker copies the streams side by side: in each of them it must stand before what its ending makes the server say."""
    words = "import signal,sys,time; signal.signal(15, lambda *_: (print('bye', file=sys.stderr), sys.exit(1)));"
    talks = [sys.executable, "-c", f"{words} print('serving', flush=True); time.sleep(60)"]
    head, worker = start(0, port, talks, stderr=subprocess.PIPE), start(1, port)
    head.hears("serving")
    worker.process.kill()
    assert head.ends() == 75
    first, second = head.process.stderr.read().splitlines()
    assert (first, second) == ("[replica] rank 0 of 2: ending, so that all ranks start again together", "bye")
    head.process.stderr.close()


def test_restarted_they_meet_again(start, port):
    head, worker = start(0, port), start(1, port)
    head.hears("serving"), worker.hears("serving")
    worker.process.kill()
    assert head.ends() == 75
    again = start(1, port).hears("waiting for the head")
    start(0, port).hears("serving")
    again.hears("serving")


def test_a_rank_of_another_release_and_a_stranger_are_not_let_in(start, port):
    head = start(0, port).hears("waiting for rank 1")
    start(1, port, ident="r2").hears("waiting for the head")
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(10) == b""
    assert head.children() == []
    start(1, port)
    head.hears("serving")


def test_strangers_that_say_nothing_keep_no_rank_waiting(start, port):
    head = start(0, port).hears("waiting for rank 1")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        begun = time.monotonic()
        start(1, port)
        head.hears("serving")
        assert time.monotonic() - begun < 5  # one of them alone had that long
        assert silent[0].recv(10) == b""


def test_a_stop_is_passed_on_and_the_servers_own_code_is_given(start, port):
    polite = [
        sys.executable,
        "-c",
        "import signal, time\nsignal.signal(15, lambda *_: exit(7))\nprint('serving', flush=True)\ntime.sleep(60)",
    ]
    head, worker = start(0, port, polite), start(1, port)
    head.hears("serving")
    worker.hears("serving")
    head.process.terminate()
    assert head.ends() == 7
    assert worker.ends() == 75


def test_a_stop_while_it_waits_ends_at_once(start, port):
    head, worker = start(0, port).hears("waiting for rank 1"), start(1, port + 1).hears("waiting for the head")
    begun = time.monotonic()
    for rank in (head, worker):
        rank.process.terminate()
        assert rank.ends() == 0
    assert time.monotonic() - begun < 10


def test_everything_the_server_started_is_gone_with_it(start, port):
    family = ["sh", "-c", "sleep 61 & echo serving; wait"]
    head, worker = start(0, port, family), start(1, port)
    head.hears("serving"), worker.hears("serving")
    shell = head.children()[0]
    grandchild = int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])
    worker.process.kill()
    assert head.ends() == 75
    with contextlib.suppress(OSError):  # gone, or dead and not yet buried by this machine's first process
        assert Path(f"/proc/{grandchild}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_shell_command_gets_the_words_after_it(start, port):
    head = start(0, port, ["a", "b c"], script='echo "got: $1, $2"; sleep 60')
    start(1, port)
    head.hears("got: a, b c")
