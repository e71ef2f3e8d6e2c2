# SPDX-License-Identifier: Apache-2.0
"""Weights in the page cache: when it is left alone, and a real file that is evicted and read in again."""

import os
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.weights import prewarm

MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
filer:/m /mnt/models nfs4 rw,vers=4.2 0 0
filer:/n /mnt/models/cached nfs4 rw,fsc,vers=4.2 0 0
/dev/nvme0n1 /mnt/with\\040space xfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/hf", "ext4"),
        ("/run/hf", "tmpfs"),
        ("/running", "ext4"),
        ("/mnt/models/hub", "nfs4"),
        ("/mnt/with space/hub", "xfs"),
    ],
)
def test_the_mount_of_a_path(path: str, kind: str) -> None:
    assert prewarm.mount_of(path, MOUNTS)[0] == kind


@pytest.mark.parametrize(
    ("kind", "options", "missing", "free", "word"),
    [
        ("ext4", "rw", 10, 30, ""),
        ("ext4", "rw", 21, 30, "are to stay free"),
        ("nfs4", "rw,vers=4.2", 1, 100, "network mount (nfs4)"),
        ("nfs4", "rw,fsc", 1, 100, ""),
        ("fuse.juicefs", "rw", 1, 100, "network mount"),
        ("tmpfs", "rw", 1, 100, "memory already"),
    ],
)
def test_why_it_is_left_alone(kind: str, options: str, missing: int, free: int, word: str) -> None:
    said = prewarm.reason_against(kind, options, missing=missing, free=free, reserve=10)
    assert word in said
    assert bool(said) is bool(word)


def test_memory_that_can_be_had() -> None:
    assert prewarm.available("MemTotal: 9 kB\nMemAvailable:    1234 kB\n") == 1234 * 1024


def test_a_cold_file_is_read_at_the_rate_and_a_warm_one_not_again(tmp_path: Path) -> None:
    folder = (
        tmp_path
        if prewarm.mount_of(str(tmp_path), Path("/proc/self/mounts").read_text())[0] != "tmpfs"
        else Path("/var/tmp")
    )
    file = folder / f"prewarm-{os.getpid()}"
    try:
        file.write_bytes(os.urandom(24 << 20))
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        pauses: list[float] = []
        cold = prewarm.warm([file], 12 << 20, 0, clock=lambda: sum(pauses), sleep=pauses.append)
        assert cold.resident_before < cold.bytes == 24 << 20
        assert cold.resident_after == cold.bytes
        assert sum(pauses) == pytest.approx(2.0)  # 24 MiB at 12 MiB a second, on a disk that takes no time
        again = prewarm.warm([file], 1, 0)
        assert (again.read, again.resident_before) == (0, again.bytes)
    finally:
        file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (
            {
                "bytes": 4_000_000_000,
                "resident_before": 1_000_000_000,
                "resident_after": 4_000_000_000,
                "elapsed": 12.5,
            },
            "25 % of 4.0 GB were in memory, 100 % are now, after 12.5 s.",
        ),
        (
            {"bytes": 0, "resident_before": 0, "resident_after": 0, "elapsed": 0, "skipped_because": "a network mount"},
            "0 % of 0 B were in memory, 0 % are now, after 0 s. Left out: a network mount.",
        ),
    ],
)
def test_what_a_run_says_of_it(result, says):
    assert prewarm.in_words({"skipped_because": "", **result}) == says
