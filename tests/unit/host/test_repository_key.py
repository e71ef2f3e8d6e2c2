# SPDX-License-Identifier: Apache-2.0
"""Keys of apt repositories: which are in a file, and whether they are the expected ones."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.host import repository_key

FIRST, SECOND = "CA8BB4727A47B4D09B4EE8969386B48A1A693C5C", "D" * 40


def listing(*keys):
    """As gpg prints them: a primary key, its fingerprint, a subkey and its fingerprint."""
    return "".join(
        f"pub:-:4096:1:{key[-16:]}:1:::-:::scSC::::::23::0:\nfpr:::::::::{key}:\nuid:-::::1::x::AMD:\n"
        f"sub:-:4096:1:{'A' * 16}:1::::::e::::::23:\nfpr:::::::::{'A' * 40}:\n"
        for key in keys
    )


@pytest.mark.parametrize(
    ("printed", "keys"),
    [
        (listing(FIRST), [FIRST]),
        (listing(FIRST, SECOND), [FIRST, SECOND]),
        (listing(FIRST) + listing(SECOND).replace("pub:", "sec:"), [FIRST, SECOND]),
        ("", []),
        ("gpg: no valid data\n", []),
    ],
)
def test_primary_keys_are_told_from_subkeys(printed, keys):
    assert repository_key.primary_keys(printed) == keys


@pytest.mark.parametrize(
    ("primary", "expected", "right"),
    [
        ([FIRST], [FIRST], True),
        ([FIRST], [f"{FIRST[:20].lower()} {FIRST[20:].lower()}", SECOND], True),
        ([FIRST, SECOND], [FIRST], False),
        ([SECOND], [FIRST], False),
        ([], [FIRST], False),
        ([FIRST], [], False),
    ],
)
def test_no_key_and_a_strange_key_are_refused(primary, expected, right):
    assert repository_key.only_expected_keys(primary, expected) is right
