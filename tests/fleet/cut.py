# SPDX-License-Identifier: Apache-2.0
"""A cut of a node's SSH that is in force, and how it is made and mended."""

from __future__ import annotations

import subprocess

from inside import inside
from node_image import run


class Cut:
    """An SSH cut that is in force; ends by itself, also when this process is gone."""

    def __init__(self, container: str, process: subprocess.Popen[str], rule: str) -> None:
        """Remember what to wait for and which rule to take back."""
        self._container, self._process, self._rule = container, process, rule

    def wait(self, timeout: float | None = None) -> None:
        """Block until the link is whole again."""
        self._process.wait(timeout)
        if self._process.stdout:
            self._process.stdout.close()

    def restore(self) -> None:
        """Mend the link now; nothing happens if that is done."""
        # Where the time has just run out, nobody reads any more, and opening the pipe would wait for ever.
        wake = f"[ ! -p /run/{self._rule} ] || timeout 5 sh -c 'echo >/run/{self._rule}'"
        run(inside(self._container, "sh", "-c", wake), check=False, timeout=30)
        self.wait(30)

    def __enter__(self) -> Cut:
        """Use the cut for the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Mend the link at the end of the block."""
        self.restore()


def cut_script(rule: str, seconds: float) -> str:
    """Shell script which drops SSH packets in and out, says so, and mends after the time or a line in /run/<rule>."""
    drops = [
        f"{chain} -p tcp {port} 22 -m comment --comment {rule} -j DROP"
        for chain, port in (("INPUT", "--dport"), ("OUTPUT", "--sport"))
    ]
    lines = ["set -e", f"mkfifo /run/{rule}", f"trap 'rm -f /run/{rule}' EXIT"]
    lines += [f"iptables -w -I {drop}" for drop in drops]
    lines += ["echo cut", f"read -r -t {seconds} <>/run/{rule} || true"]
    lines += [f"iptables -w -D {drop}" for drop in drops]
    return "\n".join(lines)
