# SPDX-License-Identifier: Apache-2.0
"""Downloads from the Hub by huggingface_hub itself, pinned to a commit, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common import received
from ..common.meter import Meter
from . import layout, snapshot
from .fetch_apply import prepare, write_tree_links_refs
from .fetch_plan import Plan
from .fetch_source import Source
from .files import FILE_MODE, FOLDER_MODE, FetchError, allocated_below, explained, remove
from .layout import Repository, SnapshotError
from .manifest import Entry, blob_hash, given_manifest, tree_manifest
from .owner import opened

TRIES = 4
"""Tries in a row that may bring no whole file, or no file list, before a download is given up."""

LIST_TIMEOUT = 30.0
"""Seconds without a byte after which the file list is asked for again; huggingface_hub itself would wait for ever."""

LIST_PATIENCE = 600.0
"""Seconds for the whole of the file list."""

ASIDE_PATIENCE = 20.0
"""Seconds for the list where the run goes on without it: a controller without a way out is not waited for."""

LONGEST_PAUSE = 300.0
"""Seconds that a Hub which asks to be left alone is left alone at most; it counts by five minutes."""

# Runs in a process of its own: huggingface_hub reads its environment once, at import, and the token must reach
# neither this process's arguments nor its environment.
_HUB_SCRIPT = """
import ctypes, json, os, signal, sys
# Where root works in a user's cache, this began with that user's rights and a way back: that ends here. As the user
# changed, nobody but root can look into this process, whose environment has the token.
os.setresgid(*[os.getegid()] * 3)
os.setresuid(*[os.geteuid()] * 3)
# Ends with the process that began it: what comes after a download (owner, hashes) would be left undone.
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[2]):
    sys.exit(1)
try:
    import huggingface_hub as hub
except ImportError:
    print(json.dumps({"error": "ImportError", "message": ""})); sys.exit(0)
task = json.loads(sys.argv[1])
try:
    if task["do"] == "list":
        info = hub.HfApi().model_info(
            task["repo_id"], revision=task["revision"], files_metadata=True, timeout=task["timeout"]
        )
        files = {f.rfilename: {"size": f.size, "blob": f.lfs.sha256 if f.lfs else f.blob_id} for f in info.siblings}
        print(json.dumps({"commit": info.sha, "files": files}))
    else:
        hub.snapshot_download(task["repo_id"], revision=task["commit"], cache_dir=task["hub"],
                              allow_patterns=task["paths"], max_workers=8)
        print(json.dumps({}))
except Exception as error:
    names = [kind.__name__ for kind in type(error).__mro__]
    response = getattr(error, "response", None)
    said = {} if response is None else {"status": response.status_code, "headers": dict(response.headers)}
    print(json.dumps({"error": names, "message": str(error)[-2000:], **said}))
"""


@dataclass(frozen=True)
class Client:
    """Access to the Hub: a Python that has huggingface_hub, the token, another endpoint.

    ``stall``: seconds of standstill of a download; ``patience``: seconds for the whole of the file list.
    """

    python: str | None = None
    token: str | None = None
    endpoint: str | None = None
    stall: float = 300.0
    patience: float = LIST_PATIENCE

    @property
    def program(self) -> str:
        """Return the Python to start."""
        return self.python or sys.executable

    def environment(self, cache: Path, scratch: Path, *, xet: bool) -> dict[str, str]:
        """Return the environment of the process that downloads into `cache`; what Xet keeps goes into `scratch`."""
        environment = {
            **os.environ,
            "HF_HOME": str(cache),
            "HF_XET_CACHE": str(scratch),  # by default in HF_HOME, where as root's it would be in its user's way
            "HF_HUB_DISABLE_SHARED_BLOBS": "1",  # otherwise blobs become links that a copy of the repository would miss
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_XET_HIGH_PERFORMANCE": "1",
        }
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
            environment.pop(name, None)
        if not xet:
            environment["HF_HUB_DISABLE_XET"] = "1"
        if self.token:
            environment["HF_TOKEN"] = self.token
        elif not environment.get("HF_TOKEN") and not environment.get("HUGGING_FACE_HUB_TOKEN"):
            # Otherwise the token of the cache's user is taken (and, if it expires, renewed), and it is not ours.
            environment |= {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        if self.endpoint:
            environment["HF_ENDPOINT"] = self.endpoint
        return environment


class _Refused(FetchError):
    """The Hub may answer when asked again; `after` are the seconds that it asks for a pause, 0 for none."""

    after = 0.0


class _Standstill(Exception):
    """No byte has come for as long as is allowed."""


def _hub(
    task: dict[str, Any],
    repository: Repository,
    client: Client,
    *,
    xet: bool = True,
    watch: Path | None = None,
    grown: Callable[[int], None] | None = None,
) -> Any:
    """Run one task of `_HUB_SCRIPT` and return its answer; raise FetchError with a sentence for each known failure.

    With `watch`, a folder that the bytes come into, raises _Standstill when it has not grown for `client.stall`;
    without one _Refused after `client.patience`, for a server that drips its answer keeps each single wait short.
    `grown` is called with the bytes below it from time to time.
    """
    try:
        process = subprocess.Popen(
            [client.program, "-c", _HUB_SCRIPT, json.dumps(task | {"repo_id": repository.repo_id}), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=client.environment(repository.cache, _scratch(repository), xet=xet),
            start_new_session=True,
            umask=0o022,  # root's own may be 077, and then its folders would be closed to containers of other users
        )
    except OSError as error:
        raise FetchError(f"Python {client.program} for the download cannot be started: {error.strerror}.") from error
    try:
        stdout, stderr = _communicate(process, watch, client, grown)
    except subprocess.TimeoutExpired:
        raise _Refused(
            f"The Hub's answer for {repository.repo_id} was not whole after {client.patience:.0f} s."
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    try:
        answer = json.loads(stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise FetchError(
            f"The download of {repository.repo_id} ended with exit code {process.returncode}.",
            evidence=stderr.strip()[-2000:],
        ) from error
    if answer.get("error"):
        raise answered(repository.repo_id, task, answer, client.program)
    return answer


def _scratch(repository: Repository) -> Path:
    return repository.staging / "xet"


def _communicate(
    process: subprocess.Popen[str], watch: Path | None, client: Client, grown: Callable[[int], None] | None
) -> tuple[str, str]:
    """Wait for the process; with `watch`, as long as the folder grows. Raises _Standstill, TimeoutExpired."""
    if watch is None:
        return process.communicate(timeout=client.patience)
    seen, moved = -1, time.monotonic()
    while True:
        try:
            return process.communicate(timeout=min(2.0, client.stall / 4))
        except subprocess.TimeoutExpired:
            now = allocated_below(watch)
            if grown:
                grown(now)
            if now != seen:
                seen, moved = now, time.monotonic()
            elif time.monotonic() - moved > client.stall:
                raise _Standstill from None


def _download(
    task: dict[str, Any],
    repository: Repository,
    client: Client,
    *,
    notes: list[str],
    grown: Callable[[int], None],
) -> None:
    """Download with retries: whole files are kept, so each try goes on where the last one stopped.

    huggingface_hub itself repeats what the server refuses for the moment (429, 5xx) and what breaks; this is for
    what it does not survive. Xet downloads are known to stand still on large repositories, so the first try alone
    uses it. Tries that brought a whole file do not count.
    """
    failures, xet, blobs = 0, True, repository.blobs
    while True:
        before = {path.name for path in blobs.iterdir() if not path.name.endswith(".incomplete")}
        try:
            _hub(task, repository, client, xet=xet, watch=blobs, grown=grown)
            return
        except _Standstill:
            problem: FetchError = FetchError(
                f"The download of {repository.repo_id} stood still for {client.stall:.0f} s, {TRIES} times; "
                "check the node's way to the Hub and run again: whole files are kept."
            )
            said = f"The download stood still for {client.stall:.0f} s and was resumed by plain HTTP"
        except FetchError as error:
            if error.failure != "unknown" or not error.evidence:
                raise
            problem = error
            said = f"The download broke ({str(error).removesuffix('.')[-200:]}) and was resumed"
        for path in blobs.glob("*.incomplete"):
            path.unlink(missing_ok=True)
        after = {path.name for path in blobs.iterdir()}
        failures = 1 if after - before else failures + 1
        if failures >= TRIES:
            raise problem
        notes.append(f"{said}.")
        xet = False
        if problem.evidence:  # an answer came: the server is to recover, and nothing would announce it
            time.sleep(min(30.0, 2.0**failures))


def answered(model: str, task: dict[str, Any], answer: dict[str, Any], python: str) -> FetchError:
    """Return the FetchError for an answer of `_HUB_SCRIPT` with an error in it; `python` is the program that ran it."""
    names, message = answer["error"], str(answer["message"])
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
    return _trouble(model, answer, message.strip() or names[0])


def _trouble(model: str, answer: dict[str, Any], message: str) -> FetchError:
    """Return _Refused for what passes (a busy or broken server, a connection), FetchError for what does not."""
    said = f"Model {model} could not be read from the Hub: {message.splitlines()[0]}"
    status = answer.get("status")
    passes = status in (408, 429) or status >= 500 if status else {"TransportError", "OSError"} & set(answer["error"])
    if passes:
        refused = _Refused(said, evidence=message)
        refused.after = asked_pause(answer.get("headers") or {})
        return refused
    return FetchError(said, evidence=message)


def asked_pause(headers: Mapping[str, str]) -> float:
    """Return the seconds of pause that an answer's headers ask for, 0 when they do not say."""
    lower = {name.lower(): value for name, value in headers.items()}
    found = re.fullmatch(r"\s*(\d+)\s*", lower.get("retry-after", "")) or re.search(
        r";\s*t=(\d+)", lower.get("ratelimit", "")
    )
    return float(found[1]) if found else 0.0


def _listing(task: dict[str, Any], repository: Repository, client: Client, tries: int) -> Any:
    """Return the file list; try again when the Hub refuses for the moment, breaks off or does not answer."""
    for failures in range(1, tries):
        try:
            return _hub(task, repository, client)
        except _Refused as error:
            time.sleep(min(LONGEST_PAUSE, error.after or 2.0**failures))
    return _hub(task, repository, client)


def hub_source(
    repository: Repository, revision: str, client: Client, meter: Meter, *, tries: int = TRIES, copies: bool = False
) -> Source:
    """Return the Hub as source, with the file list of a revision; the commit that it stands for now is pinned.

    The copies of the weights are left out of the list unless asked for. Raises FetchError.
    """
    timeout = min(LIST_TIMEOUT, client.stall)
    meter.begin("asking the Hub for the list of files")
    answer = _listing({"do": "list", "revision": revision, "timeout": timeout}, repository, client, tries)
    try:
        manifest = replace(given_manifest(answer["commit"], answer["files"]), origin="tree")
    except SnapshotError as error:
        raise FetchError(f"The Hub's file list of {repository.repo_id} is not usable: {error}") from error
    return Source("hub", manifest if copies else snapshot.without_copies(manifest), lambda entry: Path())


def _forget_list(repository: Repository, plan: Plan) -> None:
    """Remove the repository's file list, as huggingface_hub wrote it, where it names more than was brought in.

    Offline it refuses a snapshot that lacks a file of this list, and so does vLLM, which asks it for the whole.
    """
    tree, root = repository.tree(plan.commit), repository.snapshot(plan.commit)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        listed = {entry.path for entry in tree_manifest(received.content(tree), plan.commit).entries}
        if not all(os.path.lexists(root / path) for path in listed - {entry.path for entry in plan.links}):
            tree.unlink()


def apply_hub(repository: Repository, plan: Plan, client: Client, meter: Meter) -> None:
    """Download what `plan` lists, check its hashes, then write file list, links and refs. Raises FetchError.

    huggingface_hub takes any blob under the right name for good, so a wrong one is removed beforehand.
    """
    blobs = repository.blobs
    prepare(repository, plan)
    _check_folders(repository, plan.commit)
    with explained(repository.folder):
        for entry in plan.blobs:
            remove(blobs / str(entry.blob))
            link = repository.snapshot(plan.commit) / entry.path
            if link.is_symlink() or link.is_file():
                remove(link)
    if plan.blobs:
        wanted = sum(entry.size or 0 for entry in plan.blobs)
        meter.begin("downloading", wanted)
        _download_blobs(repository, plan, client, meter)
        meter.begin("hashing", wanted)
    for entry in plan.blobs:
        _check_blob(repository, entry, meter)
    write_tree_links_refs(repository, plan)


def _check_folders(repository: Repository, commit: str) -> None:
    """Raise FetchError where a folder that huggingface_hub writes into is a link that this user should not follow.

    It opens what it writes by path. Folders that an earlier download closed to others are opened again.
    """
    own = [repository.blobs, repository.refs, repository.snapshot(commit), repository.tree(commit).parent]
    own += [repository.no_exist(commit), repository.locks, _scratch(repository)]
    for folder in filter(os.path.lexists, {item for path in own for item in (path, path.parent)}):
        with explained(folder), opened(folder) as handle:
            found = os.fstat(handle)
            if found.st_uid == os.geteuid() and found.st_mode & FOLDER_MODE != FOLDER_MODE:
                os.fchmod(handle, FOLDER_MODE)


def _download_blobs(repository: Repository, plan: Plan, client: Client, meter: Meter) -> None:
    # Patterns, not names: a bracket in a file's name would otherwise be read as a set.
    paths = [entry.path.replace("[", "[[]") for entry in plan.blobs]
    task = {"do": "get", "commit": plan.commit, "hub": str(layout.hub_of(repository.cache)), "paths": paths}
    there = allocated_below(repository.blobs)
    scratch = _scratch(repository)
    try:
        _download(task, repository, client, notes=plan.notes, grown=lambda now: meter.reach(now - there))
        _forget_list(repository, plan)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            scratch.parent.rmdir()  # unless something is on its way from another node


def _check_blob(repository: Repository, entry: Entry, meter: Meter) -> None:
    """Raise FetchError, and remove the blob, unless a downloaded blob hashes to its name."""
    blob = repository.blobs / str(entry.blob)
    with explained(blob):
        if not blob.is_file() or blob_hash(blob, blob.name, meter) != blob.name:
            remove(blob)
            raise FetchError(
                f"{entry.path} of {repository.repo_id} came damaged from the Hub; run again to fetch it again.",
                "weights_corrupt",
            )
        with opened(blob.parent) as folder:
            handle = os.open(blob.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.fchmod(handle, FILE_MODE)
                os.fsync(handle)  # huggingface_hub does not
            finally:
                os.close(handle)
