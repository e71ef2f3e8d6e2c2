# SPDX-License-Identifier: Apache-2.0
"""inventory_checks.py by tables: what the inventory alone tells."""

import pytest

from ansible.module_utils.vllm_fleet.preflight import inventory
from ansible.module_utils.vllm_fleet.preflight.inventory import Unset

GOOD = {
    "vllm_server_model": "deepseek-ai/DeepSeek-V3.1",
    "vllm_image_tag": "v0.31.0",
    "hf_cache_path": "~/.cache/huggingface",
}


def judged(**values):
    return {one.what: one for one in inventory.judge({**GOOD, **values})}


def test_a_good_inventory_is_good():
    found = judged(vllm_server_args={"gpu-memory-utilization": 0.9}, vllm_server_port=8001)
    assert {one.level for one in found.values()} == {"ok"}
    assert found["hf_cache_path"].expected == "an absolute path on the node, or one that begins with ~/"
    assert set(found) == {
        "vllm_server_model",
        "vllm_image_tag",
        "hf_cache_path",
        "vllm_server_bind",
        "vllm_server_port",
        "gpu-memory-utilization",
    }


@pytest.mark.parametrize(
    ("values", "what", "words"),
    [
        ({"vllm_server_model": ""}, "vllm_server_model", "not set"),
        ({"vllm_server_model": "SmolLM2 135M Instruct"}, "vllm_server_model", "'SmolLM2 135M Instruct'"),
        ({"vllm_server_model": 5}, "vllm_server_model", "5, which is no id such as org/name"),
        ({"vllm_server_model": "5"}, "vllm_server_model", "5, which is no id such as org/name"),
        ({"vllm_server_model": "a/b/c"}, "vllm_server_model", "'a/b/c'"),
        ({"vllm_image_tag": "latest"}, "vllm_image_tag", "'latest'"),
        ({"vllm_image_tag": ""}, "vllm_image_tag", "''"),
        ({"hf_cache_path": "cache"}, "hf_cache_path", "'cache'"),
        ({"hf_cache_path": "~other/cache"}, "hf_cache_path", "'~other/cache'"),
        ({"vllm_server_bind": "0.0.0.0"}, "vllm_server_bind", "no vllm_server_api_key"),
        ({"vllm_server_bind": "0.0.0.0", "vllm_server_api_key": ""}, "vllm_server_bind", "no vllm_server_api_key"),
        ({"vllm_server_port": 0}, "vllm_server_port", "0"),
        ({"vllm_server_port": 65536}, "vllm_server_port", "65536"),
        ({"vllm_server_port": "http"}, "vllm_server_port", "http"),
        ({"vllm_server_args": "--x"}, "vllm_server_args", "a text of 3 characters (not shown)"),
        ({"vllm_server_args": ["--x"]}, "vllm_server_args", "a list of 1 (not shown)"),
        ({"hf_token": "hf_x\n"}, "hf_token", "no header can carry"),
        ({"vllm_server_args": {"gpu-memory-utilization": 0}}, "gpu-memory-utilization", "0"),
        ({"vllm_server_args": {"gpu_memory_utilization": 1.01}}, "gpu-memory-utilization", "1.01"),
        ({"vllm_server_args": {"--gpu-memory-utilization": "-0.5"}}, "gpu-memory-utilization", "-0.5"),
        ({"vllm_server_args": {"gpu-memory-utilization": "ninety"}}, "gpu-memory-utilization", "ninety"),
        ({"vllm_server_args": {"gpu-memory-utilization": "nan"}}, "gpu-memory-utilization", "nan"),
        ({"vllm_server_env": {"VLLM_API_KEY": "k"}}, "vllm_server_env", "VLLM_API_KEY"),
        (
            {"vllm_server_adapters": {"a": "org/lora"}},
            "vllm_server_adapters",
            "a is a text of 8 characters (not shown); expected {repo",
        ),
        (
            {
                "vllm_server_adapters": {"a": {"repo": "org/lora", "revision": "1" * 40}},
                "vllm_server_args": {"lora-modules": ["a=/x"]},
            },
            "vllm_server_adapters",
            "a stands in vllm_server_adapters and in lora-modules",
        ),
        ({"vllm_server_api_key": "two words"}, "vllm_server_api_key", "no header can carry"),
        ({"vllm_server_api_key": "secret\n"}, "vllm_server_api_key", "no header can carry"),
        ({"vllm_server_api_key": "schl\u00fcssel"}, "vllm_server_api_key", "no header can carry"),
        ({"hf_token": Unset("'vault_hf_token' is undefined")}, "hf_token", "'vault_hf_token' is undefined"),
        ({"vllm_server_model": Unset("'m' is undefined")}, "vllm_server_model", "'m' is undefined"),
    ],
)
def test_one_thing_wrong(values, what, words):
    found = {name: one for name, one in judged(**values).items() if one.level != "ok"}
    assert set(found) == {what}
    assert found[what].level == "refused"
    assert words in found[what].got
    assert found[what].remedy


@pytest.mark.parametrize(
    "values",
    [
        {"vllm_image_tag": "latest", "vllm_image_digest": "sha256:" + "0" * 64},
        {"vllm_image_tag": "latest", "vllm_image_allow_latest": True},
        {"vllm_image_tag": "latest", "vllm_image_allow_latest": "yes"},
        {"vllm_server_bind": "127.0.0.1", "vllm_server_api_key": "k\"'$%\\{}"},
        {"vllm_server_bind": "0.0.0.0", "vllm_server_api_key": "k", "vllm_server_allow_unauthenticated": True},
        {"vllm_server_bind": "10.0.0.1", "vllm_server_allow_unauthenticated": True},
        {"vllm_server_model": "/models/deepseek"},
        {"vllm_server_model": "gpt2"},
        {"vllm_server_args": {"gpu-memory-utilization": 1}},
        {"vllm_server_args": {"gpu-memory-utilization": None}},
        {"hf_cache_path": "/mnt/hf"},
    ],
)
def test_what_is_meant_is_allowed(values):
    assert {one.level for one in judged(**values).values()} == {"ok"}


@pytest.mark.parametrize(
    ("env", "tag", "got", "remedy"),
    [
        (
            {"VLLM_ATTENTION_BACKEND": "X"},
            "v0.31.0",
            "gone since 0.15",
            "set attention-backend in vllm_server_args; take",
        ),
        ({"VLLM_ROCM_USE_AITER_MOE_SITUV2": 1}, "v0.30.0", "since 0.31", "take out"),
        ({"VLLM_ROCM_USE_AITER_FP4_ASM_GEMM": 1, "HOME": "/"}, "v0.33.0", "gone since 0.33", "take out"),
        ({"VLLM_ROCM_USE_AITER_FP4_ASM_GEMM": 1}, "v0.32.0", "", ""),
        ({"VLLM_ATTENTION_BACKEND": "X"}, "nightly", "", ""),
        (Unset("'x' is undefined"), "v0.31.0", "'x' is undefined", "define"),
    ],
)
def test_a_variable_that_the_release_passes_over_is_said(env, tag, got, remedy):
    found = judged(vllm_server_env=env, vllm_image_tag=tag).get("vllm_server_env")
    assert (found.level if found else "ok") == ("ok" if not got else "refused" if isinstance(env, Unset) else "warning")
    if found:
        assert got in found.got and remedy in found.remedy


def test_a_secret_that_cannot_be_had_is_told_once():
    """The bind beside it is not called keyless: whether it has a key is what nobody knows."""
    found = judged(vllm_server_bind="0.0.0.0", vllm_server_api_key=Unset("'vault_key' is undefined"))
    assert [name for name, one in found.items() if one.level != "ok"] == ["vllm_server_api_key"]
    assert "ansible-vault" in found["vllm_server_api_key"].remedy
    assert "k3y" not in str(judged(vllm_server_bind="0.0.0.0", vllm_server_api_key="k3y"))


@pytest.mark.parametrize(
    ("values", "gateways", "refused"),
    [
        ({}, {"gw1": "127.0.0.1", "gw2": "*"}, True),
        ({"vllm_server_api_key": ""}, {"gw2": "10.0.0.2"}, True),
        ({"vllm_server_allow_unauthenticated": "no"}, {"gw2": "::"}, True),
        ({}, {}, False),
        ({}, {"gw1": "127.0.0.1"}, False),
        ({"vllm_server_api_key": "k"}, {"gw2": "*"}, False),
        ({"vllm_server_api_key": Unset("'vault_key' is undefined")}, {"gw2": "*"}, False),
        ({"vllm_server_allow_unauthenticated": True}, {"gw2": "*"}, False),
    ],
)
def test_a_server_without_a_key_is_not_published_by_a_gateway(values, gateways, refused):
    found = inventory.published(values, gateways)
    assert bool(found) == refused
    if found:
        assert found.got == f"none, and gw2 would publish the server on {gateways['gw2']}"


@pytest.mark.parametrize(
    ("waves", "level", "words"),
    [
        ([1, "25%", "100%"], "ok", "[1, 25%, 100%]"),
        ([1, "25%"], "ok", "[1, 25%]"),
        (["50%", "50%"], "ok", ""),
        (4, "ok", "[4]"),
        ("100%", "ok", "[100%]"),
        ([], "refused", "an empty list"),
        (["100%", 1], "refused", "[100%, 1], where nothing is left after 100%"),
        ([1, "100%", "100%"], "refused", "nothing is left after 100%"),
        ([0, "100%"], "refused", "0 in [0, 100%]"),
        ([1, "0%"], "refused", "'0%' in"),
        ([1, "101%"], "refused", "'101%' in"),
        ([1, "some"], "refused", "'some' in"),
        ([-1, "100%"], "refused", "-1 in"),
        ([1.5, "100%"], "refused", "1.5 in"),
        ([True], "refused", "True in"),
        (None, "refused", "None in"),
    ],
)
def test_waves_that_do_not_add_up(waves, level, words):
    found = inventory.waves(waves)
    assert (found.level, words in found.got) == (level, True), found
    assert bool(found.remedy) == (level != "ok")


def test_hosts_of_a_replica_serve_one_model():
    one, other = {"vllm_server_model": "a/b", "vllm_server_revision": "1"}, {"vllm_server_model": "a/c"}
    assert inventory.replica("r", {"n1": one, "n2": dict(one)}).level == "ok"
    wrong = inventory.replica("r", {"n1": one, "n2": one, "n3": other})
    assert (wrong.level, wrong.got) == ("refused", "n1, n2: a/b; n3: a/c")
    commit = inventory.replica("r", {"n1": one, "n2": {**one, "vllm_server_revision": "2"}})
    assert (commit.level, "vllm_server_revision" in commit.remedy) == ("refused", True)


@pytest.mark.parametrize(
    ("bind", "who"),
    [("0.0.0.0", "any network of the node"), ("::", "any network of"), ("10.0.0.1", "reaches 10.0.0.1")],
)
def test_a_server_with_a_key_says_what_is_open_without_it(bind, who):
    found = judged(vllm_server_bind=bind, vllm_server_api_key="k3y", vllm_server_port=8001)["vllm_server_bind"]
    assert (found.level, who in found.got) == ("warning", True)
    assert found.got.startswith("/invocations, /tokenize, /scale_elastic_ep, /metrics and more at port 8001, open to ")
    assert "k3y" not in str(found)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({}, None),
        ({"vllm_watchdog_silence": 0}, "vllm_watchdog_silence"),
        ({"vllm_watchdog_restarts": -1}, "vllm_watchdog_restarts"),
        ({"vllm_watchdog_restarts": 0, "vllm_watchdog_port": 0}, None),
        ({"vllm_watchdog_port": 70000}, "vllm_watchdog_port"),
        ({"vllm_watchdog_port": 8000, "vllm_server_port": 8000}, "vllm_watchdog_port"),
        ({"vllm_watchdog_silence": "soon"}, None),
        ({"vllm_watchdog_silence": 0, "vllm_watchdog_enabled": False}, None),
    ],
)
def test_numbers_of_a_watchdog(values, what):
    found = judged(**{"vllm_watchdog_enabled": True, **values})
    assert [name for name, one in found.items() if name.startswith("vllm_watchdog") and one.level == "refused"] == (
        [what] if what else []
    )


def test_a_file_of_variables_beside_a_folder_of_its_name_is_not_read():
    names = ["all", "all.yml", "gateway", "vllm.yml", "vllm.yml.orig", "gateway.json", "eu.west", "eu"]
    found = inventory.shadowed("group_vars", names)
    assert [one.what for one in found] == ["group_vars/all.yml", "group_vars/gateway.json"]
    assert found[0].remedy == "move it to group_vars/all/main.yml"


def test_variables_of_nobody_are_named_and_a_slip_is_refused():
    names = ["all", "vllm", "vlm.yml", "gatway", "east", "vault.yml.example", "notes.txt", ".git", "vllm.yml~"]
    found = inventory.orphans("group_vars", names, ["all", "ungrouped", "vllm", "gateway"])
    assert [(one.what, one.level) for one in found] == [
        ("group_vars/east", "warning"),
        ("group_vars/gatway", "refused"),
        ("group_vars/vlm.yml", "refused"),
    ]
    assert found[2].remedy == "rename it to group_vars/vllm.yml"
    # A node that was taken out is no slip of its neighbour.
    hosts = inventory.orphans("host_vars", ["node1.yml", "node3.yml", "nod2.yml"], ["node1", "node2"])
    assert [(one.what, one.level) for one in hosts] == [
        ("host_vars/nod2.yml", "refused"),
        ("host_vars/node3.yml", "warning"),
    ]
