# SPDX-License-Identifier: Apache-2.0
"""Filter that says which revision of the configuration a run was made from."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

#: Seconds for one question to git; a repository on a slow disk is not worth holding up a deployment.
TIMEOUT = 10


def git(folder: str, *words: str) -> str | None:
    """Ask git in ``folder``; None where there is no git, no repository, or no commit."""
    try:
        done = subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def revision(folder: str) -> dict[str, Any] | None:
    """Commit of the checkout that holds ``folder``, and whether ``folder`` differs from it (untracked files too)."""
    if not folder or not Path(folder).is_dir():
        return None
    commit = git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = git(folder, "status", "--porcelain", "--", ".")
    return {"revision": commit, "dirty": bool(changes) if changes is not None else None}


def vllm_configuration(inventory: str, playbooks: str) -> dict[str, Any]:
    """Give ``inventory`` and ``project``: {revision, dirty} of the checkouts they lie in, null without git.

    ``playbooks`` is the folder of the playbook; the project is the checkout around it.
    """
    project = git(playbooks, "rev-parse", "--show-toplevel") if playbooks and Path(playbooks).is_dir() else None
    return {"inventory": revision(inventory), "project": revision(project or "")}


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Any]:
        """Name them."""
        return {"vllm_configuration": vllm_configuration}
