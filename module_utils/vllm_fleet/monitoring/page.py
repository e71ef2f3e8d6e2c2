# SPDX-License-Identifier: Apache-2.0
"""Series in Prometheus' text format: own ones, and those of another page with labels more. Pure.

node_exporter hands out nothing at all where one line of a textfile is wrong, or one series is there twice, so every
line of another program is held against the format. Help texts are left out: of two releases of vLLM they differ, which
node_exporter takes for an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

#: What is taken of one page: characters of a line, lines.
LONGEST_LINE, MOST_LINES = 4096, 20_000
KINDS = frozenset({"counter", "gauge", "histogram", "summary", "untyped"})

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|Inf)|NaN"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL}(?:,{_LABEL})*)?),?\}})? +({_NUMBER})")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (\w+)")
_LABEL_NAME = re.compile(rf'({_NAME})="((?:[^"\\]|\\.)*)"')
#: Labels whose values node_exporter reads as numbers.
_NUMBERS = {"histogram": "le", "summary": "quantile"}
_PARTS = ("_bucket", "_sum", "_count")


def quoted(value: object) -> str:
    """Return a label's value as the format wants it; what a terminal or a page would obey is no part of it."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))[:300]
    return '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'


def labels_text(labels: Mapping[str, object]) -> str:
    """Return labels as they stand between braces; one that is None is left out."""
    return ",".join(f"{name}={quoted(value)}" for name, value in labels.items() if value is not None)


class Page:
    """A page that is put together: families in the order in which they came, each series once."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._kinds: dict[str, str] = {}
        self._lines: dict[str, dict[str, str]] = {}

    def add(
        self, name: str, value: float | bool | None, labels: Mapping[str, object] | None = None, *, kind: str = "gauge"
    ) -> None:
        """Add a sample; None is none."""
        if value is not None:
            self._put(name, kind, name, labels_text(labels or {}), f"{float(value):.17g}")

    def take(
        self, text: str, labels: Mapping[str, object], *, begins: str = "", only: Collection[str] = (), rename: str = ""
    ) -> int:
        """Add samples of another page with ``labels`` more: those that begin with ``begins``, and are among ``only``.

        ``rename``: `old=new` is a label that gets another name. Lines that are wrong, or have one of the labels
        already, are passed over. Returns how many samples were taken.
        """
        own, taken, family, kind = labels_text(labels), 0, "", "untyped"
        old, _, new = rename.partition("=")
        # What comes after the last end of a line may be a part of one.
        for line in text.split("\n", MOST_LINES)[:MOST_LINES][: text.count("\n")]:
            if line.startswith("#"):
                if line.startswith("# TYPE ") and (found := _TYPE.fullmatch(line)):
                    family, kind = found[1], found[2] if found[2] in KINDS else "untyped"
                continue
            if not line.startswith(begins) or len(line) > LONGEST_LINE:
                continue
            match = _SAMPLE.fullmatch(line)
            if match is None or (only and match[1] not in only):
                continue
            name, inside, value = match[1], match[2] or "", match[3]
            # When a counter began is a series of its own for each counter, of which nobody asks.
            if name.endswith("_created"):
                continue
            pairs = _LABEL_NAME.findall(inside)
            known = [one for one, _ in pairs]
            if not _number(value) or any(one.startswith("__") for one in known):
                continue  # with a label that Prometheus keeps to itself node_exporter dies
            if old in known:
                inside = re.sub(rf'(^|,){old}="', rf'\1{new}="', inside)
                known = [new if one == old else one for one in known]
            if len({*known, *labels}) != len(known) + len(labels):
                continue
            of_family = name == family or (
                kind in ("histogram", "summary") and name in {family + part for part in _PARTS}
            )
            if of_family and any(one == _NUMBERS.get(kind) and not _number(text) for one, text in pairs):
                continue
            self._put(
                family if of_family else name,
                kind if of_family else "untyped",
                name,
                ",".join(part for part in (own, inside) if part),
                value,
            )
            taken += 1
        return taken

    def _put(self, family: str, kind: str, name: str, inside: str, value: str) -> None:
        lines = self._lines.setdefault(family, {})
        self._kinds.setdefault(family, kind)
        lines.setdefault(f"{name}{{{inside}}}" if inside else name, value)

    def text(self) -> str:
        """Return the page."""
        out = []
        for family, lines in self._lines.items():
            # Of `a_count` the parser thinks as a part of the histogram `a`, and of its type as the second of `a`.
            if any(family.endswith(part) and self._kinds.get(family[: -len(part)]) in _NUMBERS for part in _PARTS):
                continue
            out.append(f"# TYPE {family} {self._kinds[family]}")
            out += [f"{series} {value}" for series, value in lines.items()]
        return "\n".join(out) + "\n"


def _number(text: str) -> bool:
    """Tell whether Go reads a text as a number: one that is too large it refuses."""
    return re.fullmatch(_NUMBER, text) is not None and ("Inf" in text or math.isfinite(float(text)) or text == "NaN")
