# SPDX-License-Identifier: Apache-2.0
"""Reads the weights of a snapshot into the page cache, at a bounded rate, and reports how much of them is there.

A server that starts afterwards reads from memory: the old one still serves meanwhile, so this must not cost it. It is
not done where it would not help (a network mount, a file system in memory) or could hurt (little memory left).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.meter import Meter
from ..common.units import size

CHUNK = 8 << 20
"""Bytes read at a time; between two, the clock and the available memory are checked."""

WINDOW = 1 << 30
"""Bytes of a file that are mapped at a time to ask for their residency."""

ENOUGH = 0.99
"""From this share on the weights count as resident: the kernel takes a page here and there at any time."""

NETWORK = (
    *("nfs", "nfs4", "lustre", "ceph", "cifs", "smb3", "gpfs", "beegfs", "glusterfs"),
    *("fuse.", "9p", "virtiofs", "wekafs"),
)
IN_MEMORY = ("tmpfs", "ramfs")


@dataclass
class Result:
    """Bytes of the weights, of them resident before and after and read; `skipped` is why it was not done."""

    bytes: int = 0
    resident_before: int = 0
    resident_after: int = 0
    read: int = 0
    skipped: str = ""


def mount_of(path: str, mounts: str) -> tuple[str, str]:
    """Return file system type and options of the mount that `path` is on, from the text of /proc/self/mounts."""
    best, found = "", ("", "")
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        point = fields[1].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, (fields[2], fields[3])
    return found


def available(meminfo: str) -> int:
    """Return the bytes that can be had without swapping, from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def reason_against(kind: str, options: str, *, missing: int, free: int, reserve: int) -> str:
    """Return why the weights are not to be read in, or an empty string; sizes in bytes."""
    if kind in IN_MEMORY:
        return f"the cache is on {kind}, which is memory already"
    if kind.startswith(NETWORK) and "fsc" not in options.split(","):
        return f"the cache is on a network mount ({kind}) without a local cache"
    if missing + reserve > free:
        return (
            f"{missing / 2**30:.1f} GiB would have to be read, {free / 2**30:.1f} GiB of memory are available, "
            f"and {reserve / 2**30:.1f} GiB are to stay free"
        )
    return ""


def resident(path: Path) -> int:
    """Return how many bytes of a file are in the page cache (mincore)."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    total = 0
    with path.open("rb") as file:
        for offset in range(0, size, WINDOW):
            length = min(WINDOW, size - offset)
            # A private mapping may be asked for its address, and no page of it is ever written.
            with mmap.mmap(file.fileno(), length, flags=mmap.MAP_PRIVATE, offset=offset) as mapping:
                pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
                anchor = ctypes.c_char.from_buffer(mapping)
                try:
                    if libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(length), pages):
                        raise OSError(ctypes.get_errno(), "mincore")
                finally:
                    del anchor
                total += min(length, sum(page & 1 for page in bytes(pages)) * mmap.PAGESIZE)
    return total


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _step_back() -> None:
    """Let everything else on the node go first: processor and disk."""
    os.nice(10)
    if shutil.which("ionice"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["ionice", "-c", "3", "-p", str(os.getpid())], capture_output=True, check=False, timeout=10)


def warm(
    files: Sequence[Path],
    rate: int,
    reserve: int,
    meter: Meter | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Read `files` into the page cache at no more than `rate` bytes a second, leaving `reserve` bytes of memory."""
    real = [path.resolve() for path in files]
    found = Result(bytes=sum(path.stat().st_size for path in real))
    here = [resident(path) for path in real]
    found.resident_before = found.resident_after = sum(here)
    missing = found.bytes - found.resident_before
    if not real or missing <= found.bytes * (1 - ENOUGH):
        return found
    kind, options = mount_of(str(real[0]), _text("/proc/self/mounts"))
    free = available(_text("/proc/meminfo"))
    found.skipped = reason_against(kind, options, missing=missing, free=free, reserve=reserve)
    if found.skipped:
        return found
    _step_back()
    buffer = memoryview(bytearray(CHUNK))
    began = clock()
    meter = meter or Meter()
    meter.begin("reading into memory", missing)
    for path, already in zip(real, here, strict=True):
        if already >= path.stat().st_size * ENOUGH:
            continue
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                found.read += count
                meter.reach(found.read)
                early = found.read / rate - (clock() - began)
                if early > 0:
                    sleep(early)
                if available(_text("/proc/meminfo")) < reserve:
                    found.skipped = f"memory got short after {found.read / 2**30:.1f} GiB; the rest was left out"
                    found.resident_after = sum(resident(item) for item in real)
                    return found
    found.resident_after = sum(resident(item) for item in real)
    return found


def in_words(result: Mapping[str, Any]) -> str:
    """Return how much of the weights was in memory and is now, from what hf_prewarm returned."""

    def percent(count: float) -> int:
        return round(100 * count / result["bytes"]) if result["bytes"] else 0

    left_out = f" Left out: {result['skipped_because']}." if result["skipped_because"] else ""
    return (
        f"{percent(result['resident_before'])} % of {size(result['bytes'])} were in memory, "
        f"{percent(result['resident_after'])} % are now, after {result['elapsed']} s.{left_out}"
    )
