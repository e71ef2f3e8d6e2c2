# SPDX-License-Identifier: Apache-2.0
"""Whose a fleet is: one that a test makes is not to outlive it, also when the test is killed."""

from __future__ import annotations

import os
from pathlib import Path


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _begun(process: int) -> str:
    """When a process began, in clock ticks since the boot (proc_pid_stat(5), field 22); empty when it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The name before it, in parentheses, may hold anything.
    state, *rest = text.rpartition(")")[2].split()
    return "" if state in ("Z", "X") else rest[18]


def of(process: int | None = None) -> str:
    """Name a process, by default this one, so that no later process is taken for it: its number is given again."""
    process = process or os.getpid()
    return f"{_boot()}:{process}:{_begun(process)}"


def is_gone(owner: str) -> bool:
    """Whether the process that ``of`` named has ended; what cannot be read names none."""
    boot, _, rest = owner.partition(":")
    process, _, begun = rest.partition(":")
    return process.isdigit() and begun.isdigit() and (boot != _boot() or _begun(int(process)) != begun)
