"""Downloads from the Hub by huggingface_hub itself, pinned to a commit, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.vllm_fleet import snapshot
from ansible.module_utils.vllm_fleet.cache_files import FILE_MODE, FetchError, explained, give, make_folder, owner_of
from ansible.module_utils.vllm_fleet.fetch_apply import write_tree_links_refs
from ansible.module_utils.vllm_fleet.fetch_plan import Plan
from ansible.module_utils.vllm_fleet.fetch_source import Source

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
    owner = owner_of(cache)
    repo = snapshot.repo_folder(cache, repo_id)
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
            "hub": str(snapshot.hub_of(cache)),
            "paths": paths,
        }
        _hub(task, cache, python or sys.executable, token)
    for entry in plan.blobs:
        blob = repo / "blobs" / str(entry.blob)
        with explained(blob):
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
                give(path, owner)
