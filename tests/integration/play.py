# SPDX-License-Identifier: Apache-2.0
"""Runs a small play against this machine, as a user would: the ansible-playbook command, its output, its recap."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))


@dataclass(frozen=True)
class Run:
    """What a play said and did; ``facts`` is what it wrote down at its end."""

    rc: int
    output: str
    facts: dict[str, Any]

    def recap(self, word: str) -> int:
        """Count of a word in the recap, such as ``changed``."""
        found = re.search(rf"^localhost\s.*\b{word}=(\d+)", self.output, re.MULTILINE)
        assert found, self.output
        return int(found.group(1))

    def ok(self) -> Run:
        """Insist that the play went through."""
        assert self.rc == 0, self.output
        return self

    def failed(self) -> str:
        """Insist that it failed, and give the sentence it failed with."""
        assert self.rc != 0, self.output
        found = re.search(
            r"(?:^\[ERROR\]: (?:Task failed: )?(?:Module failed: |Action failed: )?|^fatal: \[.*\]: FAILED!\n    )(.*)",
            self.output,
            re.MULTILINE,
        )
        assert found, self.output
        return found.group(1)


def write(folder: Path, tasks: list[dict[str, Any]], variables: dict[str, Any], facts: list[str]) -> Path:
    """Write a play for this machine. JSON is YAML."""
    content = "{{ {" + ", ".join(f"'{name}': {name} | default('')" for name in facts) + "} | to_json }}"
    note = {"ansible.builtin.copy": {"content": content, "dest": str(folder / "facts.json"), "mode": "0644"}}
    play = {
        "name": "Test",
        "hosts": "localhost",
        "gather_facts": False,
        "vars": variables,
        # A task costs a second: it is there only where somebody wants to know.
        "tasks": [*tasks, *([{**note, "name": "Note", "changed_when": False, "check_mode": False}] if facts else [])],
    }
    path = folder / "play.yml"
    path.write_text(json.dumps([play]), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    """Plain output, whatever the terminal of the tests is."""
    return {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"}


def arguments(path: Path, *more: str) -> list[str]:
    """The command line for a play that ``write`` wrote."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    return [PLAYBOOK, "-i", "localhost,", "-e", json.dumps(local), str(path), *more]


def run(
    folder: Path,
    tasks: list[dict[str, Any]],
    variables: dict[str, Any] | None = None,
    *more: str,
    facts: list[str] | None = None,
) -> Run:
    """Run tasks with ``variables``; ``more`` are further words of the command line."""
    path = write(folder, tasks, variables or {}, facts or [])
    note = folder / "facts.json"
    note.unlink(missing_ok=True)
    done = subprocess.run(
        arguments(path, *more), capture_output=True, text=True, env=environment(), cwd=ROOT, check=False
    )
    found = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    return Run(done.returncode, done.stdout + done.stderr, found)


def role(name: str, tasks_from: str = "main") -> dict[str, Any]:
    """A task that includes a role."""
    return {"name": f"Role {name}", "ansible.builtin.include_role": {"name": name, "tasks_from": tasks_from}}
