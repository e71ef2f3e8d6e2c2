# SPDX-License-Identifier: Apache-2.0
"""Files and JSON that somebody else made: read in bounded time and memory. Pure.

Who may write into a cache may put anything under a file's name: a pipe from which nothing ever comes, a device, or a
file without end.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

#: Bytes of a file that is read as a whole; the largest in use, the list of files of a model, has some hundred thousand.
LARGEST = 32 << 20


def opened(path: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError, also for what is no regular file."""
    # Without waiting: a pipe is opened when somebody writes into it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return open(handle, "rb")  # noqa: PTH123  a handle, not a path; the caller closes it
        raise OSError(errno.EINVAL, "is not a file", str(path))
    except BaseException:
        os.close(handle)
        raise


def content(path: Path, largest: int = LARGEST) -> bytes:
    """Return what a file holds. Raises OSError, also for what is no regular file or has more than ``largest`` bytes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        found = file.read(largest + 1) if size <= largest else b""
    if size > largest or len(found) > largest:
        raise OSError(errno.EFBIG, f"is larger than {largest} bytes", str(path))
    return found


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
