# SPDX-License-Identifier: Apache-2.0
"""Which process listens on which TCP port of a node. Reads /proc."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

from ..container.spec import overlap


def listeners(bind: str, port: int, proc: Path = Path("/proc")) -> dict[int, str]:
    """Return the processes that listen on a TCP port of ``bind``: {pid: command}; empty when they cannot be seen."""
    inodes = set()
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / table).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].rpartition(":")
                if fields[3] == "0A" and int(number, 16) == port and overlap(bind, _proc_address(address)):
                    inodes.add(f"socket:[{fields[9]}]")
    found = {}
    for folder in proc.glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):
            for handle in (folder / "fd").iterdir():
                if str(handle.readlink()) in inodes:
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found[int(folder.name)] = words[:80] or folder.name
                    break
    return found


def _proc_address(text: str) -> str:
    """Return an address of /proc/net/tcp and tcp6 as text: 32-bit words in the machine's byte order."""
    packed = b"".join(struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8))
    address = socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)
    return address.removeprefix("::ffff:")
