# SPDX-License-Identifier: Apache-2.0
"""The walls between the packages hold, the page shows them, and a forbidden import is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from walls import broken, contract, table

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "module_utils" / "vllm_fleet"


def test_no_import_goes_through_a_wall():
    assert broken(PACKAGES) == []


def test_the_page_shows_the_contract():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert table(PACKAGES) in page, f"docs/architecture.md should hold:\n{table(PACKAGES)}"


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("weights/layout.py", "from ..server import state", "weights may not import server"),
        (
            "weights/layout.py",
            "from ansible.module_utils.vllm_fleet.server import state",
            "weights may not import server",
        ),
        ("common/units.py", "def late():\n    from ..vllm.cli import parse", "common may not import vllm"),
        ("container/spec.py", "import docker.errors", "should be pure"),
        ("diagnosis/patterns.py", "from time import monotonic", "should be pure"),
        ("container/spec.py", "from . import engine", "which is not pure"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, line, fault):
    copy = tmp_path / "vllm_fleet"
    shutil.copytree(PACKAGES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / file).open("a") as out:
        out.write(f"\n{line}\n")
    found = broken(copy)
    assert any(fault in sentence for sentence in found), found


def test_a_circle_and_a_package_without_a_name_are_found(tmp_path):
    copy = tmp_path / "vllm_fleet"
    shutil.copytree(PACKAGES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    init = copy / "common" / "__init__.py"
    init.write_text(init.read_text().replace("May import: nothing.", "May import: server."))
    (copy / "stray").mkdir()
    (copy / "stray" / "file.py").write_text("")
    faults = broken(copy)
    assert any("circle" in fault for fault in faults)
    assert "stray has no __init__.py" in faults


def test_every_package_answers_one_question():
    assert all(package.question.endswith(("?", ".")) for package in contract(PACKAGES).values())


#: Files of the controller, and what they need there.
NEEDS = {"vllm_fleet.models.preset_files": "yaml", "vllm_fleet.preflight.role_specs": "ansible"}


def test_a_bare_python_imports_every_file():
    """No Ansible, no Docker SDK, nothing from PyPI: the folder on the path is enough."""
    files = sorted(path.relative_to(PACKAGES.parent).with_suffix("") for path in PACKAGES.glob("*/*.py"))
    names = [".".join(file.parts).removesuffix(".__init__") for file in files]
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    own = [name for name in names if name not in NEEDS]
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(PACKAGES.parent)!r}); {program}",
        *own,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert NEEDS.keys() <= set(names)
