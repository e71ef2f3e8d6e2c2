"""The host part of preflight as a user runs it: the playbook on nodes of emulated GPUs, and what it leaves behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import play
import pytest
from sysfs import trees

BASE_IMAGE = "vllm-fleet-base:bookworm"


def docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


def preflight_host(**options: Any) -> dict[str, Any]:
    """Run the module on this machine and return its result."""
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible")),
            *("localhost", "-i", "localhost,", "-c", "local", "-m", "preflight_host", "--check"),
            *("-a", json.dumps(options), "-e", "ansible_python_interpreter=/usr/bin/python3"),
        ],
        cwd=play.ROOT,
        env={**play.environment(), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    _, _, answer = done.stdout.partition("=>")
    assert answer, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(answer)
    assert result["changed"] is False
    return result


def playbook(inventory: dict[str, Any], folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    path = folder / "inventory.yml"
    path.write_text(json.dumps({"vllm": inventory}), encoding="utf-8")
    return subprocess.run(
        [play.PLAYBOOK, "-i", str(path), "playbooks/preflight.yml", *more],
        cwd=play.ROOT,
        env=play.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


COMMON = {
    "ansible_python_interpreter": "/usr/bin/python3",
    "vllm_server_model": "acme/tiny",
    "vllm_server_name": f"preflight-{os.getpid()}",
    "vllm_image_name": "acme",
    "vllm_image_tag": "1",
    "preflight_disk_image": 0,
    "preflight_clock": False,
    "vllm_server_port": 1,
}


def emulated(tree: trees.Tree) -> dict[str, str]:
    return {"preflight_sysfs_root": str(tree.sys), "preflight_proc_root": str(tree.proc)}


def test_every_node_is_seen_before_the_run_ends(tmp_path: Path) -> None:
    """Two bad nodes, one good one, one without GPUs: one table, one sentence for each bad one, JSON on request."""
    hosts = {
        "bad1": emulated(trees.one_missing(tmp_path / "bad1")),
        "bad2": emulated(trees.foreign_holder(tmp_path / "bad2")),
        "good": emulated(trees.mi300x(tmp_path / "good")),
        "cpu": {"vllm_server_accelerator": "cpu"},
        "unset": {"vllm_server_model": ""},  # fails before anything of it is read
    }
    answer = tmp_path / "findings.json"
    done = playbook(
        {"hosts": hosts, "vars": {**COMMON, "ansible_connection": "local"}},
        tmp_path, "-e", f"preflight_json={answer}", "--check",
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout.count("WHAT TO DO") == 1
    assert "good  ok       GPU count " in done.stdout
    said = done.stdout + done.stderr
    assert "bad1: GPU count: expected 8, found 7 usable, without 0000:a6:00.0; see" in said
    assert "bad2: foreign use: expected under 5.0 GB a GPU, found GPU 3 29.2 GB by pid 4711" in said
    assert "s3cret" not in said
    assert "failed=0" in next(line for line in done.stdout.splitlines() if line.startswith("good "))
    found = json.loads(answer.read_text())
    levels = {node: {one["what"] for one in rows if one["level"] == "refused"} for node, rows in found.items()}
    assert levels == {"bad1": {"GPU count"}, "bad2": {"foreign use"}, "good": set(), "cpu": set(), "unset": set()}


def test_role_is_quiet_when_all_is_well_and_refusals_can_be_accepted(tmp_path: Path) -> None:
    variables = {**COMMON, "ansible_connection": "local", **emulated(trees.one_missing(tmp_path / "node"))}
    cpu = play.run(tmp_path, [play.role("preflight")], {**variables, "vllm_server_accelerator": "cpu"}).ok()
    assert "msg:" not in cpu.output
    assert cpu.recap("changed") == 0
    accepted = play.run(tmp_path, [play.role("preflight")], {**variables, "preflight_accept": ["GPU count"]}).ok()
    assert "localhost  warning  GPU count" in accepted.output
    assert "GPU kind" not in accepted.output


@pytest.mark.engine
def test_nothing_on_the_node_is_changed(tmp_path: Path) -> None:
    """Every file of a node that has its GPUs in a tree: names, modes, owners, sizes and times before and after."""
    tree = trees.mi300x(tmp_path / "node")
    name = f"preflight-node-{os.getpid()}"
    docker("run", "-d", "--name", name, BASE_IMAGE, "sleep", "600")
    # The folders in which Ansible unpacks a module and takes it away again get a new time; what they hold does not.
    list_all = [
        *("exec", name, "find", "/", "-xdev"),
        *("(", "-path", "/tmp", "-o", "-path", "/root", "-o", "-path", "/", ")", "-printf", "%p %y %m %u\n"),
        *("-o", "-printf", "%p %y %m %u %s %t %l\n"),
    ]
    try:
        docker("cp", str(tree.root), f"{name}:/node")
        before = docker(*list_all).splitlines()
        done = playbook(
            {
                "hosts": {name: {"ansible_connection": "community.docker.docker"}},
                "vars": {
                    **COMMON,
                    "ansible_become": False,
                    "preflight_sysfs_root": "/node/sys",
                    "preflight_proc_root": "/node/proc",
                    "preflight_disk_image": 1000000,
                    "preflight_disk_weights": 1000000,
                    "preflight_clock": True,
                    "vllm_server_port": 8000,
                },
            },
            tmp_path,
        )
        after = docker(*list_all).splitlines()
    finally:
        docker("rm", "-f", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}  ok       disk of /var/lib/docker  2.0 MB free (image, weights)" in done.stdout
    assert len(before) > 1000
    assert sorted(set(before) ^ set(after)) == []


@pytest.mark.engine
def test_port_of_another_program_and_of_our_own_container() -> None:
    """Docker's proxy holds a published port, whoever the container is."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = preflight_host(port=port, clock=False, name="preflight-nobody")
    assert taken["worst"] == "refused"
    assert (
        f"port {port}: expected free, or our own server's, found taken by pid {os.getpid()} (" in taken["refusals"][0]
    )

    name = f"preflight-own-{os.getpid()}"
    docker("run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:80", BASE_IMAGE, "sleep", "300")
    try:
        ours = preflight_host(port=port, clock=False, name=name)
        foreign = preflight_host(port=port, clock=False, name="preflight-nobody")
    finally:
        docker("rm", "-f", name)
    assert [one["got"] for one in ours["findings"]] == [f"our server {name}"]
    assert "docker-proxy" in foreign["refusals"][0]


@pytest.mark.engine
def test_disk_counts_what_is_there_already(tmp_path: Path) -> None:
    """An image that the engine has needs no room, a cached blob is taken off; both on one disk are one sum."""
    blobs = tmp_path / "cache/hub/models--acme--tiny/blobs"
    blobs.mkdir(parents=True)
    (blobs / ("0" * 64)).write_bytes(bytes(4_000_000))
    common = {"clock": False, "cache": str(tmp_path / "cache"), "model": "acme/tiny", "disk_weights": 5_000_000}
    there = preflight_host(image=BASE_IMAGE, disk_image=10**18, **common)
    assert [one["expected"] for one in there["findings"]] == ["1.0 MB free (weights)"]
    absent = preflight_host(image="acme/absent:1", disk_image=10**18, **common)
    assert absent["worst"] == "refused"
    sysctl = preflight_host(clock=False, sysctls={"kernel.ostype": "Linux", "kernel.nope": 1})
    assert [one["level"] for one in sysctl["findings"]] == ["ok", "unknown"]
