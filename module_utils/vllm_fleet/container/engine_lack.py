# SPDX-License-Identifier: Apache-2.0
"""What keeps a node's Docker engine from being right, as parts of a sentence. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lack(probe: Mapping[str, Any]) -> str:
    """Return the first thing that a probe (docker_engine, state probed) found wrong, where not all is right."""
    if probe["denied"]:
        return "its Docker engine is closed to this user"
    if not probe["running"]:
        return "no Docker engine runs there"
    if not probe["sdk"]:
        return "python3-docker is missing"
    if not probe["client"]:
        return "the docker command is missing"
    return "daemon.json has to change"


def why_not_root(answer: Mapping[str, Any]) -> str:
    """Return why a user cannot become root, from the result of a module that was to run as root.

    A module that ran reports its uid; otherwise the last line of what sudo or Ansible said is the reason.
    """
    if "uid" in answer:
        return f"become gives uid {answer['uid']}"
    said = str(answer.get("module_stderr") or answer.get("msg") or "no reason given")
    return said.splitlines()[-1].strip()
