# SPDX-License-Identifier: Apache-2.0
"""GPU memory at the gate, on trees of files that look like sysfs: what is refused, lowered, waited for."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
import trees
from fake_hf_cache import FakeCache, model_files
from vllm_server_tools import ROOT, facts

from ansible.module_utils.vllm_fleet.server import gpu_gate

pytestmark = pytest.mark.engine
GIB = 1 << 30
PREVIOUS = ".previous"


def rocm(tree, **more):
    """Options for a node with GPUs. The device is harmless, and memlock as the tests' own surroundings allow."""
    return {
        "accelerator": "rocm",
        "devices": ["/dev/null"],
        "ulimits": ["nofile=1024"],
        "sysfs_root": str(tree.sys),
        **more,
    }


@pytest.fixture
def idle(tmp_path):
    """Eight idle MI300X."""
    return trees.mi300x(tmp_path / "node")


@pytest.fixture
def neighbour(server, docker_client):
    """A container that is not ours, for a process that holds memory."""
    name = server.name.replace("it-", "trainer-")
    made = docker_client.api.create_container(server.image, command=["sleep", "300"], name=name)
    docker_client.api.start(made["Id"])
    yield name, docker_client.api.inspect_container(made["Id"])["State"]["Pid"]
    docker_client.api.remove_container(made["Id"], force=True)


def take(tree, index, pid, gib):
    """Let a process hold so much of a GPU that ``gib`` are taken of it in all."""
    tree.hold(index, pid, int(gib * GIB) - tree.model.idle_used)


def utilization(server):
    """The share that the container was started with; None when vLLM's default is left to it."""
    words = server.inspect()["Config"]["Cmd"]
    flag = "--gpu-memory-utilization"
    return words[words.index(flag) + 1] if flag in words else None


def refused(server, failure_class, **options):
    """Refused in check mode and for real, with nothing touched; the message."""
    before = server.picture()
    for check in (True, False):
        result = server.run(check=check, **options)
        assert result["failed"], "not refused"
        assert result["failure"]["class"] == failure_class, result["msg"]
        assert (result["changed"], result["actions"]) == (False, [])
        assert server.picture() == before
    return result["msg"]


# --- strict, fit, off ---


def test_strict_refuses_with_the_arithmetic_and_the_holder(server, idle, neighbour):
    """27.22 GiB of GPU 3 are taken by somebody else, and 0.9 of it is wanted."""
    name, pid = neighbour
    server.ready(**rocm(idle))
    take(idle, 3, pid, 27.22)
    options = rocm(idle, args={"tensor-parallel-size": 8, "gpu-memory-utilization": 0.9})
    msg = refused(server, "gpu_memory_taken", **options)
    for part in ("GPU 3", "164.7", "191.98 GiB", "172.7", "27.22 GiB are taken", f"pid {pid} (sleep", name, "0.85"):
        assert part in msg, f"{part!r} is not in {msg}"
    assert server.served()["data"], "the old server must go on"
    # A server that does not use that GPU is not concerned.
    assert server.ready(**rocm(idle, args={"tensor-parallel-size": 2}))["changed"]


def test_strict_without_anybody_to_name(server, idle):
    used = idle.device_dir(0) / "mem_info_vram_used"
    idle.write(used, 100 * GIB)
    msg = refused(server, "gpu_memory_taken", **rocm(idle))
    assert "100.00 GiB are taken" in msg and "0.47" in msg


def test_fit_lowers_says_so_and_stays_there(server, idle, neighbour):
    take(idle, 3, neighbour[1], 27.22)
    options = rocm(idle, args={"tensor-parallel-size": 8, "gpu-memory-utilization": 0.9}, gpu_memory_policy="fit")
    check = server.check(**options)
    real = server.ready(**options)
    assert facts(check) == facts(real)
    (note,) = real["notes"]
    assert "lowered from 0.9 to 0.85" in note and check["notes"] == real["notes"]
    assert utilization(server) == "0.85"
    desired = {d["name"]: d["desired"] for d in real["differences"]}
    assert desired["args.gpu-memory-utilization"] == "0.85"
    # Now the server itself holds memory, and nothing has changed for it.
    take(idle, 0, server.inspect()["State"]["Pid"], 163)
    again, again_check = server.run(**options), server.check(**options)
    assert facts(again) == facts(again_check) == (False, [], [])
    # Another share than before is another wish.
    smaller = rocm(idle, args={"tensor-parallel-size": 8, "gpu-memory-utilization": 0.8}, gpu_memory_policy="fit")
    idle_again(idle)
    assert [d["name"] for d in server.ready(**smaller)["differences"]] == ["args.gpu-memory-utilization"]
    assert utilization(server) == "0.8"


def idle_again(tree):
    """Give all memory back."""
    for pid in (tree.kfd / "proc").iterdir():
        for file in pid.iterdir():
            file.unlink()
        pid.rmdir()
    for number in range(8):
        tree.write(tree.device_dir(number) / "mem_info_vram_used", tree.model.idle_used)


def test_fit_lowers_vllms_own_default(server, idle, neighbour):
    take(idle, 0, neighbour[1], 40)
    options = rocm(idle, gpu_memory_policy="fit")
    assert "lowered from 0.92 to 0.79" in server.ready(**options)["notes"][0]
    assert utilization(server) == "0.79"
    assert facts(server.run(**options)) == facts(server.check(**options)) == (False, [], [])


def test_fit_never_raises(server, idle):
    result = server.ready(**rocm(idle, args={"gpu-memory-utilization": 0.3}, gpu_memory_policy="fit"))
    assert utilization(server) == "0.3" and not result["notes"]


def test_fit_refuses_what_is_no_server_any_more(server, idle, neighbour):
    take(idle, 0, neighbour[1], 188)
    assert "GPU 0" in refused(server, "gpu_memory_taken", **rocm(idle, gpu_memory_policy="fit"))


def test_off_does_not_look(server, idle, neighbour):
    take(idle, 0, neighbour[1], 188)
    assert server.ready(**rocm(idle, gpu_memory_policy="off"))["changed"]
    assert utilization(server) is None


def test_a_gpu_that_cannot_be_read_is_noted_and_not_in_the_way(server, tmp_path):
    tree = trees.read_error(tmp_path / "node")
    result = server.ready(**rocm(tree, args={"tensor-parallel-size": 4}))
    assert any("GPU 2 cannot be read" in note for note in result["notes"])


# --- a replacement: the old server's memory ---


def test_the_old_servers_memory_counts_as_free_and_is_waited_for(server, idle):
    """It comes back a while after the process is gone; the new server starts only then."""
    options = rocm(idle, args={"gpu-memory-utilization": 0.9})
    server.ready(**options)
    take(idle, 0, server.inspect()["State"]["Pid"], 175)
    old = server.id()
    freed = []

    def free_later():
        while server.engine.container(old)["State"]["Running"]:
            time.sleep(0.02)
        time.sleep(1.2)
        freed.append(time.time())
        idle_again(idle)

    freeing = threading.Thread(target=free_later)
    freeing.start()
    result = server.ready(**options, labels={"release": "2"})
    freeing.join()
    assert result["actions"] == ["create", "stop", "keep", "rename", "start"]
    started = datetime.fromisoformat(server.inspect()["State"]["StartedAt"][:26] + "+00:00").timestamp()
    assert started >= freed[0]
    assert result["downtime"] > 1.2


def test_memory_that_does_not_come_back_brings_the_old_server_back(server, idle, monkeypatch):
    monkeypatch.setattr(gpu_gate, "RELEASE_TIMEOUT", 1.0)
    options = rocm(idle, args={"gpu-memory-utilization": 0.9})
    server.ready(**options)
    old = server.id()
    take(idle, 0, server.inspect()["State"]["Pid"], 175)
    result = server.run(**options, labels={"release": "2"})
    assert result["failed"] and result["rolled_back"]
    assert result["failure"]["class"] == "gpu_memory_taken"
    assert "waited 1 s" in result["msg"]
    assert server.id() == old and server.running() == [server.name]


@pytest.mark.parametrize("how", ["failed", "restored"])
def test_the_old_server_waits_for_the_memory_of_the_new_one(server, idle, how):
    """Else it would die of a memory that is just coming back."""
    options = rocm(idle, args={"gpu-memory-utilization": 0.9})
    server.ready(**options)
    old, freed, events = server.id(), [], []

    def free():
        freed.append(time.time())
        idle_again(idle)

    def new_one(action):
        events.append(action)
        if action == "start" and events.count("start") == 1 and server.id() != old:
            take(idle, 0, server.inspect()["State"]["Pid"] or 1, 175)
        if action == "remove":
            threading.Timer(1.2, free).start()

    from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle

    bad = {"STANDIN_START_SECONDS": "0", **({"STANDIN_FAIL_AT": "load"} if how == "failed" else {})}
    for change in ({"env": bad, "labels": {"release": "2"}}, {"state": "restored"}):
        given = server.parsed(**options, **change)
        result = Lifecycle(given, server.engine, host="node7", after_action=new_one).run()
        if how == "failed":
            break
    assert result.get("rolled_back") or how == "restored", result
    assert server.id() == old and not any("all the same" in note for note in result["notes"])
    started = datetime.fromisoformat(server.inspect()["State"]["StartedAt"][:26] + "+00:00").timestamp()
    assert freed and started >= freed[0]


def test_the_old_server_is_started_also_where_the_memory_does_not_come_back(server, idle, monkeypatch):
    """Its last chance: vLLM itself may still find enough."""
    monkeypatch.setattr(gpu_gate, "RELEASE_TIMEOUT", 1.0)
    options = rocm(idle, args={"gpu-memory-utilization": 0.9})
    old = server.ready(**options)["container"]["id"]
    server.ready(**options, labels={"release": "2"})
    take(idle, 0, os.getpid(), 175)
    result = server.run(state="restored", sysfs_root=str(idle.sys), accelerator="rocm")
    assert not result.get("failed"), result["msg"]
    assert any("was started all the same" in note for note in result["notes"]), result["notes"]
    assert server.id() == old


def test_the_diagnosis_names_who_holds_the_memory(server, idle, neighbour):
    """The gate saw it free, vLLM did not: what the node shows afterwards goes into the message."""
    name, pid = neighbour
    take(idle, 0, pid, 27.22)
    recorded = ROOT / "tests/fixtures/vllm-0.32.0-cpu"
    result = server.run(
        **rocm(idle, args={"gpu-memory-utilization": 0.9}, gpu_memory_policy="off"),
        env={"STANDIN_FAIL_LOG": "/fixtures/rocm-free-memory.txt", "STANDIN_FAIL_AT": "load"},
        volumes=[f"{recorded}:/fixtures:ro"],
    )
    assert result["failure"]["class"] == "gpu_memory_taken"
    for part in ("27.22 of 191.98 GiB", f"pid {pid} `sleep", name, "0.85"):
        assert part in result["msg"], f"{part!r} is not in {result['msg']}"


# --- what cannot fit at all ---


def cache(server, *, total=None, heads=None):
    """A model in a cache, with the size of its weights and its number of heads as told."""
    files = model_files()
    if total is not None:
        index = json.loads(files["model.safetensors.index.json"])
        index["metadata"]["total_size"] = total
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    if heads is not None:
        config = {"model_type": "llama", "num_attention_heads": heads, "torch_dtype": "bfloat16"}
        files["config.json"] = json.dumps(config).encode()
    return str(FakeCache(server.folder / "hf", files, repo_id="acme/tiny").cache)


def test_weights_that_cannot_fit(server, idle):
    """DeepSeek-V3.1's 641 GiB on two GPUs."""
    hf_cache = cache(server, total=641 * GIB, heads=128)
    options = rocm(idle, hf_cache=hf_cache)
    msg = refused(server, "model_too_large", **options, args={"tensor-parallel-size": 2})
    for part in (
        "641.00 GiB",
        "320.50 GiB on each of 2 GPUs",
        "0.92 of 191.98 GiB is 176.63 GiB",
        "tensor-parallel-size to 4",
    ):
        assert part in msg, f"{part!r} is not in {msg}"
    assert server.ready(**options, args={"tensor-parallel-size": 8})["changed"]


def test_heads_that_cannot_be_divided(server, idle):
    hf_cache = cache(server, heads=9)
    msg = refused(server, "bad_parallelism", **rocm(idle, hf_cache=hf_cache), args={"tensor-parallel-size": 2})
    assert "9 attention heads" in msg and "1, 3, 9" in msg


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"args": {"tensor-parallel-size": 16}}, "ask for 16 GPUs on this node and there are 8"),
        ({"args": {"tensor-parallel-size": 4, "data-parallel-size": 4}}, "ask for 16 GPUs"),
        ({"args": {"tensor-parallel-size": 4}, "env": {"HIP_VISIBLE_DEVICES": "0,1"}}, "there are 2"),
    ],
    ids=["tensor", "data", "visible"],
)
def test_not_enough_gpus(server, idle, more, said):
    assert said in refused(server, "not_enough_gpus", **rocm(idle, **more))


def test_two_nodes_share_a_tensor_parallel_size(server, idle):
    result = server.run(**rocm(idle, args={"tensor-parallel-size": 16, "nnodes": 2, "node-rank": 0}))
    assert result.get("failure", {}).get("class") != "not_enough_gpus"


def test_no_gpu(server, tmp_path):
    tree = trees.no_driver(tmp_path / "node")
    assert "topology" in refused(server, "no_gpu", **rocm(tree))


def test_a_device_that_vanishes_after_the_check(server, idle):
    """Docker says it then, and the class is the same."""
    from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle

    device = "/dev/kfd-of-a-test"
    os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
    try:
        options = server.parsed(**rocm(idle, devices=[device]))
        unlink = lambda action: Path(device).unlink() if action == "create" else None  # noqa: E731
        result = Lifecycle(options, server.engine, host="node7", after_action=unlink).run()
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(device).unlink()
    assert result["failure"]["class"] == "driver_missing", result["msg"]
    assert device in result["msg"]
