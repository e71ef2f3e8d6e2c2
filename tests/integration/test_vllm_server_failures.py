# SPDX-License-Identifier: Apache-2.0
"""Failures, provoked: named with host, container, class and remedy, their log kept; refused runs touch nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import stat
import subprocess

import pytest
import standin
from fake_hf_cache import FakeCache
from vllm_server_tools import ROOT, Server, facts

from ansible.module_utils.vllm_fleet.diagnosis.diagnose import CLASSES

pytestmark = pytest.mark.engine

LOGS = ROOT / "tests" / "fixtures" / "failures"
RECORDED = ROOT / "tests" / "fixtures" / "vllm-0.32.0-cpu"
INSIDE = "/fixtures"


def assert_reads_well(result, server, failure_class):
    """What every failure must have, whatever its class."""
    failure, msg = result["failure"], result["msg"]
    assert failure["class"] == failure_class, msg
    assert failure["class"] in CLASSES
    for part in ("node7", server.name, failure["class"], failure["cause"]):
        assert part in msg
    assert failure["remedy"].rstrip(".")[1:] in msg
    assert "Traceback" not in msg and "\n" not in msg
    assert len(failure["remedy"]) > 20


# --- a start that fails ---

STARTED = {
    "gpu_memory_taken": ("rocm-free-memory.txt", "27.22 of 191.98 GiB"),
    "model_too_large": ("model_too_large.log", "do not fit"),
    "kv_cache_too_small": ("kv_cache_too_small.log", "163840 tokens"),
    "context_too_long": ("max_model_len_exceeds_config.log", "8192 tokens"),
    "model_not_found": ("model_not_found_on_hub.log", "no model deepseek-ai/DeepSeek-V31"),
    "gated_model": ("gated_model.log", "is gated"),
    "cache_miss_offline": ("offline_cache_miss.log", "downloads are off"),
    "cache_incomplete": ("cache_incomplete.log", "model-00041-of-000163.safetensors"),
    "weights_corrupt": ("weights_corrupt.log", "is cut short"),
    "remote_code_refused": ("remote_code_refused.log", "Python code"),
    "unsupported_architecture": ("unsupported_architecture.log", "NewNetForCausalLM"),
    "bad_parallelism": ("bad_parallelism.log", "128 attention heads"),
    "not_enough_gpus": ("not_enough_gpus.log", "sees 4"),
    "no_gpu": ("no_accelerator.log", ""),
    "gpu_permission": ("gpu_permission.log", ""),
    "shared_memory": ("shared_memory_too_small.log", ""),
    "collective_init": ("collective_init.log", "unhandled cuda error"),
    "host_memory": ("host_memory.log", "VllmWorker-3 was killed"),
    "disk_full": ("disk_full.log", "/root/.cache/huggingface/hub"),
    "unknown": ("unknown.log", "The quick brown kernel jumped over the lazy tensor"),
}


@pytest.mark.parametrize("failure_class", STARTED)
def test_a_start_that_fails_says_why(server, failure_class):
    """The recorded last words of a vLLM, from a container that really ends: through log stream, event and exit code."""
    name, said = STARTED[failure_class]
    folder = LOGS if (LOGS / name).exists() else RECORDED
    result = server.run(
        env={"STANDIN_FAIL_LOG": f"{INSIDE}/{name}", "STANDIN_FAIL_AT": "load"}, volumes=[f"{folder}:{INSIDE}:ro"]
    )
    assert result["failed"]
    assert_reads_well(result, server, failure_class)
    assert said in result["msg"]
    assert result["failure"]["exit_code"] == 1
    assert result["failure"]["evidence"]
    assert result["actions"] == ["create", "start", "stop"]
    assert server.running() == []
    # The whole log is on the node, for root alone: what the server printed and what it ended with.
    file = server.state_dir / server.name / "logs" / result["log_file"].rpartition("/")[2]
    assert str(file) == result["log_file"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = file.read_text(errors="replace")
    assert "Starting to load model acme/tiny" in kept
    last = (folder / name).read_text(errors="replace").splitlines()[-1].strip()
    assert last[:60] in kept


@pytest.mark.parametrize(
    ("exit_code", "failure_class"), [(135, "shared_memory"), (139, "engine_died"), (132, "unsupported_architecture")]
)
def test_a_signal_is_read_from_the_exit_code(server, exit_code, failure_class):
    result = server.run(env={"STANDIN_FAIL_TEXT": "(silence)", "STANDIN_FAIL_EXIT": exit_code})
    assert_reads_well(result, server, failure_class)
    assert result["failure"]["exit_code"] == exit_code


def test_a_flag_that_vllm_itself_refuses(server):
    result = server.run(args={"max-model-len": "8x"})
    assert_reads_well(result, server, "bad_argument")
    assert result["failure"]["exit_code"] == 2
    assert "max-model-len" in result["msg"]


def test_a_program_that_the_image_does_not_have(server):
    result = server.run(entrypoint=["/opt/rocm/vllm", "serve"])
    assert_reads_well(result, server, "bad_argument")
    assert "/opt/rocm/vllm" in result["msg"]
    assert server.running() == []


@pytest.mark.parametrize("policy", ["no", "unless-stopped"])
def test_a_memory_limit(server, engine, policy):
    """The kernel ends it for want of memory: Docker says so, whatever the log says, and also when it has restarted."""
    from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle

    def limit(action):
        if action == "create":
            server.client.api.update_container(server.id(), mem_limit="32m", memswap_limit="32m")

    options = server.parsed(entrypoint=["python3", "-c", "bytearray(1 << 30)"], restart_policy=policy)
    result = Lifecycle(options, engine, host="node7", after_action=limit).run()
    assert_reads_well(result, server, "host_memory")
    assert server.running() == []


def test_logs_of_failed_starts_do_not_pile_up(server):
    for _ in range(3):
        server.run(env={"STANDIN_FAIL_AT": "config"})
    from ansible.module_utils.vllm_fleet.server.state import KEPT_LOGS, NodeState

    node = NodeState(str(server.state_dir), server.name)
    for number in range(KEPT_LOGS):
        node.save_log(b"older", f"{number:012}")
    assert len(list((server.state_dir / server.name / "logs").iterdir())) == KEPT_LOGS


# --- what is refused while the old server still answers ---


@pytest.fixture
def serving(server):
    """A ready server with a predecessor, and what exists of it."""
    server.ready()
    server.ready(labels={"release": "2"})
    server.fixed = {"labels": {"release": "2"}}
    server.before = server.picture()
    return server


def assert_refused(server: Server, failure_class: str, *said: str, **changes):
    """The same refusal in check mode and for real, and nothing that was found is stopped, moved or deleted."""
    for check in (True, False):
        result = server.run(check=check, **changes)
        assert result["failed"], f"not refused (check: {check})"
        assert_reads_well(result, server, failure_class)
        for part in said:
            assert part in result["msg"]
        assert (result["changed"], result["actions"]) == (False, [])
        assert server.picture() == server.before
        assert result["container"]["id"] == server.before[server.name][0]
    assert server.served()["data"]
    assert not list((server.state_dir / server.name).glob("logs/*"))


def refusals(server):
    """Every bad input, as (class, what is said, options)."""
    cache = FakeCache(server.folder / "hf", repo_id="acme/tiny")
    broken = FakeCache(server.folder / "broken", repo_id="acme/tiny")
    broken.blob("model-00002-of-00003.safetensors").unlink()
    empty = server.folder / "no-model"
    empty.mkdir()
    shutil.copy(__file__, server.folder / "a-file")
    return {
        "image": ("image_missing", ["vllm-standin:99"], {"image": "vllm-standin:99"}),
        "digest": ("image_missing", ["is not on this node"], {"image": f"vllm-standin@sha256:{'0' * 64}"}),
        "latest": ("bad_argument", ["latest"], {"image": "vllm-standin:latest"}),
        "untagged": ("bad_argument", ["has no tag"], {"image": "vllm-standin"}),
        "flag": ("bad_argument", ["--max-modell-len", "id you mean --max-model-len"], {"args": {"max-modell-len": 1}}),
        "flag twice": ("bad_argument", ["same flag"], {"args": {"max-model-len": 1, "max_model_len": 2}}),
        "reserved": ("bad_argument", ["'port'"], {"args": {"port": 1}}),
        "key in args": ("bad_argument", ["'api_key'"], {"args": {"api-key": "canary"}}),
        "utilization": ("bad_argument", ["above 0 and at most 1", "1.5"], {"args": {"gpu-memory-utilization": 1.5}}),
        "percent": ("bad_argument", ["'90%'"], {"args": {"gpu-memory-utilization": "90%"}}),
        "model": ("bad_argument", ["model"], {"model": "acme tiny"}),
        "model path": ("model_not_found", ["/data/none", "does not exist"], {"model": "/data/none"}),
        "model file": ("model_not_found", ["is a file"], {"model": f"{server.folder}/a-file"}),
        "model folder": ("model_not_found", ["config.json"], {"model": str(empty)}),
        "not in cache": (
            "cache_miss_offline",
            ["acme/tyni", "in the cache there is acme/tiny"],
            {"model": "acme/tyni", "hf_cache": str(cache.cache)},
        ),
        "revision": (
            "cache_miss_offline",
            ["d" * 40],
            {"hf_cache": str(cache.cache), "revision": "d" * 40},
        ),
        "shard": ("cache_incomplete", ["1 of its files"], {"hf_cache": str(broken.cache)}),
        "relative cache": ("bad_argument", ["absolute path", "hf/cache"], {"hf_cache": "hf/cache"}),
        "relative cache online": (
            "bad_argument",
            ["absolute path"],
            {"hf_cache": "hf/cache", "env": {"HF_HUB_OFFLINE": 0}},
        ),
        "tilde cache": ("bad_argument", ["absolute path"], {"hf_cache": "~/.cache/huggingface"}),
        "no cache": ("cache_miss_offline", ["does not exist"], {"hf_cache": f"{server.folder}/none"}),
        "no cache online": (
            "cache_miss_offline",
            ["does not exist"],
            {"hf_cache": f"{server.folder}/none", "env": {"HF_HUB_OFFLINE": 0}},
        ),
        "volume": ("bad_argument", ["/data/none"], {"volumes": ["/data/none:/data:ro"]}),
        "volume text": ("bad_argument", ["source:/target"], {"volumes": ["/data"]}),
        "size": ("bad_argument", ["shm_size", "16 gigs"], {"shm_size": "16 gigs"}),
        "ulimit": ("bad_argument", ["ulimits"], {"ulimits": ["nofile"]}),
        "bind": ("bad_argument", ["api_key", "0.0.0.0"], {"bind": "0.0.0.0"}),
        "bind name": ("bad_argument", ["bind", "IP address"], {"bind": "node3.example", "api_key": "canary"}),
        "no way to say no": ("bad_argument", ["--no-headless", "headless out (null)"], {"args": {"headless": False}}),
        "https": ("bad_argument", ["plain HTTP", "gateway"], {"args": {"ssl-certfile": "/c.pem"}}),
        "socket": ("bad_argument", ["plain HTTP"], {"args": {"uds": "/run/vllm.sock"}}),
        "token in args": ("bad_argument", ["'hf_token'"], {"args": {"hf-token": "canary"}}),
        "bind elsewhere": ("bad_argument", ["192.0.2.7"], {"bind": "192.0.2.7", "allow_unauthenticated": True}),
        "port": ("bad_argument", ["65535"], {"port": 70000}),
        "network": ("bad_argument", ["no-such-net"], {"network_mode": "no-such-net"}),
        "two mounts": ("bad_argument", ["one mount at /data"], {"volumes": ["/tmp:/data", "/var:/data"]}),
        "capability": ("bad_argument", ["NO_SUCH"], {"capabilities": ["NO_SUCH"]}),
        "group": ("bad_argument", ["no-such-group"], {"groups": ["no-such-group"]}),
        "no device": ("bad_argument", ["/dev/nope"], {"devices": ["/dev/nope"]}),
        "ipc": ("bad_argument", ["ipc_mode"], {"ipc_mode": "Host"}),
        "limit": ("bad_argument", ["ulimits", "nofiles"], {"ulimits": ["nofiles=1"]}),
        "files": ("bad_argument", ["ulimits", "on this node"], {"ulimits": ["nofile=99999999999"]}),
        "profile": ("bad_argument", ["security_opts", "/x.json"], {"security_opts": ["seccomp=/x.json"]}),
        "variable": ("bad_argument", ["env", "'A=B'"], {"env": {"A=B": 1}}),
        "mount in a mount": (
            "bad_argument",
            ["volumes", "/data/in lies in /data"],
            {"volumes": [f"{empty}:/data:ro", "/tmp:/data/in"]},
        ),
        "mount over a file": (
            "bad_argument",
            ["expected a file to mount at /etc/hosts"],
            {"volumes": ["/tmp:/etc/hosts"]},
        ),
        "mount in /proc": ("bad_argument", ["no mount in /proc"], {"volumes": ["/tmp:/proc/x"]}),
        "programs": ("bad_argument", ["volumes: with", "/usr/local/bin"], {"volumes": [f"{empty}:/usr/local/bin"]}),
        "code": ("bad_argument", ["/opt/vllm-standin"], {"volumes": [f"{empty}:/opt/vllm-standin:ro", "/tmp:/data"]}),
        "libraries": ("bad_argument", ["at /lib"], {"volumes": [f"{empty}:/lib"]}),
        "search path": ("bad_argument", ["env: with PATH=/bin:/opt"], {"env": {"PATH": "/bin:/opt"}}),
        "value": ("bad_argument", ["max-model-len: expected a number"], {"args": {"max-model-len": "abc"}}),
        "driver": ("driver_missing", ["/dev/kfd"], {"accelerator": "rocm"}),
        "device": (
            "bad_argument",
            ["/dev/kfd7"],
            {"accelerator": "rocm", "devices": ["/dev/kfd7"], "gpu_memory_policy": "off"},
        ),
    }


def test_bad_input_is_refused_before_anything_is_touched(serving):
    """One test for all, since each costs milliseconds; the message names which."""
    wrong = []
    for name, (failure_class, said, changes) in refusals(serving).items():
        try:
            assert_refused(serving, failure_class, *said, **changes)
        except Exception as exc:  # noqa: BLE001  collected, to see all of them at once
            wrong.append(f"{name}: {type(exc).__name__}: {exc}")
    assert not wrong, "\n\n".join(wrong)


def test_a_mount_that_hides_nothing_that_is_needed_is_taken(server, monkeypatch):
    """At a place where the image has nothing, nobody asks; at another one the image itself says that it starts."""
    (server.folder / "patch").mkdir()
    asked = []
    real = type(server.engine).run_once
    monkeypatch.setattr(type(server.engine), "run_once", lambda *a, **k: asked.append(k) or real(*a, **k))
    server.ready()
    server.ready(volumes=[f"{server.folder}:/data"])
    assert len(asked) == 1, "the flags alone"
    server.ready(volumes=[f"{server.folder}/patch:/usr/local/games", f"{server.folder}:/data"], env={"PYTHONPATH": "/"})
    assert [volume.target for volume in asked[1]["binds"]] == ["/usr/local/games"]
    assert asked[1]["env"] == {"PYTHONPATH": "/"}


def test_a_port_held_by_a_process_is_named(serving):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        assert_refused(serving, "port_taken", f"port {port}", "pid ", port=port)


def test_a_port_held_by_a_container_is_named(serving, docker_client, standin_image):
    port = standin.free_port()
    other = docker_client.api.create_container(
        standin_image,
        name=f"{serving.name}-neighbour"[:60].replace("it-", "neighbour-"),
        command=["sleep", "60"],
        ports=[80],
        host_config=docker_client.api.create_host_config(port_bindings={80: ("127.0.0.1", port)}),
    )
    try:
        docker_client.api.start(other["Id"])
        name = docker_client.api.inspect_container(other["Id"])["Name"].lstrip("/")
        assert_refused(serving, "port_taken", f"the container {name}", port=port)
    finally:
        docker_client.api.remove_container(other["Id"], force=True)


def test_a_port_taken_after_the_check_is_diagnosed_from_dockers_words(server, engine):
    """Between the check and the start somebody was quicker."""
    from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle

    holders = []

    def take(action):
        if action == "rename":
            holders.append(socket.create_server(("127.0.0.1", server.port)))

    server.ready()
    old = server.id()
    result = Lifecycle(server.parsed(labels={"a": "b"}), engine, host="node7", after_action=take).run()
    for holder in holders:
        holder.close()
    assert_reads_well(result, server, "port_taken")
    # The old one could not be put back either, and is still there.
    assert old in {ident for ident, _, _ in server.picture().values()}
    assert server.ready()["container"]["id"] == old


#: What only Docker itself finds wrong, when a container is created, by the option.
REFUSED_BY_DOCKER = {
    "security_opts": ["nonsense=1"],
    "volumes": ["/tmp:/data:shared,private"],
}


def test_what_docker_does_not_create_costs_no_stop(serving):
    for option, value in REFUSED_BY_DOCKER.items():
        result = serving.run(**{option: value})
        assert result["failed"], option
        assert_reads_well(result, serving, "bad_argument")
        assert option in result["msg"] and "Traceback" not in result["msg"]
        assert (result["changed"], result["actions"], result["rolled_back"]) == (False, [], False)
        assert serving.picture() == serving.before, option
    assert serving.served()["data"]


def test_what_docker_does_not_create_at_a_first_deployment(server):
    result = server.run(security_opts=["nonsense=1"])
    assert_reads_well(result, server, "bad_argument")
    assert "security_opts: Docker does not take it" in result["msg"] and "not touched" not in result["msg"]
    assert (result["changed"], result["actions"]) == (False, [])
    assert server.picture() == {}


def test_a_container_of_someone_else_with_the_new_ones_name(serving, docker_client):
    """It is neither removed nor taken for what a killed run left, in whatever state it is."""
    made = docker_client.api.create_container(serving.image, name=f"{serving.name}.next", command=["sleep", "60"])
    serving.before = serving.picture()
    assert_refused(serving, "bad_argument", f"no container {serving.name}.next", labels={"release": "3"})
    assert facts(serving.run()) == (False, [], []), "where nothing is replaced, it is no obstacle"
    assert serving.run(state="restored")["actions"] == ["stop", "remove", "unkeep", "start"]
    assert serving.id(".next") == made["Id"]


def test_an_image_that_cannot_tell_its_flags_is_used_unchecked(server):
    """An entrypoint that knows no --help: the start decides, and a note says that nothing was checked."""
    result = server.run(entrypoint=["python3", "-c", "raise SystemExit(3)"], args={"made-up-flag": 1})
    assert result["failed"]
    assert any("were not checked" in note for note in result["notes"])
    assert result["actions"][:2] == ["create", "start"]


def test_the_image_is_asked_for_its_flags_once(server, engine, monkeypatch):
    asked = []
    real = type(engine).run_once
    monkeypatch.setattr(type(engine), "run_once", lambda *a, **k: asked.append(1) or real(*a, **k))
    for _ in range(2):
        assert server.run(args={"no-such-flag": 1})["failure"]["class"] == "bad_argument"
    assert server.check() and len(asked) == 1


def test_a_lost_state_folder_costs_nothing_but_memory(server):
    """State is a cache of knowledge: without it the server is still recognised."""
    server.ready()
    before = server.picture()
    shutil.rmtree(server.state_dir)
    assert facts(server.ready()) == (False, [], [])
    assert server.picture() == before


def test_a_failure_as_a_user_sees_it(server):
    run = server.ansible(env={"STANDIN_FAIL_LOG": f"{INSIDE}/unknown.log"}, volumes=[f"{LOGS}:{INSIDE}:ro"])
    assert run.returncode == 2
    shown = run.stdout + run.stderr
    text = re.sub(r"\s+", " ", shown)
    assert f"Container {server.name} on localhost failed with unknown:" in text
    assert "The quick brown kernel jumped over the lazy tensor" in text
    assert "Traceback (most recent call last)" not in shown
    assert "log_file: " + str(server.state_dir) in text


def test_an_engine_that_is_not_there(server):
    run = server.ansible(docker_host="unix:///var/tmp/no-such.sock")
    text = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode == 2
    assert re.search(r"no Docker engine answers at (unix://)?/var/tmp/no-such.sock", text)
    assert "Traceback" not in text


def test_a_folder_that_may_not_be_written_is_told_in_words(server):
    """A user who may use Docker and is not root, say."""
    (server.folder / "state").write_text("a file where the folder should be")
    run = server.ansible()
    text = re.sub(r"\s+", " ", run.stdout)
    assert run.returncode == 2
    assert f"{server.state_dir}" in text and "cannot be written (" in text and "become: true" in text
    assert "Traceback" not in run.stdout + run.stderr
    assert server.picture() == {}


@pytest.fixture
def small_disk(server):
    """A state folder of a few hundred KiB, and what fills it."""
    server.state_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(server.state_dir)], check=True)

    def fill(action="create"):
        if action != "create":
            return
        with contextlib.suppress(OSError), (server.state_dir / "filler").open("wb") as filler:
            for _ in range(1024):
                filler.write(bytes(1024))
                filler.flush()

    yield fill
    server.close()
    subprocess.run(["umount", str(server.state_dir)], check=True)


def test_a_full_disk_is_told_before_anything_is_touched(server, small_disk):
    server.ready()
    before = server.picture()
    (server.state_dir / server.name / "state.json").unlink()  # so that there is something to note before the stop
    small_disk()
    refused = server.run(labels={"release": "2"})
    assert_reads_well(refused, server, "disk_full")
    assert (refused["changed"], refused["actions"]) == (False, [])
    assert server.picture() == before and server.served()["data"]
    (server.state_dir / "filler").unlink()
    assert server.ready(labels={"release": "2"})["changed"]


def test_a_disk_that_fills_up_does_not_keep_the_old_server_from_coming_back(server, small_disk, engine):
    """There is no room for the log of the failure and for what was learnt of it."""
    from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle

    old = server.ready()["container"]["id"]
    options = server.parsed(env={"STANDIN_FAIL_AT": "load"})
    result = Lifecycle(options, engine, host="node7", after_action=small_disk).run()
    assert result["failed"] and result["rolled_back"], result["msg"]
    assert "failure ordered at stage load" in result["msg"]
    assert result["log_file"] is None
    assert any("no space left" in note for note in result["notes"]), result["notes"]
    assert server.id() == old and server.served()["data"]
