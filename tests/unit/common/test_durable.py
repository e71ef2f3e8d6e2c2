# SPDX-License-Identifier: Apache-2.0
"""A file that is believed later: whole after a kill, and after a power cut at any moment; no link leads it elsewhere."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.common import durable


class Cruel:
    """A disk that keeps what was synced, and of the rest the names alone: what is legal and hurts most.

    It listens to the calls that the code makes to the kernel, and notes after each what a power cut would leave.
    """

    def __init__(self, monkeypatch, watched: Path) -> None:
        self.watched, self.after = watched, []
        self.content: dict[int, bytes] = {}  # by inode, what was synced of it
        self.names: dict[str, int] = {}  # names that are on the disk for sure
        self.early: dict[str, int] = {}  # names that may be
        if watched.exists():
            self.content[watched.stat().st_ino] = watched.read_bytes()
            self.names[watched.name] = self.early[watched.name] = watched.stat().st_ino
        self._fsync, self._rename = os.fsync, os.rename
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "rename", self.rename)

    def fsync(self, handle):
        self._fsync(handle)
        info = os.fstat(handle)
        if Path(f"/proc/self/fd/{handle}").is_dir():
            self.names = dict(self.early)
        else:
            self.content[info.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()
        self.note()

    def rename(self, source, target, *, src_dir_fd=None, dst_dir_fd=None):
        inode = os.stat(source, dir_fd=src_dir_fd).st_ino
        self._rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self.early[str(target)] = inode
        self.note()

    def note(self):
        self.after.append(self.left())

    def left(self):
        """What a power cut now may leave of the file, with the old name and with the new one."""
        return {
            self.content.get(names[self.watched.name], b"") if self.watched.name in names else None
            for names in (self.names, self.early)
        }


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("size", [0, 3, 100_000])
@pytest.mark.parametrize("way", ["write", "settle"])
def test_a_power_cut_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, old, size, way):
    path, new = tmp_path / "file", b"n" * size
    if old is not None:
        path.write_bytes(old)
    (tmp_path / "came").write_bytes(new)
    disk = Cruel(monkeypatch, path)
    if way == "write":
        durable.write(path, new)
    else:
        durable.settle(tmp_path / "came", path)
    assert path.read_bytes() == new
    assert all(left <= {old, new} for left in disk.after)
    assert disk.left() == {new}  # at the end it is the new one, whatever happens


def test_the_cruel_disk_would_notice_a_rename_without_a_sync(tmp_path, monkeypatch):
    path = tmp_path / "file"
    disk = Cruel(monkeypatch, path)
    (tmp_path / "part").write_bytes(b"new")
    os.rename("part", "file", src_dir_fd=(folder := os.open(tmp_path, os.O_RDONLY)), dst_dir_fd=folder)
    assert disk.left() == {None, b""}


def test_mode_and_owner_are_those_that_were_asked_for(tmp_path):
    mask = os.umask(0o000)
    try:
        durable.write(tmp_path / "secret", b"x")
        durable.write(tmp_path / "open", b"x", 0o644, (os.getuid(), os.getgid()))
    finally:
        os.umask(mask)
    assert [(tmp_path / name).stat().st_mode & 0o7777 for name in ("secret", "open")] == [0o600, 0o644]


def test_a_link_under_the_name_is_replaced_and_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("root's own")
    (tmp_path / "file").symlink_to(other)
    durable.write(tmp_path / "file", b"new")
    assert (other.read_text(), (tmp_path / "file").is_symlink()) == ("root's own", False)


def test_a_temporary_name_that_is_taken_is_not_opened(tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.write_text("root's own")
    monkeypatch.setattr(os, "urandom", lambda size: b"\0" * size)
    (tmp_path / f".{'00' * 6}.part").symlink_to(other)
    with pytest.raises(FileExistsError):
        durable.write(tmp_path / "file", b"new")
    assert other.read_text() == "root's own"


def test_what_cannot_be_written_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


def test_a_file_system_that_cannot_sync_folders_is_used_all_the_same(tmp_path, monkeypatch):
    real = os.fsync

    def some(handle):
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", some)
    durable.make_folders(tmp_path / "a" / "b")
    durable.write(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"
