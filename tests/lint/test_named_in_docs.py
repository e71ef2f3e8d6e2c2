# SPDX-License-Identifier: Apache-2.0
"""The page that names all modules and roles of the project names all of them, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("kind", "there"),
    [
        ("Modules", {path.stem for path in (ROOT / "library").glob("*.py")}),
        ("Roles", {path.parents[1].name for path in ROOT.glob("roles/*/tasks/main.yml")}),
    ],
)
def test_the_page_names_every_module_and_role(kind: str, there: set[str]) -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    said = re.search(rf"^{kind}: ([^.]*)\.$", page, re.MULTILINE)
    assert said and set(re.findall(r"`(\w+)`", said[1])) == there, f"docs/operations.md, Modules and roles: {kind}"
