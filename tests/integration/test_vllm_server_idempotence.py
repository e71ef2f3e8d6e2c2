# SPDX-License-Identifier: Apache-2.0
"""What is desired against what Docker has: every option four ways, and drift made by hand found and undone."""

from __future__ import annotations

import grp
import json
import re
import uuid

import pytest
import spelling_tools
import spellings
import standin
import yaml
from fake_hf_cache import FakeCache
from vllm_server_tools import Server, facts, names

pytestmark = pytest.mark.engine

REPLACED = ("create", "stop", "keep", "rename", "start")
REPLACED_AGAIN = ("create", "stop", "remove_previous", "keep", "rename", "start")
REVISION = "c" * 40
API_KEY, HF_TOKEN, OWN_KEY = "canary-api-key-81f2", "hf_Canary0Token93aa", "canary-own-key-77b0"
ENGINE_CACHE_FIELDS = {
    *("env.HF_MODULES_CACHE", "env.TORCHINDUCTOR_CACHE_DIR", "env.TRITON_CACHE_DIR", "env.VLLM_CACHE_ROOT", "volumes"),
}


@pytest.fixture(scope="module")
def chain(engine, docker_client, standin_image, tmp_path_factory):
    """One server that every case changes in one thing; ``fixed`` is what it is like now."""
    made = Server(engine, docker_client, standin_image, tmp_path_factory.mktemp("chain"))
    for model in ("acme/tiny", "acme/other"):
        FakeCache(made.folder / "hf", repo_id=model, commit=REVISION)
    made.ready()
    yield made
    made.close()


KINDS = {
    "enforce-eager": True,
    "enable_prefix_caching": False,
    "served-model-name": ["a", "b"],
    "hf-overrides": {"rope": {"factor": 2}},
    "gpu-memory-utilization": 0.5,
    "generation-config": "vllm",
    "tensor-parallel-size": None,
}
KINDS_FIELDS = {
    *("args.enforce-eager", "args.enable-prefix-caching", "args.served-model-name"),
    *("args.hf-overrides", "args.gpu-memory-utilization", "args.generation-config"),
}
ENV_KINDS = {"SWITCH": True, "OFF": False, "NUMBER": 7, "EMPTY": "", "VLLM_ENGINE_READY_TIMEOUT_S": None}
ENV_KINDS_FIELDS = {f"env.{name}" for name in ENV_KINDS}
CACHE = {"hf_cache": "{folder}/hf"}
ONLINE = CACHE | {"env": {"HF_HUB_OFFLINE": 0}}
HOST_FIELDS = {"network_mode", "ports", "args.host", "args.port"}
WIDE = {"bind": "0.0.0.0", "allow_unauthenticated": True}

# What is changed, the fields that then differ, and what it must be like before (the case above leaves it so).
CASES = {
    "model": ({"model": "acme/other"}, {"model"}),
    "revision": ({"revision": REVISION}, {"args.revision"}),
    "args_number": ({"args": {"max_model_len": 1024}}, {"args.max-model-len"}),
    "args_other_number": ({"args": {"max-model-len": 512}}, {"args.max-model-len"}),
    "args_kinds": ({"args": KINDS}, {"args.max-model-len"} | KINDS_FIELDS, {"args": {"max-model-len": 512}}),
    "args_shorter_list": ({"args": {"served-model-name": ["a"]}}, KINDS_FIELDS, {"args": KINDS}),
    "args_none": ({"args": {}}, {"args.served-model-name"}, {"args": {"served-model-name": ["a"]}}),
    "env": ({"env": {"PLAIN": "a b=c 'd' \"e\" ü\n2"}}, {"env.PLAIN"}),
    "env_kinds": ({"env": ENV_KINDS}, ENV_KINDS_FIELDS, {"env": {}}),
    "env_secret": ({"env": {"MY_API_KEY": OWN_KEY}}, ENV_KINDS_FIELDS | {"env.MY_API_KEY"}, {"env": ENV_KINDS}),
    "env_none": ({"env": {}}, {"env.MY_API_KEY"}, {"env": {"MY_API_KEY": OWN_KEY}}),
    "entrypoint": ({"entrypoint": ["python3", "/usr/local/bin/vllm", "serve"]}, {"entrypoint"}),
    "entrypoint_default": (
        {"entrypoint": None},
        {"entrypoint"},
        {"entrypoint": ["python3", "/usr/local/bin/vllm", "serve"]},
    ),
    "bind": (WIDE, {"ports"}),
    "bind_loopback": ({"bind": "127.0.0.1", "allow_unauthenticated": False}, {"ports"}, WIDE),
    "hf_cache": (CACHE, {"env.HF_HOME", "env.HF_HUB_OFFLINE", "volumes"}),
    "hf_cache_online": (ONLINE, {"env.HF_HUB_OFFLINE", "volumes"}, CACHE | {"env": {}}),
    "hf_token": ({"hf_token": HF_TOKEN}, {"env.HF_TOKEN"}, ONLINE),
    "hf_cache_none": (
        {"hf_cache": None, "hf_token": None, "env": {}},
        {"env.HF_HOME", "env.HF_HUB_OFFLINE", "env.HF_TOKEN", "volumes"},
        ONLINE | {"hf_token": HF_TOKEN},
    ),
    "engine_cache": ({"engine_cache": False}, ENGINE_CACHE_FIELDS),
    "engine_cache_again": ({"engine_cache": True}, ENGINE_CACHE_FIELDS, {"engine_cache": False}),
    "devices": ({"devices": ["/dev/null", "/dev/full"]}, {"devices"}),
    "devices_longer": ({"devices": ["/dev/full:/dev/full:r", "/dev/null:/dev/zero2:mr"]}, {"devices"}),
    "groups": ({"groups": ["44", "109"]}, {"groups"}),
    "groups_named": ({"groups": ["daemon", 0, "44"]}, {"groups"}),
    "shm_size": ({"shm_size": "1.5GiB"}, {"shm_size"}),
    "ipc_mode": ({"ipc_mode": "host"}, {"ipc_mode", "shm_size"}),
    "capabilities": ({"capabilities": ["cap_sys_ptrace", "IPC_LOCK"]}, {"capabilities"}),
    "capabilities_spelling": ({"capabilities": ["net_raw", "CAP_SYS_PTRACE", "IPC_LOCK"]}, {"capabilities"}),
    "security_opts": ({"security_opts": ["seccomp=unconfined", "no-new-privileges"]}, {"security_opts"}),
    "security_opts_spelling": (
        {"security_opts": ["no-new-privileges:true", "label=disable"]},
        {"security_opts"},
        {"security_opts": ["seccomp=unconfined"]},
    ),
    "ulimits": ({"ulimits": ["nofile=1024:2048", "core=0"]}, {"ulimits"}),
    "volumes": ({"volumes": ["{folder}:/data:ro"]}, {"volumes"}),
    "labels": ({"labels": {"team": "search", "tier": 1}}, {"labels.team", "labels.tier"}),
    "stop_timeout": ({"stop_timeout": 30}, {"stop_timeout", "args.shutdown-timeout"}),
    "stop_timeout_none": ({"stop_timeout": 0}, {"stop_timeout", "args.shutdown-timeout"}),
    "api_key": ({"api_key": API_KEY}, {"env.VLLM_API_KEY"}),
    "api_key_other": ({"api_key": API_KEY + "x"}, {"env.VLLM_API_KEY"}),
    "network_host": ({"network_mode": "host"}, HOST_FIELDS),
    "network_host_replaced": ({"env": {"NET": "host"}}, {"env.NET"}, {"network_mode": "host", "env": {}}),
    "network_bridge": ({"network_mode": "bridge"}, HOST_FIELDS, {"network_mode": "host"}),
}


def filled(value, server):
    """Put the test's folder into a case's values."""
    if isinstance(value, str):
        return value.replace("{folder}", str(server.folder))
    if isinstance(value, list):
        return [filled(item, server) for item in value]
    return {k: filled(v, server) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("case", CASES)
def test_four_ways(chain, case):
    change, expected, *first = CASES[case]
    for needed in first:
        wanted = {**chain.fixed, **filled(needed, chain)}
        if wanted != chain.fixed:  # only where a case runs alone
            chain.ready(**wanted)
            chain.fixed = wanted
    wanted = {**chain.fixed, **filled(change, chain)}
    before = chain.picture()
    check = chain.check(**wanted)
    assert chain.picture() == before, "check mode touched a container"
    real = chain.ready(**wanted)
    chain.fixed = wanted
    again = chain.run()
    again_check = chain.check()

    assert set(names(real)) == expected
    assert facts(check) == facts(real)
    assert check["diff"] == real["diff"]
    assert real["changed"]
    assert real["actions"] in (list(REPLACED), list(REPLACED_AGAIN))
    for second in (again, again_check):
        assert facts(second) == (False, [], [])
        assert not second.get("failed")
    assert chain.running() == [chain.name]


def test_spellings_of_each_option_on_this_engine(standin_image):
    """With the node's Python and its Docker SDK."""
    found = spelling_tools.compared([standin.PYTHON], standin_image, f"it-{uuid.uuid4().hex[:10]}")
    assert found["wrong"] == []
    assert found["made"] > len(spellings.SPELLINGS)


def test_spellings_of_a_server_that_runs(server):
    """The whole run, not the comparison alone: no spelling of what serves changes anything."""
    FakeCache(server.folder / "hf", repo_id="acme/tiny", commit=REVISION)
    first, *others = next(spellings.rounds(str(server.folder / "hf")))
    for options in (first, *others):
        del options["engine_cache"]
        options["port"] = type(options["port"])(server.port)
    server.ready(**first)
    for options in others:
        assert facts(server.check(**options)) == (False, [], []), options


def test_port_four_ways(server):
    """With a port that is held by nobody else in the meantime."""
    first = server.ready()
    other = standin.free_port()
    check = server.check(port=other)
    real = server.ready(port=other)
    assert facts(check) == facts(real)
    assert real["differences"] == [
        {
            "name": "ports",
            "current": [f"127.0.0.1:{server.port}->8000/tcp"],
            "desired": [f"127.0.0.1:{other}->8000/tcp"],
        }
    ]
    assert facts(server.run(port=other)) == facts(server.check(port=other)) == (False, [], [])
    assert real["container"]["id"] != first["container"]["id"]
    server.port = other
    assert server.served()["data"][0]["id"] == "acme/tiny"


def test_rocm_four_ways(server):
    """The rights and groups that AMD and vLLM document; the devices are others, for there is no GPU here.

    Unlimited memlock, the default for rocm, is refused where the tests run in a container themselves.
    """
    rocm = {"accelerator": "rocm", "gpu_memory_policy": "off", "devices": ["/dev/null"], "ulimits": ["nofile=1024"]}
    server.ready(ulimits=["nofile=1024"])
    check, real = server.check(**rocm), server.ready(**rocm)
    assert facts(check) == facts(real)
    desired = {d["name"]: d["desired"] for d in real["differences"]}
    assert desired.pop("groups") == sorted(str(g.gr_gid) for g in grp.getgrall() if g.gr_name in ("video", "render"))
    assert desired == {
        "capabilities": ["SYS_PTRACE"],
        "devices": ["/dev/null"],
        "ipc_mode": "host",
        "security_opts": ["seccomp=unconfined"],
        "shm_size": None,
    }
    assert facts(server.run(**rocm)) == facts(server.check(**rocm)) == (False, [], [])


def test_first_deployment_four_ways(server):
    check = server.check()
    assert server.picture() == {}
    assert not server.state_dir.joinpath(server.name).exists()
    assert check["container"] is None
    real = server.ready()
    assert facts(check) == facts(real)
    assert real["actions"] == ["create", "start"]
    assert real["differences"][0] == {
        "name": "image",
        "current": None,
        "desired": f"{server.image} ({server.engine.image(server.image).id[7:19]})",
    }
    assert real["differences"][-1] == {"name": "state", "current": None, "desired": "running"}
    assert facts(server.run()) == facts(server.check()) == (False, [], [])


def test_image_four_ways(server, standin_openai_image):
    """Another image is a difference of its bytes; another name for the same bytes is none."""
    server.ready()
    check = server.check(image=standin_openai_image)
    real = server.ready(image=standin_openai_image)
    assert facts(check) == facts(real)
    assert names(real) == ["image"]
    assert facts(server.run(image=standin_openai_image)) == (False, [], [])
    ident = server.engine.image(standin_openai_image).id
    assert facts(server.run(image=ident)) == facts(server.check(image=ident)) == (False, [], [])


def test_allow_latest(server, docker_client):
    tag = f"it-{uuid.uuid4().hex[:8]}"
    docker_client.api.tag(server.image, tag, "latest")
    try:
        for refused in (tag, f"{tag}:latest"):
            result = server.run(image=refused)
            assert result["failed"] and result["failure"]["class"] == "bad_argument"
            assert "it names another image tomorrow" in result["msg"]
        assert server.picture() == {}
        assert server.ready(image=tag, allow_latest=True)["changed"]
        # The same bytes under their other name, too.
        assert facts(server.run()) == (False, [], [])
    finally:
        docker_client.api.remove_image(tag, force=True, noprune=True)


def restart_policy(info):
    """Docker's, as `docker run --restart` takes it."""
    policy = info["HostConfig"]["RestartPolicy"]
    return f"{policy['Name']}:{policy['MaximumRetryCount']}" if policy["MaximumRetryCount"] else policy["Name"]


@pytest.mark.parametrize("policy", ["always", "no", "on-failure", "on-failure:3", "unless-stopped"])
def test_restart_policy_alone_is_updated_without_a_restart(chain, policy):
    before = chain.inspect()
    current = restart_policy(before)
    if current == policy:
        chain.ready(restart_policy="no")
        current = "no"
    check = chain.check(restart_policy=policy)
    real = chain.ready(restart_policy=policy)
    chain.fixed["restart_policy"] = policy
    assert facts(check) == facts(real)
    assert real["actions"] == ["update"]
    assert real["differences"] == [{"name": "restart_policy", "current": current, "desired": policy}]
    after = chain.inspect()
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    assert restart_policy(after) == policy
    assert facts(chain.run()) == facts(chain.check()) == (False, [], [])


@pytest.mark.parametrize("state", ["stopped", "absent"])
def test_a_predecessor_alone_four_ways(server, state):
    """Nothing has the name, or nothing runs under it, and there still is something to do."""
    server.ready()
    if state == "absent":
        server.docker_run(name=server.name + ".previous")
    else:
        server.ready(labels={"release": "2"})
        server.run(state="stopped")
        server.engine.start(server.id(".previous"))
    check = server.check(state=state)
    real = server.run(state=state)
    assert facts(check) == facts(real)
    assert names(real) == ["previous"] and real["changed"]
    assert facts(server.run(state=state)) == facts(server.check(state=state)) == (False, [], [])
    assert server.running() == []


def test_localhost_is_loopback(server):
    """Docker takes a name for no address at all, and would listen on every one of them."""
    server.ready(bind="localhost")
    ports = server.inspect()["NetworkSettings"]["Ports"]["8000/tcp"]
    assert [entry["HostIp"] for entry in ports] == ["127.0.0.1"]
    assert facts(server.run(bind="localhost")) == facts(server.run(bind="127.0.0.1")) == (False, [], [])


@pytest.mark.parametrize("state", ["stopped", "absent"])
def test_stopped_and_absent_four_ways(server, state):
    server.ready()
    before = server.picture()
    check = server.check(state=state)
    assert server.picture() == before
    real = server.run(state=state)
    assert facts(check) == facts(real)
    assert real["actions"] == {"stopped": ["stop"], "absent": ["stop", "remove"]}[state]
    assert facts(server.run(state=state)) == facts(server.check(state=state)) == (False, [], [])
    assert server.running() == []
    assert (server.id() is None) == (state == "absent")


# --- drift ---


def test_an_environment_variable_added_by_hand_is_removed(server):
    server.ready()
    by_hand = server.docker_run(extra_env={"VLLM_ROCM_USE_AITER": "1"})
    server.wait_for_log("Application startup complete")
    check = server.check()
    real = server.ready()
    assert facts(check) == facts(real)
    assert real["differences"] == [{"name": "env.VLLM_ROCM_USE_AITER", "current": "1", "desired": None}]
    assert server.id(".previous") == by_hand
    assert "VLLM_ROCM_USE_AITER=1" not in server.inspect()["Config"]["Env"]


def test_a_container_started_by_docker_run_is_taken_over(server, docker_client):
    """Somebody's own `docker run`: same flags in another order and spelling, no notes of ours."""
    server.ready(args={"max-model-len": 512, "enforce-eager": True})
    config = server.inspect()["Config"]
    server.close()
    made = docker_client.api.create_container(
        server.image,
        name=server.name,
        entrypoint="vllm",
        command=["serve", "acme/tiny", "--enforce-eager", "--max_model_len=512", "--shutdown-timeout", "10"],
        environment=config["Env"],
        stop_timeout=12,
        ports=[8000],
        host_config=docker_client.api.create_host_config(
            port_bindings={8000: ("127.0.0.1", server.port)},
            restart_policy={"Name": "unless-stopped"},
            shm_size="4g",
            binds=[f"{server.state_dir}/engine-cache/x:/root/.cache/vllm"],
        ),
    )
    docker_client.api.start(made["Id"])
    result = server.run(args={"max-model-len": 512, "enforce-eager": True})
    assert not result.get("failed"), result["msg"]
    assert (result["differences"], result["actions"]) == ([], [])
    assert server.id() == made["Id"]


def test_a_moved_port_is_moved_back(server, docker_client):
    server.ready()
    info = server.inspect()
    docker_client.api.remove_container(info["Id"], force=True)
    host = {**info["HostConfig"], "PortBindings": {"8000/tcp": [{"HostIp": "", "HostPort": str(standin.free_port())}]}}
    made = docker_client.api.create_container(
        server.image,
        name=server.name,
        entrypoint=info["Config"]["Entrypoint"],
        command=info["Config"]["Cmd"],
        environment=info["Config"]["Env"],
        stop_timeout=12,
        ports=[8000],
        host_config=host,
    )
    docker_client.api.start(made["Id"])
    server.wait_for_log("Application startup complete")
    real = server.ready()
    assert names(real) == ["ports"]
    assert real["differences"][0]["current"][0].startswith("0.0.0.0:")
    assert server.served()["data"][0]["id"] == "acme/tiny"


def test_a_restart_policy_updated_by_hand_is_updated_back(server, docker_client):
    server.ready()
    docker_client.api.update_container(server.id(), restart_policy={"Name": "on-failure", "MaximumRetryCount": 3})
    check = server.check()
    real = server.ready()
    assert facts(check) == facts(real)
    assert real["actions"] == ["update"]
    assert real["differences"] == [
        {"name": "restart_policy", "current": "on-failure:3", "desired": "unless-stopped"},
    ]


def test_a_container_stopped_by_hand_is_started(server, docker_client):
    first = server.ready()["container"]["id"]
    docker_client.api.stop(first, timeout=5)
    check = server.check()
    real = server.ready()
    assert facts(check) == facts(real)
    assert real["actions"] == ["start"]
    assert real["differences"] == [{"name": "state", "current": "exited", "desired": "running"}]
    assert server.id() == first


def test_a_container_removed_by_hand_is_made_again(server, docker_client):
    server.ready()
    docker_client.api.remove_container(server.id(), force=True)
    check = server.check()
    real = server.ready()
    assert facts(check) == facts(real)
    assert real["actions"] == ["create", "start"]


def test_an_image_tag_that_points_elsewhere_now(server, docker_client, standin_openai_image):
    tag = f"it-{uuid.uuid4().hex[:8]}"
    docker_client.api.tag(server.image, tag, "1")
    try:
        server.ready(image=f"{tag}:1")
        docker_client.api.tag(standin_openai_image, tag, "1")
        check = server.check(image=f"{tag}:1")
        real = server.ready(image=f"{tag}:1")
        assert facts(check) == facts(real)
        (difference,) = real["differences"]
        assert difference["name"] == "image"
        assert difference["current"] != difference["desired"]
        assert server.inspect()["Image"] == server.engine.image(standin_openai_image).id
        assert facts(server.run(image=f"{tag}:1")) == (False, [], [])
    finally:
        docker_client.api.remove_image(f"{tag}:1", force=True, noprune=True)


def test_a_paused_container_is_brought_back(server, docker_client):
    server.ready()
    docker_client.api.pause(server.id())
    real = server.ready()
    assert "state" in names(real)
    assert server.served()["data"][0]["id"] == "acme/tiny"
    assert facts(server.run()) == (False, [], [])


def test_a_server_is_made_again_from_the_spec_in_the_result(server):
    FakeCache(server.folder / "hf", repo_id="acme/tiny", commit=REVISION)
    changes = {
        "args": {"max-model-len": 512, "served-model-name": ["a", "b"], "enforce-eager": True},
        "env": {"PLAIN": "x", "MY_API_KEY": OWN_KEY},
        "labels": {"team": "search"},
        "hf_cache": str(server.folder / "hf"),
        "revision": REVISION,
        "stop_timeout": 9,
    }
    made = server.ready(**changes)["spec"]
    assert made["image_id"] == server.inspect()["Image"]
    assert made == server.run(state="confirmed")["spec"] == server.check(**changes)["spec"]
    back = {k: v for k, v in made.items() if k not in ("image_id", "secrets")}
    back["env"] = made["env"] | {name: changes["env"][name] for name in made["secrets"]}
    assert facts(server.run(**back)) == (False, [], [])


# --- as a user sees it ---


def test_secrets_are_shown_as_fingerprints_that_change(server):
    first = server.ansible("-vvv", "--diff", api_key=API_KEY, env={"MY_API_KEY": OWN_KEY, "MY_PASSWORD": "canary-pw"})
    assert first.returncode == 0, first.stdout + first.stderr
    second = server.ansible("-vvv", "--diff", "--check", api_key=API_KEY + "2", env={"MY_API_KEY": OWN_KEY + "2"})
    failing = server.ansible(
        "-vvv", "--diff", api_key=API_KEY, env={"MY_API_KEY": OWN_KEY, "STANDIN_FAIL_TEXT": f"RuntimeError: {API_KEY}"}
    )
    for run in (first, second, failing):
        shown = run.stdout + run.stderr
        for secret in (API_KEY, OWN_KEY, "canary-pw"):
            # What Ansible echoes of the command line that the test itself gave is not the module's.
            assert secret not in shown.replace(json.dumps(secret)[1:-1] + "__", ""), shown[: shown.find(secret) + 300]
    prints = [set(re.findall(r"fingerprint ([0-9a-f]{12})", run.stdout)) for run in (first, second)]
    assert len(prints[0]) == 3
    assert len(prints[1] - prints[0]) == 2, "another secret must have another fingerprint"
    for line in ("VLLM_API_KEY: (secret, fingerprint ", "MY_PASSWORD: (secret, fingerprint "):
        assert line in first.stdout
    logs = [path.read_text() for path in (server.state_dir / server.name / "logs").glob("*.log")]
    assert logs and not any(API_KEY in log for log in logs)


def test_ansible_shows_a_diff_that_a_person_can_read(server):
    server.ready()
    shown = server.ansible("--diff", "--check", args={"max-model-len": 512}, labels={"team": "search"})
    assert shown.returncode == 0
    diff = shown.stdout[: shown.stdout.index("localhost |")]
    assert "-" not in [line[:1] for line in diff.splitlines() if "max-model-len" in line]
    assert yaml.safe_load(
        "\n".join(line[1:] for line in diff.splitlines() if line.startswith("+") and "+++" not in line)
    ) == {
        "args": {"max-model-len": 512},
        "labels": {"team": "search"},
    }


def test_ansible_four_ways(server):
    runs = [server.ansible("--check"), server.ansible(), server.ansible(), server.ansible("--check")]
    words = [run.stdout.partition("localhost | ")[2].split(" ")[0] for run in runs]
    assert words == ["CHANGED", "CHANGED", "SUCCESS", "SUCCESS"], runs[1].stdout + runs[1].stderr
