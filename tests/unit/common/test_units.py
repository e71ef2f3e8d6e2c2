# SPDX-License-Identifier: Apache-2.0
"""Bytes, rates and times as they stand on the terminal."""

import pytest

from ansible.module_utils.vllm_fleet.common.units import duration, part_of, size, time_left
from fleet_report import words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.0 kB"),
        (512_000, "512.0 kB"),
        (999_960, "1.0 MB"),
        (3.4e6, "3.4 MB"),
        (690.2e9, "690.2 GB"),
        (2.5e12, "2.5 TB"),
        (1.5e15, "1500.0 TB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text", "tenths"),
    [
        (0.4, "0 s", "0.4 s"),
        (9.96, "10 s", "10 s"),
        (59.4, "59 s", "59 s"),
        (59.9, "1 m 00 s", "1 m 00 s"),
        (80, "1 m 20 s", "1 m 20 s"),
        (7500, "2 h 05 m", "2 h 05 m"),
    ],
)
def test_duration(seconds: float, text: str, tenths: str) -> None:
    """A report writes the same as the terminal, with tenths below ten seconds."""
    assert (duration(seconds), duration(seconds, tenths=True)) == (text, tenths)
    assert words.duration(seconds) == tenths


def test_time_left() -> None:
    assert time_left(61) == "1 m 01 s left"
    assert time_left(None) == "no end in sight"


@pytest.mark.parametrize(
    ("done", "total", "rate", "text"),
    [
        (41, 100, 1.0, "41 % of 100 B, 1 B/s, 59 s left"),
        (0, 10**9, 0.0, "0 % of 1.0 GB, 0 B/s, no end in sight"),
        (5, 10, -3.0, "50 % of 10 B, 0 B/s, no end in sight"),
        (0, 0, 0.0, "100 % of 0 B, 0 B/s, no end in sight"),
    ],
)
def test_part_of(done: int, total: int, rate: float, text: str) -> None:
    assert part_of(done, total, rate) == text
