"""Names and places in a Hugging Face cache: repository ids, revisions, folders, markers."""

from __future__ import annotations

import difflib
import re
from pathlib import Path


class SnapshotError(Exception):
    """The question itself is wrong (a repository id, a revision, a cache path); the message is one sentence."""


STATE_FOLDER = ".vllm-fleet"
"""Folder in the cache, beside `hub`, for markers and the lock: huggingface_hub never looks there.

In a repository's folder, one of the same name holds what is on its way, on the disk that it goes to.
"""

PART_SUFFIX = ".vllm-fleet.incomplete"
"""Ending of the temporary files of this project inside `blobs`."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")

_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]*[A-Za-z0-9_])?")


def check_repo_id(repo_id: str) -> None:
    """Raise SnapshotError unless `repo_id` is a model's id on the Hub: `name` or `organisation/name`.

    The rules are those of huggingface_hub 2.4.0 `validate_repo_id`, without its range of repository types.
    """
    parts = repo_id.split("/")
    fault = ""
    if len(parts) > 2:
        fault = "it has more than one slash"
    elif any(character.isspace() for character in repo_id):
        fault = "it has a space in it"
    elif "--" in repo_id or ".." in repo_id:
        fault = "it has `--` or `..` in it"
    elif len(repo_id) > 96:
        fault = "it is longer than 96 characters"
    elif not all(_REPO_PART.fullmatch(part) for part in parts):
        fault = "only letters, digits, `-`, `_` and `.` may occur, the last two not at an end"
    if fault:
        raise SnapshotError(
            f"Model id {repo_id!r} is not a Hugging Face repository: {fault}; "
            "give it as the Hub's page shows it, such as 'deepseek-ai/DeepSeek-V3.1'."
        )


def check_revision(revision: str) -> None:
    """Raise SnapshotError unless `revision` is a commit or can be the name of a branch or tag."""
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise SnapshotError(
            f"Revision {revision!r} is neither a commit (40 hexadecimal digits) nor a branch or tag name."
        )


def is_commit(revision: str) -> bool:
    """Return whether `revision` is a full commit id."""
    return bool(_COMMIT.fullmatch(revision))


def hub_of(cache: Path) -> Path:
    """Return the hub folder of a cache (HF_HOME)."""
    return cache / "hub"


def repo_folder(cache: Path, repo_id: str) -> Path:
    """Return the folder of a model repository inside `cache`."""
    return hub_of(cache) / ("models--" + repo_id.replace("/", "--"))


def marker_path(cache: Path, repo_id: str, commit: str) -> Path:
    """Return where the marker of one verified snapshot lies."""
    return cache / STATE_FOLDER / repo_folder(cache, repo_id).name / f"{commit}.json"


def known_repos(cache: Path) -> list[str]:
    """Return the ids of the model repositories in `cache` that have at least one snapshot, sorted."""
    found = []
    try:
        folders = sorted(hub_of(cache).iterdir())
    except OSError:
        return []
    for folder in folders:
        if folder.name.startswith("models--") and (folder / "snapshots").is_dir():
            found.append(folder.name.removeprefix("models--").replace("--", "/"))
    return found


def nearest(repo_id: str, known: list[str]) -> list[str]:
    """Return up to three of `known` that `repo_id` may have meant, the best first."""
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(repo_id.lower(), by_lower, n=3, cutoff=0.6)
    return [by_lower[match] for match in matches]
