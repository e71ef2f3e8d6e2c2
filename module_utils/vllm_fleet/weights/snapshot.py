# SPDX-License-Identifier: Apache-2.0
"""Is one pinned snapshot of a Hugging Face cache complete, and what is wrong with it if not? Reads files only.

Layout of the cache, as huggingface_hub 2.4.0 writes it (`cache` is what HF_HOME names, its hub is `<cache>/hub`)::

    hub/models--org--name/refs/main            the commit, without a newline
    hub/models--org--name/trees/<commit>.json  the repository's file list with sizes and hashes
    hub/models--org--name/snapshots/<commit>/  one link per file, to ../../blobs/<hash>
    hub/models--org--name/blobs/<hash>         sha256 of a large file, git's sha1 of a small one
    hub/blobs/<2 hex>/<xet hash>               store shared by all repositories; a blob may be a link into it

huggingface_hub itself checks neither sizes nor hashes of what it finds there (a blob cut to 10 bytes passes
`snapshot_download(local_files_only=True)`), so "complete" is decided here.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import math
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import durable, received
from ..common.meter import Meter
from .layout import LONGEST_REF, Repository, SnapshotError, check_repo_id, check_revision, is_commit
from .manifest import (
    BLOB_NAME,
    Entry,
    Manifest,
    blob_hash,
    safe,
    safetensors_size,
    tree_manifest,
)

MARKER_FORMAT = 1

WRONG_LIST = "wrong_list"
"""The kind of problem that a file list is where another one was pinned."""

SMALL_FILE = 1 << 20
"""Without a file list, files up to this many bytes are hashed even by a quick check: sizes prove nothing there."""


# What `vllm serve` does not read when safetensors are there. A cache filled with patterns (vLLM's own download does
# so) lacks these and still serves; they count only as long as nothing else of the snapshot is there.
_UNREAD = (
    "original/*", "metal/*", "*.pth", "*.pt", "*.bin", "*.bin.index.json", "*.gguf", "*.onnx", "*.onnx_data",
    "onnx/*", "*.h5", "*.msgpack", "*.tflite", "*.md", "*.pdf", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg",
    ".gitattributes", ".gitignore", "LICENSE*", "NOTICE*", "figures/*", "assets/*",
)  # fmt: skip

# The same weights once more in other formats, which can make a repository thrice as large: folders, and names of files
# beside safetensors. Elsewhere such a file may be all that there is of a part (2_Dense of a sentence transformer).
_COPY_FOLDERS = ("original", "metal", "onnx", "openvino", "coreml")
_COPIES = (
    "pytorch_model*.bin", "pytorch_model.bin.index.json", "consolidated.*.pth", "*.gguf", "*.onnx", "*.onnx_data",
    "tf_model*.h5", "flax_model*.msgpack", "rust_model.ot", "*.tflite",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One fault: the file of the snapshot (or the ref) it concerns, its kind (a word), and a sentence's end."""

    file: str
    kind: str
    detail: str

    def __str__(self) -> str:
        """Return file and detail as a person reads them."""
        return f"{self.file}: {self.detail}"


@dataclass
class Report:
    """The verdict on one snapshot.

    `bytes` and `files` count the whole snapshot as its manifest has it. `missing` and `corrupt` are paths inside the
    snapshot; `problems` says for each what was found. `optional` are files of the manifest that are absent and that
    no server reads. `litter` are leftovers of interrupted downloads, as paths in the cache.
    """

    repository: Repository
    revision: str
    commit: str | None = None
    path: str | None = None
    bytes: int = 0
    files: int = 0
    complete: bool = False
    missing: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    hashed: bool = False
    """All contents were hashed, now or when the marker was written and not touched since."""

    def miss(self, file: str, kind: str, detail: str) -> None:
        """Count `file` as absent."""
        self.missing.append(file)
        self.problems.append(Problem(file, kind, detail))

    def blame(self, file: str, kind: str, detail: str) -> None:
        """Count `file` as present and wrong."""
        self.corrupt.append(file)
        self.problems.append(Problem(file, kind, detail))

    @property
    def failure(self) -> str:
        """Return the project's failure class of an incomplete snapshot."""
        return "weights_corrupt" if self.corrupt and not self.missing else "cache_incomplete"

    def sentence(self) -> str:
        """Return the state of the snapshot in one sentence that names the first faults."""
        name = f"{self.repository.repo_id} at {self.commit or self.revision}"
        if self.complete:
            return f"{name} is complete: {self.files} files, {self.bytes} bytes."
        shown = "; ".join(str(problem) for problem in self.problems[:3])
        more = f"; and {len(self.problems) - 3} more" if len(self.problems) > 3 else ""
        return f"{name} is not complete ({len(self.missing)} missing, {len(self.corrupt)} corrupt): {shown}{more}."


@dataclass(frozen=True)
class Weights:
    """What a memory estimate needs: bytes of all weights, number of weight files, the parsed config.json."""

    total_bytes: int
    files: int
    config: dict[str, Any]


# File lists


def _linked_files(snapshot: Path) -> list[str]:
    """Return the paths of everything linked in a snapshot folder, subfolders included, sorted."""
    found = []
    for folder, _folders, names in os.walk(snapshot):
        base = Path(folder).relative_to(snapshot)
        found += [(base / name).as_posix() for name in names]
    return sorted(found)


def _link_blob(link: Path) -> str | None:
    """Return the blob name that a snapshot's link points to, None for a plain file or a foreign link."""
    try:
        target = Path(os.readlink(link))  # noqa: PTH115 - Path.readlink costs three times as much, for 163 links
    except OSError:
        return None
    return target.name if target.parent.name == "blobs" and BLOB_NAME.fullmatch(target.name) else None


def _links_manifest(snapshot: Path, commit: str, report: Report) -> Manifest:
    """Return the list of what is linked and what the weight index names, where no better list is there."""
    paths = set(_linked_files(snapshot))
    entries = {path: Entry(path, None, _link_blob(snapshot / path)) for path in paths}
    required = {"adapter_config.json" if "adapter_config.json" in paths else "config.json"}
    indexes = [name for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json") if name in paths]
    if indexes:
        try:
            weight_map = received.parsed(received.content(snapshot / indexes[0]))["weight_map"]
            required |= {shard for shard in set(weight_map.values()) if safe(shard)}
        except OSError:
            pass  # a dangling index is reported as a missing file
        except (ValueError, KeyError, TypeError, AttributeError):
            report.blame(indexes[0], "index", "is not a weight index (no weight_map in it)")
    elif not any(fnmatch.fnmatch(path, pattern) for path in paths for pattern in ("*.safetensors", "*.bin", "*.gguf")):
        required.add("model.safetensors")
    for path in required - paths:
        entries[path] = Entry(path, None, None)
    return Manifest(commit, tuple(entries[path] for path in sorted(entries)), "links")


# Markers


def _read_marker(repository: Repository, commit: str) -> dict[str, dict[str, Any]]:
    """Return {path: {blob, size, mtime_ns}} of a marker, empty when there is none that can be read."""
    with contextlib.suppress(durable.Unreadable):
        data = durable.read(repository.marker(commit)) or {}
        files = data.get("files")
        right = data.get("format") == MARKER_FORMAT and data.get("commit") == commit and isinstance(files, dict)
        if files and right and all(isinstance(one, dict) for one in files.values()):
            return dict(files)
    return {}


def marker_json(repository: Repository, manifest: Manifest) -> str:
    """Return the marker of a snapshot whose contents were hashed just now: blob, size and mtime of every file.

    A later quick check then needs stat calls only, and still notices a blob that was touched at equal size.
    """
    snapshot = repository.snapshot(manifest.commit)
    files = {}
    for entry in manifest.entries:
        try:
            found = (snapshot / entry.path).stat()
        except FileNotFoundError:
            continue  # one of the files that no server reads
        files[entry.path] = {"blob": entry.blob, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
    return json.dumps({"format": MARKER_FORMAT, "commit": manifest.commit, "files": files}, indent=1, sort_keys=True)


# Inspection


def resolve(repository: Repository, revision: str) -> tuple[str | None, Problem | None]:
    """Return the commit that `revision` stands for in the cache, and what is wrong with the ref if anything.

    huggingface_hub takes the ref's content as it is: with a newline at the end it finds no snapshot.
    """
    if is_commit(revision):
        return revision, None
    ref = repository.refs / revision
    name = f"refs/{revision}"
    try:
        content = received.content(ref, LONGEST_REF).decode("utf-8", "replace")
    except FileNotFoundError:
        return None, Problem(name, "no_ref", f"there is no {ref}")
    except OSError as error:
        return None, Problem(name, "no_ref", f"{ref} cannot be read ({error.strerror})")
    commit = content.strip()
    if not is_commit(commit):
        return None, Problem(name, "bad_ref", f"holds {content[:60]!r} instead of a commit of 40 hexadecimal digits")
    if commit != content:
        return commit, Problem(
            name, "ref_newline", f"holds {content!r}: with white space around it nothing resolves it"
        )
    return commit, None


def _dangling(blobs: Path, link: Path) -> tuple[str, str]:
    """Return kind and detail of the break in the chain link -> blob -> shared store."""
    if not os.path.islink(link):  # noqa: PTH114 - as cheap as it gets, called per file
        return "no_link", "is not in the snapshot"
    blob = blobs / Path(os.readlink(link)).name  # noqa: PTH115
    if blob.is_symlink():
        return "dangling_shared", f"blob {blob.name} is a link to {os.readlink(blob)}, which is gone"  # noqa: PTH115
    return "dangling", f"its link points to {os.readlink(link)}, which does not exist"  # noqa: PTH115


def _litter(repository: Repository) -> list[str]:
    try:
        with os.scandir(repository.blobs) as blobs:
            found = [item.path for item in blobs if item.name.endswith(".incomplete")]
    except OSError:
        return []
    return sorted(repository.relative(Path(item)) for item in found)


def _check_quick(entry: Entry, found: os.stat_result, link: Path, origin: str) -> tuple[str, str] | None:
    """Return (kind, detail) of a fault that shows without reading the whole file."""
    blob = _link_blob(link)
    if entry.blob and blob and blob != entry.blob:
        return "wrong_blob", f"is linked to blob {blob}, the file list names {entry.blob}"
    expected = entry.size
    if expected is None and entry.path.endswith(".safetensors"):
        try:
            expected = safetensors_size(link)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return "truncated", f"is not a whole safetensors file ({error})"
    if expected is not None and found.st_size != expected:
        kind = "truncated" if found.st_size < expected else "wrong_size"
        return kind, f"has {found.st_size} bytes, expected {expected}"
    if origin == "links" and entry.blob and found.st_size <= SMALL_FILE:
        return _check_hash(entry.blob, link)
    return None


def _check_hash(blob: str, path: Path, meter: Meter | None = None) -> tuple[str, str] | None:
    try:
        got = blob_hash(path, blob, meter)
    except OSError as error:
        return "unreadable", f"cannot be read ({error.strerror})"
    return None if got == blob else ("wrong_hash", f"its content hashes to {got}, expected {blob}")


def _read_manifest(
    commit: str, given: Manifest | None, marker: dict[str, dict[str, Any]], digest: str, report: Report
) -> Manifest | None:
    """Return the best list at hand: the repository's own, one given, the marker's, or what links and index show.

    With a digest, the repository's own is of no use where it has another one.
    """
    tree = report.repository.tree(commit)
    try:
        listed = tree_manifest(received.content(tree), commit)
        if digest in ("", got := list_digest(listed)):
            return listed
        report.blame(f"trees/{commit}.json", WRONG_LIST, f"lists other files than the pinned ones ({got})")
    except FileNotFoundError:
        pass
    except OSError as error:
        report.notes.append(f"{tree} cannot be read ({error.strerror}); judged without it.")
    except (ValueError, AttributeError) as error:
        report.notes.append(f"{tree} is not usable ({error}); judged without it.")
    if given:
        return given
    snapshot = report.repository.snapshot(commit)
    if not snapshot.is_dir():
        return None
    if marker:
        entries = (Entry(path, info.get("size"), info.get("blob")) for path, info in sorted(marker.items()))
        return Manifest(commit, tuple(entries), "marker")
    return _links_manifest(snapshot, commit, report)


def inspect(
    repository: Repository,
    revision: str = "main",
    verify: str = "quick",
    *,
    manifest: Manifest | None = None,
    workers: int | None = None,
    meter: Meter | None = None,
    digest: str = "",
) -> Report:
    """Return the verdict on one snapshot, offline and without changing anything.

    `revision` is a commit of 40 hexadecimal digits or a name under refs. `verify="quick"` compares names, links and
    sizes, and hashes only what changed since its marker was written; `verify="full"` hashes every file in `workers`
    threads (hashlib releases the interpreter lock).
    What must be there comes from trees/<commit>.json; else from `manifest`; else from the marker of an earlier run;
    else from the weight index and the links, where the header of every safetensors file gives its size.
    `meter` counts the bytes that are hashed. A list whose `list_digest` is not `digest` makes the snapshot corrupt.

    Raises SnapshotError for an id, a revision or a `verify` that cannot be, never for the state of the cache.
    """
    check_repo_id(repository.repo_id)
    check_revision(revision)
    if verify not in ("quick", "full"):
        raise SnapshotError(f"Verification {verify!r} is unknown; it is either 'quick' or 'full'.")
    report = Report(repository, revision, litter=_litter(repository))
    commit, fault = resolve(repository, revision)
    if fault:
        if commit:
            report.blame(fault.file, fault.kind, fault.detail)
        else:
            report.miss(fault.file, fault.kind, fault.detail)
    if commit is None:
        return report
    report.commit = commit
    snapshot = repository.snapshot(commit)
    report.path = str(snapshot)
    marker = _read_marker(repository, commit)
    report.manifest = chosen = _read_manifest(commit, manifest, marker, digest, report)
    if chosen is None:
        report.miss(f"snapshots/{commit}", "no_snapshot", f"there is no {snapshot}")
        return report
    if digest and not report.corrupt and list_digest(chosen) != digest:
        report.blame(f"snapshots/{commit}", WRONG_LIST, "has other files than the pinned ones")
    to_hash = _check_entries(snapshot, chosen, marker, verify=verify, report=report)
    _check_hashes(snapshot, to_hash, workers, report, meter or Meter())
    report.hashed = report.hashed and not report.missing and not report.corrupt
    report.files = len(chosen.entries)
    report.bytes = chosen.bytes or sum(_size(snapshot / entry.path) for entry in chosen.entries)
    report.complete = not report.missing and not report.corrupt
    if report.litter:
        report.notes.append(f"{len(report.litter)} leftover(s) of interrupted downloads, first {report.litter[0]}.")
    if report.optional:
        report.notes.append(
            f"{len(report.optional)} file(s) that no server reads are not in this cache, first {report.optional[0]}."
        )
    return report


def _check_entries(
    snapshot: Path,
    manifest: Manifest,
    marker: dict[str, dict[str, Any]],
    *,
    verify: str,
    report: Report,
) -> list[Entry]:
    """Fill missing, corrupt, optional and hashed of `report` short of hashing; return what to hash."""
    blobs = report.repository.blobs
    absent: list[Entry] = []
    to_hash: list[Entry] = []
    unmarked = False
    served = False
    has_safetensors = any(entry.path.endswith(".safetensors") for entry in manifest.entries)
    for entry in manifest.entries:
        link = snapshot / entry.path
        unread = has_safetensors and is_unread(entry.path)
        try:
            found = os.stat(link)  # noqa: PTH116 - a quick check of many shards is nothing but these calls
        except OSError as error:
            if isinstance(error, FileNotFoundError) and unread and not os.path.islink(link):  # noqa: PTH114
                absent.append(entry)
            elif isinstance(error, FileNotFoundError):
                report.miss(entry.path, *_dangling(blobs, link))
            else:
                report.blame(entry.path, "unreadable", f"cannot be read ({error.strerror})")
            continue
        served = served or not unread
        if not stat.S_ISREG(found.st_mode):
            report.blame(entry.path, "not_a_file", "is not a file")
            continue
        try:
            fault = _check_quick(entry, found, link, manifest.origin)
        except OSError as error:
            fault = "unreadable", f"cannot be read ({error.strerror})"
        if fault:
            report.blame(entry.path, *fault)
            continue
        mark = marker.get(entry.path, {})
        touched = bool(mark) and (mark.get("size"), mark.get("mtime_ns")) != (found.st_size, found.st_mtime_ns)
        unmarked = unmarked or not mark
        if entry.blob and (verify == "full" or touched):
            to_hash.append(entry)
    for entry in absent:
        if served:
            report.optional.append(entry.path)
        else:
            report.miss(entry.path, "no_link", "is not in the snapshot")
    report.hashed = verify == "full" or not unmarked
    return to_hash


def _check_hashes(snapshot: Path, entries: list[Entry], workers: int | None, report: Report, meter: Meter) -> None:
    if not entries:
        return
    meter.begin("hashing", sum(_size(snapshot / entry.path) for entry in entries))
    with ThreadPoolExecutor(max_workers=workers or min(8, os.cpu_count() or 1)) as pool:
        faults = pool.map(lambda entry: _check_hash(entry.blob or "", snapshot / entry.path, meter), entries)
        for entry, fault in zip(entries, faults, strict=True):
            if fault:
                report.blame(entry.path, *fault)


def is_unread(path: str) -> bool:
    """Return whether `path` is one of the files that no server reads when safetensors are there."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in _UNREAD)


def without_copies(manifest: Manifest) -> Manifest:
    """Return a file list without the copies of its weights that vLLM leaves aside; they need not be brought in.

    What is left is not the repository's own list any more, and must not become a trees file: where one names a file
    that is absent, huggingface_hub refuses the snapshot offline.
    """
    folders = {entry.path.rpartition("/")[0] for entry in manifest.entries if entry.path.endswith(".safetensors")}
    if "" not in folders:
        return manifest

    def copied(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        inside = folder.partition("/")[0] in _COPY_FOLDERS
        return inside or (folder in folders and any(fnmatch.fnmatchcase(name, pattern) for pattern in _COPIES))

    kept = tuple(entry for entry in manifest.entries if not copied(entry.path))
    return manifest if len(kept) == len(manifest.entries) else Manifest(manifest.commit, kept, "links")


def list_digest(manifest: Manifest) -> str:
    """Return the SHA-256 over `blob  path` of every file that a server reads, in order; empty where one has no blob.

    Whoever has the same digest from elsewhere need believe no node what belongs to a snapshot.
    """
    entries = without_copies(manifest).entries
    weights_there = any(entry.path.endswith(".safetensors") for entry in entries)
    read = [entry for entry in entries if not (weights_there and is_unread(entry.path))]
    if any(entry.blob is None for entry in read):
        return ""
    lines = sorted(f"{entry.blob}  {entry.path}\n" for entry in read)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def weights(repository: Repository, commit: str) -> Weights:
    """Return what memory arithmetic needs to know about a snapshot.

    The bytes are the `total_size` of the weight index where it has one, otherwise the sizes of the safetensors files.
    Raises SnapshotError when config.json or all weights are absent or unreadable.
    """
    check_repo_id(repository.repo_id)
    snapshot = repository.snapshot(commit)
    where = f"{repository.repo_id} at {commit} in {repository.cache}"
    try:
        config = received.parsed(received.content(snapshot / "config.json"))
    except (OSError, ValueError) as error:
        raise SnapshotError(f"config.json of {where} cannot be read ({error}); bring the snapshot in first.") from error
    if not isinstance(config, dict):
        raise SnapshotError(f"config.json of {where} holds no JSON object; bring the snapshot in again.")
    try:
        index = received.parsed(received.content(snapshot / "model.safetensors.index.json"))
        shards = sorted(set(index["weight_map"].values()))
        total = index.get("metadata", {}).get("total_size")
    except FileNotFoundError:
        shards, total = [path for path in _linked_files(snapshot) if path.endswith(".safetensors")], None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(
            f"The weight index of {where} cannot be read ({error}); bring the snapshot in again."
        ) from error
    if not isinstance(total, (int, float)) or not math.isfinite(total):
        total = sum(_size(snapshot / shard) for shard in shards)
    if not shards or not total:
        raise SnapshotError(f"There are no safetensors weights in {where}; bring the snapshot in first.")
    return Weights(int(total), len(shards), config)
