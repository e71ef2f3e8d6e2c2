# SPDX-License-Identifier: Apache-2.0
"""What is to be written into a cache, or removed, found out by reading only: check mode is the plan, not applied."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..common import received
from . import layout, snapshot
from .fetch_source import Source, refs_to
from .files import device_of
from .layout import Repository
from .manifest import Entry, blob_hash, tree_json, tree_manifest
from .owner import nearest_existing
from .snapshot import Report

BLOCK = 4096
"""Bytes that a file system gives out at least; many small files take more than the sum of their sizes."""


@dataclass
class Plan:
    """What will be written (or removed), all paths relative to the cache; empty when nothing is to be done."""

    blobs: list[Entry] = field(default_factory=list)
    links: list[Entry] = field(default_factory=list)
    tree: str | None = None
    refs: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    commit: str = ""
    copy_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    """Blobs finished by `apply`; all of the plan is, once `done` is set."""
    done: bool = False

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return bool(self.blobs or self.links or self.tree or self.refs or self.remove)

    def actions(self) -> list[str]:
        """Return what the plan does, in a few lines."""
        if not self.done:
            return [f"write {len(self.written)} of {len(self.blobs)} blobs, then stop"]
        said = []
        if self.blobs:
            said.append(f"write {len(self.blobs)} blobs, {sum(entry.size or 0 for entry in self.blobs)} bytes")
        if self.tree:
            said.append(f"write trees/{self.commit}.json")
        if self.links:
            said.append(f"link {len(self.links)} files in snapshots/{self.commit}")
        said += [f"write refs/{name}" for name in self.refs]
        if self.remove:
            said.append(f"remove {len(self.remove)} files")
        return said

    def lines(self) -> list[str]:
        """Return every file that the plan writes, a line each, for a diff."""
        said = [f"blobs/{entry.blob} {entry.size} bytes" for entry in self.blobs]
        if self.tree:
            said.append(f"trees/{self.commit}.json")
        said += [f"snapshots/{self.commit}/{entry.path} -> blobs/{entry.blob}" for entry in self.links]
        said += [f"refs/{name} {self.commit}" for name in self.refs]
        return sorted(said)


def plan_present(report: Report, source: Source, *, revision: str, verify: str) -> Plan:
    """Return what to write so that the cache holds what `source` has.

    `report` must be of the source's commit, made with the source's manifest; `revision` is what the user asked for
    and becomes a ref when it is a name.
    """
    manifest = source.manifest
    repository = report.repository
    blobs, root = repository.blobs, repository.snapshot(manifest.commit)
    faults = {problem.file: problem.kind for problem in report.problems}
    optional = set(report.optional)
    plan = Plan(commit=manifest.commit)
    seen: set[str] = set()
    for entry in manifest.entries:
        link = root / entry.path
        kind = faults.get(entry.path)
        if entry.path in optional or (kind is None and os.path.lexists(link)):
            continue
        if not _is_link_to(link, blobs / str(entry.blob)):
            plan.links.append(entry)
        if str(entry.blob) in seen:
            continue
        seen.add(str(entry.blob))
        content_wrong = kind in ("truncated", "wrong_size", "wrong_hash", "unreadable", "not_a_file", "index")
        if content_wrong or not _blob_usable(blobs / str(entry.blob), entry, verify):
            plan.blobs.append(entry)
    tree = repository.tree(manifest.commit)
    wrong_list = snapshot.WRONG_LIST in faults.values()
    if manifest.origin == "tree" and not optional and (wrong_list or not _tree_usable(tree, manifest.commit)):
        plan.tree = tree_json(manifest)
    plan.refs = _plan_refs(repository, revision, manifest.commit, source.refs)
    if plan.blobs or plan.links:
        plan.remove = _stale_litter(repository, report.litter)
    if (optional or (wrong_list and not plan.tree)) and os.path.lexists(tree):
        # Offline huggingface_hub, and so vLLM, refuses a snapshot that lacks a file of this list.
        plan.remove.append(repository.relative(tree))
    device = nearest_existing(blobs).stat().st_dev
    plan.copy_bytes = sum(
        -(-(entry.size or 0) // BLOCK) * BLOCK
        for entry in plan.blobs
        if not (source.move and device_of(source.find(entry)) == device)
    )
    # Files that no server reads go in first: should this be interrupted, what is left undone is then noticed.
    plan.links.sort(key=lambda entry: (not snapshot.is_unread(entry.path), entry.path))
    return plan


def _plan_refs(repository: Repository, revision: str, commit: str, names: tuple[str, ...]) -> list[str]:
    """Return the refs to write: the revision asked for by name; those of the source that are absent or spoilt here.

    A ref of this cache that stands for another commit is the user's and stays.
    """
    wanted = []
    for name in sorted({*names, *([] if layout.is_commit(revision) else [revision])}):
        try:
            content = received.content(repository.refs / name, layout.LONGEST_REF)
        except OSError:
            content = b""
        if content != commit.encode() and (name == revision or content.strip() in (b"", commit.encode())):
            wanted.append(name)
    return wanted


def _is_link_to(link: Path, blob: Path) -> bool:
    try:
        target = link.readlink()
    except OSError:
        return False
    return os.path.normpath(link.parent / target) == os.path.normpath(blob)


def _blob_usable(blob: Path, entry: Entry, verify: str) -> bool:
    try:
        if not blob.is_file() or blob.stat().st_size != entry.size:
            return False
        return verify != "full" or blob_hash(blob, blob.name) == blob.name
    except OSError:
        return False


def _tree_usable(tree: Path, commit: str) -> bool:
    try:
        tree_manifest(received.content(tree), commit)
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _stale_litter(repository: Repository, litter: list[str]) -> list[str]:
    """Return the leftovers that no process writes: huggingface_hub holds a lock per blob while it downloads it."""
    stale = []
    for name in litter:
        blob = Path(name).name.lstrip(".").split(".")[0]
        lock = repository.locks / f"{blob}.lock"
        if name.endswith(layout.PART_SUFFIX) or not _held(lock):
            stale.append(name)
    return stale


def _held(lock: Path) -> bool:
    try:
        with lock.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def plan_absent(repository: Repository, revision: str) -> Plan:
    """Return what belongs to one snapshot and to no other: links, file list, refs, marker, blobs.

    Payloads in the store that repositories share stay (`hf cache prune` knows whether another one needs them).
    """
    commit, _fault = snapshot.resolve(repository, revision)
    if commit is None:
        return Plan()
    root = repository.snapshots
    mine = _blobs_of(root / commit)
    others: set[str] = set()
    alone = True
    if root.is_dir():
        for folder in root.iterdir():
            if folder.name != commit:
                alone = False
                others |= _blobs_of(folder)
    paths = [*_paths_of(repository, commit), repository.staging / commit]
    paths += [repository.blobs / name for name in sorted(mine - others)]
    if alone and (root / commit).exists():
        paths = [repository.folder, repository.locks, repository.markers]
    plan = Plan(commit=commit, remove=[repository.relative(path) for path in paths if os.path.lexists(path)])
    if shared := [name for name in mine - others if (repository.blobs / name).is_symlink()]:
        plan.notes.append(
            f"{len(shared)} payload(s) in the store that repositories share are left; `hf cache prune` frees them."
        )
    return plan


def plan_pruned(repository: Repository, keep: set[str]) -> Plan:
    """Return what belongs to snapshots of a repository that are not in `keep`, except the newest of these.

    That one is what was served before, or what a failed roll-out left: going back must not need a download.
    What is wanted is there, so anything still in the staging folder is left of a run that was not resumed.
    """
    root = repository.snapshots
    found = sorted(root.iterdir(), key=lambda path: path.stat().st_mtime) if root.is_dir() else []
    old = [path for path in found if path.name not in keep][:-1]
    kept: set[str] = set()
    for path in found:
        if path not in old:
            kept |= _blobs_of(path)
    gone: set[str] = set()
    paths: list[Path] = []
    for path in old:
        gone |= _blobs_of(path)
        paths += _paths_of(repository, path.name)
    paths += [repository.blobs / name for name in sorted(gone - kept)]
    paths.append(repository.staging)
    remove = [repository.relative(path) for path in paths if os.path.lexists(path)]
    return Plan(commit=", ".join(path.name for path in old), remove=remove)


def _paths_of(repository: Repository, commit: str) -> list[Path]:
    """Return what one snapshot has for itself, without its blobs."""
    refs = [repository.refs / name for name in refs_to(repository, commit)]
    own = [repository.snapshot(commit), repository.tree(commit), repository.no_exist(commit)]
    return [*own, *refs, repository.marker(commit)]


def _blobs_of(folder: Path) -> set[str]:
    names = set()
    for base, _folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                names.add((Path(base) / name).readlink().name)
    return names
