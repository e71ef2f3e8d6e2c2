# SPDX-License-Identifier: Apache-2.0
"""Brings one snapshot into a Hugging Face cache, or removes it: what each state of the module hf_snapshot does.

A plan is made by reading only and lists exactly what will be written, so check mode is the plan without `apply`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.meter import Meter
from . import layout, snapshot
from .fetch_apply import apply, refresh_marker
from .fetch_apply import remove as remove_planned
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
    remove,
)
from .hub import ASIDE_PATIENCE, Client, apply_hub, hub_source
from .layout import Repository
from .manifest import Manifest, given_manifest
from .snapshot import Report


@dataclass(frozen=True)
class Request:
    """The options of the module hf_snapshot, parsed. `margin` is in bytes, `dry` is check mode."""

    repository: Repository
    revision: str
    source: str | None = None
    manifest: dict[str, Any] | None = None
    move: bool = False
    verify: str = "quick"
    create: bool = True
    margin: int = 1 << 30
    keep: tuple[str, ...] = ()
    digest: str = ""
    client: Client = field(default_factory=Client)
    dry: bool = False
    meter: Meter = field(default_factory=Meter)


@dataclass
class Result:
    """What was found and done; filled step by step, so that a failure reports as much as a success."""

    report: Report
    plan: Plan = field(default_factory=Plan)
    wanted: list[str] | None = None
    changed: bool = False
    hashed_now: bool = False
    """All contents were hashed in this run, on their way in or in place."""
    revision: str = ""
    """The revision of the request; the report may be one of the commit that it stands for."""

    def as_dict(self, *, with_manifest: bool) -> dict[str, Any]:
        """Return the module's result without its diff."""
        report = self.report
        result: dict[str, Any] = {
            "changed": self.changed,
            "repo_id": report.repository.repo_id,
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
            "list_digest": "",
        }
        if report.manifest and report.manifest.origin == "tree":  # other lists may be of a part
            result["list_digest"] = snapshot.list_digest(report.manifest)
        if self.wanted is not None:
            result["wanted"] = self.wanted
        if with_manifest and report.complete and report.manifest and report.path:
            result["manifest"] = export(report)
        return result

    def diff(self) -> dict[str, Any]:
        """Return before and after: only the files that change."""
        lines = self.plan.lines() if self.changed else []
        gone = sorted(self.plan.remove) if self.changed else []
        header = self.report.path or self.report.repository.repo_id
        return {
            "before_header": header,
            "after_header": header,
            "before": "".join(f"{line}\n" for line in gone),
            "after": "".join(f"{line}\n" for line in lines),
        }


def export(report: Report) -> dict[str, Any]:
    """Return the file list of a complete snapshot in the form that travels to another machine."""
    manifest = snapshot.without_copies(report.manifest or Manifest("", (), "links"))
    absent = set(report.optional)
    root = report.repository.snapshot(manifest.commit)
    entries = tuple(filled(entry, root) for entry in manifest.entries if entry.path not in absent)
    # Without all of its files the list is not the repository's own, see cache_source.
    origin = "links" if absent else manifest.origin
    refs = refs_to(report.repository, manifest.commit)
    return {
        "commit": manifest.commit,
        "origin": origin,
        "refs": list(refs),
        "files": Manifest(manifest.commit, entries, origin).as_files(),
    }


def as_listed(report: Report) -> dict[str, Any]:
    """Return the file list of a report in the form that travels, without a look at files."""
    manifest = report.manifest or Manifest("", (), "links")
    return {"commit": manifest.commit, "origin": manifest.origin, "refs": [], "files": manifest.as_files()}


def _given(request: Request) -> tuple[Manifest, tuple[str, ...]] | None:
    if request.manifest is None:
        return None
    try:
        commit, files = str(request.manifest["commit"]), dict(request.manifest["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise FetchError(
            "The manifest must have the keys commit and files, as hf_snapshot returns it with with_manifest.",
            "bad_argument",
        ) from error
    if not layout.is_commit(commit) or (layout.is_commit(request.revision) and commit != request.revision):
        raise FetchError(f"The manifest is of commit {commit}, expected {request.revision}.", "bad_argument")
    origin = "tree" if request.manifest.get("origin") == "tree" else "links"
    manifest = replace(given_manifest(commit, files), origin=origin)
    refs = tuple(str(name) for name in request.manifest.get("refs") or ())
    for name in refs:
        layout.check_revision(name)
    return manifest, refs


def _incomplete(request: Request, report: Report, hint: str) -> FetchError:
    """Return the error for an unusable snapshot; for a model that is absent it names the nearest ones instead."""
    cache, repo_id = request.repository.cache, request.repository.repo_id
    if report.manifest is None:
        known = layout.known_repos(cache)
        near = layout.nearest(repo_id, [name for name in known if name != repo_id])
        if repo_id in known:
            held = ", ".join(held_revisions(request.repository))
            has = f" at revision {request.revision}; it has {held}"
        else:
            has = f"; the nearest it has is {', '.join(near)}" if near else ""
        return FetchError(f"Cache {cache} does not have {repo_id}{has}; {hint}.", "cache_incomplete")
    return FetchError(f"Cache {cache}: {report.sentence()} To repair: {hint}.", report.failure)


def verified(request: Request, result: Result) -> None:
    """Inspect only. Fill `result`; raise FetchError when the snapshot is not complete.

    With a manifest, `wanted` names the blobs that would have to be brought here, and the disk must have room for
    them; what is in the staging area `source` already needs none.
    """
    _check_names(request)
    cache = request.repository.cache
    given = _given(request)
    check_cache(cache, create=request.create, write=given is not None)
    revision = given[0].commit if given else request.revision
    manifest = given[0] if given else None
    result.report = _inspect(request, revision, manifest)
    if given:
        _check_list(request, given[0], "The seed")
        source = Source("", given[0], lambda entry: Path())
        plan = plan_present(result.report, source, revision=revision, verify=request.verify)
        result.wanted = [str(entry.blob) for entry in plan.blobs]
        staged = allocated_below(Path(request.source)) if request.source else 0
        check_space(cache, max(0, sum(entry.size or 0 for entry in plan.blobs) - staged), request.margin)
    if not result.report.complete:
        hint = "run hf_snapshot with state present and a source"
        if result.report.manifest is None:
            at = "" if request.revision in ("", "main") else f" --revision {request.revision}"
            hint = f"download it there (`hf download {request.repository.repo_id}{at}`), or set hf_cache_source: hub"
        raise _incomplete(request, result.report, hint)


def _check_list(request: Request, manifest: Manifest, where: str) -> None:
    """Raise FetchError where a file list is pinned and this is another one."""
    if request.digest and (got := snapshot.list_digest(manifest)) != request.digest:
        raise FetchError(
            f"{where} lists other files of {request.repository.repo_id} at {manifest.commit} than the pinned ones: "
            f"their digest is {got}, expected {request.digest}. Nothing was written. Find out which is wrong.",
            "weights_corrupt",
        )


def listed(request: Request, result: Result) -> None:
    """Ask the Hub, once and not for long, which files a revision has, and touch no cache. Raises FetchError.

    All of them: a cache that others have filled may hold the copies of the weights and nothing else.
    """
    _check_names(request)
    client = replace(request.client, patience=ASIDE_PATIENCE)
    source = hub_source(request.repository, request.revision, client, request.meter, tries=1, copies=True)
    _check_list(request, source.manifest, "The Hub")
    result.report.commit, result.report.manifest = source.manifest.commit, source.manifest


def _check_names(request: Request) -> None:
    layout.check_repo_id(request.repository.repo_id)
    layout.check_revision(request.revision)


def _open_source(request: Request) -> Source | None:
    given = _given(request)
    if request.source is None:
        return None
    if request.source == "hub":
        return hub_source(request.repository, request.revision, request.client, request.meter)
    path = Path(request.source).expanduser()
    if not path.is_absolute():
        raise FetchError(f"Source {request.source!r} is neither 'hub' nor an absolute path.", "bad_argument")
    if given:
        # In check mode the staging area is not filled yet.
        check_cache(path, create=request.dry, write=False)
        return blobs_source(path, given[0], refs=given[1], move=request.move)
    return cache_source(path, request.repository, request.revision)


def _plan(request: Request, result: Result) -> Source | None:
    """Inspect the snapshot and plan what to do; the source is opened only when contents are needed from it."""
    given = _given(request)
    result.report = report = _inspect(request, request.revision, given[0] if given else None)
    wrong_list = any(problem.kind == snapshot.WRONG_LIST for problem in report.problems)
    source = None if wrong_list else own_source(report)
    if source:
        result.plan = plan_present(report, source, revision=request.revision, verify=request.verify)
    if report.complete or (source and not result.plan.blobs):
        return source
    result.plan = Plan()
    source = _open_source(request)
    if source is None:
        raise _incomplete(request, report, "give a source to bring it in from")
    _check_list(request, source.manifest, f"Source {source.label}")
    if not _answers_for(report, source.manifest):
        result.report = report = _inspect(request, source.manifest.commit, source.manifest)
    result.plan = plan_present(report, source, revision=request.revision, verify=request.verify)
    return source


def _inspect(request: Request, revision: str, manifest: Manifest | None) -> Report:
    return snapshot.inspect(
        request.repository, revision, request.verify, manifest=manifest, meter=request.meter, digest=request.digest
    )


def _answers_for(report: Report, manifest: Manifest) -> bool:
    """Return whether another inspection, by the commit and with the list of the source, would find the same.

    It would where the list was the repository's own (it goes before any other) or this very one, and no ref was wrong.
    """
    judged = report.manifest
    if judged is None or judged.commit != manifest.commit or f"refs/{report.revision}" in report.corrupt:
        return False
    return judged.origin == "tree" or judged == manifest


def present(request: Request, result: Result) -> None:
    """Bring in what is missing or wrong, or with `request.dry` only plan it. Fill `result`.

    The files of the snapshot are inspected once before anything is written, and once more after it: what was written
    is judged as a server will find it. Before the writing there is a second time only where the source has a better
    list than links and weight index, and where another run held the lock and may have changed what was found.

    Of a staging area (`move`), nothing is left when all is in place.

    Raises FetchError before anything is written for a path, a source or a disk that will not do.
    """
    _present(request, result)
    if request.move and not request.dry:
        try:
            remove(request.repository.staging)  # with what of other commits was begun there and not finished
        except OSError as error:  # what an earlier version received as root
            result.plan.notes.append(f"{error.filename} is left of an earlier run and can be removed by root alone.")


def _present(request: Request, result: Result) -> None:
    _check_names(request)
    cache = request.repository.cache
    check_cache(cache, create=request.create, write=not cache.exists())
    source = _plan(request, result)
    if not result.plan or source is None:
        if not request.dry:
            refresh_marker(result.report)
        return
    check_cache(cache, create=request.create, write=True)
    check_space(cache, result.plan.copy_bytes, request.margin)
    if request.dry:
        result.changed = result.plan.done = result.report.complete = True
        return
    request.meter.begin("waiting for another run that writes into this cache")
    with locked(cache) as waited:
        if waited:
            source = _plan(request, result)
            if not result.plan or source is None:
                return
        result.changed = True
        if source.label == "hub":
            apply_hub(request.repository, result.plan, request.client, request.meter)
        else:
            apply(request.repository, result.plan, source, request.meter)
        result.plan.done = True
        _conclude(request, result, source)


def _conclude(request: Request, result: Result, source: Source) -> None:
    """Inspect again after writing, and leave the marker when all contents went through the hash. Raises FetchError."""
    before = result.report
    revision = request.revision if not layout.is_commit(request.revision) else source.manifest.commit
    result.report = snapshot.inspect(request.repository, revision, manifest=source.manifest, digest=request.digest)
    if not result.report.complete:
        raise _incomplete(request, result.report, "something else writes into this cache; run again")
    written = {entry.blob for entry in result.plan.blobs}
    everything = all(entry.blob in written for entry in source.manifest.entries)
    result.hashed_now = everything or request.verify == "full"
    result.report.hashed = result.report.hashed or result.hashed_now or before.hashed
    refresh_marker(result.report)


def absent(request: Request, result: Result) -> None:
    """Remove one snapshot, or with `request.dry` only list what would go. Fill `result`. Raises FetchError."""
    _check_names(request)
    cache = request.repository.cache
    if not cache.is_absolute() or not cache.exists():
        check_cache(cache, create=True, write=False)
        return
    check_cache(cache, create=False, write=False)
    result.plan = plan_absent(request.repository, request.revision)
    result.report.commit = result.plan.commit or None
    if not result.plan:
        return
    check_cache(cache, create=False, write=True)
    result.changed = result.plan.done = True
    if not request.dry:
        with locked(cache):
            remove_planned(cache, plan_absent(request.repository, request.revision))


def pruned(request: Request, result: Result) -> None:
    """Remove what is neither `request.revision`, nor in `request.keep`, nor the newest of the rest. Fill `result`.

    Raises FetchError unless what is to be kept is there whole: nothing goes that might be the last good one.
    """
    verified(request, result)
    cache = request.repository.cache
    keep = {*request.keep, str(result.report.commit)}
    result.plan = plan_pruned(request.repository, keep)
    if not result.plan:
        return
    check_cache(cache, create=False, write=True)
    result.changed = result.plan.done = True
    if not request.dry:
        with locked(cache):
            remove_planned(cache, plan_pruned(request.repository, keep))
