# SPDX-License-Identifier: Apache-2.0
"""A role's variables, worked out by Ansible itself for many cases in one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def rendering(
    folder: Path,
    role: Path,
    cases: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, str],
    *,
    groups: Mapping[str, list[str]] | None = None,
    **given: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluate expressions (name -> Jinja) for each case (name -> variables); returns {case: {name: value}}.

    ``given`` are variables of all cases, ``groups`` are groups of the inventory by their cases.
    """
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    children = {group: {"hosts": {member: {} for member in members}} for group, members in (groups or {}).items()}
    # Role defaults are the weakest of all variables; group_vars of the inventory come nearest to that.
    inventory = {"all": {"hosts": dict(cases), "vars": {**defaults, **given}, "children": children}}
    message = "{{ {" + ", ".join(f"'{name}': {expression}" for name, expression in wanted.items()) + "} }}"
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars_files": [str(role / "vars/main.yml")],
        "tasks": [{"name": "Render", "ansible.builtin.debug": {"msg": message}}],
    }
    (folder / "templates").symlink_to(role / "templates")
    (folder / "inventory.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
    (folder / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventory.yml", "play.yml"],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_FORKS": "2",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer, _ = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])
    hosts = answer["plays"][0]["tasks"][0]["hosts"]
    return {case: hosts[case]["msg"] for case in cases}
