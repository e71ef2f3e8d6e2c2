# SPDX-License-Identifier: Apache-2.0
"""A fleet that no node can hold is not changed, and a run that lost its lock ends before its next wave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
OTHER = {
    "user": "ada",
    "host": "ci-7",
    "pid": 4242,
    "since": "2026-01-01 00:00:00 UTC",
    "from": "/srv",
    "machine": "x",
    "born": "1",
}


@pytest.fixture
def play(tmp_path):
    """A play of three nodes, all of them this machine, with a lock each: takes it, does something, goes on as a wave."""
    hosts = {name: {} for name in ("n1", "n2", "n3")}
    shared = {
        "fleet_lock_path": f"{tmp_path}/{{{{ item | default('none') }}}}/lock",
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "ansible_become": False,
    }
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump({"vllm": {"hosts": hosts, "vars": shared}}))
    wave = ROOT / "roles" / "rollout" / "tasks" / "main.yml"
    first = yaml.safe_load(wave.read_text())[0]  # what every wave begins with
    assert first["ansible.builtin.include_role"]["tasks_from"] == "keep"

    def run(meanwhile: str = "true", *words: str):
        touch = {"ansible.builtin.command": {"argv": ["touch", f"{tmp_path}/touched-{{{{ inventory_hostname }}}}"]}}
        lost = {"ansible.builtin.command": {"argv": ["sh", "-c", meanwhile]}, "run_once": True}
        plays = [
            {"hosts": "vllm", "gather_facts": False, "tasks": [{"import_role": {"name": "fleet_lock"}}, lost]},
            {"hosts": "vllm", "gather_facts": False, "serial": 1, "tasks": [first, touch]},
        ]
        (tmp_path / "play.yml").write_text(json.dumps(plays))
        done = subprocess.run(
            ["ansible-playbook", "-i", tmp_path / "inventory.yml", tmp_path / "play.yml", *words],
            cwd=ROOT,
            env={
                **os.environ,
                "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
                "ANSIBLE_STDOUT_CALLBACK": "default",
                "HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        text = " ".join(done.stdout.replace("\\n", " ").split())
        return done.returncode, text, sorted(path.name for path in tmp_path.glob("touched-*"))

    return run


def test_a_run_that_keeps_its_lock_goes_on(play):
    code, text, touched = play()
    assert (code, len(touched)) == (0, 3), text


def test_a_run_that_another_one_took_the_fleet_from_ends_before_its_next_wave(play, tmp_path):
    (tmp_path / "other").write_text(json.dumps(OTHER) + "\n")
    code, text, touched = play(f"cp {tmp_path}/other {tmp_path}/n2/lock")
    assert code != 0 and touched == []
    assert (
        "This run has lost the fleet: ada@ci-7 (pid 4242) since 2026-01-01 00:00:00 UTC, from /srv holds it now, says n2"
        in text
    )


def test_a_lock_that_is_gone_everywhere_is_lost_and_not_taken_again(play, tmp_path):
    code, text, touched = play(f"rm {tmp_path}/n?/lock")
    assert code != 0 and touched == []
    assert "This run has lost the fleet, so it ends here" in text and "n1: it is gone; n2: it is gone" in text


def test_a_node_that_lost_the_lock_alone_is_no_reason_to_end(play, tmp_path):
    code, text, touched = play(f"rm {tmp_path}/n1/lock {tmp_path}/n3/lock")  # new disks, say
    assert (code, len(touched)) == (0, 3), text


def test_a_fleet_that_no_node_can_hold_is_not_changed(play):
    code, text, touched = play("true", "-e", "fleet_lock_path=/proc/none/lock")
    assert code != 0 and touched == []
    assert "No node can hold this fleet's lock, so nothing was touched: n1: /proc/none/lock: mkdir:" in text
    code, text, touched = play("true", "-e", "fleet_lock_path=/proc/none/lock", "--check")
    assert code == 0, text
