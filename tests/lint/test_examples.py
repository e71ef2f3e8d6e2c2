# SPDX-License-Identifier: Apache-2.0
"""Whoever pastes an example of README or docs gets what it says: YAML parses, variables are known, commands run."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.preflight import role_specs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "roles").glob("*/README.md"))]
TEMPLATE = ROOT / "inventory/tensorwave"
#: Words in capitals stand for what a user has.
INVENTORIES = ("inventory/mine", "inventory/tensorwave", "inventory/local", "INVENTORY", "NODE,")
#: Tags of the playbooks (callback_plugins/vllm_fleet_start.py).
TAGS = {"preflight", "prepare", "stage", "rollout", "verify", "watchdog"}


class Block(NamedTuple):
    """A block of code, by its page and first line."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks():
    for page in PAGES:
        language, began, kept = None, 0, []
        for number, line in enumerate(page.read_text().splitlines(), 1):
            fence = re.match(r"\s*```(\w*)", line)
            if fence and language is None:
                language, began, kept = fence[1], number, []
            elif fence:
                yield Block(page, began, language, "\n".join(kept))
                language = None
            elif language is not None:
                kept.append(line)
        assert language is None, f"{page} has a block without an end"


BLOCKS = list(blocks())


def of(*languages):
    return [pytest.param(one, id=one.name) for one in BLOCKS if one.language in languages]


# -- YAML


@cache
def known():
    """Every option of every role, and what stands in no specification."""
    pages = [yaml.safe_load(path.read_text()) for path in (ROOT / "roles").glob("*/meta/argument_specs.yml")]
    names = {name for page in pages for entry in page["argument_specs"].values() for name in entry.get("options") or {}}
    return names | role_specs.ALSO_KNOWN


@cache
def of_playbooks():
    """Variables that plays set themselves, so that -e may set them otherwise."""
    paths = [*(ROOT / "playbooks").glob("*.yml"), *(ROOT / "playbooks/parts").glob("*.yml")]
    plays = [play for path in paths for play in yaml.safe_load(path.read_text())]
    return {name for play in plays for name in play.get("vars") or {}}


def inventory_groups(data):
    """Groups of an inventory's file, the inner ones too."""
    for group in data.values():
        if isinstance(group, dict) and group.keys() & {"hosts", "children", "vars"}:
            yield group
            yield from inventory_groups(group.get("children") or {})


@pytest.mark.parametrize("block", of("yaml"))
def test_yaml_parses_and_its_variables_are_known_and_take_effect(block):
    data = yaml.safe_load(block.text)
    groups = list(inventory_groups(data)) if isinstance(data, dict) else []
    template = yaml.safe_load((TEMPLATE / "group_vars/vllm/main.yml").read_text())
    names = set()
    for group in groups:
        names |= {name for host in (group.get("hosts") or {}).values() for name in host or {}}
        lost = set(group.get("vars") or {}) & template.keys()
        assert not lost, f"{block.name}: group_vars/vllm/main.yml of the template beats {lost} in hosts.yml"
    if not groups and isinstance(data, dict) and "model" not in data:  # a preset is judged by its schema
        names = set(data)
    assert [one.sentence for one in role_specs.misspelt(names, known())] == []


@pytest.mark.parametrize("block", of("python", "json"))
def test_python_and_json_parse(block):
    ast.parse(block.text) if block.language == "python" else json.loads(block.text)


# -- commands


class Command(NamedTuple):
    """A line that a user types."""

    where: str
    words: tuple[str, ...]


_FIRST = ("ansible", "ansible-playbook", "ansible-inventory", "make", "bin/vllm-fleet", "scripts/")


def _command(where, text):
    """Return the command of a line; None for output, and for a sentence about a program."""
    text = re.sub(r"^[$#] ", "", text.strip())
    if not text.startswith(tuple(f"{one} " for one in _FIRST[:-1])) and not text.startswith(_FIRST[-1]):
        return None
    words = shlex.split(text.rstrip("\\"), comments=True)
    if len(words) > 1 and words[0] == "bin/vllm-fleet":
        words = ["ansible-playbook", f"playbooks/{words[1]}.yml", *words[2:]]
    return Command(where, tuple(words)) if len(words) > 1 or text.startswith(_FIRST[-1]) else None


def commands():
    """All commands of users; those of docs/testing.md are for fleets that they make."""
    for block in BLOCKS:
        if block.language in ("console", "sh") and block.page.name != "testing.md":
            text = re.sub(r"\\\n\s*", "", block.text)
            found = [_command(block.name, line) for line in text.splitlines()]
            yield from filter(None, found)
    for page in PAGES:
        where = str(page.relative_to(ROOT))
        for number, line in enumerate(page.read_text().splitlines(), 1):
            texts = [line] if line.startswith("    ") else re.findall(r"`([^`]+)`", line)
            for text in texts:
                # What troubleshooting quotes are messages: who reads one has typed the inventory already. One word
                # after a program's is its name in a sentence.
                one = _command(f"{where}:{number}", text)
                if one and page.stem not in ("troubleshooting", "testing") and (text is line or len(one.words) > 2):
                    yield one


COMMANDS = list(commands())


def options(words, *names):
    """Values of an option, as `-e x`, `--limit x` or `--limit=x`."""
    pairs = itertools.pairwise(words)
    return [value for word, value in pairs if word in names] + [
        word.partition("=")[2] for word in words if word.partition("=")[0] in names and "=" in word
    ]


@pytest.mark.parametrize("command", [pytest.param(one, id=one.where) for one in COMMANDS])
def test_a_command_names_what_there_is(command):
    program, *words = command.words
    if program == "make":
        phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
        assert words[0] in phony, f"make has no target {words[0]}"
        return
    if program.startswith("scripts/"):
        assert (ROOT / program).is_file()
    playbooks = [word for word in words if word.endswith(".yml") and "=" not in word]
    assert all((ROOT / one).is_file() for one in playbooks), f"{playbooks} are not there"
    if program in ("ansible-playbook", "ansible", "ansible-inventory") and "playbooks/plan.yml" not in playbooks:
        given = options(words, "-i")
        assert given or words[0] == "localhost", "it runs on the default inventory, inventory/local"
        assert all(one in INVENTORIES for one in given), f"{given}: {INVENTORIES} are those of the examples"
    for tags in options(words, "--tags", "--skip-tags"):
        assert set(tags.split(",")) <= TAGS
    for given in options(words, "-e"):
        names = json.loads(given) if given.startswith("{") and '"' in given else [given.partition("=")[0]]
        names = yaml.safe_load(given) if given.startswith("{") else names
        strange = set(names) - known() - of_playbooks()
        assert not strange, f"no role and no playbook has {strange}"
    if program == "ansible" and options(words, "-m") == ["vllm_chat"]:
        assert "api_key" in " ".join(words), "a server with a key answers it with 401"


def test_the_playbooks_of_the_examples_are_read_with_a_copy_of_the_template(tmp_path):
    shutil.copytree(TEMPLATE, tmp_path / "mine")
    playbooks = sorted({word for one in COMMANDS for word in one.words if word.endswith(".yml") and "=" not in word})
    assert "deploy.yml" in playbooks and "playbooks/logs.yml" in playbooks
    done = subprocess.run(
        ["ansible-playbook", "-i", str(tmp_path / "mine"), "--syntax-check", *playbooks],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
