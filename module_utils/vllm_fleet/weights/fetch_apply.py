# SPDX-License-Identifier: Apache-2.0
"""Writes what a plan lists. Whatever interrupts it, a file under a valid name is whole.

A file is written under a temporary name in its own folder, hashed on the way, and renamed; blobs come first and refs
last, so a half copy never resolves.
"""

from __future__ import annotations

import contextlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from ..common import durable, received
from ..common.meter import Meter
from . import layout, snapshot
from .fetch_plan import Plan
from .fetch_source import Source
from .files import FILE_MODE, FetchError, explained, make_folder, write_text
from .files import remove as remove_path
from .layout import Repository
from .manifest import Entry, new_digest
from .owner import opened
from .snapshot import Report

COPY_CHUNK = 4 << 20
COPY_WORKERS = 4
"""Files copied at a time: one stream does not fill an NVMe drive or a network mount, more than a few only seek."""


def _write_link(repository: Repository, commit: str, entry: Entry) -> None:
    link = repository.snapshot(commit) / entry.path
    target = "../" * (2 + entry.path.count("/")) + f"blobs/{entry.blob}"
    part = f".{os.urandom(6).hex()}.part"
    with explained(link):
        make_folder(link.parent)
        with opened(link.parent) as folder:
            os.symlink(target, part, dir_fd=folder)
            try:
                os.rename(part, link.name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(part, dir_fd=folder)
                raise


def _write_blob(folder: int, entry: Entry, source: Source, meter: Meter) -> str:
    """Copy (or move) one blob, hashed on the way and renamed to its name only when whole and right; return the name.

    `folder` is the opened folder of blobs.
    """
    name = str(entry.blob)
    part = f".{name}.{os.urandom(3).hex()}{layout.PART_SUFFIX}"
    origin = source.find(entry)
    with explained(Path(name)):
        try:
            if source.move and _movable(origin, folder):
                os.rename(origin, part, dst_dir_fd=folder)
                handle = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                with open(handle, "rb", buffering=0) as file:  # noqa: PTH123  a handle, not a path
                    got = _hash(file, name, meter)
                    _settle(file)
            else:
                with origin.open("rb", buffering=0) as reader, _new(part, folder) as writer:
                    got = _hash(reader, name, meter, writer)
                    _settle(writer)
            if got != name:
                if source.move:  # a staging area: left there, the next run would not bring it again
                    origin.unlink(missing_ok=True)
                raise FetchError(
                    f"{entry.path} of the source {source.label} is corrupt: {origin} hashes to {got}, "
                    f"expected {name}; it was not taken over. Repair the source and run again.",
                    "weights_corrupt",
                )
            os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            durable.sync_folder(folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
            raise
    return name


def _movable(origin: Path, folder: int) -> bool:
    """Return whether a staged file can be renamed into a folder and be this user's there: a file, no link to one."""
    found = origin.lstat()
    mine = found.st_uid == os.geteuid() and found.st_nlink == 1
    return stat.S_ISREG(found.st_mode) and mine and found.st_dev == os.fstat(folder).st_dev


def _new(name: str, folder: int) -> FileIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return FileIO(os.open(name, flags, FILE_MODE, dir_fd=folder), "wb")


def _settle(file: FileIO) -> None:
    os.fchmod(file.fileno(), FILE_MODE)
    os.fsync(file.fileno())  # however it came: later checks look at its size alone


def _hash(reader: FileIO, blob: str, meter: Meter, writer: FileIO | None = None) -> str:
    """Return the hash of a content; with `writer` it is copied (never a hard link: the source stays its owner's)."""
    buffer = memoryview(bytearray(COPY_CHUNK))
    digest = new_digest(blob, os.fstat(reader.fileno()).st_size)
    while count := reader.readinto(buffer):
        digest.update(buffer[:count])
        done = 0
        while writer and done < count:
            done += writer.write(buffer[done:count])
        meter.add(count)
    return str(digest.hexdigest())


def apply(repository: Repository, plan: Plan, source: Source, meter: Meter) -> None:
    """Write what `plan` lists. Raises FetchError; what was finished until then stays and is not fetched again."""
    prepare(repository, plan)
    meter.begin("hashing" if source.move else "copying", sum(entry.size or 0 for entry in plan.blobs))
    # The largest first: the last thread then ends with something short.
    queue = sorted(plan.blobs, key=lambda entry: -(entry.size or 0))
    workers = min(COPY_WORKERS, os.cpu_count() or 1)
    with opened(repository.blobs) as folder, ThreadPoolExecutor(max_workers=workers) as pool:
        pending = [pool.submit(_write_blob, folder, entry, source, meter) for entry in queue]
        try:
            for job in pending:
                plan.written.append(job.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    write_tree_links_refs(repository, plan)


def prepare(repository: Repository, plan: Plan) -> None:
    """Make the folder of blobs, and remove what `plan` has to remove. Raises FetchError."""
    with explained(repository.folder):
        make_folder(repository.blobs)
        for name in plan.remove:
            remove_path(repository.cache / name)


def write_tree_links_refs(repository: Repository, plan: Plan) -> None:
    """Write the part of a plan that makes blobs a snapshot, in the order in which a half copy never resolves."""
    if plan.tree:
        write_text(repository.tree(plan.commit), plan.tree)
    for entry in plan.links:
        _write_link(repository, plan.commit, entry)
    for folder in {(repository.snapshot(plan.commit) / entry.path).parent for entry in plan.links}:
        with explained(folder), opened(folder) as handle:
            durable.sync_folder(handle)
    for name in plan.refs:
        write_text(repository.refs / name, plan.commit)


def refresh_marker(report: Report) -> None:
    """Write that the contents of a complete snapshot hash right, unless that is written or not known.

    It saves later runs the hashing and nothing else, so a cache that cannot be written goes without.
    """
    if not (report.complete and report.hashed and report.manifest):
        return
    repository = report.repository
    path = repository.marker(report.manifest.commit)
    with contextlib.suppress(FetchError, OSError):
        text = snapshot.marker_json(repository, report.manifest)
        if not path.exists() or received.content(path) != text.encode():
            write_text(path, text)


def remove(cache: Path, plan: Plan) -> None:
    """Remove what a plan lists: the refs first, so that nothing resolves to a half-removed snapshot."""
    for name in sorted(plan.remove, key=lambda item: "/refs/" not in item):
        path = cache / name
        with explained(path):
            if not path.is_symlink():
                remove_path(path / "refs")
            remove_path(path)
