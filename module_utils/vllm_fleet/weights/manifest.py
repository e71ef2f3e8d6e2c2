# SPDX-License-Identifier: Apache-2.0
"""The file list of a snapshot, in the forms it has: given by another machine, the repository's own; hashes of contents.

A blob is named by its content: sha256 for a file of Large File Storage, git's sha1 for a small one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common import received
from ..common.meter import Meter
from .layout import SnapshotError

TREE_FORMAT = 1
"""`format_version` of trees/<commit>.json that huggingface_hub 2.4.0 reads and writes (_tree_cache.py)."""

HASH_CHUNK = 1 << 20

BLOB_NAME = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One file of a snapshot: path inside it, size in bytes and blob name, both None when not known."""

    path: str
    size: int | None
    blob: str | None


@dataclass(frozen=True)
class Manifest:
    """The files that a snapshot must have. `origin` is tree (the repository's own list), marker or links."""

    commit: str
    entries: tuple[Entry, ...]
    origin: str

    @property
    def bytes(self) -> int:
        """Return the bytes of the distinct blobs whose size is known."""
        sizes = {entry.blob or entry.path: entry.size or 0 for entry in self.entries}
        return sum(sizes.values())

    def as_files(self) -> dict[str, dict[str, Any]]:
        """Return {path: {size, blob}}, the form in which a manifest travels between machines."""
        return {entry.path: {"size": entry.size, "blob": entry.blob} for entry in self.entries}


def safe(path: str) -> bool:
    """Return whether `path` is relative and stays inside the snapshot."""
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def given_manifest(commit: str, files: dict[str, dict[str, Any]]) -> Manifest:
    """Return a manifest from {path: {size, blob}}, as `Manifest.as_files` made it on another machine.

    Raises SnapshotError for an entry that is not of that form or whose path leaves the snapshot.
    """
    entries = []
    for path, info in sorted(files.items()):
        size, blob = info.get("size"), info.get("blob")
        if not safe(path) or not isinstance(size, int) or not isinstance(blob, str) or not BLOB_NAME.fullmatch(blob):
            raise SnapshotError(
                f"Manifest entry {path!r} must be a relative path with a size in bytes and a blob name "
                f"(40 or 64 hexadecimal digits), got size {size!r} and blob {blob!r}."
            )
        entries.append(Entry(path, size, blob))
    return Manifest(commit, tuple(entries), "links")


def tree_manifest(text: bytes | str, commit: str) -> Manifest:
    """Parse trees/<commit>.json; raise ValueError when it is not in the known format."""
    data = received.parsed(text)
    if (
        not isinstance(data, dict)
        or data.get("format_version") != TREE_FORMAT
        or not isinstance(data.get("files"), dict)
    ):
        raise ValueError(f"not a file list of format {TREE_FORMAT}")
    entries = []
    for path, info in sorted(data["files"].items()):
        size, blob = info.get("size"), info.get("lfs_sha256") or info.get("blob_id")
        if not safe(path) or not isinstance(size, int) or not isinstance(blob, str) or not BLOB_NAME.fullmatch(blob):
            raise ValueError(f"entry {path!r} lacks a size or a hash")
        entries.append(Entry(path, size, blob))
    if not entries:
        raise ValueError("it lists no files")
    return Manifest(commit, tuple(entries), "tree")


def git_sha1(content: bytes) -> str:
    """Return git's object id of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def tree_json(manifest: Manifest) -> str:
    """Return a manifest as the text of trees/<commit>.json, as huggingface_hub writes it.

    For a file of Large File Storage, `blob_id` is git's id of the pointer text, which follows from hash and size.
    """
    files: dict[str, dict[str, Any]] = {}
    for entry in sorted(manifest.entries, key=lambda item: item.path):
        if entry.size is None or entry.blob is None:
            raise ValueError(f"{entry.path} has no size or hash")
        if len(entry.blob) == 64:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.blob}\nsize {entry.size}\n"
            files[entry.path] = {
                "size": entry.size,
                "blob_id": git_sha1(pointer.encode()),
                "lfs_sha256": entry.blob,
                "lfs_size": entry.size,
            }
        else:
            files[entry.path] = {"size": entry.size, "blob_id": entry.blob}
    return json.dumps({"format_version": TREE_FORMAT, "files": files}, indent=1)


def safetensors_size(path: Path) -> int:
    """Return the size in bytes that a safetensors file's own header calls for; raise ValueError if it has none.

    Format: 8 bytes little-endian length, that many bytes of JSON, then the data up to the largest end offset.
    """
    with received.opened(path) as file:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("too short for a safetensors header")
        (length,) = struct.unpack("<Q", head)
        if not 2 <= length <= 100_000_000:  # the limit of the safetensors library
            raise ValueError("no safetensors header")
        text = file.read(length)
    if len(text) < length:
        raise ValueError("cut off inside the safetensors header")
    header = received.parsed(text)
    if not isinstance(header, dict):
        raise ValueError("no safetensors header")
    ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    return 8 + int(length) + max(ends, default=0)


def new_digest(blob: str, size: int) -> Any:
    """Return the hashlib object whose hexdigest over the content is the blob's name.

    A name of 64 digits is the sha256; one of 40 is git's sha1, which begins with the length of the content in bytes.
    """
    if len(blob) == 40:
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.sha256()


def blob_hash(path: Path, blob: str, meter: Meter | None = None) -> str:
    """Return the hash of `path` of the kind that the blob name `blob` is, telling `meter` what was read."""
    buffer = memoryview(bytearray(HASH_CHUNK))
    with received.opened(path) as file:
        digest = new_digest(blob, os.fstat(file.fileno()).st_size)
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if meter:
                meter.add(count)
    return str(digest.hexdigest())
