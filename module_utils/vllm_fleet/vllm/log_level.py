# SPDX-License-Identifier: Apache-2.0
"""The class of a line of a vLLM server's output: information, warning, error; also without a prefix. Pure."""

from __future__ import annotations

import re

from .prefix import parse

#: In the order of what is shown: a level has itself and all after it.
LEVELS = ("debug", "info", "warning", "error")
#: uvicorn's logger, and that of other libraries: `ERROR:    Exception in ASGI application`.
_OTHER = r"(DEBUG|INFO|WARNING|ERROR|CRITICAL):\s"
_TRACEBACK = "Traceback (most recent call last)"
#: The last line of a traceback, and an error without one.
_EXCEPTION = r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?::|$)"
_WARNING = r"\S+:\d+: \w*Warning: |\[?W\d{3,4} "


class Levels:
    """Lines one after the other: those of a traceback without a prefix belong to its error."""

    def __init__(self) -> None:
        """Begin outside of a traceback."""
        self._in_traceback = False

    def of(self, line: str) -> str:
        """Return a line's level, one of :data:`LEVELS`."""
        parsed = parse(line)
        other = re.match(_OTHER, parsed.text) if not parsed.level else None
        name = parsed.level or (other[1] if other else "")
        if name:
            self._in_traceback = False
            return "error" if name == "CRITICAL" else name.lower()
        if _TRACEBACK in parsed.text:
            self._in_traceback = True
            return "error"
        if re.match(_EXCEPTION, parsed.text):
            self._in_traceback = False
            return "error"
        if self._in_traceback:
            return "error"
        return "warning" if re.match(_WARNING, parsed.text) else "info"


def wanted(level: str, least: str) -> bool:
    """Return whether a line of ``level`` is shown where ``least`` is asked for."""
    return LEVELS.index(level) >= LEVELS.index(least)
