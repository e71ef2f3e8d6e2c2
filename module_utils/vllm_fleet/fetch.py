"""Brings one snapshot into a Hugging Face cache, or takes it out: plans first, writes afterwards.

A plan is made by reading only and says exactly what will be written, so check mode is the plan without `apply`.
Whatever interrupts `apply`, what lies under a valid name is whole: a file is written under a temporary name in its
own folder, hashed on the way, and renamed; blobs come first and refs last, so a half copy never resolves.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.vllm_fleet import snapshot
from ansible.module_utils.vllm_fleet.snapshot import Entry, Manifest, Report

COPY_CHUNK = 4 << 20
COPY_WORKERS = 4
"""Files copied at a time: one stream does not fill an NVMe drive or a network mount, more than a few only seek."""

BLOCK = 4096
"""Bytes that a file system gives out at least; many small files take more than the sum of their sizes."""

LFS_THRESHOLD = 10 << 20
"""Bytes from which a file of unknown hash gets a sha256 name, as the Hub keeps such files in Large File Storage."""

FILE_MODE = 0o644
FOLDER_MODE = 0o755


class FetchError(Exception):
    """The snapshot cannot be brought in; the message is one sentence with the remedy in it.

    `failure` is one of the project's failure classes, `evidence` what else is known (output of the downloader).
    """

    def __init__(self, message: str, failure: str = "unknown", evidence: str = "") -> None:
        """Keep the sentence, the class and the evidence apart."""
        super().__init__(message)
        self.failure = failure
        self.evidence = evidence


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
        """Say in a few lines what the plan does."""
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
        """Name every file that the plan writes, for a diff."""
        said = [f"blobs/{entry.blob} {entry.size} bytes" for entry in self.blobs]
        if self.tree:
            said.append(f"trees/{self.commit}.json")
        said += [f"snapshots/{self.commit}/{entry.path} -> blobs/{entry.blob}" for entry in self.links]
        said += [f"refs/{name} {self.commit}" for name in self.refs]
        return sorted(said)


# Before anything is written


def _existing(path: Path) -> Path:
    """Return `path` or its nearest ancestor that exists."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def check_cache(cache: Path, *, create: bool, write: bool) -> None:
    """Raise FetchError unless `cache` can be used as HF_HOME: absolute, a folder, there (or `create`), writable."""
    if not cache.is_absolute():
        raise FetchError(
            f"Cache path {str(cache)!r} is relative; give an absolute path such as /var/lib/huggingface.",
            "bad_argument",
        )
    hub = snapshot.hub_of(cache)
    found = _existing(cache)
    if bad := next((path for path in (found, _existing(hub)) if not path.is_dir()), None):
        found = bad
        what = "a dangling link" if found.is_symlink() else "a file"
        raise FetchError(
            f"Cache path {cache} cannot be used because {found} is {what}, expected a folder; choose another.",
            "bad_argument",
        )
    if found != cache and not create:
        raise FetchError(
            f"Cache path {cache} does not exist ({found} is the last folder of it that does); "
            "mount or create it, or give another path.",
            "bad_argument",
        )
    if not hub.exists() and any(cache.glob("models--*")):
        raise FetchError(
            f"Cache path {cache} is a hub folder itself; give the folder above it, as HF_HOME names it.", "bad_argument"
        )
    for folder in (cache, hub):
        nearest = _existing(folder)
        if write and not os.access(nearest, os.W_OK | os.X_OK):
            raise FetchError(
                f"Cache path {cache} cannot be written by user id {os.geteuid()} ({nearest} is not writable); "
                "run with become, or give another path.",
                "bad_argument",
            )


def check_space(cache: Path, needed: int, margin: int) -> None:
    """Raise FetchError when the disk of `cache` lacks `needed` + `margin` bytes; nothing needed is always fine."""
    if not needed:
        return
    disk = os.statvfs(_existing(snapshot.hub_of(cache)))  # the hub may be a link or a mount of its own
    free = disk.f_bavail * disk.f_frsize
    if free < needed + margin:
        raise FetchError(
            f"The disk of {cache} has {free} bytes free ({free / 2**30:.2f} GiB), but {needed} bytes are to be written "
            f"and {margin} kept free ({(needed + margin) / 2**30:.2f} GiB in all); make room or give another path. "
            "Nothing was written.",
            "disk_full",
        )


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[bool]:
    """Hold the cache's lock, and say whether another run held it before: then what was planned may be done already.

    The folder of the lock is made in the cache, so take it only when something is to be written.
    """
    state = cache / snapshot.STATE_FOLDER
    with _explained(state):
        _folder(state, _owner(cache))
        handle = (state / "lock").open("a")
        _own(state / "lock", _owner(cache))
    waited = False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # some Lustre and GPFS mounts refuse flock: then only one run at a time may use the cache
        yield waited


# Sources


def cache_source(path: Path, repo_id: str, revision: str, target: Path) -> Source:
    """Use another cache on this machine as source. It must hold the snapshot complete; it is only read.

    Raises FetchError when it does not, naming what is wrong or which models it has.
    """
    if path.resolve() == target.resolve():
        raise FetchError(
            f"Source {path} is the cache itself; give another folder, or leave the source out to verify only.",
            "bad_argument",
        )
    check_cache(path, create=False, write=False)
    report = snapshot.inspect(path, repo_id, revision)
    if not report.complete or report.manifest is None:
        known = snapshot.known_repos(path)
        if repo_id in known and not report.files:
            held = ", ".join(_held_revisions(snapshot.repo_folder(path, repo_id))) or "none"
            raise FetchError(
                f"Source {path} has {repo_id}, but not at revision {revision}; it has {held}.", "model_not_found"
            )
        if repo_id not in known:
            near = snapshot.nearest(repo_id, known)
            hint = (
                f"the nearest it has is {', '.join(near)}" if near else f"it has {', '.join(known[:5]) or 'no models'}"
            )
            raise FetchError(f"Source {path} does not have the model {repo_id}; {hint}.", "model_not_found")
        raise FetchError(f"Source {path} cannot be copied from: {report.sentence()}", report.failure)
    repo = snapshot.repo_folder(path, repo_id)
    root = repo / "snapshots" / report.manifest.commit
    absent = set(report.optional)
    entries = [_filled(entry, root) for entry in report.manifest.entries if entry.path not in absent]
    # A list made from links is not the repository's own: it must not become a trees file.
    origin = report.manifest.origin if not absent else "links"
    manifest = Manifest(report.manifest.commit, tuple(entries), origin)
    return Source(str(path), manifest, lambda entry: root / entry.path, _refs_to(repo, manifest.commit))


def own_source(cache: Path, report: Report) -> Source | None:
    """Use the cache itself: enough where links or refs are spoilt and all contents are there; None without a list.

    A plan made with it must not be applied when it has blobs to write.
    """
    if report.manifest is None or any(entry.blob is None for entry in report.manifest.entries):
        return None
    repo = snapshot.repo_folder(cache, report.repo_id)
    manifest = report.manifest
    return Source(str(cache), manifest, lambda entry: Path(), _refs_to(repo, manifest.commit))


def blobs_source(path: Path, manifest: Manifest, *, refs: tuple[str, ...] = (), move: bool = False) -> Source:
    """Use a flat folder of blobs, named by their hashes, with a manifest that came another way."""
    return Source(str(path), manifest, lambda entry: path / str(entry.blob), refs, move)


def _filled(entry: Entry, root: Path) -> Entry:
    """Complete an entry of a fallback list by what its file tells: size, and a name of its own if it has none."""
    if entry.size is not None and entry.blob is not None:
        return entry
    path = root / entry.path
    size = path.stat().st_size
    kind = "0" * (64 if size >= LFS_THRESHOLD or path.suffix == ".safetensors" else 40)
    return replace(entry, size=size, blob=entry.blob or snapshot.blob_hash(path, kind))


def _held_revisions(repo: Path) -> list[str]:
    return [
        f"{path.name} ({', '.join(refs)})" if (refs := _refs_to(repo, path.name)) else path.name
        for path in sorted((repo / "snapshots").iterdir())
    ]


def _refs_to(repo: Path, commit: str) -> tuple[str, ...]:
    found = []
    for path in sorted((repo / "refs").rglob("*")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.is_file() and path.read_text(encoding="utf-8").strip() == commit:
                found.append(path.relative_to(repo / "refs").as_posix())
    return tuple(found)


# Plans


def plan_present(cache: Path, report: Report, source: Source, *, revision: str, verify: str) -> Plan:
    """Compare what `source` has with what is in `cache` and list what to write.

    `report` must be of the source's commit, made with the source's manifest; `revision` is what the user asked for
    and becomes a ref when it is a name.
    """
    manifest = source.manifest
    repo = snapshot.repo_folder(cache, report.repo_id)
    root = repo / "snapshots" / manifest.commit
    faults = {problem.file: problem.kind for problem in report.problems}
    optional = set(report.optional)
    plan = Plan(commit=manifest.commit)
    seen: set[str] = set()
    for entry in manifest.entries:
        link = root / entry.path
        kind = faults.get(entry.path)
        if entry.path in optional or (kind is None and os.path.lexists(link)):
            continue
        if not _is_link_to(link, repo / "blobs" / str(entry.blob)):
            plan.links.append(entry)
        if str(entry.blob) in seen:
            continue
        seen.add(str(entry.blob))
        content_wrong = kind in ("truncated", "wrong_size", "wrong_hash", "unreadable", "not_a_file", "index")
        if content_wrong or not _blob_usable(repo / "blobs" / str(entry.blob), entry, verify):
            plan.blobs.append(entry)
    tree = repo / "trees" / f"{manifest.commit}.json"
    if manifest.origin == "tree" and not _tree_usable(tree, manifest.commit):
        plan.tree = snapshot.tree_json(manifest)
    plan.refs = _plan_refs(repo, revision, manifest.commit, source.refs)
    if plan.blobs or plan.links:
        plan.remove = _stale_litter(cache, repo, report.litter)
    device = _existing(repo / "blobs").stat().st_dev
    plan.copy_bytes = sum(
        -(-(entry.size or 0) // BLOCK) * BLOCK
        for entry in plan.blobs
        if not (source.move and _device(source.find(entry)) == device)
    )
    # Files that no server reads go in first: should this be interrupted, what is left undone is then noticed.
    plan.links.sort(key=lambda entry: (not snapshot.is_unread(entry.path), entry.path))
    return plan


def _plan_refs(repo: Path, revision: str, commit: str, names: tuple[str, ...]) -> list[str]:
    """Choose the refs to write: the revision asked for by name; those of the source that are absent or spoilt here.

    A ref of this cache that stands for another commit is the user's and stays.
    """
    wanted = []
    for name in sorted({*names, *([] if snapshot.is_commit(revision) else [revision])}):
        try:
            content = (repo / "refs" / name).read_bytes()
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
        return verify != "full" or snapshot.blob_hash(blob, blob.name) == blob.name
    except OSError:
        return False


def _tree_usable(tree: Path, commit: str) -> bool:
    try:
        snapshot.tree_manifest(tree.read_bytes(), commit)
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None


def _stale_litter(cache: Path, repo: Path, litter: list[str]) -> list[str]:
    """Return those leftovers that nobody writes: huggingface_hub holds a lock per blob while it downloads it."""
    stale = []
    for name in litter:
        blob = Path(name).name.lstrip(".").split(".")[0]
        lock = repo.parent / ".locks" / repo.name / f"{blob}.lock"
        if name.endswith(snapshot.PART_SUFFIX) or not _held(lock):
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


def plan_absent(cache: Path, repo_id: str, revision: str) -> Plan:
    """List what belongs to one snapshot and to no other: links, file list, refs, marker, blobs.

    Payloads in the store that repositories share stay (`hf cache prune` knows whether another one needs them).
    """
    commit, _fault = snapshot.resolve(cache, repo_id, revision)
    repo = snapshot.repo_folder(cache, repo_id)
    if commit is None:
        return Plan()
    root = repo / "snapshots"
    mine = _blobs_of(root / commit)
    others: set[str] = set()
    alone = True
    if root.is_dir():
        for folder in root.iterdir():
            if folder.name != commit:
                alone = False
                others |= _blobs_of(folder)
    places = [root / commit, repo / "trees" / f"{commit}.json", repo / ".no_exist" / commit]
    places += [repo / "refs" / name for name in _refs_to(repo, commit)]
    places += [repo / "blobs" / name for name in sorted(mine - others)]
    places.append(snapshot.marker_path(cache, repo_id, commit))
    if alone and (root / commit).exists():
        places = [repo, repo.parent / ".locks" / repo.name, cache / snapshot.STATE_FOLDER / repo.name]
    there = [path for path in places if os.path.lexists(path)]
    plan = Plan(commit=commit, remove=[path.relative_to(cache).as_posix() for path in there])
    if shared := [name for name in mine - others if (repo / "blobs" / name).is_symlink()]:
        plan.notes.append(
            f"{len(shared)} payload(s) in the store that repositories share are left; `hf cache prune` frees them."
        )
    return plan


def _blobs_of(folder: Path) -> set[str]:
    names = set()
    for base, _folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                names.add((Path(base) / name).readlink().name)
    return names


# Writing


def _owner(cache: Path) -> tuple[int, int] | None:
    """Return who shall own new files: run as root, the owner of the folder they come into; otherwise whoever runs."""
    if os.geteuid() != 0:
        return None
    found = _existing(cache).stat()
    return found.st_uid, found.st_gid


def _own(path: Path, owner: tuple[int, int] | None) -> None:
    if owner:
        os.chown(path, *owner, follow_symlinks=False)


def _folder(path: Path, owner: tuple[int, int] | None) -> None:
    """Make a folder and those above it, each with mode and owner; folders that are there are left as they are."""
    if path.is_dir():
        return
    _folder(path.parent, owner)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        path.chmod(FOLDER_MODE)
        _own(path, owner)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into one sentence; what was half written is already gone by then."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(
                f"The disk got full while {path} was written ({error.strerror}); make room and run again: "
                "what is already there is whole and is kept.",
                "disk_full",
            ) from error
        raise FetchError(
            f"Could not write {path}: {error.strerror} ({where}); what is already there is whole."
        ) from error


def _write_text(path: Path, text: str, owner: tuple[int, int] | None) -> None:
    _folder(path.parent, owner)
    temporary = path.with_name(f".{path.name}.tmp")
    with _explained(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
            temporary.chmod(FILE_MODE)
            _own(temporary, owner)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _write_link(repo: Path, commit: str, entry: Entry, owner: tuple[int, int] | None) -> None:
    link = repo / "snapshots" / commit / entry.path
    _folder(link.parent, owner)
    temporary = link.with_name(f".{link.name}.tmp")
    with _explained(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to("../" * (2 + entry.path.count("/")) + f"blobs/{entry.blob}")
        _own(temporary, owner)
        temporary.replace(link)


def _write_blob(repo: Path, entry: Entry, source: Source, owner: tuple[int, int] | None) -> str:
    """Copy (or move) one blob, hashed on the way and renamed to its name only when whole and right; return the name."""
    blob = repo / "blobs" / str(entry.blob)
    temporary = blob.with_name(f".{entry.blob}{snapshot.PART_SUFFIX}")
    origin = source.find(entry)
    with _explained(blob):
        try:
            if source.move and _device(origin) == _device(blob.parent):
                got = snapshot.blob_hash(origin, blob.name)
                if got == blob.name:
                    origin.replace(temporary)
            else:
                got = _copy(origin, temporary, blob.name)
            if got != blob.name:
                raise FetchError(
                    f"{entry.path} of the source {source.label} is corrupt: {origin} hashes to {got}, "
                    f"expected {blob.name}; it was not taken over. Repair the source and run again.",
                    "weights_corrupt",
                )
            temporary.chmod(FILE_MODE)
            _own(temporary, owner)
            temporary.replace(blob)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return blob.name


def _copy(origin: Path, temporary: Path, blob: str) -> str:
    """Copy the content into a file of its own (never a hard link: the source stays its owner's) and return its hash."""
    buffer = memoryview(bytearray(COPY_CHUNK))
    with origin.open("rb", buffering=0) as reader, temporary.open("wb", buffering=0) as writer:
        digest = snapshot.new_digest(blob, os.fstat(reader.fileno()).st_size)
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            done = 0
            while done < count:
                done += writer.write(buffer[done:count])
        os.fsync(writer.fileno())  # a rename survives a power cut earlier than the content does
    return str(digest.hexdigest())


def apply(cache: Path, repo_id: str, plan: Plan, source: Source) -> None:
    """Write what `plan` lists. Raises FetchError; what was finished until then stays and is not fetched again."""
    owner = _owner(cache)
    repo = snapshot.repo_folder(cache, repo_id)
    with _explained(repo):
        _folder(repo / "blobs", owner)
        for name in plan.remove:
            (cache / name).unlink(missing_ok=True)
    # The largest first: the last thread then ends with something short.
    queue = sorted(plan.blobs, key=lambda entry: -(entry.size or 0))
    with ThreadPoolExecutor(max_workers=min(COPY_WORKERS, os.cpu_count() or 1)) as pool:
        pending = [pool.submit(_write_blob, repo, entry, source, owner) for entry in queue]
        try:
            for job in pending:
                plan.written.append(job.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    write_tree_links_refs(cache, repo_id, plan)


def write_tree_links_refs(cache: Path, repo_id: str, plan: Plan) -> None:
    """Write the part of a plan that makes blobs a snapshot, in the order in which a half copy never resolves."""
    owner = _owner(cache)
    repo = snapshot.repo_folder(cache, repo_id)
    if plan.tree:
        _write_text(repo / "trees" / f"{plan.commit}.json", plan.tree, owner)
    for entry in plan.links:
        _write_link(repo, plan.commit, entry, owner)
    for name in plan.refs:
        _write_text(repo / "refs" / name, plan.commit, owner)


def refresh_marker(cache: Path, report: Report) -> None:
    """Note that the contents of a complete snapshot hash right, unless that is noted or not known.

    It saves later runs the hashing and nothing else, so a cache that cannot be written goes without.
    """
    if not (report.complete and report.hashed and report.manifest):
        return
    path = snapshot.marker_path(cache, report.repo_id, report.manifest.commit)
    with contextlib.suppress(FetchError, OSError):
        text = snapshot.marker_json(cache, report.repo_id, report.manifest)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            _write_text(path, text, _owner(cache))


def remove(cache: Path, plan: Plan) -> None:
    """Remove what `plan_absent` listed: the refs first, so that nothing resolves to a half-removed snapshot."""
    for name in sorted(plan.remove, key=lambda item: "/refs/" not in item):
        path = cache / name
        with _explained(path):
            if path.is_dir() and not path.is_symlink():
                refs = path / "refs"
                if refs.is_dir():
                    shutil.rmtree(refs)
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


# The Hub

# Runs in a process of its own: huggingface_hub reads its environment once, at import, and the token must reach
# neither this process's arguments nor its environment.
_HUB_SCRIPT = """
import json, sys
try:
    import huggingface_hub as hub
except ImportError:
    print(json.dumps({"error": "ImportError", "message": ""})); sys.exit(0)
task = json.loads(sys.argv[1])
try:
    if task["do"] == "list":
        info = hub.HfApi().model_info(task["repo_id"], revision=task["revision"], files_metadata=True)
        files = {f.rfilename: {"size": f.size, "blob": f.lfs.sha256 if f.lfs else f.blob_id} for f in info.siblings}
        print(json.dumps({"commit": info.sha, "files": files}))
    else:
        hub.snapshot_download(task["repo_id"], revision=task["commit"], cache_dir=task["hub"],
                              allow_patterns=task["paths"], max_workers=8)
        print(json.dumps({}))
except Exception as error:
    names = [kind.__name__ for kind in type(error).__mro__]
    print(json.dumps({"error": names, "message": str(error)[-2000:]}))
"""


def _hub(task: dict[str, Any], cache: Path, python: str, token: str | None) -> dict[str, Any]:
    """Run one task of `_HUB_SCRIPT` and return its answer; raise FetchError in words for the known failures."""
    environment = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_SHARED_BLOBS": "1",  # otherwise blobs become links that a copy of the repository would miss
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_XET_HIGH_PERFORMANCE": "1",
    }
    environment.pop("HF_HUB_CACHE", None)
    if token:
        environment["HF_TOKEN"] = token
    try:
        done = subprocess.run(
            [python, "-c", _HUB_SCRIPT, json.dumps(task)],
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except OSError as error:
        raise FetchError(f"Python {python} for the download cannot be started: {error.strerror}.") from error
    except (ValueError, IndexError) as error:
        tail = done.stderr.strip()[-2000:]
        raise FetchError(
            f"The download of {task['repo_id']} ended with exit code {done.returncode}.", evidence=tail
        ) from error
    if answer.get("error"):
        raise _hub_error(task, answer, python)
    result: dict[str, Any] = answer
    return result


def _hub_error(task: dict[str, Any], answer: dict[str, Any], python: str) -> FetchError:
    names, message = answer["error"], str(answer["message"])
    model = task["repo_id"]
    if "ImportError" in names:
        return FetchError(
            f"Python {python} has no huggingface_hub, which source 'hub' needs; install it there "
            "(pip install huggingface_hub), name another Python in hub_python, or copy from a cache instead.",
            "bad_argument",
        )
    if "GatedRepoError" in names:
        return FetchError(
            f"Model {model} is gated: accept its licence on the Hub and give hf_token.", "gated_model", message
        )
    if "RevisionNotFoundError" in names:
        return FetchError(
            f"Model {model} has no revision {task.get('revision') or task.get('commit')}.", "model_not_found", message
        )
    if "RepositoryNotFoundError" in names:
        return FetchError(
            f"The Hub has no model {model}, or it is private and hf_token does not open it.", "model_not_found", message
        )
    if "No space left" in message:
        return FetchError(
            f"The disk got full while {model} was downloaded; make room and run again.", "disk_full", message
        )
    first = message.strip().splitlines()[0] if message.strip() else names[0]
    return FetchError(f"Model {model} could not be had from the Hub: {first}", evidence=message)


def hub_source(cache: Path, repo_id: str, revision: str, python: str | None, token: str | None) -> Source:
    """Ask the Hub for the file list of a revision; the commit it stands for now is pinned for all that follows."""
    task = {"do": "list", "repo_id": repo_id, "revision": revision}
    answer = _hub(task, cache, python or sys.executable, token)
    try:
        manifest = replace(snapshot.given_manifest(answer["commit"], answer["files"]), origin="tree")
    except snapshot.SnapshotError as error:
        raise FetchError(f"The Hub's file list of {repo_id} is not usable: {error}") from error
    return Source("hub", manifest, lambda entry: Path())


def apply_hub(cache: Path, repo_id: str, plan: Plan, *, python: str | None, token: str | None) -> None:
    """Download what `plan` lists, check its hashes, then write file list, links and refs.

    huggingface_hub takes any blob that lies under the right name for good, so a wrong one is removed beforehand.
    """
    owner = _owner(cache)
    repo = snapshot.repo_folder(cache, repo_id)
    with _explained(repo):
        _folder(repo / "blobs", owner)
        for name in plan.remove:
            (cache / name).unlink(missing_ok=True)
        for entry in plan.blobs:
            (repo / "blobs" / str(entry.blob)).unlink(missing_ok=True)
            link = repo / "snapshots" / plan.commit / entry.path
            if link.is_symlink() or link.is_file():
                link.unlink()
    if plan.blobs:
        # Patterns, not names: a bracket in a file's name would otherwise be read as a set.
        paths = [entry.path.replace("[", "[[]") for entry in plan.blobs]
        task = {
            "do": "get",
            "repo_id": repo_id,
            "commit": plan.commit,
            "hub": str(snapshot.hub_of(cache)),
            "paths": paths,
        }
        _hub(task, cache, python or sys.executable, token)
    for entry in plan.blobs:
        blob = repo / "blobs" / str(entry.blob)
        with _explained(blob):
            if not blob.is_file() or snapshot.blob_hash(blob, blob.name) != blob.name:
                blob.unlink(missing_ok=True)
                raise FetchError(
                    f"{entry.path} of {repo_id} came damaged from the Hub; run again to fetch it anew.",
                    "weights_corrupt",
                )
            blob.chmod(FILE_MODE)
    write_tree_links_refs(cache, repo_id, plan)
    if owner:  # huggingface_hub ran as root; its locks too must open for the owner's own downloads
        locks = repo.parent / ".locks"
        for path in (repo, *repo.rglob("*"), locks, *(locks / repo.name).rglob("*"), locks / repo.name):
            if os.path.lexists(path):
                _own(path, owner)


# States


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
    token: str | None = None
    python: str | None = None
    dry: bool = False


@dataclass
class Outcome:
    """What was found and done; filled step by step, so that a failure tells as much as a success."""

    report: Report
    plan: Plan = field(default_factory=Plan)
    wanted: list[str] | None = None
    owner: tuple[int, int] | None = None
    changed: bool = False

    def result(self, *, with_manifest: bool) -> dict[str, Any]:
        """Return the module's result without its diff."""
        report = self.report
        result: dict[str, Any] = {
            "changed": self.changed,
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
    manifest = report.manifest or Manifest("", (), "links")
    absent = set(report.optional)
    entries = tuple(_filled(entry, root) for entry in manifest.entries if entry.path not in absent)
    # Without all of its files the list is not the repository's own, see cache_source.
    origin = "links" if absent else manifest.origin
    refs = _refs_to(root.parents[1], manifest.commit)
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
    if not snapshot.is_commit(commit) or (snapshot.is_commit(wish.revision) and commit != wish.revision):
        raise FetchError(f"The manifest is of commit {commit}, expected {wish.revision}.", "bad_argument")
    origin = "tree" if wish.manifest.get("origin") == "tree" else "links"
    manifest = replace(snapshot.given_manifest(commit, files), origin=origin)
    refs = tuple(str(name) for name in wish.manifest.get("refs") or ())
    for name in refs:
        snapshot.check_revision(name)
    return manifest, refs


def _incomplete(wish: Wish, report: Report, hint: str) -> FetchError:
    """Say why a snapshot is not usable; a model that is not there at all gets the nearest names instead."""
    if report.manifest is None:
        known = snapshot.known_repos(wish.cache)
        near = snapshot.nearest(wish.repo_id, [name for name in known if name != wish.repo_id])
        if wish.repo_id in known:
            held = ", ".join(_held_revisions(snapshot.repo_folder(wish.cache, wish.repo_id)))
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
    outcome.report = snapshot.inspect(wish.cache, wish.repo_id, revision, wish.verify, manifest=manifest)
    if given:
        source = Source("", given[0], lambda entry: Path())
        plan = plan_present(wish.cache, outcome.report, source, revision=revision, verify=wish.verify)
        outcome.wanted = [str(entry.blob) for entry in plan.blobs]
        outcome.owner = _owner(wish.cache) or (os.geteuid(), os.getegid())
        staged = _bytes_below(Path(wish.source)) if wish.source else 0
        check_space(wish.cache, max(0, sum(entry.size or 0 for entry in plan.blobs) - staged), wish.margin)
    if not outcome.report.complete:
        raise _incomplete(wish, outcome.report, "run hf_snapshot with state present and a source")


def _bytes_below(folder: Path) -> int:
    total = 0
    for base, _folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(base) / name).lstat().st_size
    return total


def _check_names(wish: Wish) -> None:
    snapshot.check_repo_id(wish.repo_id)
    snapshot.check_revision(wish.revision)


def _open_source(wish: Wish) -> Source | None:
    given = _given(wish)
    if wish.source is None:
        return None
    if wish.source == "hub":
        return hub_source(wish.cache, wish.repo_id, wish.revision, wish.python, wish.token)
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
    outcome.report = report = snapshot.inspect(wish.cache, wish.repo_id, wish.revision, wish.verify, manifest=manifest)
    source = own_source(wish.cache, report)
    if source:
        outcome.plan = plan_present(wish.cache, report, source, revision=wish.revision, verify=wish.verify)
    if report.complete or (source and not outcome.plan.blobs):
        return source
    outcome.plan = Plan()
    source = _open_source(wish)
    if source is None:
        raise _incomplete(wish, report, "give a source to bring it in from")
    found = snapshot.inspect(wish.cache, wish.repo_id, source.manifest.commit, wish.verify, manifest=source.manifest)
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
    with locked(wish.cache) as waited:
        if waited:
            source = _plan(wish, outcome)
            if not outcome.plan or source is None:
                return
        outcome.changed = True
        if source.label == "hub":
            apply_hub(wish.cache, wish.repo_id, outcome.plan, python=wish.python, token=wish.token)
        else:
            apply(wish.cache, wish.repo_id, outcome.plan, source)
        outcome.plan.done = True
        _conclude(wish, outcome, source)


def _conclude(wish: Wish, outcome: Outcome, source: Source) -> None:
    """Look again after writing, and leave the marker when all contents went through the hash."""
    before = outcome.report
    revision = wish.revision if not snapshot.is_commit(wish.revision) else source.manifest.commit
    outcome.report = snapshot.inspect(wish.cache, wish.repo_id, revision, manifest=source.manifest)
    if not outcome.report.complete:
        raise _incomplete(wish, outcome.report, "something else writes into this cache; run again")
    written = {entry.blob for entry in outcome.plan.blobs}
    everything = all(entry.blob in written for entry in source.manifest.entries)
    outcome.report.hashed = outcome.report.hashed or everything or before.hashed
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
