# SPDX-License-Identifier: Apache-2.0
"""Docker's words for a container that it does not create, to the option that they are about. Pure."""

from __future__ import annotations

import re

#: What Docker 20.10 to 29 say, most special first.
_WORDS = (
    ("capabilities", r"invalid Cap(Add|Drop)|unknown capability"),
    ("security_opts", r"invalid --security-opt|[Ss]eccomp profile|[Aa]pp[Aa]rmor"),
    ("restart_policy", r"restart policy|maximum retry count"),
    ("shm_size", r"SHM size|ShmSize"),
    ("ipc_mode", r"IPC mode|IpcMode"),
    ("ulimits", r"\bulimit"),
    ("devices", r"\bdevice (mode|mapping|specification)|custom device|CDI device"),
    ("env", r"environment variable"),
    ("port", r"port specification|hostPort|PortBindings"),
    ("network_mode", r"\bnetwork(s|ing)?\b|NetworkMode"),
    ("volumes", r"[Dd]uplicate mount point|mount config|volume|invalid mode: |bind mount"),
)
#: Parts of Docker's sentences that are given from outside: the action with its name, what is quoted, and paths.
_GIVEN = re.compile(r"^create container \S+: |\"[^\"]*\"|'[^']*'|(?<!\S)/\S+")
#: What no option is to blame for, whatever names stand in it.
_NO_OPTION = re.compile(r"No such image|no space left on device|is already in use by container|did not answer")


def option(words: str) -> str:
    """Return the option of the module that Docker's ``words`` refuse; empty where they do not show it."""
    if _NO_OPTION.search(words):
        return ""
    said = _GIVEN.sub("", words)
    return next((name for name, pattern in _WORDS if re.search(pattern, said)), "")
