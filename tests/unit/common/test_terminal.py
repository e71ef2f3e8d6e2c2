# SPDX-License-Identifier: Apache-2.0
"""Nothing that a terminal obeys gets through."""

from __future__ import annotations

import unicodedata

import pytest

from ansible.module_utils.vllm_fleet.common.terminal import mapped, plain, shown


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]52;c;Y2FuYXJ5\x1b\\x", "x"),  # writes the clipboard
        ("\x1b[2J\x1b[H\x1b[8mhidden", "hidden"),
        ("\x9b31mred", "red"),
        ("\x9d0;title\x9cx", "x"),
        ("\x1bP1$tx\x1b\\y", "y"),
        ("\x90canary\x9cy", "y"),
        ("a\u202eb\u2066c\u200fd", "abcd"),
        ("a\U000e0041b", "ab"),
        ("a\x08\x7fb\x00", "ab"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("Ünïcode 星 👩‍🚀", "Ünïcode 星 👩‍🚀"),
    ],
)
def test_what_is_left_of_a_text(text, left):
    assert plain(text) == left


def test_no_control_and_no_character_that_turns_the_direction_is_left():
    every = "".join(map(chr, [*range(0x3000), *range(0xE0000, 0xE0080)]))
    left = set(shown(every))
    assert {one for one in left if unicodedata.category(one) == "Cc"} == {"\n", "\t"}
    turning = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    assert not [one for one in left if unicodedata.bidirectional(one) in turning]


@pytest.mark.parametrize(("text", "lines"), [("a\rb", "a\nb"), ("a\r\nb", "a\nb"), ("\r", "\n"), ("a", "a")])
def test_a_line_cannot_be_written_over(text, lines):
    assert shown(text) == lines


def test_all_texts_of_a_difference_are_reached():
    assert mapped([{"before": {"a\x1b": ["\x1b[2Jb", 3]}}], plain) == [{"before": {"a": ["b", 3]}}]
