# SPDX-License-Identifier: Apache-2.0
"""What only a real vLLM can show: its own failures, its death while serving, its compile cache."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny_adapter

from ansible.module_utils.vllm_fleet.container.mounts import HF_HOME
from ansible.module_utils.vllm_fleet.server import engine_cache
from ansible.module_utils.vllm_fleet.vllm import adapters
from ansible.module_utils.vllm_fleet.vllm.chat import chat, chat_all
from ansible.module_utils.vllm_fleet.vllm.chat_options import build_request
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest, Expectation

pytestmark = pytest.mark.engine


def ask(real, pattern="Paris"):
    return chat(
        ChatRequest(
            url=f"http://127.0.0.1:{real.port}", prompt="What is the capital of France?", expect=Expectation(pattern)
        )
    )


def answers_of_adapters(real):
    """Ask the model and its adapters, as a verification does; all are listed."""
    first = {"prompt": "What is the capital of France?", "max_tokens": 64, "expect": {"pattern": "Paris"}}
    base = {"url": f"http://127.0.0.1:{real.port}", "listed": list(ADAPTERS), "temperature": 0.0}
    own = {"same": {**ADAPTERS["same"], "verify": {"expect": {"pattern": "Paris"}}}, "loud": ADAPTERS["loud"]}
    asked = [first, *adapters.requests(adapters.parse(own), [first])]
    given = [build_request({**base, **one, "expect": expectation(one)}) for one in asked]
    results = chat_all(given)
    assert [one.message for one in results if not one.ok] == []
    said = {one.model: one.answer.content for one in results}
    assert said["same"] in said[real.fixed["model"]]
    assert said["loud"] not in said[real.fixed["model"]]


def expectation(request):
    return {"pattern": "", "min_chars": 1, "finish_reason": [], "headers": {}, "first": None, **request["expect"]}


def engine_process(real):
    """The pid of the process in which vLLM's engine runs; it names itself."""
    for pid in real.engine.pids(real.id()):
        if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("no EngineCore among the container's processes")


#: One that changes nothing, one that changes everything, and one that this server has no room for.
ADAPTERS = {name: {"repo": f"acme/{name}", "revision": digit * 40} for name, digit in (("same", "1"), ("loud", "2"))}
WIDE = {"wide": {"repo": "acme/wide", "revision": "3" * 40}}


@pytest.fixture
def with_adapters(real, tmp_path):
    """The server with two adapters in a cache of its own, beside the model that the seed has."""
    cache, model = tmp_path / "cache", real.fixed["model"]
    place = f"models--{model.replace('/', '--')}"
    (cache / "hub").mkdir(parents=True)
    subprocess.run(["cp", "-a", f"{real.fixed['hf_cache']}/hub/{place}", cache / "hub"], check=True)
    kinds = {"same": {}, "loud": {"strength": 0.5}, "wide": {"rank": 32}}
    for one in adapters.parse({**ADAPTERS, **WIDE}):
        tiny_adapter.write(Path(one.path(str(cache))), model, **kinds[one.name])
    args = real.fixed["args"]
    real.fixed |= {"hf_cache": str(cache), "args": adapters.lay_over(args, adapters.parse(ADAPTERS), HF_HOME)}
    return adapters.lay_over(args, adapters.parse({**ADAPTERS, **WIDE}), HF_HOME)


def test_an_engine_that_dies_while_serving_is_brought_back_although_it_ends_with_code_0(real, with_adapters):
    """So are its adapters, which answer each in its own way."""
    real.ready()
    assert ask(real).ok
    answers_of_adapters(real)
    refused = real.run(args=with_adapters)
    assert "adapter wide: expected a rank up to 16 (max-lora-rank), found 32" in refused["msg"]
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
    answers_of_adapters(real)


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


@pytest.fixture
def other(real, docker_client, tmp_path):
    """The same server on another node: with folders of its own."""
    made = type(real)(real.engine, docker_client, real.image, tmp_path / "other")
    made.fixed = real.fixed
    yield made
    made.close()


def test_what_was_compiled_once_is_not_compiled_again(real, other, tmp_path, capsys):
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
    # Nor by another node, once it has what this one compiled: the copy is that of roles/hf_cache/tasks/copy_tree.yml.
    mine, its = real.check(args=compiled)["engine_cache"], other.check(args=compiled)["engine_cache"]
    assert (mine["key"], its["warm"]) == (its["key"], False)
    assert other.check(args={**compiled, "max-model-len": 256})["engine_cache"]["key"] != mine["key"]
    begun = time.monotonic()
    files = engine_cache.listed(Path(mine["folder"]))
    arrived = Path(f"{its['folder']}.arriving")
    arrived.mkdir(parents=True)
    included = [f"--include=/{name}/***" for name in engine_cache.FOLDERS]
    subprocess.run(
        ["rsync", "--recursive", "--times", *included, "--exclude=*", f"{mine['folder']}/", f"{arrived}/"], check=True
    )
    placed = engine_cache.place(Path(its["folder"]), arrived, engine_cache.checked(files), its["key"])
    copied = time.monotonic() - begun
    assert placed == {"placed": len(files), "wrong": 0}
    real.close()
    third = other.ready(args=compiled)
    assert compiling(third) < compiling(first) / 2
    assert third["engine_cache"]["warm"]
    # Nothing was compiled there.
    assert engine_cache.listed(Path(its["folder"])).keys() == files.keys()
    assert ask(other).ok
    # A server that is replaced is away for as long as its engine starts, and the old one ends.
    own = total[1] + second["spent"]["stop"]
    with capsys.disabled():
        size = sum(one["size"] for one in files.values()) / 1e6
        at = next(s["at"] for s in third["stages"] if s["stage"] == "ready")
        print(
            f"another node: {len(files)} files, {size:.1f} MB in {copied:.1f} s; torch.compile {compiling(third):.1f} s, "
            f"ready after {at:.1f} s; replaced: without a server for {second['downtime']:.1f} s, {own:.1f} s of it the "
            f"engines' own ({second['spent']})"
        )
    assert second["downtime"] - own < 1
