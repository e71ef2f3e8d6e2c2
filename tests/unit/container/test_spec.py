# SPDX-License-Identifier: Apache-2.0
"""Options to the desired container."""

from __future__ import annotations

import shlex

import pytest

from ansible.module_utils.vllm_fleet.container import fields, spec
from ansible.module_utils.vllm_fleet.container.options import ContainerOptions

IMAGE = spec.Image("vllm/vllm-openai-rocm:v0.31.0", "sha256:" + "1" * 64, entrypoint=("vllm", "serve"))
BASE = {
    "name": "vllm", "image": IMAGE.ref, "model": "Qwen/Qwen3-0.6B", "port": 8000, "bind": "127.0.0.1",
    "accelerator": "rocm", "restart_policy": "unless-stopped", "stop_timeout": 60,
}  # fmt: skip

# The documented lines, as options of `docker run`. vLLM: docs.vllm.ai, installation on AMD ROCm (0.32.0).
# AMD: rocm.docs.amd.com, the vLLM inference pages (7.12), which add the network to the same set.
VLLM_DOCKER_RUN = """--group-add=video --cap-add=SYS_PTRACE --security-opt seccomp=unconfined
  --device /dev/kfd --device /dev/dri -v /root/.cache/huggingface:/root/.cache/huggingface
  -p 8000:8000 --ipc=host"""


NODE = fields.NodeFacts(gids=(44, 109), groups={"video": 44, "render": 109})


def make(image=IMAGE, node=None, *, shutdown=False, **options):
    node = node or NODE
    made = ContainerOptions.from_params({**BASE, **options})
    return spec.build(made, image, node, shutdown_timeout=shutdown, engine_cache=options.get("engine_cache"))


def docker_run(text):
    """The same for words of a docker command line: {option: {values}}."""
    out, words = {}, shlex.split(text)
    while words:
        name, equals, value = words.pop(0).partition("=")
        out.setdefault(name.lstrip("-"), set()).add(value if equals else words.pop(0))
    return out


def test_rocm_defaults_cover_the_documented_docker_run_line():
    documented, made = docker_run(VLLM_DOCKER_RUN), make(hf_cache="/root/.cache/huggingface")
    assert set(made.devices) == documented["device"]
    assert set(made.capabilities) == documented["cap-add"]
    assert set(made.security_opts) == documented["security-opt"]
    assert {made.ipc_mode} == documented["ipc"]
    assert {f"{v.source}:{v.target}" for v in made.volumes} >= documented["v"]
    assert {p.partition("/")[0] for p in made.ports} == {p.split(":")[1] for p in documented["p"]}
    # The group goes by number: its name is looked up inside the image, where it may be missing or mean another.
    assert made.groups == ("109", "44")


def test_rocm_adds_what_the_engine_asks_for_on_start():
    assert {(u.name, u.soft, u.hard) for u in make().ulimits} == {("memlock", -1, -1), ("nofile", 65535, 65535)}


def test_cpu_leaves_the_gpu_out():
    made = make(accelerator="cpu")
    assert (made.devices, made.groups, made.ipc_mode) == ((), (), None)
    assert (made.capabilities, made.security_opts, made.ulimits) == ((), (), ())
    assert made.shm_size == 4 << 30


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, None),
        ({"ipc_mode": "private"}, 4 << 30),  # left to the daemon, its default-shm-size would be a difference for ever
        ({"ipc_mode": "private", "shm_size": "16g"}, 16 << 30),
        ({"accelerator": "cpu", "ipc_mode": "host"}, None),
    ],
)
def test_shared_memory_of_the_containers_own_has_a_size(changes, size):
    assert make(**changes).shm_size == size


def test_the_server_is_the_containers_main_command():
    made = make(args={"max-model-len": 512}, revision="a" * 40)
    assert made.entrypoint == ("vllm", "serve")
    assert made.command == ("Qwen/Qwen3-0.6B", "--max-model-len", "512", "--revision", "a" * 40)


def test_a_shell_of_the_image_is_never_what_runs():
    shell = spec.Image("rocm/vllm:rocm7", "sha256:" + "2" * 64, entrypoint=None, cmd=("/bin/bash",))
    assert make(image=shell).entrypoint == ("vllm", "serve")


def test_the_old_api_server_is_possible():
    made = make(entrypoint=["python3", "-m", "vllm.entrypoints.openai.api_server"])
    assert made.entrypoint == ("python3", "-m", "vllm.entrypoints.openai.api_server")
    assert made.command[:2] == ("--model", "Qwen/Qwen3-0.6B")


def test_bridge_publishes_and_host_listens():
    assert make(port=9000).ports == {"8000/tcp": "127.0.0.1:9000"}
    made = make(port=9000, network_mode="host")
    assert made.ports == {}
    assert made.command[1:] == ("--host", "127.0.0.1", "--port", "9000")


def test_offline_by_default_and_then_read_only():
    made = make(hf_cache="/c", hf_token="hf_x")
    assert made.env["HF_HUB_OFFLINE"] == "1"
    assert str(made.volumes[0]) == "/c:/root/.cache/huggingface:ro"
    assert "HF_TOKEN" not in made.env


def test_online_when_asked_with_the_token():
    made = make(hf_cache="/c", hf_token="hf_x", env={"HF_HUB_OFFLINE": 0})
    assert str(made.volumes[0]) == "/c:/root/.cache/huggingface:rw"
    assert made.env["HF_TOKEN"] == "hf_x"
    assert made.secrets == {"HF_TOKEN"}


def test_a_hub_that_is_a_link_is_mounted_where_it_really_is():
    made = make(hf_cache="/c", node=fields.NodeFacts(hf_hub_target="/mnt/nvme/hub"))
    assert str(made.volumes[0]) == "/mnt/nvme/hub:/root/.cache/huggingface/hub:ro"


def test_a_model_path_is_mounted_at_its_own_place():
    assert str(make(model="/models/x").volumes[0]) == "/models/x:/models/x:ro"
    under = make(model="/models/x", volumes=["/models:/models:ro"])
    assert [str(v) for v in under.volumes] == ["/models:/models:ro"]


@pytest.mark.parametrize(("stop", "grace"), [(60, "50"), (10, "8"), (2, "0"), (600, "500")])
def test_vllm_gets_its_grace_below_dockers(stop, grace):
    words = make(shutdown=True, stop_timeout=stop).command
    assert words[words.index("--shutdown-timeout") + 1] == grace
    assert "--shutdown-timeout" not in make(stop_timeout=stop).command


def test_waiting_longer_is_no_other_container():
    assert make(ready_timeout=10) == make(ready_timeout=7200)


def test_yaml_true_in_the_environment_is_what_vllm_reads():
    assert (
        make(env={"VLLM_ROCM_USE_AITER": True, "A": False}).env | {"A": "0"}
        == make(env={"VLLM_ROCM_USE_AITER": 1, "A": 0}).env
    )


@pytest.mark.parametrize("ref", ["vllm/vllm-openai-rocm:latest", "vllm/vllm-openai-rocm", "host:5000/vllm"])
def test_a_moving_image_is_refused_with_the_way_to_pin_it(ref):
    with pytest.raises(fields.SpecError, match="Pin it") as error:
        spec.check_image_ref(ref)
    assert "@sha256:" in str(error.value)
    spec.check_image_ref(ref, allow_latest=True)


@pytest.mark.parametrize("ref", ["a:1", "host:5000/vllm:v1", "a@sha256:" + "0" * 64, "sha256:" + "0" * 64])
def test_a_pinned_image_passes(ref):
    spec.check_image_ref(ref)


@pytest.mark.parametrize("model", ["DeepSeek V3.1", "a/b/c", "", "../x", "org/"])
def test_what_is_no_hub_id_is_refused(model):
    with pytest.raises(fields.SpecError):
        make(model=model)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bind": "0.0.0.0"}, "api_key"),
        ({"port": 0}, "port"),
        ({"name": "a b"}, "container name"),
        ({"args": {"gpu-memory-utilization": 1.5}}, "above 0 and at most 1"),
        ({"args": {"gpu-memory-utilization": "much"}}, "above 0 and at most 1"),
        ({"shm_size": "lots", "ipc_mode": "private"}, "16g"),
        ({"volumes": ["x"]}, "source:/target"),
        ({"bind": "node3", "api_key": "k"}, "IP address of the node"),
        ({"args": {"ssl-certfile": "/c.pem"}}, "gateway_certificate"),
        ({"args": {"uds": "/run/vllm.sock"}}, "plain HTTP"),
        ({"args": {"grpc": True}}, "plain HTTP"),
        ({"ulimits": ["nofile"]}, "name=soft"),
        ({"capabilities": ["SYS_PTRACE", "NO_SUCH"]}, "'NO_SUCH'"),
        ({"capabilities": ["CAP_SYS_PTRASE"]}, "did you mean SYS_PTRACE"),
        ({"groups": ["video", "vidoe"]}, "groups of this node.* got vidoe$"),
        ({"devices": ["dev/null"]}, "/dev/name"),
        ({"devices": ["/dev/null:/dev/zero:x"]}, "/dev/name"),
        ({"volumes": ["/a:/data", "/b:/data/"]}, "one mount at /data, got /a and /b$"),
        ({"volumes": ["/x:/root/.cache/huggingface"], "hf_cache": "/c"}, "got /x and /c; option hf_cache"),
        ({"volumes": ["/a:/"]}, "source:/target"),
        ({"volumes": ["/a:/b:rx"]}, "source:/target"),
        ({"volumes": ["./a:/b"]}, "absolute path or a volume's name"),
        ({"restart_policy": "on-failure:x"}, "on-failure:<attempts>"),
        ({"restart_policy": "always:3"}, "on-failure:<attempts>"),
        ({"restart_policy": "sometimes"}, "got 'sometimes'"),
        # Docker finds these wrong only when it starts the container.
        ({"ipc_mode": "Host"}, "ipc_mode: expected host, private"),
        ({"ulimits": ["nofiles=1"]}, "ulimits: expected one of core, .* got 'nofiles'"),
        ({"ulimits": ["nofile=10:5"]}, "ulimits: nofile: expected a soft limit"),
        ({"ulimits": ["core=-1:5"]}, "ulimits: core: expected a soft limit"),
        ({"ulimits": ["nofile=5", "nofile=6"]}, "ulimits: expected one limit for nofile"),
        ({"security_opts": ["seccomp=/etc/profile.json"]}, "security_opts: seccomp: .*got '/etc/profile.json'"),
        ({"security_opts": ["seccomp={"]}, "security_opts: seccomp"),
        ({"groups": ["99999999999"]}, "groups: expected a number up to 2147483647"),
        ({"devices": ["/dev/null:/dev/x", "/dev/zero:/dev/x:r"]}, "devices: expected one device at /dev/x"),
        ({"env": {"A": "x" * 131070}}, "env: expected less than 131072 bytes .* for A$"),
        ({"network_mode": "none"}, "network_mode: expected a network"),
        ({"model": "/models/a:b"}, "volumes: expected paths without a colon"),
        ({"volumes": ["/a:/proc"]}, "volumes: expected no mount in /proc"),
        ({"volumes": ["/a:/proc/version"]}, "volumes: expected no mount in /proc"),
        ({"volumes": ["/a:/dev/"]}, "volumes: expected no mount that hides /dev"),
        ({"volumes": ["/a:/sys"]}, "volumes: expected no mount that hides /sys"),
        # And these it keeps as something else, or waits for ever.
        ({"env": {"A=B": 1}}, "env: expected a name without '='"),
        ({"env": {"A": "\0"}}, "env: .* without a null byte"),
        ({"labels": {"io.vllm-fleet.image-id": "x"}}, "labels: expected a name that does not begin with"),
        ({"stop_timeout": -1}, "stop_timeout: expected 0 or more"),
    ],
)
def test_wrong_options_are_refused_with_what_was_expected(options, says):
    with pytest.raises(fields.SpecError, match=says):
        make(**options)


@pytest.mark.parametrize(
    ("option", "given", "made"),
    [
        ("devices", ["/dev/kfd:/dev/kfd:mrw", "/dev/dri/", "/dev/kfd"], ("/dev/dri", "/dev/kfd")),
        ("devices", ["/dev/null:/dev/zero2:r", "/dev/full:r"], ("/dev/full:/dev/full:r", "/dev/null:/dev/zero2:r")),
        ("capabilities", ["ipc_lock", "CAP_SYS_PTRACE", "sys_ptrace"], ("IPC_LOCK", "SYS_PTRACE")),
        ("capabilities", ["net_admin", "cap_all"], ("ALL",)),
        ("groups", ["video", "0", 44, "render"], ("0", "109", "44")),
        ("groups", ["044"], ("44",)),
        ("groups", [], ()),
        ("restart_policy", "on-failure:3", "on-failure:3"),
        ("restart_policy", "on-failure:0", "on-failure"),
        ("restart_policy", False, "no"),
    ],
)
def test_a_value_has_one_spelling_however_it_is_written(option, given, made):
    assert getattr(make(**{option: given}), option) == made
    again = list(made) if isinstance(made, tuple) else made
    assert getattr(make(**{option: again}), option) == made


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("192.0.2.7", "192.0.2.7"),
        ("", "0.0.0.0"),
    ],
)
def test_docker_is_given_an_address(bind, address):
    """It takes a name for no address at all, and listens on all of them."""
    assert make(bind=bind, allow_unauthenticated=True).ports == {"8000/tcp": f"{address}:8000"}
    assert make(bind="localhost").ports == {"8000/tcp": "127.0.0.1:8000"}, "and needs no key for it"


def test_beyond_loopback_with_a_key_or_on_request():
    assert make(bind="0.0.0.0", api_key="k").ports == {"8000/tcp": "0.0.0.0:8000"}
    make(bind="0.0.0.0", allow_unauthenticated=True)


def test_utilization_can_be_lowered_in_place():
    made = spec.with_utilization(make(args={"gpu-memory-utilization": 0.9}), 0.85)
    assert made.command[-2:] == ("--gpu-memory-utilization", "0.85")
    assert spec.with_utilization(make(), 0.85).command[-2:] == ("--gpu-memory-utilization", "0.85")
