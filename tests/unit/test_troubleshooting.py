# SPDX-License-Identifier: Apache-2.0
"""The page for people and the table for the program say the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.vllm_fleet.diagnosis.diagnose import CLASSES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SCRIPT = ROOT / "scripts" / "gen_troubleshooting.py"


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    parts = re.split(r"^## (\w+)$", PAGE.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_is_what_the_table_says() -> None:
    run = subprocess.run([sys.executable, str(SCRIPT), "--check"], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_every_class_has_an_entry_and_a_line_in_the_list(entries: dict[str, str]) -> None:
    assert list(entries) == list(CLASSES)
    linked = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\)", PAGE.read_text(), flags=re.M)
    assert linked == [(name, name) for name in CLASSES]


def test_every_entry_shows_the_message_the_reason_and_the_remedy(entries: dict[str, str]) -> None:
    for name, entry in entries.items():
        assert f"> Container vllm on node3 failed with {name}: " in entry
        assert "\n**Why.** " in entry
        assert "\n**What to do.** " in entry


def test_the_page_names_only_variables_that_the_roles_have(entries: dict[str, str]) -> None:
    """A remedy that cannot be typed in is none."""
    names = set(re.findall(r"`((?:vllm_server|vllm_image|hf_cache)_[a-z_]+)", "".join(entries.values())))
    assert len(names) > 10
    for spec in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        role = spec.parents[1].name
        options = yaml.safe_load(spec.read_text())["argument_specs"]["main"]["options"]
        assert {name for name in names if name.startswith(f"{role}_")} <= options.keys()
