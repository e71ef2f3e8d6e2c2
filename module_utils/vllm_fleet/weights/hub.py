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

from ..common.meter import Meter
from . import layout, snapshot
from .fetch_apply import write_tree_links_refs
from .fetch_plan import Plan
from .fetch_source import Source
from .files import (
    FILE_MODE,
    FetchError,
    allocated_below,
    explained,
    give,
    make_folder,
    owner_of,
)
from .layout import SnapshotError
from .manifest import blob_hash, given_manifest, tree_manifest

TRIES = 4
"""Tries in a row that may bring no whole file, or no file list, before a download is given up."""

LIST_TIMEOUT = 30.0
"""Seconds without a byte after which the file list is asked for anew; huggingface_hub itself would wait for ever."""

LONGEST_PAUSE = 300.0
"""Seconds that a Hub which asks to be left alone is left alone at most; it counts by five minutes."""

# Runs in a process of its own: huggingface_hub reads its environment once, at import, and the token must reach
# neither this process's arguments nor its environment.
_HUB_SCRIPT = """
import ctypes, json, os, signal, sys
# Not to outlive who began it: what comes after a download, as owner and hashes, would be left undone.
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
    """How the Hub is asked: a Python that has huggingface_hub, the token, another endpoint, seconds of standstill."""

    python: str | None = None
    token: str | None = None
    endpoint: str | None = None
    stall: float = 300.0

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
            # Otherwise the token of the cache's user is taken (and, if it expires, written anew), which is not ours.
            environment |= {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        if self.endpoint:
            environment["HF_ENDPOINT"] = self.endpoint
        return environment


class _Refused(FetchError):
    """What the Hub may answer when asked again; `after` are the seconds that it asks to be left alone, 0 for none."""

    after = 0.0


class _Standstill(Exception):
    """No byte has come for as long as is allowed."""


def _hub(
    task: dict[str, Any],
    cache: Path,
    client: Client,
    *,
    xet: bool = True,
    watch: Path | None = None,
    grown: Callable[[int], None] | None = None,
) -> Any:
    """Run one task of `_HUB_SCRIPT` and return its answer; raise FetchError in words for the known failures.

    With `watch`, a folder that the bytes come into, raises _Standstill when it has not grown for `client.stall`.
    `grown` is told the bytes below it from time to time.
    """
    try:
        process = subprocess.Popen(
            [client.program, "-c", _HUB_SCRIPT, json.dumps(task), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=client.environment(cache, _scratch(cache, task["repo_id"]), xet=xet),
            start_new_session=True,
        )
    except OSError as error:
        raise FetchError(f"Python {client.program} for the download cannot be started: {error.strerror}.") from error
    try:
        stdout, stderr = _communicate(process, watch, client.stall, grown)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    try:
        answer = json.loads(stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise FetchError(
            f"The download of {task['repo_id']} ended with exit code {process.returncode}.",
            evidence=stderr.strip()[-2000:],
        ) from error
    if answer.get("error"):
        raise answered(task, answer, client.program)
    return answer


def _scratch(cache: Path, repo_id: str) -> Path:
    return layout.repo_folder(cache, repo_id) / layout.STATE_FOLDER / "xet"


def _communicate(
    process: subprocess.Popen[str], watch: Path | None, stall: float, grown: Callable[[int], None] | None
) -> tuple[str, str]:
    """Wait for the process; with `watch`, as long as the folder grows."""
    seen, moved = -1, time.monotonic()
    while True:
        try:
            return process.communicate(timeout=min(2.0, stall / 4) if watch else None)
        except subprocess.TimeoutExpired:
            now = allocated_below(watch) if watch else 0
            if grown:
                grown(now)
            if now != seen:
                seen, moved = now, time.monotonic()
            elif time.monotonic() - moved > stall:
                raise _Standstill from None


def _download(
    task: dict[str, Any], cache: Path, client: Client, blobs: Path, *, notes: list[str], grown: Callable[[int], None]
) -> None:
    """Download with patience: whole files are kept, so each try goes on where the last one stopped.

    huggingface_hub itself repeats what the server refuses for the moment (429, 5xx) and what breaks; this is for
    what it does not survive. Xet downloads are known to stand still on large repositories, so the first try alone
    uses it. Tries that brought a whole file do not count.
    """
    failures, xet = 0, True
    while True:
        before = {path.name for path in blobs.iterdir() if not path.name.endswith(".incomplete")}
        try:
            _hub(task, cache, client, xet=xet, watch=blobs, grown=grown)
            return
        except _Standstill:
            problem: FetchError = FetchError(
                f"The download of {task['repo_id']} stood still for {client.stall:.0f} s, {TRIES} times; "
                "look at the node's way to the Hub and run again: whole files are kept."
            )
            said = f"The download stood still for {client.stall:.0f} s and was taken up by plain HTTP"
        except FetchError as error:
            if error.failure != "unknown" or not error.evidence:
                raise
            problem = error
            said = f"The download broke ({str(error).removesuffix('.')[-200:]}) and was taken up"
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


def answered(task: dict[str, Any], answer: dict[str, Any], python: str) -> FetchError:
    """Say what an answer of `_HUB_SCRIPT` means that tells of an error."""
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
    return _trouble(model, answer, message.strip() or names[0])


def _trouble(model: str, answer: dict[str, Any], message: str) -> FetchError:
    """Tell what passes (a busy or broken server, a connection) from what does not."""
    said = f"Model {model} could not be had from the Hub: {message.splitlines()[0]}"
    status = answer.get("status")
    passes = status in (408, 429) or status >= 500 if status else {"TransportError", "OSError"} & set(answer["error"])
    if passes:
        refused = _Refused(said, evidence=message)
        refused.after = asked_pause(answer.get("headers") or {})
        return refused
    return FetchError(said, evidence=message)


def asked_pause(headers: Mapping[str, str]) -> float:
    """Return the seconds for which an answer's headers ask to be left alone, 0 when they do not say."""
    lower = {name.lower(): value for name, value in headers.items()}
    found = re.fullmatch(r"\s*(\d+)\s*", lower.get("retry-after", "")) or re.search(
        r";\s*t=(\d+)", lower.get("ratelimit", "")
    )
    return float(found[1]) if found else 0.0


def _listing(task: dict[str, Any], cache: Path, client: Client) -> Any:
    """Ask for the file list with patience: for what the Hub refuses for the moment, breaks off or leaves unanswered."""
    for failures in range(1, TRIES):
        try:
            return _hub(task, cache, client)
        except _Refused as error:
            time.sleep(min(LONGEST_PAUSE, error.after or 2.0**failures))
    return _hub(task, cache, client)


def hub_source(cache: Path, repo_id: str, revision: str, client: Client, meter: Meter) -> Source:
    """Ask the Hub for the file list of a revision; the commit it stands for now is pinned for all that follows."""
    timeout = min(LIST_TIMEOUT, client.stall)
    meter.begin("asking the Hub for the list of files")
    answer = _listing({"do": "list", "repo_id": repo_id, "revision": revision, "timeout": timeout}, cache, client)
    try:
        manifest = replace(given_manifest(answer["commit"], answer["files"]), origin="tree")
    except SnapshotError as error:
        raise FetchError(f"The Hub's file list of {repo_id} is not usable: {error}") from error
    return Source("hub", snapshot.without_copies(manifest), lambda entry: Path())


def _forget_list(repo: Path, plan: Plan) -> None:
    """Remove the repository's file list, as huggingface_hub wrote it, where it names more than was brought in.

    Offline it refuses a snapshot that lacks a file of this list, and so does vLLM, which asks it for the whole.
    """
    tree, root = repo / "trees" / f"{plan.commit}.json", repo / "snapshots" / plan.commit
    with contextlib.suppress(OSError, ValueError, AttributeError):
        listed = {entry.path for entry in tree_manifest(tree.read_bytes(), plan.commit).entries}
        if not all(os.path.lexists(root / path) for path in listed - {entry.path for entry in plan.links}):
            tree.unlink()


def apply_hub(cache: Path, repo_id: str, plan: Plan, client: Client, meter: Meter) -> None:
    """Download what `plan` lists, check its hashes, then write file list, links and refs.

    huggingface_hub takes any blob that lies under the right name for good, so a wrong one is removed beforehand.
    """
    owner = owner_of(cache)
    repo = layout.repo_folder(cache, repo_id)
    with explained(repo):
        make_folder(repo / "blobs", owner)
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
            "hub": str(layout.hub_of(cache)),
            "paths": paths,
        }
        wanted, there = sum(entry.size or 0 for entry in plan.blobs), allocated_below(repo / "blobs")
        meter.begin("downloading", wanted)
        scratch = _scratch(cache, repo_id)
        try:
            _download(
                task,
                cache,
                client,
                repo / "blobs",
                notes=plan.notes,
                grown=lambda now: meter.reach(now - there),
            )
            _forget_list(repo, plan)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                scratch.parent.rmdir()  # unless something is on its way from another node
        meter.begin("hashing", wanted)
    for entry in plan.blobs:
        blob = repo / "blobs" / str(entry.blob)
        with explained(blob):
            if not blob.is_file() or blob_hash(blob, blob.name, meter) != blob.name:
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
                give(path, owner)
