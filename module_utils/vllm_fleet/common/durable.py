# SPDX-License-Identifier: Apache-2.0
"""Files that are believed later: after a kill or a power cut each is the old one or the new one, whole.

A rename may reach the disk before the content does: then the file has its name, and is empty. So the content is
synced first, then the name, then the folder that has the name. Work is done in an opened folder, and the temporary
file is a new one, so nobody who may write in that folder leads the writer elsewhere by a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import received

#: What a file system says that cannot sync a folder (some network and user-space ones).
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Unreadable(OSError):
    """There is a file, and what it says is not known. That is never the same as no file."""


def read(path: Path) -> dict[str, Any] | None:
    """Return what a file of JSON holds; None where there is no file. Raises Unreadable for all else."""
    try:
        found = received.parsed(received.content(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(error.errno, error.strerror or "cannot be read", str(path)) from error
    except ValueError as error:
        raise Unreadable(errno.EBADMSG, "is damaged", str(path)) from error
    if not isinstance(found, dict):
        raise Unreadable(errno.EBADMSG, "is damaged", str(path))
    return found


def write(path: Path, data: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace ``path`` by ``data``. Its folder is there already. Raises OSError; what was there then stays."""
    with opened(path.parent) as folder:
        write_in(folder, path.name, data, mode, owner)


def write_in(folder: int, name: str, data: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Replace the file ``name`` in an opened folder by ``data``. Raises OSError."""
    part = f".{os.urandom(6).hex()}.part"
    try:
        handle = os.open(part, _NEW, 0o600, dir_fd=folder)
        with open(handle, "wb", buffering=0) as file:  # noqa: PTH123  a handle, not a path
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            if owner:
                os.fchown(handle, *owner)
            os.fchmod(handle, mode)  # after the owner, whose change takes bits away
            os.fsync(handle)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise
    sync_folder(folder)


def settle(source: Path, target: Path) -> None:
    """Give a written file the name ``target``, on the same disk, so that it keeps it. Raises OSError."""
    sync(source)
    with opened(target.parent) as folder:
        os.rename(source, target.name, dst_dir_fd=folder)
        sync_folder(folder)


def sync(path: Path) -> None:
    """Wait until the content of a file is on its disk. Costs little where it is. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(path: Path, mode: int = 0o755) -> None:
    """Make a folder and those above it, each of them on its disk. Those that are there stay as they are."""
    if path.is_dir():
        return
    make_folders(path.parent, mode)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode)
    with opened(path.parent) as folder:
        sync_folder(folder)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder, for what is done in it. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def sync_folder(folder: int) -> None:
    """Wait until the names in an opened folder are on its disk; a file system that cannot say it is believed."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
