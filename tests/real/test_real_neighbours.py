# SPDX-License-Identifier: Apache-2.0
"""Two servers of the real vLLM on one machine, a core each: one is replaced while the other is asked."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from local_inventory import IMAGE, SERVER
from vllm_server_tools import Server

from ansible.module_utils.vllm_fleet.container.engine import Engine
from ansible.module_utils.vllm_fleet.vllm.chat import chat
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest, Expectation

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are to be shared"),
]


def ask(server):
    """Ask a server what a deployment asks."""
    url, question = f"http://127.0.0.1:{server.port}", "What is the capital of France?"
    return chat(ChatRequest(url=url, prompt=question, expect=Expectation("Paris")))


def core(server):
    """The one core that a server's container has, and that vLLM says its threads are bound to."""
    given = server.inspect()["HostConfig"]["CpusetCpus"]
    assert f"local_rank=0, core ids=[{given}]" in server.log()
    return int(given)


def test_one_is_replaced_while_the_other_is_asked(real, docker_client, tmp_path):
    other = Server(Engine(), docker_client, IMAGE, tmp_path)
    neighbours = [{"name": one.name, "cpus": 1, "accelerator": "cpu"} for one in (real, other)]
    for one in (real, other):
        one.fixed = {**SERVER, "cpus": 1, "neighbours": neighbours}
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.ready, (real, other)))
        assert sorted([core(real), core(other)]) == sorted(os.sched_getaffinity(0))[:2]
        assert ask(real).ok
        assert ask(other).ok
        before, was, answers, done = other.picture(), core(real), [], threading.Event()

        def keep_asking():
            while not done.is_set():
                answers.append(ask(other))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            replaced = real.ready(args={**SERVER["args"], "max-num-seqs": 8})
        finally:
            done.set()
            asking.join()
        assert "create" in replaced["actions"]
        assert core(real) == was
        assert ask(real).ok
        assert len(answers) > 5
        assert [answer.message for answer in answers if not answer.ok] == []
        assert other.picture() == before
    finally:
        other.close()
