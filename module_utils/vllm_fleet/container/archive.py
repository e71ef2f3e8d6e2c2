# SPDX-License-Identifier: Apache-2.0
"""What a `docker save` file holds and what loading it takes, read from its headers without unpacking it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common import received
from .image import Archived, archived_images, config_member

#: Beginnings of gzip, zstd, bzip2 and xz.
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
#: Bytes that one compressed byte becomes. gzip -1 makes a third of an image of Python packages.
UNPACKS_TO = 3
#: A file takes whole blocks, and an image has many small ones.
BLOCKS = 1.1

#: Members of an archive, and bytes of a list in it; an image has some hundred, and some thousand.
MEMBERS, LARGEST_LIST = 50_000, 16 << 20

#: What `read` raises.
NOT_READABLE = (OSError, tarfile.TarError)


@dataclass(frozen=True)
class Held:
    """The images of an archive; bytes of the file, and of its layers unpacked.

    Of a compressed file the images are not known, and the bytes are an estimate.
    """

    images: Sequence[Archived]
    size: int
    unpacked: int
    compressed: bool = False

    @property
    def room(self) -> int:
        """Bytes under Docker's data root while it is loaded.

        The classic store unpacks the whole file into a temporary folder first, the containerd store keeps its blobs.
        """
        whole = self.size * UNPACKS_TO if self.compressed else self.size
        return int(whole + BLOCKS * self.unpacked)

    def facts(self) -> dict[str, Any]:
        """Give it as what JSON can hold; `told` reads it."""
        return {"archived": [asdict(one) for one in self.images], "size": self.size, "room": self.room}


def told(rows: Sequence[dict[str, Any]]) -> list[Archived]:
    """Read images from what `facts` gave."""
    return [Archived(tuple(row["ids"]), tuple(row["names"]), row["content"]) for row in rows]


def read(path: Path) -> Held:
    """Read an archive. Raises OSError or tarfile.TarError for a file that is none."""
    with received.opened(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if handle.read(6).startswith(_COMPRESSED):
            return Held([], size, size * UNPACKS_TO, compressed=True)
        handle.seek(0)
        try:
            with tarfile.open(fileobj=handle, mode="r:") as tar:
                members = {member.name: member for member in _members(tar)}
                images = _images(tar, members)
                unpacked = sum(_unpacked(tar, member) for member in members.values() if member.isreg())
        # Python's tarfile raises these for headers that no program writes, too.
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as exc:
            raise OSError(f"its list of images is not as Docker writes it ({exc})") from exc
    return Held(images, size, unpacked)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members; refuse more than an image has, and a header that leads back to an earlier one."""
    at = -1
    for number, member in enumerate(tar):
        if number >= MEMBERS or member.size < 0 or member.offset <= at:
            raise ValueError(f"more than {MEMBERS} members" if number >= MEMBERS else "a member of a negative size")
        at = member.offset
        yield member


def _images(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> list[Archived]:
    def text(name: str) -> str | None:
        member = members.get(name)
        # A link may lead to itself, and a file with holes is longer than the archive.
        if member is None or not member.isreg() or member.issparse():
            return None
        if member.size > LARGEST_LIST:
            raise ValueError(f"{name} has {member.size} bytes")
        content = tar.extractfile(member)
        return content.read().decode() if content else None

    manifest, index = text("manifest.json"), text("index.json")
    if manifest is None and index is None:
        raise OSError("it has neither manifest.json nor index.json")
    texts = {name: text(name) or "" for name in map(config_member, received.parsed(manifest or "[]"))}
    return archived_images(manifest, index, texts)


def _unpacked(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    """Bytes of a member as Docker unpacks it: layers are plain tar files, or compressed as a registry has them."""
    content = tar.extractfile(member)
    packed = content is not None and content.read(6).startswith(_COMPRESSED)
    return member.size * UNPACKS_TO if packed else member.size
