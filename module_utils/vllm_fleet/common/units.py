"""Bytes and seconds as a person reads them."""

from __future__ import annotations


def size(count: float) -> str:
    """Write bytes in powers of ten: 12 B, 3.4 MB, 690.2 GB."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} TB"


def duration(seconds: float) -> str:
    """Write a duration: 8 s, 1 m 05 s, 1 h 02 m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"


def time_left(seconds: float | None) -> str:
    """Write the seconds left; None where nothing moves."""
    return "no end in sight" if seconds is None else f"{duration(seconds)} left"


def part_of(done: int, total: int, rate: float) -> str:
    """Write how far something is: `41 % of 690.2 GB, 310.4 MB/s, 21 m 52 s left`; `rate` in bytes a second."""
    left = (total - done) / rate if rate >= 1 else None
    return f"{100 * done // total if total else 100} % of {size(total)}, {size(max(0.0, rate))}/s, {time_left(left)}"
