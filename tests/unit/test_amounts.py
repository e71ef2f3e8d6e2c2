"""Bytes, rates and times as they stand on the terminal."""

import pytest

from ansible.module_utils.vllm_fleet.amounts import part_of, size, time_left


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (3.4e6, "3.4 MB"), (690.2e9, "690.2 GB"), (2.5e12, "2.50 TB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "no end in sight"), (59.9, "59 s left"), (61, "1 min 01 s left"), (7260, "2 h 01 min left")],
)
def test_time_left(seconds: float | None, text: str) -> None:
    assert time_left(seconds) == text


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
