# SPDX-License-Identifier: Apache-2.0
"""Writes what a plan lists. Whatever interrupts it, a file under a valid name is whole.

A file is written under a temporary name in its own folder, hashed on the way, and renamed; blobs come first and refs
last, so a half copy never resolves.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..common import durable
from ..common.meter import Meter
from . import layout, snapshot
from .fetch_plan import Plan
from .fetch_source import Source
from .files import (
    FILE_MODE,
    FetchError,
    device_of,
    explained,
    give,
    make_folder,
    owner_of,
    write_text,
)
from .layout import Repository
from .manifest import Entry, blob_hash, new_digest
from .snapshot import Report

COPY_CHUNK = 4 << 20
COPY_WORKERS = 4
"""Files copied at a time: one stream does not fill an NVMe drive or a network mount, more than a few only seek."""


def _write_link(repository: Repository, commit: str, entry: Entry, owner: tuple[int, int] | None) -> None:
    link = repository.snapshot(commit) / entry.path
    make_folder(link.parent, owner)
    temporary = link.with_name(f".{link.name}.tmp")
    with explained(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to("../" * (2 + entry.path.count("/")) + f"blobs/{entry.blob}")
        give(temporary, owner)
        temporary.replace(link)


def _write_blob(blobs: Path, entry: Entry, source: Source, owner: tuple[int, int] | None, meter: Meter) -> str:
    """Copy (or move) one blob, hashed on the way and renamed to its name only when whole and right; return the name."""
    blob = blobs / str(entry.blob)
    temporary = blob.with_name(f".{entry.blob}{layout.PART_SUFFIX}")
    origin = source.find(entry)
    with explained(blob):
        try:
            if source.move and device_of(origin) == device_of(blob.parent):
                got = blob_hash(origin, blob.name, meter)
                if got == blob.name:
                    origin.replace(temporary)
            else:
                got = _copy(origin, temporary, blob.name, meter)
            if got != blob.name:
                if source.move:  # a staging area: left there, the next run would not bring it again
                    origin.unlink()
                raise FetchError(
                    f"{entry.path} of the source {source.label} is corrupt: {origin} hashes to {got}, "
                    f"expected {blob.name}; it was not taken over. Repair the source and run again.",
                    "weights_corrupt",
                )
            temporary.chmod(FILE_MODE)
            give(temporary, owner)
            durable.settle(temporary, blob)  # however it came: later checks look at its size alone
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return blob.name


def _copy(origin: Path, temporary: Path, blob: str, meter: Meter) -> str:
    """Copy the content into a file of its own (never a hard link: the source stays its owner's) and return its hash."""
    buffer = memoryview(bytearray(COPY_CHUNK))
    with origin.open("rb", buffering=0) as reader, temporary.open("wb", buffering=0) as writer:
        digest = new_digest(blob, os.fstat(reader.fileno()).st_size)
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            done = 0
            while done < count:
                done += writer.write(buffer[done:count])
            meter.add(count)
    return str(digest.hexdigest())


def apply(repository: Repository, plan: Plan, source: Source, meter: Meter) -> None:
    """Write what `plan` lists. Raises FetchError; what was finished until then stays and is not fetched again."""
    owner, blobs = owner_of(repository.cache), repository.blobs
    prepare(repository, plan, owner)
    meter.begin("hashing" if source.move else "copying", sum(entry.size or 0 for entry in plan.blobs))
    # The largest first: the last thread then ends with something short.
    queue = sorted(plan.blobs, key=lambda entry: -(entry.size or 0))
    with ThreadPoolExecutor(max_workers=min(COPY_WORKERS, os.cpu_count() or 1)) as pool:
        pending = [pool.submit(_write_blob, blobs, entry, source, owner, meter) for entry in queue]
        try:
            for job in pending:
                plan.written.append(job.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    write_tree_links_refs(repository, plan)


def prepare(repository: Repository, plan: Plan, owner: tuple[int, int] | None) -> None:
    """Make the folder of blobs, and remove what `plan` has to remove. Raises FetchError."""
    with explained(repository.folder):
        make_folder(repository.blobs, owner)
        for name in plan.remove:
            (repository.cache / name).unlink(missing_ok=True)


def write_tree_links_refs(repository: Repository, plan: Plan) -> None:
    """Write the part of a plan that makes blobs a snapshot, in the order in which a half copy never resolves."""
    owner = owner_of(repository.cache)
    if plan.tree:
        write_text(repository.tree(plan.commit), plan.tree, owner)
    for entry in plan.links:
        _write_link(repository, plan.commit, entry, owner)
    for folder in {(repository.snapshot(plan.commit) / entry.path).parent for entry in plan.links}:
        with explained(folder), durable.opened(folder) as handle:
            durable.sync_folder(handle)
    for name in plan.refs:
        write_text(repository.refs / name, plan.commit, owner)


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
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text, owner_of(repository.cache))


def remove(cache: Path, plan: Plan) -> None:
    """Remove what a plan lists: the refs first, so that nothing resolves to a half-removed snapshot."""
    for name in sorted(plan.remove, key=lambda item: "/refs/" not in item):
        path = cache / name
        with explained(path):
            if path.is_dir() and not path.is_symlink():
                refs = path / "refs"
                if refs.is_dir():
                    shutil.rmtree(refs)
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
