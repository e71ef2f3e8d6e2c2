# SPDX-License-Identifier: Apache-2.0
"""The watchdog and a real engine: full of work it is left alone, stopped it is found and brought back."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time

import pytest
from local_inventory import PRESET_VERIFY
from test_real_engine import engine_process
from watchdog_tools import Watched

from ansible.module_utils.vllm_fleet.vllm import metrics

pytestmark = pytest.mark.engine
SILENCE = 20.0
#: Seconds of load with a queue, and how many clients make it: four are served at a time.
LOAD, CLIENTS, PLACES = 60.0, 28, 4


@pytest.fixture
def watched(real):
    made = Watched(real)
    made.configure(
        silence=SILENCE,
        interval=5,
        ready_timeout=600,
        stall_timeout=300,
        model=real.fixed["model"],
        verify=PRESET_VERIFY,
    )
    yield made
    made.kill()


class Clients:
    """Ask without pause: prompts up to the context, streams that are cut in the middle."""

    def __init__(self, port, model):
        self.port, self.model = port, model
        self.over = threading.Event()
        self.cut = self.whole = 0
        self.threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _ask(self, number):
        while not self.over.is_set():
            words = 850 if number % 7 == 0 else 20
            body = {
                "model": self.model,
                "prompt": "the " * words,
                "max_tokens": 100,
                "stream": True,
                "ignore_eos": True,
            }
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if number % 5 == 0:
                    answer.read(300)
                    self.cut += 1
                else:
                    self.whole += answer.read().endswith(b"[DONE]\n\n")
            connection.close()

    def end(self):
        self.over.set()


def test_a_full_engine_is_left_alone_and_a_stopped_one_is_restarted(real, watched, capsys):
    begun = time.monotonic()
    real.ready(args={**real.fixed["args"], "max-num-seqs": PLACES, "max-num-batched-tokens": 512})
    start = time.monotonic() - begun
    watched.start()
    watched.until("serving", seconds=30)
    first = watched.started_at()
    clients, queue = Clients(real.port, real.fixed["model"]), []
    _, cpu = watched.usage()
    end = time.monotonic() + LOAD
    while time.monotonic() < end:
        time.sleep(2)
        with contextlib.suppress(OSError):
            queue.append(metrics.load(watched.get("/metrics").decode()).waiting)
        assert (watched.state["state"], watched.started_at()) == ("serving", first)
    memory, used = watched.usage()
    assert sorted(queue)[len(queue) // 2] > 20, queue
    # In the middle of its work.
    os.kill(engine_process(real), signal.SIGSTOP)
    out = watched.wait(lambda: watched.agent() != "up\n", SILENCE + 30)
    clients.end()
    assert out <= SILENCE + 10
    back = watched.wait(lambda: watched.agent() == "up\n", 600)
    assert watched.started_at() != first
    assert watched.kinds() == ["started", "hung", "out", "evidence", "restart", "restarted", "back"]
    # A start takes longer on a machine that does other things besides.
    assert out + back <= SILENCE + 20 + 1.5 * start
    with capsys.disabled():
        print(
            f"\nload: {clients.whole} whole, {clients.cut} cut, queue {min(queue)} to {max(queue)}, no restart in {LOAD:.0f} s;"
            f" out {out:.1f} s after SIGSTOP, back after {back:.1f} s more (a start takes {start:.1f} s);"
            f" watchdog {memory / 1e6:.1f} MB, {100 * (used - cpu) / LOAD:.2f} % of a core"
        )
