# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as a person reads them in a report. Pure."""

from __future__ import annotations

import re
from typing import Any

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import units

#: For what is not known.
DASH = "\u2013"


def duration(seconds: float | None) -> str:
    """Return a duration: 0.8 s, 41 s, 3 m 12 s, 1 h 02 m; a dash for none."""
    return DASH if seconds is None else str(units.duration(seconds, tenths=True))


def axis(seconds: float) -> str:
    """Return a round time as short as it goes: 30 s, 5 m, 1 h, 1 h 30 m."""
    whole = round(seconds)
    if whole < 60 or whole % 60:
        return duration(float(whole)).replace(".0", "")
    hours, minutes = divmod(whole // 60, 60)
    return " ".join([f"{hours} h"] * bool(hours) + [f"{minutes} m"] * bool(minutes))


def latency(seconds: float | None) -> str:
    """Return a time to the first token: 21 ms, 1.42 s; a dash for none."""
    if seconds is None:
        return DASH
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def rate(value: float | None) -> str:
    """Return tokens per second with three digits; a dash for none."""
    if value is None:
        return DASH
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: 1 node, 3 nodes."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def natural(name: str) -> list[Any]:
    """Sort key with node10 after node9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def clip(text: str, width: int) -> str:
    """Cut a text to one line of at most ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def spread(values: list[float], write: Any) -> str:
    """Return the range of values, as one value when both ends are written alike."""
    low, high = write(min(values)), write(max(values))
    return str(low) if low == high else f"{low} to {high}"
