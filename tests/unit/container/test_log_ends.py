# SPDX-License-Identifier: Apache-2.0
"""Of a log of any length the beginning and the end, in a memory that does not grow with it."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.container import log_ends
from ansible.module_utils.vllm_fleet.container.engine import Engine
from ansible.module_utils.vllm_fleet.container.log_ends import GAP, Ends, Latest

STAMP = "2026-01-01T00:00:00.{:09d}Z"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(log_ends, "HEAD", 100)
    monkeypatch.setattr(log_ends, "TAIL", 1000)


def lines(count):
    return [f"line {number:06d}\n".encode() for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 8, 9, 50, 92])
def test_a_short_log_is_whole(count):
    kept = Ends()
    for text in lines(count):
        kept.add(text)
    assert kept.text() == b"".join(lines(count))


def test_a_long_log_has_whole_lines_on_both_sides_of_the_gap():
    kept = Ends()
    for text in lines(10_000):
        kept.add(text)
        assert len(kept._tail) <= 2 * log_ends.TAIL + len(text)
    head, tail = kept.text().split(GAP)
    assert head == b"".join(lines(9))
    assert 900 < len(tail) <= 1000
    assert tail.splitlines(keepends=True) == lines(10_000)[-(len(tail) // 12) :]


def test_the_latest_pieces_are_counted_with_what_keeps_them():
    kept = Latest()
    for number, text in enumerate(lines(10_000)):
        kept.add(STAMP.format(number).encode(), text)
    assert [text for _, text in kept.pieces] == lines(10_000)[-len(kept.pieces) :]
    assert 1 <= len(kept.pieces) <= log_ends.TAIL // log_ends._OBJECTS


class Docker:
    """A log of ``count`` lines, and how many of them were read."""

    def __init__(self, count):
        self.count, self.read, self.closed = count, 0, 0

    def logs(self, _, *, tail=None, **__):
        for number in range(0 if tail is None else max(0, self.count - tail), self.count):
            self.read += 1
            yield STAMP.format(number).encode() + f" line {number:06d}\n".encode()

    def close(self):
        self.closed += 1


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr("ansible.module_utils.vllm_fleet.container.engine.TAIL_LINES", 60)
    made = Engine.__new__(Engine)

    def given(count):
        docker = Docker(count)
        made._client = lambda _: docker
        return made, docker

    return given


@pytest.mark.parametrize("count", [5, 9, 30, 60, 68])
def test_what_is_read_twice_is_there_once(engine, count):
    made, _ = engine(count)
    assert made.log("c") == b"".join(lines(count))


def test_the_middle_of_a_long_log_is_not_even_read(engine):
    made, docker = engine(100_000)
    head, tail = made.log("c").split(GAP)
    assert head == b"".join(lines(9))
    assert tail.splitlines()[-1] == b"line 099999"
    assert docker.read < 100
    assert docker.closed == 2


def test_the_end_of_an_earlier_start_is_not_that_of_the_log(engine):
    made, docker = engine(5_000)
    text = made.log("c", until=1767225600.002)  # two milliseconds in: two million nanoseconds
    assert text.splitlines()[-1] == b"line 004999"
    assert docker.read == 5_000
