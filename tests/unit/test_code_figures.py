# SPDX-License-Identifier: Apache-2.0
"""scripts/code_figures.py on a small tree that holds one of each thing that is counted."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONG = "def long():\n" + "    pass\n" * 60
FILES = {
    "module_utils/vllm_fleet/__init__.py": "",
    "module_utils/vllm_fleet/common/__init__.py": "",
    "module_utils/vllm_fleet/common/units.py": "",
    "module_utils/vllm_fleet/vllm/__init__.py": "",
    "module_utils/vllm_fleet/vllm/cli.py": "from ..common import units\nfrom ..common.units import x\n",
    "module_utils/vllm_fleet/server/__init__.py": "",
    "module_utils/vllm_fleet/server/watch.py": "def late():\n    from ..vllm.cli import y\n",
    "library/one.py": "from ansible.module_utils.vllm_fleet import server\nfrom ansible.module_utils.vllm_fleet.server import watch\n"
    + LONG,
    "library/two.py": "exec('1')\n",
    "action_plugins/one.py": '"""Reads __first_said."""\nimport ansible.module_utils\nansible.module_utils.__path__.append(1)\nvalue = variables.get("__first_said", __name__)\n',
    "tests/unit/test_one.py": LONG,
    "roles/first/tasks/main.yml": """---
- name: Keep it
  ansible.builtin.set_fact:
    __first_said: "{{ a | b | c(d | e) }}"
- name: Ensure the item is kept in its place
  block:
    - name: Ensure nothing
      ansible.builtin.debug:
      when: a | b | c | d | e
""",
    "roles/second/tasks/main.yml": "---\n- name: Show what the first said\n  ansible.builtin.debug:\n    msg: '{{ __first_said }} {{ __second_own }}'\n",
    "roles/second/templates/a.j2": "{% if a | b | c %}{{ x | a | b | c | d }}{% endif %}\n",
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("code_figures", ROOT / "scripts/code_figures.py")
    module = sys.modules["code_figures"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(script, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "action_plugins/two.py").symlink_to("one.py")
    return script.Tree(root)


@pytest.mark.parametrize(
    ("figure", "count", "places"),
    [
        ("long_functions", 1, ["library/one.py:3 long (61 lines)"]),
        ("long_test_functions", 1, ["tests/unit/test_one.py:1 long (61 lines)"]),
        ("longest_file", 63, None),
        (
            "many_filters",
            2,
            ["roles/first/tasks/main.yml:9 when (4 filters)", "roles/second/templates/a.j2:1 (4 filters)"],
        ),
        (
            "pronoun_tasks",
            2,
            [
                "roles/first/tasks/main.yml:2 Keep it",
                "roles/first/tasks/main.yml:5 Ensure the item is kept in its place",
            ],
        ),
        ("path_copies", 1, ["action_plugins/one.py:3"]),
        ("linked_plugins", 1, ["action_plugins/two.py -> one.py"]),
        (
            "private_across",
            2,
            ["roles/second/tasks/main.yml:4 __first_said", "action_plugins/one.py:4 __first_said"],
        ),
        ("source_as_text", 1, ["library/two.py:1 exec()"]),
        ("imports_between", 2, ["server -> vllm (1)", "vllm -> common (2)"]),
    ],
)
def test_each_figure_finds_what_it_counts(script, tree, figure, count, places):
    found = getattr(script, figure)(tree)
    assert found.count == count
    if places is not None:
        assert found.places == places


def test_circles_and_floors(script):
    assert script.Graph({"a", "b", "c"}, {("a", "b"): 1, ("b", "c"): 1}).floors() == 3
    assert script.Graph({"a", "b", "c"}, {("a", "b"): 1, ("b", "a"): 1}).circles() == [["a", "b"]]


def test_the_house_itself_can_be_counted(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["code_figures.py"])
    # Half of the house is tests, which are read as all else is.
    monkeypatch.setattr(script, "SKIPPED", script.SKIPPED | {"tests"})
    assert script.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == len(script.FIGURES)
