# SPDX-License-Identifier: Apache-2.0
"""What the controller lacks for this run, with the command that brings it. Pure.

What is there makes no finding: a run has many nodes and one controller.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.finding import Finding
from ..common.units import size

#: Bytes that must be free for the reports and for Ansible's own files.
ROOM = 100_000_000
#: Open files of the controller's process, its own and those of each fork. 30 forks were measured with 128 together.
_FILES, _FILES_A_FORK = 128, 8


def rsync(sends: Mapping[str, bool | None], *, there: bool) -> list[Finding]:
    """Judge rsync for one node. ``sends``: what the controller would send, and whether the node lacks it, if known."""
    wanted = [name for name, lacks in sends.items() if lacks is not False]
    if there or not wanted:
        return []
    level = "refused" if any(sends[name] for name in wanted) else "warning"
    what = f"rsync, to send {' and '.join(wanted)}"
    return [Finding(level, "controller", what, "none", "install it: `sudo apt-get install rsync`")]


def git(*, needed: bool, there: bool) -> list[Finding]:
    """Judge git, where the controller builds the image out of a checkout."""
    if there or not needed:
        return []
    remedy = "install it: `sudo apt-get install git`, or set vllm_image_build_revision"
    return [Finding("refused", "controller", "git, to see what is built", "none", remedy)]


def ssh(program: str, *, there: bool) -> list[Finding]:
    """Judge the ssh client of a node that was not reached."""
    remedy = "install it: `sudo apt-get install openssh-client`"
    return [] if there else [Finding("refused", "controller", f"the program {program}", "none", remedy)]


def room(folder: str, free: int) -> list[Finding]:
    """Judge the free bytes of a folder that this run writes to."""
    if free >= ROOM:
        return []
    remedy = "make room, or set VLLM_FLEET_REPORTS and ANSIBLE_LOCAL_TEMP to folders with room"
    return [Finding("warning", "controller", f"{size(ROOM)} free in {folder}", size(free), remedy)]


def files(limit: int, forks: int) -> list[Finding]:
    """Judge how many files the controller's process may open at once; a negative ``limit`` is none."""
    needed = _FILES + _FILES_A_FORK * forks
    if limit < 0 or limit >= needed:
        return []
    remedy = f"raise it for this shell: `ulimit -n {max(4096, needed)}`, or take fewer forks"
    return [Finding("warning", "controller", f"{needed} open files, for {forks} forks", f"at most {limit}", remedy)]
