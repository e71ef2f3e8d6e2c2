# SPDX-License-Identifier: Apache-2.0
"""What is done to the files of a cache: may it be used, has it room, who owns what; written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ..common import durable
from . import layout
from .owner import Owner, nearest_existing, opened

FILE_MODE = 0o644
FOLDER_MODE = 0o755


class FetchError(Exception):
    """The snapshot cannot be brought in; the message is one sentence with the remedy in it.

    `failure` is one of the project's failure classes, `evidence` what else is known (output of the downloader).
    """

    def __init__(self, message: str, failure: str = "unknown", evidence: str = "") -> None:
        """Keep the sentence, the class and the evidence apart."""
        super().__init__(message)
        self.failure = failure
        self.evidence = evidence


def check_cache(cache: Path, *, create: bool, write: bool) -> None:
    """Raise FetchError unless `cache` can be used as HF_HOME: absolute, a folder, there (or `create`), writable."""
    if not cache.is_absolute():
        raise FetchError(
            f"Cache path {str(cache)!r} is relative; give an absolute path such as /var/lib/huggingface.",
            "bad_argument",
        )
    hub = layout.hub_of(cache)
    found = nearest_existing(cache)
    if bad := next((path for path in (found, nearest_existing(hub)) if not path.is_dir()), None):
        found = bad
        what = "a dangling link" if found.is_symlink() else "a file"
        raise FetchError(
            f"Cache path {cache} cannot be used because {found} is {what}, expected a folder; choose another.",
            "bad_argument",
        )
    if found != cache and not create:
        raise FetchError(
            f"Cache path {cache} does not exist ({found} is the last folder of it that does); "
            "mount or create it, or give another path.",
            "bad_argument",
        )
    if not hub.exists() and any(cache.glob("models--*")):
        raise FetchError(
            f"Cache path {cache} is a hub folder itself; give the folder above it, as HF_HOME names it.", "bad_argument"
        )
    for folder in (cache, hub):
        nearest = nearest_existing(folder)
        if write and not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
            raise FetchError(
                f"Cache path {cache} cannot be written by {who()} ({nearest} is not writable); {_remedy(cache)}.",
                "bad_argument",
            )


def check_space(cache: Path, needed: int, margin: int) -> None:
    """Raise FetchError when the disk of `cache` lacks `needed` + `margin` bytes; nothing needed is always fine."""
    if not needed:
        return
    disk = os.statvfs(nearest_existing(layout.hub_of(cache)))  # the hub may be a link or a mount of its own
    free = disk.f_bavail * disk.f_frsize
    if free < needed + margin:
        raise FetchError(
            f"The disk of {cache} has {free} bytes free ({free / 2**30:.2f} GiB), but {needed} bytes are to be written "
            f"and {margin} kept free ({(needed + margin) / 2**30:.2f} GiB in all); make room or give another path. "
            "Nothing was written.",
            "disk_full",
        )


def who() -> str:
    """Return by whom the work is done, as a person reads it."""
    mine = Owner(os.geteuid(), os.getegid()).name
    return mine if os.getuid() == os.geteuid() else f"{mine}, to whom the way there belongs"


def _remedy(path: Path) -> str:
    if os.getuid() == os.geteuid():
        return "run with become, or give another path"
    return f"give it to that user (chown -R {os.geteuid()} {path}), or give another path"


def not_reached(cache: Path, error: OSError) -> FetchError:
    """Return the failure of a path in a cache that this user may not enter, or that leads nowhere."""
    remedy = "look at what is there, and at where its links lead"
    if isinstance(error, PermissionError):
        remedy = f"{_remedy(cache)}, or let that user enter the folders above it"
    where = error.filename or cache
    return FetchError(f"{where} cannot be reached by {who()} ({error.strerror}); {remedy}.", "bad_argument")


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[bool]:
    """Hold the cache's lock; yield whether another run held it before: what was planned may then be done already.

    The folder of the lock is made in the cache, so take it only when something is to be written.
    """
    state = cache / layout.STATE_FOLDER
    with explained(state):
        make_folder(state)
        with opened(state) as folder:
            handle = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=folder)
    waited = False
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # some Lustre and GPFS mounts refuse flock: then only one run at a time may use the cache
        yield waited
    finally:
        os.close(handle)


def device_of(path: Path) -> int | None:
    """Return the device that `path` is on, None when it is not there."""
    try:
        return path.stat().st_dev
    except OSError:
        return None


def make_folder(path: Path) -> None:
    """Make a folder and those above it, readable by all; folders that are there are left as they are."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with opened(path.parent) as above, contextlib.suppress(FileExistsError):
        os.mkdir(path.name, FOLDER_MODE, dir_fd=above)
        # Whatever the umask is.
        made = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.fchmod(made, FOLDER_MODE)
        finally:
            os.close(made)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it, by its name in its folder. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), opened(path.parent) as folder:
        if stat.S_ISDIR(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
            shutil.rmtree(f"/proc/self/fd/{folder}/{path.name}")  # dir_fd came with Python 3.11
        else:
            os.unlink(path.name, dir_fd=folder)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into one sentence; what was half written is already gone by then."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(
                f"The disk got full while {path} was written ({error.strerror}); make room and run again: "
                "what is already there is whole and is kept.",
                "disk_full",
            ) from error
        denied = error.errno in (errno.EACCES, errno.EPERM) and os.getuid() != os.geteuid()
        remedy = f", by {who()}: what others have made there, give to that user" if denied else ""
        raise FetchError(
            f"Could not write {path}: {error.strerror} ({where}){remedy}; what is already there is whole."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a small file as a whole or not at all, and the folders above it; raises FetchError."""
    with explained(path):
        make_folder(path.parent)
        with opened(path.parent) as folder:
            durable.write_in(folder, path.name, text.encode(), FILE_MODE)


def allocated_below(folder: Path) -> int:
    """Return the bytes on disk of all files below a folder; one that is being fetched has holes, which do not count."""
    total = 0
    for base, _folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(base) / name).lstat().st_blocks * 512
    return total
