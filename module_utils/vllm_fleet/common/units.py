# SPDX-License-Identifier: Apache-2.0
"""Bytes and seconds as a person reads them: the one place that writes them, on the terminal, in findings and reports.

The role vllm_image puts this file on a node beside its transfer program, so it imports nothing of the project.
"""

from __future__ import annotations


def size(count: float) -> str:
    """Return bytes in powers of ten, as disks and memory are sold: 12 B, 512.0 kB, 3.4 MB, 690.2 GB, 2.5 TB."""
    if round(count) < 1000:
        return f"{count:.0f} B"
    number = float(count)
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if round(number, 1) < 1000:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:.1f} TB"


def duration(seconds: float, *, tenths: bool = False) -> str:
    """Return a duration: 8 s, 1 m 05 s, 1 h 02 m; with `tenths` those below ten seconds have one: 0.8 s."""
    if tenths and seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"


def time_left(seconds: float | None) -> str:
    """Return the seconds left in words; None where nothing moves."""
    return "no end in sight" if seconds is None else f"{duration(seconds)} left"


def part_of(done: int, total: int, rate: float) -> str:
    """Return how far a transfer is: `41 % of 690.2 GB, 310.4 MB/s, 21 m 52 s left`; `rate` in bytes a second."""
    left = (total - done) / rate if rate >= 1 else None
    return f"{100 * done // total if total else 100} % of {size(total)}, {size(max(0.0, rate))}/s, {time_left(left)}"
