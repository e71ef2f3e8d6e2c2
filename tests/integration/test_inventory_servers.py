# SPDX-License-Identifier: Apache-2.0
"""The inventory plugin vllm_servers, read by Ansible itself, in a copy of inventory/tensorwave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BLOCK = {
    "chat": {
        "replicas": 2,
        "gpus": 1,
        "vllm_server_model": "acme/chat",
        "vllm_server_args": {"max-model-len": "{{ length * 2 }}"},
    },
    "coder": {"gpus": [2, 3]},
}


def run(program: str, *words: str, code: int = 0) -> str:
    command = [str(Path(sys.executable).with_name(program)), *words]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mine"
    shutil.copytree(ROOT / "inventory/tensorwave", made)
    return made


def listed(folder: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("ansible-inventory", "-i", str(folder), "--list", *words))
    return found


def hosts(folder: Path, pattern: str) -> list[str]:
    return run("ansible", "-i", str(folder), pattern, "--list-hosts").split()[2:]


def test_nodes_become_their_servers_with_all_that_was_the_nodes(folder: Path, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("of this test\n")
    secret = run(
        "ansible-vault", "encrypt_string", "--vault-password-file", str(password), "s3cr3t", "-n", "vllm_server_api_key"
    )
    (folder / "host_vars").mkdir()
    # One node by a file of its own, with a vaulted value; the others by their group.
    (folder / "host_vars/node1.yml").write_text(f"vllm_server_port: 9000\n{secret}\n")
    (folder / "host_vars/node1-chat-2.yml").write_text("vllm_server_stop_timeout: 99\n")
    (folder / "group_vars/vllm/servers.yml").write_text(yaml.safe_dump({"vllm_servers": BLOCK, "length": 512}))
    (folder / "group_vars/entry_coder.yml").write_text("vllm_server_model: acme/coder\n")

    graph = run("ansible-inventory", "-i", str(folder), "--graph")
    assert "|  |--@node1:\n  |  |  |--node1-chat-1\n  |  |  |--node1-chat-2\n  |  |  |--node1-coder\n" in graph
    assert "WARNING" not in graph
    assert hosts(folder, "node1") == ["node1-chat-1", "node1-chat-2", "node1-coder"]
    assert hosts(folder, "*-coder") == [f"node{n}-coder" for n in (1, 2, 3, 4)]
    assert len(hosts(folder, "vllm")) == 12
    assert hosts(folder, "model_acme_chat:&node4") == ["node4-chat-1", "node4-chat-2"]

    found = listed(folder, "--vault-password-file", str(password))["_meta"]["hostvars"]
    mine, other = found["node1-chat-2"], found["node2-coder"]
    assert (mine["ansible_host"], mine["vllm_node"], mine["vllm_server_name"]) == ("192.0.2.11", "node1", "vllm-chat-2")
    assert (mine["vllm_server_port"], mine["vllm_server_gpus"], mine["vllm_server_stop_timeout"]) == (9002, 1, 99)
    assert mine["vllm_server_args"] == {"max-model-len": "{{ length * 2 }}"}
    assert "$ANSIBLE_VAULT" in mine["vllm_server_api_key"]["__ansible_vault"]
    assert (other["vllm_server_port"], other["vllm_server_gpus"]) == (8100, [2, 3])
    assert other["vllm_server_model"] == "acme/coder", "an entry's group is above the nodes' group"
    shown = run(
        *("ansible", "-i", str(folder), "--vault-password-file", str(password), "node1-chat-1", "-m", "debug"),
        *("-a", "msg={{ vllm_server_api_key }}:{{ vllm_server_args['max-model-len'] }}"),
    )
    assert "s3cr3t:1024" in shown


def test_without_servers_nothing_changes(folder: Path) -> None:
    with_source = listed(folder)
    (folder / "vllm_servers.yml").unlink()
    assert listed(folder) == with_source
    assert hosts(folder, "vllm") == ["node1", "node2", "node3", "node4"]


def test_a_mistake_ends_the_run_and_never_makes_one_server_of_a_node(folder: Path) -> None:
    (folder / "group_vars/vllm/servers.yml").write_text(yaml.safe_dump({"vllm_servers": {"chat": {"gpu": 1}}}))
    said = run("ansible-inventory", "-i", str(folder), "--list", code=4)
    assert "node1, entry chat: gpu is no key of an entry: write gpus. (And so of 3 more nodes.)" in said
    assert "Traceback" not in said


def test_variables_beside_a_source_of_its_own_are_read(folder: Path, tmp_path: Path) -> None:
    second = tmp_path / "servers"
    (second / "group_vars").mkdir(parents=True)
    (folder / "vllm_servers.yml").rename(second / "vllm_servers.yml")
    (second / "group_vars/vllm.yml").write_text(yaml.safe_dump({"vllm_servers": BLOCK}))
    for source in (second, second / "vllm_servers.yml"):
        graph = run("ansible-inventory", "-i", str(folder), "-i", str(source), "--graph")
        assert "|  |--@node1:\n  |  |  |--node1-chat-1\n" in graph


def test_a_source_that_comes_before_the_hosts_is_noticed(folder: Path) -> None:
    (folder / "group_vars/vllm/servers.yml").write_text(yaml.safe_dump({"vllm_servers": BLOCK}))
    (folder / "vllm_servers.yml").rename(folder / "a.yml")
    # The hosts are as they were, and preflight refuses them (host_variables.unread_servers).
    assert hosts(folder, "vllm") == ["node1", "node2", "node3", "node4"]
    assert hosts(folder, "all:!vllm") == []


def test_the_plugin_has_a_page() -> None:
    page = json.loads(run("ansible-doc", "-t", "inventory", "--json", "vllm_servers"))["vllm_servers"]
    assert page["doc"]["options"]["plugin"]["required"]
    assert "plugin: vllm_servers" in page["examples"]
