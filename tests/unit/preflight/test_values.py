# SPDX-License-Identifier: Apache-2.0
"""Values that cannot work, by tables: what a container takes, tags, commits, addresses, ports, secrets in plain text."""

import pytest

from ansible.module_utils.vllm_fleet.preflight import values


@pytest.mark.parametrize(
    ("name", "value", "expected", "got"),
    [
        ("vllm_server_shm_size", "lots", "a size such as 16g", "'lots'"),
        ("vllm_server_restart_policy", "sometimes", "no, always, unless-stopped, on-failure or", "'sometimes'"),
        ("vllm_server_ipc_mode", "hots", "host, private", "'hots'"),
        ("vllm_server_ulimits", ["memlock"], "name=soft[:hard]", "'memlock'"),
        ("vllm_server_ulimits", ["nofile=5:1"], "a soft limit that is not above", "'nofile=5:1'"),
        ("vllm_server_name", "my server", "a container's name: letters", "'my server'"),
        ("vllm_image_tag", 0.3, "a text", "the number 0.3, of which a 0 at the end is lost"),
        ("vllm_image_digest", "sha256:abc", "sha256: and 64 hexadecimal digits", "'sha256:abc'"),
        ("vllm_server_revision", "1a2b3c4", "a commit of 40 hexadecimal digits", "1a2b3c4, which has 7"),
        ("ansible_host", "10.0.0.1:22", "an address without a port", "10.0.0.1:22"),
        ("ansible_host", "node1.example:2222", "an address without a port", "node1.example:2222"),
        ("ansible_host", "[fe80::1]:22", "an address without a port", "[fe80::1]:22"),
    ],
)
def test_a_value_that_cannot_work_is_refused(name, value, expected, got):
    [one] = values.judge({name: value})
    assert (one.level, one.what) == ("refused", name)
    assert one.expected.startswith(expected) and one.got.startswith(got)
    assert one.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("vllm_server_shm_size", one) for one in ("", None, "16g", "16GiB", 1024)),
        *(("vllm_server_restart_policy", one) for one in ("no", False, "on-failure:3", "always")),
        *(("vllm_server_ulimits", one) for one in (None, ["memlock=-1"], "of another kind", {"a": 1})),
        *(("vllm_server_name", one) for one in ("", None, "vllm", "vllm-chat-1", ["a"], {"a": 1})),
        *(("vllm_image_tag", one) for one in ("0.30", "v0.31.0", 1, "")),
        *(("vllm_image_digest", one) for one in ("", "sha256:" + "0a" * 32)),
        *(("vllm_server_revision", one) for one in ("", "main", "0a" * 20, "20260101", "refs/pr/3", "deadbeef-x")),
        *(("ansible_host", one) for one in ("10.0.0.1", "fe80::1", "node1", "", None)),
    ],
)
def test_a_value_that_works_is_not_told(name, value):
    assert values.judge({name: value}) == []


def test_a_port_behind_an_address_is_told_with_what_to_write():
    [one] = values.judge({"ansible_host": "10.0.0.1:2222"})
    assert one.remedy == "write ansible_host: 10.0.0.1 and ansible_port: 2222"


@pytest.mark.parametrize("asked", [False, "false", "no"])
def test_nobody_becomes_root_where_that_is_forbidden(asked):
    one = values.root({"ansible_become": asked}, "ops")
    assert (one.level, one.what) == ("refused", "root") and "ops" in one.got
    assert values.root({}, "ops") is None and values.root({"ansible_become": True}, "ops") is None


def door(**more):
    gateway = {"address": ("10.0.0.1", "22"), "bind": "*", "ports": [("gateway_port", 8000)], **more}
    server = {"address": ("10.0.0.1", "22"), "bind": "127.0.0.1", "port": 8000}
    return values.doors({"lb": gateway}, {"node1": server})


def test_a_gateway_has_a_port_of_its_own_on_the_machine_of_a_server():
    [one] = door()["node1"]
    assert (one.level, one.what) == ("refused", "gateway_port")
    assert one.got == "8000 for lb, which is vllm_server_port of node1 on the same machine"
    assert door(ports=[("gateway_ports", "8000")])["node1"][0].what == "gateway_ports"
    assert door(ports=[("gateway_port", 8080)]) == door(address=("10.0.0.1", "23")) == door(bind="10.0.0.1") == {}


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("hf_token: hf_abc", "hf_token in plain text"),
        ('---\nvault_hf_token: hf_abc # mine\nvault_key: "k"', "vault_hf_token, vault_key in plain text"),
        ("vllm_server_env:\n  HF_TOKEN: hf_abc\n  VLLM_LOGGING_LEVEL: DEBUG", "HF_TOKEN in plain text"),
        ("a:\n  ansible_become_password: x", "ansible_become_password in plain text"),
    ],
)
def test_secrets_in_plain_text_are_a_warning_without_their_values(text, keys):
    [one] = values.in_plain_text([("group_vars/vllm/x.yml", text)])
    assert (one.level, one.what, one.got) == ("warning", "group_vars/vllm/x.yml", keys)
    assert "`ansible-vault encrypt group_vars/vllm/x.yml`" in one.remedy
    assert "hf_abc" not in one.sentence


@pytest.mark.parametrize(
    "text",
    [
        "$ANSIBLE_VAULT;1.1;AES256\n6161",
        "hf_token: \"{{ vault_hf_token | default('') }}\"\nvllm_server_api_key: {{ x }}",
        "vault_hf_token: \"\"\nvault_key: ''  # later\nhf_token:\nvllm_server_api_key: null",
        "hf_token: !vault |\n  $ANSIBLE_VAULT;1.1;AES256",
        "# hf_token: hf_abc",
        'vllm_server_env: {TOKENIZERS_PARALLELISM: "false"}\nTOKENIZERS_PARALLELISM: false\nMAX_TOKENS: 5',
    ],
)
def test_what_is_encrypted_empty_or_elsewhere_is_no_secret_in_plain_text(text):
    assert values.in_plain_text([("x.yml", text)]) == []
