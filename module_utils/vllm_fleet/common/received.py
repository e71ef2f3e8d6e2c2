# SPDX-License-Identifier: Apache-2.0
"""JSON that somebody else made. Pure."""

from __future__ import annotations

import json
from typing import Any


def parsed(text: bytes | str) -> Any:
    """Return what a JSON text says. Raises ValueError, also for what Python reads and cannot work with.

    A text of many brackets is a RecursionError to Python, and half of a surrogate pair a str that can be written
    nowhere: a module could not give it back.
    """
    try:
        found = json.loads(text)
        if "\\ud" in (text.decode(errors="replace") if isinstance(text, bytes) else text).lower():
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeError:  # a ValueError, too, which names a place and no reason
        raise ValueError("a text that is no Unicode") from None
    return found
