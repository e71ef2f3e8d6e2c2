# SPDX-License-Identifier: Apache-2.0
"""What a `docker save` file holds and what loading it takes, read from its headers without unpacking it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .image import Archived, archived_images, config_member

#: Beginnings of gzip, zstd, bzip2 and xz.
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
#: Bytes that one compressed byte becomes. gzip -1 makes a third of an image of Python packages.
UNPACKS_TO = 3
#: A file takes whole blocks, and an image has many small ones.
BLOCKS = 1.1

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
    size = path.stat().st_size
    with path.open("rb") as handle:
        if handle.read(6).startswith(_COMPRESSED):
            return Held([], size, size * UNPACKS_TO, compressed=True)
    with tarfile.open(path, "r:") as tar:
        members = {member.name: member for member in tar}

        def text(name: str) -> str | None:
            content = tar.extractfile(members[name]) if name in members else None
            return content.read().decode() if content else None

        manifest, index = text("manifest.json"), text("index.json")
        if manifest is None and index is None:
            raise OSError("it has neither manifest.json nor index.json")
        try:
            texts = {name: text(name) or "" for name in map(config_member, json.loads(manifest or "[]"))}
            images = archived_images(manifest, index, texts)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise OSError(f"its list of images is not as Docker writes it ({exc})") from exc
        unpacked = sum(_unpacked(tar, member) for member in members.values() if member.isreg())
    return Held(images, size, unpacked)


def _unpacked(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    """Bytes of a member as Docker unpacks it: layers are plain tar files, or compressed as a registry has them."""
    content = tar.extractfile(member)
    packed = content is not None and content.read(6).startswith(_COMPRESSED)
    return member.size * UNPACKS_TO if packed else member.size
