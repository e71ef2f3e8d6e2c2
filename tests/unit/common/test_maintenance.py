# SPDX-License-Identifier: Apache-2.0
"""The note that a server is in maintenance: written once, read by everybody, cleaned, and never taken for absent."""

from __future__ import annotations

import json

import pytest

from ansible.module_utils.vllm_fleet.common import maintenance

NOTE = {"since": "2026-11-30 10:00 UTC", "by": "ada", "why": "new DIMM"}


def test_a_note_is_written_once_and_removed_once(tmp_path):
    place = (str(tmp_path), "vllm")
    assert maintenance.look(*place) == ""
    assert maintenance.begin(*place, NOTE, check_mode=True)
    assert maintenance.look(*place) == ""
    assert maintenance.begin(*place, NOTE)
    assert maintenance.path(*place).stat().st_mode & 0o777 == 0o600
    said = " since 2026-11-30 10:00 UTC by ada (new DIMM)"
    assert maintenance.look(*place) == said
    # Whoever stops it again changes nothing, not even the reason.
    assert not maintenance.begin(*place, {**NOTE, "by": "bob"})
    assert maintenance.look(*place) == said
    assert maintenance.end(*place, check_mode=True)
    assert maintenance.look(*place) == said
    assert maintenance.end(*place)
    assert not maintenance.end(*place)
    assert maintenance.look(*place) == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"since": '])
def test_a_damaged_note_counts(tmp_path, content):
    where = maintenance.path(str(tmp_path), "vllm")
    where.parent.mkdir()
    where.write_text(content)
    assert maintenance.look(str(tmp_path), "vllm") == f", whose note cannot be read ({where})"
    assert not maintenance.begin(str(tmp_path), "vllm", NOTE)
    assert maintenance.end(str(tmp_path), "vllm")


@pytest.mark.parametrize(
    ("note", "says"),
    [
        (NOTE, " since 2026-11-30 10:00 UTC by ada (new DIMM)"),
        ({"since": "monday"}, " since monday"),
        ({}, " since a time that is not noted"),
        ({"since": "\x1b[31mnow\n\nthen", "by": ["x"], "why": 3}, " since [31mnow then (3)"),
        ({"since": "x" * 500}, f" since {'x' * maintenance.WIDTH}"),
    ],
)
def test_a_node_s_words_are_cut_and_cleaned(tmp_path, note, says):
    where = maintenance.path(str(tmp_path), "vllm")
    where.parent.mkdir()
    where.write_text(json.dumps(note))
    assert maintenance.look(str(tmp_path), "vllm") == says


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", ""), (None, ""), (" since x", " since x"), (", says y", ", says y"), ("x\x1b[2J", " x[2J")],
)
def test_what_a_result_of_a_node_says_is_shown_clean(text, shown):
    assert maintenance.shown(text) == shown
