# SPDX-License-Identifier: Apache-2.0
"""Text of a model, a log or a node, made fit for a terminal. Pure, and the only place that knows what is not.

A terminal obeys what it is sent: it clears itself, writes the clipboard, hides text, changes the order of letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# Compiled when it is first needed, by the re module's cache.
_CONTROL = (
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movement (tqdm's \x1b[A)
    r"|\x1b[\]PX^_][^\x07\x1b\x9c\r\n]{0,500}(?:\x07|\x1b\\|\x9c)?"  # titles, the clipboard, device control
    r"|\x9b[0-?]*[ -/]*[@-~]"  # the same, begun with one character of C1
    r"|[\x90\x98\x9d-\x9f][^\x07\x1b\x9c\r\n]{0,500}(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[@-Z\\-_]?"
    # and characters that a terminal obeys, that turn the direction of what follows, or that nobody sees (tags)
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """Text without colours, cursor movement and control characters (line ends and tabs stay)."""
    return re.sub(_CONTROL, "", text)


def shown(text: str) -> str:
    """Text for a terminal: plain, and without a carriage return, after which a line is written over."""
    text = plain(text)
    return re.sub(r"\r\n?", "\n", text) if "\r" in text else text


def mapped(data: Any, change: Callable[[str], str]) -> Any:
    """Return data in which each text, names among them, is what ``change`` makes of it."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {mapped(name, change): mapped(value, change) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [mapped(value, change) for value in data]
    return data
