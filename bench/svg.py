# SPDX-License-Identifier: Apache-2.0
"""A line chart as SVG text: as much of it as the project's measurements need, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 74, 56
COLOURS = ("#c0392b", "#1f6fb2", "#2e8b57", "#8e5fb5")
INK, FAINT = "#222222", "#dddddd"


@dataclass(frozen=True)
class Series:
    """One line: its name and its points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def ticks(highest: float, count: int = 6) -> list[float]:
    """Return round numbers from 0 to at least `highest`."""
    raw = max(highest, 1e-9) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _text(x: float, y: float, text: str, **style: str) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>'


def log_ticks(lowest: float, highest: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, from at most `lowest` to at least `highest`; both above 0."""
    power = math.floor(math.log10(lowest))
    found = [10.0 ** (power + step // 3) * (1, 2, 5)[step % 3] for step in range(60)]
    first = max(number for number, level in enumerate(found) if level <= lowest)
    last = min(number for number, level in enumerate(found) if level >= highest)
    return found[first : last + 1]


def line_chart(
    title: str, subtitle: str, x_label: str, y_label: str, series: Sequence[Series], *, log: bool = False
) -> str:
    """Draw the series over their own x values, which are marked; y starts at 0. Names stand at the lines' ends.

    ``log``: both axes are logarithmic, and only the ends have figures.
    """
    xs = sorted({x for line in series for x, _y in line.points})
    ys = [y for line in series for _x, y in line.points]
    levels = log_ticks(min(ys), max(ys)) if log else [0.0, *ticks(max(ys))[1:]]
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    scale = math.log10 if log else float

    def share(value: float, lowest: float, highest: float) -> float:
        return (scale(value) - scale(lowest)) / (scale(highest) - scale(lowest)) if highest > lowest else 0.5

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * share(x, xs[0], xs[-1]), TOP + high * (1 - share(y, levels[0], levels[-1]))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="13" fill="{INK}" role="img" aria-label="{escape(title, quote=True)}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 30, title, font_size="18", font_weight="bold"),
        _text(LEFT, 50, subtitle, fill="#666666"),
    ]
    for level in levels:
        x, y = at(xs[0], level)
        out.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{LEFT + wide}" y2="{y:.1f}" stroke="{FAINT}"/>')
        out.append(_text(x - 10, y + 4, f"{level:g}", text_anchor="end"))
    for value in xs:
        x, y = at(value, levels[0])
        out.append(_text(x, y + 20, f"{value:g}", text_anchor="middle"))
    out.append(_text(LEFT + wide / 2, HEIGHT - 12, x_label, text_anchor="middle"))
    middle = TOP + high / 2
    out.append(_text(18, middle, y_label, text_anchor="middle", transform=f"rotate(-90 18 {middle:.1f})"))
    for line, colour in zip(series, COLOURS, strict=False):
        points = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for (x, y), (_x, value) in zip(points, line.points, strict=True):
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            if (x, y) != points[-1] and not log:
                # The upper of two lines is labelled above, so that neither label lies on the other line.
                upper = all(value >= other for one in series for at_x, other in one.points if at_x == _x)
                shift = 12 if x == points[0][0] else 0
                out.append(
                    _text(x + shift, y + (-10 if upper else 20), f"{value:.2f}", text_anchor="middle", fill=colour)
                )
        end_x, end_y = points[-1]
        figure = f"{line.points[-1][1]:.0f}" if log else f"{line.points[-1][1]:.2f}"
        if line.points[-1][0] != xs[-1]:  # others go on to the right
            out.append(_text(end_x + 12, end_y + 12, f"{figure} {line.name}", fill=colour))
            continue
        out.append(_text(end_x + 12, end_y - 2, figure, fill=colour, font_weight="bold"))
        out.append(_text(end_x + 12, end_y + 14, line.name, fill=colour))
    out.append("</svg>")
    return "\n".join(out) + "\n"
