# SPDX-License-Identifier: Apache-2.0
"""The import from an archive: a real one, in a Python of its own, as a module on a node has it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.common import zipped

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "ansible/module_utils/vllm_fleet"
FILES = {
    f"{PACKAGE}/one/__init__.py": "WHERE = __name__\n",
    f"{PACKAGE}/one/two.py": "from . import WHERE\nfrom ..other import VALUE\ndef fail():\n    return 1 / 0\n",
    f"{PACKAGE}/other.py": "VALUE = 'ü'\n",
    "ansible/module_utils/foreign.py": "from .vllm_fleet.one import two\n",
}
COUNT = """
import builtins, sys
compiled, own = [], builtins.compile
def count(source, name, *args, **more):
    compiled.append(str(name))
    return own(source, name, *args, **more)
builtins.compile = count
sys.path.insert(0, sys.argv[1])
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "ansiballz.zip"
    own = ROOT / "module_utils" / "vllm_fleet"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("ansible/__init__.py", "ansible/module_utils/__init__.py"):
            made.writestr(name, "")
        for name in ("__init__.py", "common/__init__.py", "common/zipped.py"):
            made.write(own / name, f"{PACKAGE}/{name}")
        for name, text in FILES.items():
            made.writestr(name, text)
    return path


def python(archive: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", COUNT + code, str(archive)], capture_output=True, text=True, check=False
    )


def test_each_file_is_compiled_once(archive: Path) -> None:
    done = python(
        archive,
        """
from ansible.module_utils import foreign
import ansible.module_utils.vllm_fleet.other as other
assert foreign.two.WHERE == "ansible.module_utils.vllm_fleet.one" and foreign.two.VALUE == other.VALUE == "ü"
for name in ("one/__init__", "one/two", "other"):
    file = sys.argv[1] + "/ansible/module_utils/vllm_fleet/" + name + ".py"
    assert compiled.count(file) == 1, (name, compiled)
assert other.__file__ == file and other.__loader__.get_source(other.__name__) == "VALUE = 'ü'\\n"
assert sys.modules["ansible.module_utils.vllm_fleet.one"].__path__
""",
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_file_and_a_crash_are_told_as_ever(archive: Path) -> None:
    missing = python(archive, "import ansible.module_utils.vllm_fleet.one.three")
    assert "No module named 'ansible.module_utils.vllm_fleet.one.three'" in missing.stderr
    crash = python(
        archive,
        """
import traceback
from ansible.module_utils.vllm_fleet.one import two
try:
    two.fail()
except ZeroDivisionError:
    print(traceback.format_exc())
""",
    )
    assert "return 1 / 0" in crash.stdout, crash


def test_files_of_a_folder_are_left_to_python() -> None:
    before = list(sys.meta_path)
    zipped.install("ansible.module_utils.vllm_fleet")
    assert sys.meta_path == before
