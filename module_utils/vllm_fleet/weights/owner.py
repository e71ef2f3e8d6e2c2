# SPDX-License-Identifier: Apache-2.0
"""Root works in a cache as the one whom the cache belongs to: a link there leads it nowhere that this one could not go.

The effective ids change, for all threads; the real ones stay root's, so the way back is open, and nobody but root can
signal or trace the process meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NOGROUP = 65534
MAX_LINKS = 40


@dataclass(frozen=True)
class Owner:
    """User id, group id and further group ids with which a cache is worked in."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Return the user's name, or the id of one without a name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"user id {self.uid}"

    @property
    def command(self) -> list[str]:
        """Return the words that go before a command of root's, so that it runs as this user; none where that is so."""
        if os.geteuid() != 0 or (self.uid, self.gid) == (0, os.getegid()):
            return []
        if self.uid == 0:
            return ["setpriv", "--regid", str(self.gid), "--keep-groups"]
        groups = ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
        return ["setpriv", "--reuid", str(self.uid), "--regid", str(self.gid), *groups]


def nearest_existing(path: Path) -> Path:
    """Return `path` or its nearest ancestor that exists."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def owner_of(path: Path) -> Owner:
    """Return who works in `path`: for root, its owner, or if that is root the first who is not on the way there.

    Who owns a folder on the way can put anything in the place of what follows, whomever that belongs to now; who has
    made a link there says where it leads. A folder that is not there yet counts as its nearest one that is.
    """
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid())
    found = nearest_existing(path)
    way = [*reversed(found.parents), found]
    real = Path(os.path.realpath(found))
    if real == found:
        way.insert(0, found)
    for step in [*way, *reversed(real.parents), real]:
        with contextlib.suppress(OSError):
            uid = step.lstat().st_uid
            if uid:
                return _user(uid, _group(real))
    return Owner(0, _group(real))


def _group(path: Path) -> int:
    try:
        return path.stat().st_gid
    except OSError:
        return 0


def _user(uid: int, gid: int) -> Owner:
    """Return a user with the group of the folder, if that is one of the user's own: no right is added."""
    try:
        known = pwd.getpwuid(uid)
    except KeyError:
        return Owner(uid, gid or NOGROUP)
    groups = os.getgrouplist(known.pw_name, known.pw_gid)
    return Owner(uid, gid if gid in groups else known.pw_gid, tuple(groups))


@contextlib.contextmanager
def acting_as(owner: Owner) -> Iterator[None]:
    """Work with the rights of `owner`; no change unless this is root.

    All threads of the process change with it, so nothing else may go on in it meanwhile.
    """
    if os.geteuid() != 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        if owner.uid:
            os.setgroups(owner.groups)
        os.setegid(owner.gid)
        os.seteuid(owner.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder for what is done in it. Root follows no link that another user has made. Raises OSError.

    A user works with the own rights, so any link may be followed. Root works in folders where others may write, too.
    """
    plain = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    handle = _walk(folder) if os.geteuid() == 0 else os.open(folder, plain)
    try:
        yield handle
    finally:
        os.close(handle)


def _walk(folder: Path) -> int:
    look = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open("/", look)
    parts, links = list(reversed(folder.parts[1:])), 0
    try:
        while parts:
            step = os.open(parts.pop(), look, dir_fd=here)
            found = os.fstat(step)
            if not stat.S_ISLNK(found.st_mode):
                os.close(here)
                here = step
                continue
            target = os.readlink("", dir_fd=step)
            os.close(step)
            links += 1
            if found.st_uid != 0:
                raise PermissionError(1, f"a link of user id {found.st_uid} is in the way, to {target}", str(folder))
            if links > MAX_LINKS:
                raise OSError(40, "too many links", str(folder))
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", look)
            parts += reversed([part for part in target.split("/") if part])
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
