# SPDX-License-Identifier: Apache-2.0
"""Names and paths in a Hugging Face cache: repository ids, revisions, folders, markers."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path


class SnapshotError(Exception):
    """A repository id, a revision or a list of files that cannot be; the message is one sentence."""


STATE_FOLDER = ".vllm-fleet"
"""Folder in the cache, beside `hub`, for markers and the lock; huggingface_hub does not read it.

A folder of the same name in a repository's folder holds what is on its way.
"""

LONGEST_REF = 4096
"""Bytes that are read of a ref, which is a commit of 40 digits."""

PART_SUFFIX = ".vllm-fleet.incomplete"
"""Ending of the temporary files of this project inside `blobs`."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")

_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]*[A-Za-z0-9_])?")


def in_home(path: str, home: str) -> str:
    """Return a path of a node with ``home`` in the place of a ``~`` at its beginning; another user's `~name` stays."""
    return home + path[1:] if path == "~" or path.startswith("~/") else path


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


@dataclass(frozen=True)
class Repository:
    """One model's repository in one cache, and the path of everything in it. Nothing is read and nothing is checked.

    `cache` is the folder that HF_HOME names, `repo_id` the model's id on the Hub.
    """

    cache: Path
    repo_id: str

    @property
    def name(self) -> str:
        """Return the name of the repository's folder."""
        return "models--" + self.repo_id.replace("/", "--")

    @property
    def folder(self) -> Path:
        """Return the repository's folder."""
        return hub_of(self.cache) / self.name

    @property
    def blobs(self) -> Path:
        """Return the folder of contents, each named by its hash."""
        return self.folder / "blobs"

    @property
    def refs(self) -> Path:
        """Return the folder of branches and tags, each a file with a commit in it."""
        return self.folder / "refs"

    @property
    def snapshots(self) -> Path:
        """Return the folder with one folder of links for each commit."""
        return self.folder / "snapshots"

    @property
    def staging(self) -> Path:
        """Return the folder of what is on its way into the repository, on the disk that it goes to."""
        return self.folder / STATE_FOLDER

    @property
    def locks(self) -> Path:
        """Return the folder in which huggingface_hub locks the blobs that it downloads."""
        return hub_of(self.cache) / ".locks" / self.name

    @property
    def markers(self) -> Path:
        """Return the folder of the markers of the repository's verified snapshots."""
        return self.cache / STATE_FOLDER / self.name

    def snapshot(self, commit: str) -> Path:
        """Return the folder of links of one commit."""
        return self.snapshots / commit

    def tree(self, commit: str) -> Path:
        """Return the repository's own file list of one commit, as huggingface_hub writes it."""
        return self.folder / "trees" / f"{commit}.json"

    def no_exist(self, commit: str) -> Path:
        """Return the folder in which huggingface_hub notes which files one commit does not have."""
        return self.folder / ".no_exist" / commit

    def marker(self, commit: str) -> Path:
        """Return the marker of one verified snapshot."""
        return self.markers / f"{commit}.json"

    def relative(self, path: Path) -> str:
        """Return `path` as a path inside the cache."""
        return path.relative_to(self.cache).as_posix()


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
