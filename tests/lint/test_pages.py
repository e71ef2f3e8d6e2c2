# SPDX-License-Identifier: Apache-2.0
"""Module pages and role specifications against the code: what the documentation says is what there is."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = sorted(p.stem for p in (ROOT / "library").glob("*.py"))
ROLES = sorted(p.name for p in (ROOT / "roles").iterdir() if p.is_dir())


@pytest.fixture(scope="module")
def pages():
    command = ["ansible-doc", "-M", str(ROOT / "library"), "--json", *MODULES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_whole_page(pages, name):
    page = pages[name]
    for part in ("doc", "examples", "return"):
        assert page[part], f"{name} has no {part}"
    assert page["doc"]["attributes"].keys() >= {"check_mode", "diff_mode"}
    assert name in page["examples"]


class Asked(Exception):
    """The module asked Ansible for its options."""


def specification(name, monkeypatch):
    """Run the module up to the point where it hands its argument spec to Ansible."""
    module = importlib.import_module(name)

    def ask(self, argument_spec, **_):
        raise Asked(argument_spec)

    monkeypatch.setattr(module.AnsibleModule, "__init__", ask)
    with pytest.raises(Asked) as asked:
        module.main()
    return asked.value.args[0]


# An action that runs on the controller alone has a page and no module: it checks its options itself.
@pytest.mark.parametrize(
    "name", [name for name in MODULES if "def main" in (ROOT / "library" / f"{name}.py").read_text()]
)
def test_every_option_is_documented_with_its_default(pages, name, monkeypatch):
    spec, page = specification(name, monkeypatch), pages[name]["doc"].get("options", {})
    assert page.keys() == spec.keys()
    for option, entry in spec.items():
        assert page[option].get("type", "str") == entry.get("type", "str"), option
        assert page[option].get("choices") == entry.get("choices"), option
        assert page[option].get("default") == entry.get("default"), option
        assert bool(page[option].get("required")) == bool(entry.get("required")), option


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_its_page_and_its_specification(role):
    folder = ROOT / "roles" / role
    for part in ("README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"):
        assert (folder / part).is_file(), f"{role} lacks {part}"
    specs = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = {name for entry in specs.values() for name in entry.get("options", {})}
    defaults = yaml.safe_load((folder / "defaults/main.yml").read_text()) or {}
    assert defaults.keys() <= options, "defaults without a description"
    for name, spec in specs["main"].get("options", {}).items():
        assert name.startswith((role + "_", "vllm_fleet_")) or name == "hf_token", (
            f"{role}: {name} has a foreign prefix"
        )
        if "default" in spec and "{{" not in str(defaults.get(name)):
            assert defaults.get(name) == spec["default"], f"{role}: {name} has two defaults"


@pytest.mark.parametrize("file", sorted(p.relative_to(ROOT) for p in ROOT.glob("**/*.md") if ".venv" not in p.parts))
def test_links_between_pages_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / file).read_text()):
        assert ((ROOT / file).parent / target).exists(), f"{file} links to {target}"


def test_module_files_are_thin():
    for name in MODULES:
        tree = ast.parse((ROOT / "library" / f"{name}.py").read_text())
        code = sum(
            (node.end_lineno or 0) - node.lineno + 1
            for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        )
        assert code <= 200, f"{name} has {code} lines of code; logic belongs in module_utils"


def test_docker_is_spoken_to_in_one_place():
    speakers = {
        p.name
        for folder in ("module_utils/vllm_fleet", "library", "action_plugins")
        for p in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(from|import) docker\b", p.read_text(), re.M)
    }
    assert speakers == {"engine.py"}
