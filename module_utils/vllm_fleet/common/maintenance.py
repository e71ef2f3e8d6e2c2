# SPDX-License-Identifier: Apache-2.0
"""The note of a server that is stopped for maintenance: a file beside its records, which outlives a boot.

Later runs leave such a server out, whoever starts them. The node's words are data: they are cut and cleaned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import durable

FILE = "maintenance.json"
#: Characters of a reason that are kept and shown.
WIDTH = 120
FIELDS = ("since", "by", "why")


def path(state_dir: str, name: str) -> Path:
    """Return where the note of the container ``name`` lies on a node."""
    return Path(state_dir) / name / FILE


def look(state_dir: str, name: str) -> str:
    """Return what a node's note says, as the end of a sentence: ` since 2026-11-30 10:00 UTC by ada (new DIMM)`.

    Empty without a note. One that cannot be read counts. What only root may read is nothing to others.
    """
    try:
        found = durable.read(path(state_dir, name))
    except durable.Unreadable as error:
        return "" if isinstance(error.__cause__, PermissionError) else f", whose note cannot be read ({error.filename})"
    return "" if found is None else words(found)


def words(note: Mapping[str, Any]) -> str:
    """Return a note as the end of a sentence; see look()."""
    since, by, why = (_clean(note.get(name)) for name in FIELDS)
    said = f" since {since}" if since else " since a time that is not noted"
    return said + (f" by {by}" if by else "") + (f" ({why})" if why else "")


def shown(text: object) -> str:
    """Return look()'s words as they may be shown; a node in other hands may have said anything."""
    said = "".join(letter for letter in str(text or "") if letter.isprintable())[: 3 * WIDTH]
    return said if not said or said.startswith((" ", ",")) else f" {said}"


def begin(state_dir: str, name: str, note: Mapping[str, str], *, check_mode: bool = False) -> bool:
    """Write a note (`since`, `by`, `why`), unless there is one; return whether there was none. Raises OSError."""
    where = path(state_dir, name)
    try:
        if durable.read(where) is not None:
            return False
    except durable.Unreadable:
        return False
    if not check_mode:
        durable.make_folders(where.parent, 0o700)
        durable.write(where, json.dumps({key: _clean(note.get(key)) for key in FIELDS}).encode())
    return True


def end(state_dir: str, name: str, *, check_mode: bool = False) -> bool:
    """Remove the note, and return whether there was one. Raises OSError."""
    where = path(state_dir, name)
    there = where.exists()
    if there and not check_mode:
        where.unlink(missing_ok=True)
    return there


def _clean(value: object) -> str:
    text = " ".join(str(value if isinstance(value, (str, int, float)) else "").split())
    return "".join(letter for letter in text if letter.isprintable())[:WIDTH]
