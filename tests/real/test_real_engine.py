# SPDX-License-Identifier: Apache-2.0
"""What only a real vLLM can show: its own failures, its death while serving, its compile cache."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.vllm.chat import chat
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest, Expectation

pytestmark = pytest.mark.engine


def ask(real, pattern="Paris"):
    return chat(
        ChatRequest(
            url=f"http://127.0.0.1:{real.port}", prompt="What is the capital of France?", expect=Expectation(pattern)
        )
    )


def engine_process(real):
    """The pid of the process in which vLLM's engine runs; it names itself."""
    for pid in real.engine.pids(real.id()):
        if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("no EngineCore among the container's processes")


def test_an_engine_that_dies_while_serving_is_brought_back_although_it_ends_with_code_0(real):
    real.ready()
    assert ask(real).ok
    before = real.inspect()
    os.kill(engine_process(real), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while real.inspect()["RestartCount"] == before["RestartCount"]:
        assert time.monotonic() < deadline, "Docker's restart policy did not bring it back"
        time.sleep(0.5)
    again = real.ready()
    assert again["actions"] == []
    assert real.id() == before["Id"]
    assert ask(real).ok


@pytest.mark.parametrize(
    ("changes", "failure_class", "says"),
    [
        ({"args": {"max-model-len": 100000}}, "context_too_long", "8192"),
        ({"shm_size": "64m"}, "shared_memory", "160 MiB"),
        ({"env": {}, "args": {"gpu-memory-utilization": 0.99, "max-model-len": 1024}}, "gpu_memory_taken", "0.99"),
        ({"args": {"max-model-len": 1024, "tokenizer": "/none"}}, None, "/none"),
    ],
)
def test_how_vllm_itself_fails_is_told_in_words(real, changes, failure_class, says):
    changes = {k: {**real.fixed.get(k, {}), **v} if isinstance(v, dict) and v else v for k, v in changes.items()}
    result = real.run(**changes)
    assert result["failed"]
    assert result["failure"]["exit_code"] == 1
    if failure_class:
        assert result["failure"]["class"] == failure_class, result["msg"]
    assert says in result["msg"] + " ".join(result["failure"]["evidence"])
    assert "Engine core initialization failed" not in result["msg"]
    assert Path(result["log_file"]).stat().st_size > 1000
    # It is left for whoever looks into it, and does not try again and again.
    assert real.inspect()["State"]["Status"] == "exited"


def test_a_flag_that_this_vllm_does_not_know_is_found_before_anything_starts(real):
    result = real.run(args={"gpu-mem-utilisation": 0.5})
    assert (result["failure"]["class"], result["actions"]) == ("bad_argument", [])
    assert "--gpu-memory-utilization" in result["msg"]


def test_what_was_compiled_once_is_not_compiled_again(real, capsys):
    compiled = {k: v for k, v in real.fixed["args"].items() if k != "enforce-eager"}

    def compiling(result):
        """Seconds from the beginning of compilation to the stage after it."""
        at = {s["stage"]: s["at"] for s in result["stages"]}
        assert "compiling" in at, result["stages"]
        return min(t for t in at.values() if t > at["compiling"]) - at["compiling"]

    first = real.ready(args=compiled)
    assert ask(real).ok
    # Another container of the same image and model: only the folder on the host is the same.
    second = real.ready(args=compiled, labels={"changed": "yes"})
    assert second["actions"] == ["create", "stop", "keep", "rename", "start"]
    with capsys.disabled():
        total = [next(s["at"] for s in r["stages"] if s["stage"] == "ready") for r in (first, second)]
        print(
            f"\ntorch.compile: {compiling(first):.1f} s, then {compiling(second):.1f} s from the kept cache;"
            f" ready after {total[0]:.1f} s, then {total[1]:.1f} s"
        )
    assert compiling(second) < compiling(first)
    assert ask(real).ok
