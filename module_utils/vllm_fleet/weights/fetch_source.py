# SPDX-License-Identifier: Apache-2.0
"""Where the contents of a snapshot come from: another cache, the cache itself, a folder of blobs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..common import received
from . import layout, snapshot
from .files import FetchError, check_cache
from .layout import Repository
from .manifest import Entry, Manifest, blob_hash
from .snapshot import Report

LFS_THRESHOLD = 10 << 20
"""Bytes from which a file of unknown hash gets a sha256 name, as the Hub keeps such files in Large File Storage."""


@dataclass(frozen=True)
class Source:
    """Where contents come from: `find` gives the readable file of an entry; `move` lets it be renamed away.

    `refs` are the names that stand for this commit there, and `label` is what messages call the source.
    """

    label: str
    manifest: Manifest
    find: Callable[[Entry], Path]
    refs: tuple[str, ...] = ()
    move: bool = False


def cache_source(path: Path, target: Repository, revision: str) -> Source:
    """Return another cache on this machine as source of `target`. It must hold the snapshot complete; it is only read.

    Raises FetchError when it does not, naming what is wrong or which models it has.
    """
    repo_id = target.repo_id
    if path.resolve() == target.cache.resolve():
        raise FetchError(
            f"Source {path} is the cache itself; give another folder, or leave the source out to verify only.",
            "bad_argument",
        )
    check_cache(path, create=False, write=False)
    repository = Repository(path, repo_id)
    report = snapshot.inspect(repository, revision)
    if not report.complete or report.manifest is None:
        known = layout.known_repos(path)
        if repo_id in known and not report.files:
            held = ", ".join(held_revisions(repository)) or "none"
            raise FetchError(
                f"Source {path} has {repo_id}, but not at revision {revision}; it has {held}.", "model_not_found"
            )
        if repo_id not in known:
            near = layout.nearest(repo_id, known)
            hint = (
                f"the nearest it has is {', '.join(near)}" if near else f"it has {', '.join(known[:5]) or 'no models'}"
            )
            raise FetchError(f"Source {path} does not have the model {repo_id}; {hint}.", "model_not_found")
        raise FetchError(f"Source {path} cannot be copied from: {report.sentence()}", report.failure)
    root = repository.snapshot(report.manifest.commit)
    absent = set(report.optional)
    listed = snapshot.without_copies(report.manifest)
    entries = [filled(entry, root) for entry in listed.entries if entry.path not in absent]
    # A list made from links is not the repository's own: it must not become a trees file.
    origin = listed.origin if not absent else "links"
    manifest = Manifest(listed.commit, tuple(entries), origin)
    return Source(str(path), manifest, lambda entry: root / entry.path, refs_to(repository, manifest.commit))


def own_source(report: Report) -> Source | None:
    """Return the cache itself: enough where links or refs are spoilt and all contents are there; None without a list.

    A plan made with it must not be applied when it has blobs to write.
    """
    if report.manifest is None or any(entry.blob is None for entry in report.manifest.entries):
        return None
    repository, manifest = report.repository, report.manifest
    return Source(str(repository.cache), manifest, lambda entry: Path(), refs_to(repository, manifest.commit))


def blobs_source(path: Path, manifest: Manifest, *, refs: tuple[str, ...] = (), move: bool = False) -> Source:
    """Return a flat folder of blobs, named by their hashes, with a manifest that came another way."""
    return Source(str(path), manifest, lambda entry: path / str(entry.blob), refs, move)


def filled(entry: Entry, root: Path) -> Entry:
    """Return an entry of a fallback list completed from its file: size, and a blob name if it has none."""
    if entry.size is not None and entry.blob is not None:
        return entry
    path = root / entry.path
    size = path.stat().st_size
    kind = "0" * (64 if size >= LFS_THRESHOLD or path.suffix == ".safetensors" else 40)
    return replace(entry, size=size, blob=entry.blob or blob_hash(path, kind))


def held_revisions(repository: Repository) -> list[str]:
    """Return the commits that a repository has, with the names that stand for them."""
    return [
        f"{path.name} ({', '.join(refs)})" if (refs := refs_to(repository, path.name)) else path.name
        for path in sorted(repository.snapshots.iterdir())
    ]


def refs_to(repository: Repository, commit: str) -> tuple[str, ...]:
    """Return the names under refs that stand for `commit`."""
    found = []
    for path in sorted(repository.refs.rglob("*")):
        with contextlib.suppress(OSError):  # a folder of refs, for one
            if received.content(path, layout.LONGEST_REF).strip() == commit.encode():
                found.append(path.relative_to(repository.refs).as_posix())
    return tuple(found)
