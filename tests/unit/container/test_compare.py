# SPDX-License-Identifier: Apache-2.0
"""The desired container against recorded `docker inspect` output."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.container import compare, engine, fields, spec
from ansible.module_utils.vllm_fleet.container.options import ContainerOptions

RECORDED = Path(__file__).parents[2] / "fixtures" / "docker-inspect"
ENGINES = sorted(p.name for p in RECORDED.iterdir() if p.is_dir())
KEY = b"k" * 32
OPTIONS = {
    "name": "vllm-rec", "image": "vllm-standin:1", "model": "deepseek-ai/DeepSeek-V3.1", "revision": "a" * 40,
    "port": 8000, "bind": "127.0.0.1", "accelerator": "rocm", "restart_policy": "unless-stopped", "stop_timeout": 60,
    "hf_cache": "/root/.cache/huggingface",
    "engine_cache": "/var/lib/vllm-fleet/engine-cache/111111111111-deepseek-ai--DeepSeek-V3.1",
    "args": {"tensor-parallel-size": 8, "enable-expert-parallel": True, "max-model-len": 32768},
    "env": {"VLLM_ROCM_USE_AITER": 1}, "api_key": "canary-key-1", "labels": {"team": "a"},
}  # fmt: skip


def recorded(name):
    folder = RECORDED / name
    container = json.loads((folder / "container.json").read_text())
    image = json.loads((folder / "image.json").read_text())
    return container, engine.image_from_inspect("vllm-standin:1", image)


def differences(container, image, own_image=None, redact=None, **options):
    node = fields.NodeFacts(gids=(44, 109))
    given = {**OPTIONS, **options}
    made = ContainerOptions.from_params(given)
    wanted = spec.build(made, image, node, shutdown_timeout=True, engine_cache=given["engine_cache"])
    redact = redact or compare.fingerprint(KEY)
    return compare.differences(wanted, image, container, own_image or image, redact)


@pytest.mark.parametrize("name", ENGINES)
def test_what_was_made_from_the_options_is_as_desired(name):
    assert differences(*recorded(name)) == []


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"args": {**OPTIONS["args"], "max-model-len": 512}}, [("args.max-model-len", 32768, 512)]),
        ({"args": {"tensor-parallel-size": 8, "enable_expert_parallel": True, "max_model_len": 512}}, [("args.max-model-len", 32768, 512)]),
        ({"args": {**OPTIONS["args"], "seed": 7}}, [("args.seed", None, 7)]),
        ({"args": {"tensor-parallel-size": 8, "max-model-len": 32768}}, [("args.enable-expert-parallel", True, None)]),
        ({"model": "deepseek-ai/DeepSeek-R1"}, [("model", "deepseek-ai/DeepSeek-V3.1", "deepseek-ai/DeepSeek-R1")]),
        ({"revision": "b" * 40}, [("args.revision", "a" * 40, "b" * 40)]),
        ({"port": 8001}, [("ports", ["127.0.0.1:8000->8000/tcp"], ["127.0.0.1:8001->8000/tcp"])]),
        ({"env": {"VLLM_ROCM_USE_AITER": 0}}, [("env.VLLM_ROCM_USE_AITER", "1", "0")]),
        ({"env": {}}, [("env.VLLM_ROCM_USE_AITER", "1", None)]),
        ({"restart_policy": "always"}, [("restart_policy", "unless-stopped", "always")]),
        ({"stop_timeout": 120}, [("args.shutdown-timeout", 50, 100), ("stop_timeout", 60, 120)]),
        ({"labels": {"team": "b"}}, [("labels.team", "a", "b")]),
        ({"groups": ["44"]}, [("groups", ["109", "44"], ["44"])]),
        ({"capabilities": ["CAP_SYS_PTRACE"]}, []),
        ({"capabilities": ["SYS_PTRACE", "IPC_LOCK"]}, [("capabilities", ["SYS_PTRACE"], ["IPC_LOCK", "SYS_PTRACE"])]),
        ({"capabilities": ["sys_ptrace", "CAP_SYS_PTRACE"]}, []),
        ({"capabilities": ["all", "SYS_PTRACE"]}, [("capabilities", ["SYS_PTRACE"], ["ALL"])]),
        ({"devices": ["/dev/kfd:/dev/kfd:rwm", "/dev/dri/"]}, []),
        ({"devices": ["/dev/kfd:/dev/kfd:rw", "/dev/dri"]},
         [("devices", ["/dev/dri", "/dev/kfd"], ["/dev/dri", "/dev/kfd:/dev/kfd:rw"])]),
        ({"devices": ["/dev/kfd"]}, [("devices", ["/dev/dri", "/dev/kfd"], ["/dev/kfd"])]),
        ({"security_opts": []}, [("security_opts", ["seccomp=unconfined"], None)]),
        ({"security_opts": ["seccomp:unconfined", "label=disable"]}, []),
        ({"ulimits": ["nofile=65535"]}, [("ulimits", ["memlock=-1:-1", "nofile=65535:65535"], ["nofile=65535:65535"])]),
        ({"volumes": ["/data:/data"]}, [("volumes",
            ["/root/.cache/huggingface:/root/.cache/huggingface:ro", "/var/lib/vllm-fleet/engine-cache/*:/root/.cache/vllm:rw"],
            ["/data:/data:rw", "/root/.cache/huggingface:/root/.cache/huggingface:ro",
             "/var/lib/vllm-fleet/engine-cache/*:/root/.cache/vllm:rw"])]),
        ({"ipc_mode": "private", "shm_size": "16g"}, [("ipc_mode", "host", "private"), ("shm_size", None, 16 << 30)]),
        ({"network_mode": "host"}, [("args.host", None, "127.0.0.1"), ("args.port", None, 8000),
                                    ("network_mode", "bridge", "host"), ("ports", ["127.0.0.1:8000->8000/tcp"], None)]),
        # Another image or model has another compile cache, which is no difference of its own.
        ({"engine_cache": "/var/lib/vllm-fleet/engine-cache/222222222222-x"}, []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ENGINES)
def test_each_edit_is_one_named_difference(name, options, found):
    assert [(d.name, d.current, d.desired) for d in differences(*recorded(name), **options)] == found


@pytest.mark.parametrize(
    ("option", "given", "field", "kept"),
    [
        # What Docker 20.10 and 29 write down for it.
        ("capabilities", ["CAP_SYS_PTRACE", "ipc_lock"], "CapAdd", ["CAP_IPC_LOCK", "CAP_SYS_PTRACE"]),
        ("capabilities", ["ALL"], "CapAdd", ["ALL"]),
        ("devices", ["/dev/full:/dev/full:r", "/dev/null:/dev/zero2:mr"], "Devices", [
            {"PathOnHost": "/dev/null", "PathInContainer": "/dev/zero2", "CgroupPermissions": "rm"},
            {"PathOnHost": "/dev/full", "PathInContainer": "/dev/full", "CgroupPermissions": "r"}]),
        ("devices", ["/dev/full:/dev/full:rwm"], "Devices", [
            {"PathOnHost": "/dev/full", "PathInContainer": "/dev/full", "CgroupPermissions": "rwm"}]),
        ("groups", [44, "044", "7"], "GroupAdd", ["7", "44"]),
        ("restart_policy", "on-failure:3", "RestartPolicy", {"Name": "on-failure", "MaximumRetryCount": 3}),
        ("restart_policy", "on-failure", "RestartPolicy", {"Name": "on-failure", "MaximumRetryCount": 0}),
    ],
)  # fmt: skip
def test_however_a_value_is_written_what_docker_keeps_of_it_is_the_same(option, given, field, kept):
    container, image = recorded(ENGINES[0])
    container["HostConfig"][field] = kept
    assert differences(container, image, **{option: given}) == []


def test_drift_made_by_hand_is_found():
    container, image = recorded(ENGINES[0])
    drifted = copy.deepcopy(container)
    drifted["Config"]["Env"].append("NCCL_DEBUG=INFO")
    drifted["HostConfig"]["RestartPolicy"] = {"Name": "on-failure", "MaximumRetryCount": 3}
    drifted["HostConfig"]["Privileged"] = True
    assert [(d.name, d.current, d.desired) for d in differences(drifted, image)] == [
        ("env.NCCL_DEBUG", "INFO", None),
        ("privileged", True, None),
        ("restart_policy", "on-failure:3", "unless-stopped"),
    ]


def test_what_the_image_contributes_is_left_out():
    container, image = recorded(ENGINES[0])
    assert "PATH" in image.env
    own = spec.Image(image.ref, image.id, image.ids, image.entrypoint, None, {**image.env, "A": "1"}, {"vendor": "x"})
    container["Config"]["Env"].append("A=1")
    container["Config"]["Labels"]["vendor"] = "x"
    assert differences(container, own) == []


def test_an_override_of_the_images_environment_is_the_users():
    container, image = recorded(ENGINES[0])
    richer = spec.Image(image.ref, image.id, image.ids, image.entrypoint, None, {**image.env, "A": "1"}, {})
    container["Config"]["Env"].append("A=2")
    assert [(d.name, d.current, d.desired) for d in differences(container, richer)] == [("env.A", "2", None)]
    assert differences(container, richer, env={**OPTIONS["env"], "A": 2}) == []


@pytest.mark.parametrize(
    ("container_image", "label", "image_id", "image_ids", "same"),
    [
        # Classic store: both sides name the image by its configuration's digest.
        ("sha256:c", None, "sha256:c", (), True),
        ("sha256:c", None, "sha256:d", (), False),
        # containerd store: the container has the platform's manifest, the image its index (docker/compose#14016).
        ("sha256:manifest", None, "sha256:index", ("sha256:manifest",), True),
        ("sha256:manifest", "sha256:index", "sha256:index", (), True),
        # The tag was re-pointed: neither the name nor the note helps.
        ("sha256:manifest", "sha256:index", "sha256:other", ("sha256:m2",), False),
        # The engine was moved from one store to the other: the repository digest is the same.
        ("sha256:c", "sha256:c", "sha256:index", ("sha256:index", "sha256:c"), True),
    ],
)
def test_images_are_compared_by_bytes_in_both_stores(container_image, label, image_id, image_ids, same):
    container, image = recorded(ENGINES[0])
    container["Image"] = container_image
    container["Config"]["Labels"]["io.vllm-fleet.image-id"] = label
    container.pop("ImageManifestDescriptor", None)
    wanted = spec.Image(image.ref, image_id, frozenset(image_ids), image.entrypoint, None, image.env, image.labels)
    assert [d.name for d in differences(container, wanted)] == ([] if same else ["image"])


def test_secrets_are_shown_as_fingerprints_that_change_with_them():
    container, image = recorded(ENGINES[0])
    assert differences(container, image, api_key="canary-key-1") == []
    (one,) = differences(container, image, api_key="canary-key-2")
    (two,) = differences(container, image, api_key="canary-key-3")
    assert one.name == "env.VLLM_API_KEY"
    assert one.current != one.desired != two.desired
    assert "canary" not in repr([one, two])
    (other_key,) = differences(container, image, api_key="canary-key-2", redact=compare.fingerprint(b"o" * 32))
    assert other_key.desired != one.desired


def test_a_key_on_a_foreign_command_line_is_not_shown():
    container, image = recorded(ENGINES[0])
    container["Config"]["Cmd"] += ["--api-key", "canary"]
    assert "canary" not in repr(differences(container, image))


@pytest.mark.parametrize("flag", ["--hf-token", "--hf_token"])
def test_a_token_on_a_foreign_command_line_is_not_shown(flag):
    container, image = recorded(ENGINES[0])
    container["Config"]["Cmd"] += [flag, "canary"]
    (one,) = differences(container, image)
    assert one.name == "args.hf-token" and "canary" not in repr(one)
    found = compare.as_spec(container, image, compare.fingerprint(KEY))
    assert "canary" not in json.dumps(found["args"]) and "args.hf-token" in found["secrets"]


def test_what_an_older_version_wrote_of_a_container_is_hidden_as_today():
    container, image = recorded(ENGINES[0])
    container["Config"]["Env"] += ["HTTP_PROXY=http://user:canary@proxy:3128"]
    redact = compare.fingerprint(KEY)
    today = compare.as_spec(container, image, redact)
    assert "canary" not in json.dumps(today) and "HTTP_PROXY" in today["secrets"]
    shown = {"HTTP_PROXY": "http://user:canary@proxy:3128"}
    labels = {**today["labels"], "feed": "http://user:canary@feed"}
    old = {**today, "env": {**today["env"], **shown}, "args": {**today["args"], "hf-token": "canary"}, "labels": labels}
    old["secrets"] = [name for name in today["secrets"] if name != "HTTP_PROXY"]
    found = compare.hide(old, redact)
    assert "canary" not in json.dumps(found)
    assert found == {**today, "labels": found["labels"], "secrets": sorted([*today["secrets"], "args.hf-token"])}
    assert compare.hide(today, redact) == today


@pytest.mark.parametrize("ipc", ["host", "private"])
@pytest.mark.parametrize(
    ("stored", "wanted", "same"),
    [
        (["no-new-privileges:true"], ["no-new-privileges:true"], True),
        (["no-new-privileges"], ["no-new-privileges=true"], True),
        (["no-new-privileges:true"], ["no-new-privileges"], True),
        (["label=disable"], ["label=disable"], True),
        (["label=type:container_t"], ["label=type:container_t"], True),
        (["label=type:container_t"], [], False),
        (["no-new-privileges:false"], ["no-new-privileges"], False),
        (["apparmor:unconfined"], ["apparmor=unconfined"], True),
    ],
)
def test_security_options_have_several_spellings(ipc, stored, wanted, same):
    container, image = recorded(ENGINES[0])
    container["HostConfig"] |= {"SecurityOpt": stored, "IpcMode": ipc, "ShmSize": 16 << 30}
    found = differences(container, image, security_opts=wanted, ipc_mode=ipc, shm_size="16g")
    assert [d.name for d in found] == ([] if same else ["security_opts"])


@pytest.mark.parametrize(("stored", "wanted", "same"), [(0, 0, True), (None, 10, True), (0, 10, False), (10, 0, False)])
def test_no_time_to_stop_is_not_dockers_default(stored, wanted, same):
    container, image = recorded(ENGINES[0])
    container["Config"]["StopTimeout"] = stored
    found = differences(container, image, stop_timeout=wanted)
    assert ("stop_timeout" not in [d.name for d in found]) is same


def test_a_hand_made_container_that_is_the_same_is_the_same():
    container, image = recorded(ENGINES[0])
    words = ["vllm", "serve", "deepseek-ai/DeepSeek-V3.1", "-tp", "8", "--max_model_len=32768", "--revision=" + "a" * 40,
             "--shutdown-timeout", "50", "--enable-expert-parallel"]  # fmt: skip
    container["Config"] |= {"Entrypoint": None, "Cmd": words}
    assert differences(container, image) == []


def test_the_diff_holds_only_what_differs_as_a_tree():
    container, image = recorded(ENGINES[0])
    found = differences(container, image, args={**OPTIONS["args"], "max-model-len": 512}, port=8001)
    diff = compare.as_diff(found, "vllm")
    assert diff["before"] == {"args": {"max-model-len": 32768}, "ports": ["127.0.0.1:8000->8000/tcp"]}
    assert diff["after"] == {"args": {"max-model-len": 512}, "ports": ["127.0.0.1:8001->8000/tcp"]}


@pytest.mark.parametrize("name", ENGINES)
def test_the_spec_of_a_container_makes_the_same_container_again(name):
    container, image = recorded(name)
    found = compare.as_spec(container, image, compare.fingerprint(KEY))
    assert "canary" not in json.dumps(found)
    assert found["secrets"] == ["VLLM_API_KEY"]
    assert (found["model"], found["revision"]) == (OPTIONS["model"], OPTIONS["revision"])
    assert found["args"] | OPTIONS["args"] == found["args"]
    assert (found["bind"], found["port"], found["hf_cache"]) == ("127.0.0.1", 8000, OPTIONS["hf_cache"])
    given = {k: v for k, v in found.items() if k not in ("image", "image_id", "secrets", "engine_cache")}
    given["env"] = {k: v for k, v in found["env"].items() if k not in found["secrets"]}
    assert differences(container, image, **given) == []


def test_the_spec_of_a_container_that_somebody_else_started():
    container = copy.deepcopy(recorded(ENGINES[0])[0])
    container["HostConfig"] |= {"NetworkMode": "host", "PortBindings": {}}
    container["Config"]["Cmd"] += ["--host", "::1", "--port", "9000", "--api-key", "canary-2"]
    found = compare.as_spec(container, None, compare.fingerprint(KEY))
    assert "canary" not in json.dumps(found)
    assert (found["bind"], found["port"], found["secrets"]) == ("::1", 9000, ["VLLM_API_KEY", "args.api-key"])
