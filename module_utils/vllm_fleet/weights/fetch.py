"""Brings one snapshot into a Hugging Face cache, or takes it out: what each state of the module hf_snapshot does.

A plan is made by reading only and says exactly what will be written, so check mode is the plan without `apply`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.meter import Meter
from . import layout, snapshot
from .fetch_apply import apply, refresh_marker, remove
from .fetch_plan import Plan, plan_absent, plan_present, plan_pruned
from .fetch_source import (
    Source,
    blobs_source,
    cache_source,
    filled,
    held_revisions,
    own_source,
    refs_to,
)
from .files import (
    FetchError,
    allocated_below,
    check_cache,
    check_space,
    locked,
    owner_of,
)
from .hub import Client, apply_hub, hub_source
from .manifest import Manifest, given_manifest
from .snapshot import Report


@dataclass(frozen=True)
class Wish:
    """What is asked for: the options of the module hf_snapshot, parsed."""

    cache: Path
    repo_id: str
    revision: str
    source: str | None = None
    manifest: dict[str, Any] | None = None
    move: bool = False
    verify: str = "quick"
    create: bool = True
    margin: int = 1 << 30
    keep: tuple[str, ...] = ()
    client: Client = field(default_factory=Client)
    dry: bool = False
    meter: Meter = field(default_factory=Meter)


@dataclass
class Outcome:
    """What was found and done; filled step by step, so that a failure tells as much as a success."""

    report: Report
    plan: Plan = field(default_factory=Plan)
    wanted: list[str] | None = None
    owner: tuple[int, int] | None = None
    changed: bool = False
    hashed_now: bool = False
    """All contents were hashed in this very run, on their way in or where they lay."""
    revision: str = ""
    """What was asked for; the report may be one of a commit that it stands for."""

    def result(self, *, with_manifest: bool) -> dict[str, Any]:
        """Return the module's result without its diff."""
        report = self.report
        result: dict[str, Any] = {
            "changed": self.changed,
            "repo_id": report.repo_id,
            "revision": self.revision or report.revision,
            "commit": report.commit,
            "path": report.path,
            "bytes": report.bytes,
            "files": report.files,
            "complete": report.complete,
            "missing": report.missing,
            "corrupt": report.corrupt,
            "problems": [{"file": item.file, "kind": item.kind, "detail": item.detail} for item in report.problems],
            "litter": report.litter,
            "notes": report.notes + self.plan.notes,
            "actions": self.plan.actions() if self.changed else [],
            "hashed": report.hashed,
            "hashed_now": self.hashed_now,
        }
        if self.wanted is not None:
            result["wanted"] = self.wanted
        if self.owner is not None:
            result["belongs_to"] = {"uid": self.owner[0], "gid": self.owner[1]}
        if with_manifest and report.complete and report.manifest and report.path:
            result["manifest"] = export(Path(report.path), report)
        return result

    def diff(self) -> dict[str, Any]:
        """Return before and after: only the files that change."""
        lines = self.plan.lines() if self.changed else []
        gone = sorted(self.plan.remove) if self.changed else []
        return {
            "before_header": self.report.path or self.report.repo_id,
            "after_header": self.report.path or self.report.repo_id,
            "before": "".join(f"{line}\n" for line in gone),
            "after": "".join(f"{line}\n" for line in lines),
        }


def export(root: Path, report: Report) -> dict[str, Any]:
    """Return the file list of a complete snapshot at `root` in the form that travels to another machine."""
    manifest = snapshot.without_copies(report.manifest or Manifest("", (), "links"))
    absent = set(report.optional)
    entries = tuple(filled(entry, root) for entry in manifest.entries if entry.path not in absent)
    # Without all of its files the list is not the repository's own, see cache_source.
    origin = "links" if absent else manifest.origin
    refs = refs_to(root.parents[1], manifest.commit)
    return {
        "commit": manifest.commit,
        "origin": origin,
        "refs": list(refs),
        "files": Manifest(manifest.commit, entries, origin).as_files(),
    }


def _given(wish: Wish) -> tuple[Manifest, tuple[str, ...]] | None:
    if wish.manifest is None:
        return None
    try:
        commit, files = str(wish.manifest["commit"]), dict(wish.manifest["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise FetchError(
            "The manifest must have the keys commit and files, as hf_snapshot returns it with with_manifest.",
            "bad_argument",
        ) from error
    if not layout.is_commit(commit) or (layout.is_commit(wish.revision) and commit != wish.revision):
        raise FetchError(f"The manifest is of commit {commit}, expected {wish.revision}.", "bad_argument")
    origin = "tree" if wish.manifest.get("origin") == "tree" else "links"
    manifest = replace(given_manifest(commit, files), origin=origin)
    refs = tuple(str(name) for name in wish.manifest.get("refs") or ())
    for name in refs:
        layout.check_revision(name)
    return manifest, refs


def _incomplete(wish: Wish, report: Report, hint: str) -> FetchError:
    """Say why a snapshot is not usable; a model that is not there at all gets the nearest names instead."""
    if report.manifest is None:
        known = layout.known_repos(wish.cache)
        near = layout.nearest(wish.repo_id, [name for name in known if name != wish.repo_id])
        if wish.repo_id in known:
            held = ", ".join(held_revisions(layout.repo_folder(wish.cache, wish.repo_id)))
            has = f" at revision {wish.revision}; it has {held}"
        else:
            has = f"; the nearest it has is {', '.join(near)}" if near else ""
        return FetchError(f"Cache {wish.cache} does not have {wish.repo_id}{has}; {hint}.", "cache_incomplete")
    return FetchError(f"Cache {wish.cache}: {report.sentence()} To repair: {hint}.", report.failure)


def verified(wish: Wish, outcome: Outcome) -> None:
    """Look only. Fill `outcome`; raise FetchError when the snapshot is not complete.

    With a manifest, `wanted` names the blobs that would have to be brought here, and the disk must have room for
    them; what lies in the staging area `source` already needs none.
    """
    _check_names(wish)
    given = _given(wish)
    check_cache(wish.cache, create=wish.create, write=given is not None)
    revision = given[0].commit if given else wish.revision
    manifest = given[0] if given else None
    outcome.report = snapshot.inspect(
        wish.cache, wish.repo_id, revision, wish.verify, manifest=manifest, meter=wish.meter
    )
    if given:
        source = Source("", given[0], lambda entry: Path())
        plan = plan_present(wish.cache, outcome.report, source, revision=revision, verify=wish.verify)
        outcome.wanted = [str(entry.blob) for entry in plan.blobs]
        outcome.owner = owner_of(wish.cache) or (os.geteuid(), os.getegid())
        staged = allocated_below(Path(wish.source)) if wish.source else 0
        check_space(wish.cache, max(0, sum(entry.size or 0 for entry in plan.blobs) - staged), wish.margin)
    if not outcome.report.complete:
        raise _incomplete(wish, outcome.report, "run hf_snapshot with state present and a source")


def _check_names(wish: Wish) -> None:
    layout.check_repo_id(wish.repo_id)
    layout.check_revision(wish.revision)


def _open_source(wish: Wish) -> Source | None:
    given = _given(wish)
    if wish.source is None:
        return None
    if wish.source == "hub":
        return hub_source(wish.cache, wish.repo_id, wish.revision, wish.client, wish.meter)
    path = Path(wish.source).expanduser()
    if not path.is_absolute():
        raise FetchError(f"Source {wish.source!r} is neither 'hub' nor an absolute path.", "bad_argument")
    if given:
        # In check mode nobody has filled the staging area yet.
        check_cache(path, create=wish.dry, write=False)
        return blobs_source(path, given[0], refs=given[1], move=wish.move)
    return cache_source(path, wish.repo_id, wish.revision, wish.cache)


def _plan(wish: Wish, outcome: Outcome) -> Source | None:
    """Find out what is there and what to do; the source is opened only when contents are needed from it."""
    given = _given(wish)
    manifest = given[0] if given else None
    outcome.report = report = snapshot.inspect(
        wish.cache, wish.repo_id, wish.revision, wish.verify, manifest=manifest, meter=wish.meter
    )
    source = own_source(wish.cache, report)
    if source:
        outcome.plan = plan_present(wish.cache, report, source, revision=wish.revision, verify=wish.verify)
    if report.complete or (source and not outcome.plan.blobs):
        return source
    outcome.plan = Plan()
    source = _open_source(wish)
    if source is None:
        raise _incomplete(wish, report, "give a source to bring it in from")
    found = snapshot.inspect(
        wish.cache, wish.repo_id, source.manifest.commit, wish.verify, manifest=source.manifest, meter=wish.meter
    )
    outcome.report = found
    outcome.plan = plan_present(wish.cache, found, source, revision=wish.revision, verify=wish.verify)
    return source


def present(wish: Wish, outcome: Outcome) -> None:
    """Bring in what is missing or wrong, or with `wish.dry` only say what that would be. Fill `outcome`.

    Raises FetchError before anything is written for a path, a source or a disk that will not do.
    """
    _check_names(wish)
    check_cache(wish.cache, create=wish.create, write=not wish.cache.exists())
    source = _plan(wish, outcome)
    if not outcome.plan or source is None:
        if not wish.dry:
            refresh_marker(wish.cache, outcome.report)
        return
    check_cache(wish.cache, create=wish.create, write=True)
    check_space(wish.cache, outcome.plan.copy_bytes, wish.margin)
    if wish.dry:
        outcome.changed = outcome.plan.done = outcome.report.complete = True
        return
    wish.meter.begin("waiting for whoever else writes into this cache")
    with locked(wish.cache) as waited:
        if waited:
            source = _plan(wish, outcome)
            if not outcome.plan or source is None:
                return
        outcome.changed = True
        if source.label == "hub":
            apply_hub(wish.cache, wish.repo_id, outcome.plan, wish.client, wish.meter)
        else:
            apply(wish.cache, wish.repo_id, outcome.plan, source, wish.meter)
        outcome.plan.done = True
        _conclude(wish, outcome, source)


def _conclude(wish: Wish, outcome: Outcome, source: Source) -> None:
    """Look again after writing, and leave the marker when all contents went through the hash."""
    before = outcome.report
    revision = wish.revision if not layout.is_commit(wish.revision) else source.manifest.commit
    outcome.report = snapshot.inspect(wish.cache, wish.repo_id, revision, manifest=source.manifest)
    if not outcome.report.complete:
        raise _incomplete(wish, outcome.report, "something else writes into this cache; run again")
    written = {entry.blob for entry in outcome.plan.blobs}
    everything = all(entry.blob in written for entry in source.manifest.entries)
    outcome.hashed_now = everything or wish.verify == "full"
    outcome.report.hashed = outcome.report.hashed or outcome.hashed_now or before.hashed
    refresh_marker(wish.cache, outcome.report)


def absent(wish: Wish, outcome: Outcome) -> None:
    """Take one snapshot out, or with `wish.dry` only say what would go. Fill `outcome`."""
    _check_names(wish)
    if not wish.cache.is_absolute() or not wish.cache.exists():
        check_cache(wish.cache, create=True, write=False)
        return
    check_cache(wish.cache, create=False, write=False)
    outcome.plan = plan_absent(wish.cache, wish.repo_id, wish.revision)
    outcome.report.commit = outcome.plan.commit or None
    if not outcome.plan:
        return
    check_cache(wish.cache, create=False, write=True)
    outcome.changed = outcome.plan.done = True
    if not wish.dry:
        with locked(wish.cache):
            remove(wish.cache, plan_absent(wish.cache, wish.repo_id, wish.revision))


def pruned(wish: Wish, outcome: Outcome) -> None:
    """Take out what is neither `wish.revision`, nor in `wish.keep`, nor the newest of the rest. Fill `outcome`.

    Raises FetchError unless what is to be kept is there whole: nothing goes that might be the last good one.
    """
    verified(wish, outcome)
    keep = {*wish.keep, str(outcome.report.commit)}
    outcome.plan = plan_pruned(wish.cache, wish.repo_id, keep)
    if not outcome.plan:
        return
    check_cache(wish.cache, create=False, write=True)
    outcome.changed = outcome.plan.done = True
    if not wish.dry:
        with locked(wish.cache):
            remove(wish.cache, plan_pruned(wish.cache, wish.repo_id, keep))
