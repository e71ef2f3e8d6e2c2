# SPDX-License-Identifier: Apache-2.0
"""What is read from a `docker save` file: its images, and the room that loading it takes."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.container import archive

MB = 1_000_000
HEX = "ab" * 32


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def manifest(config: str, *layers: str) -> bytes:
    return json.dumps([{"Config": config, "RepoTags": ["x:1"], "Layers": layers}]).encode()


LAYER = bytes(10 * MB)
CLASSIC = {f"{HEX}.json": b"{}", "1/layer.tar": LAYER, "manifest.json": manifest(f"{HEX}.json", "1/layer.tar")}
#: As Docker 25 and newer writes it. The blobs of containerd's store are those of the registry, compressed.
OCI = {
    "blobs/sha256/" + HEX: b"{}",
    "blobs/sha256/" + "1" * 64: gzip.compress(b"x", mtime=0) + bytes(MB),
    "index.json": json.dumps({"manifests": [{"digest": "sha256:" + "2" * 64}]}).encode(),
    "manifest.json": manifest(f"blobs/sha256/{HEX}", "blobs/sha256/" + "1" * 64),
}


@pytest.mark.parametrize(
    ("members", "ids", "unpacked"),
    [(CLASSIC, 1, 10 * MB), (OCI, 2, 3 * MB), ({**CLASSIC, "2/layer.tar": LAYER}, 1, 20 * MB)],
    ids=["classic", "compressed layers", "two layers"],
)
def test_the_room_comes_from_the_layers(tmp_path: Path, members: dict[str, bytes], ids: int, unpacked: int) -> None:
    path = packed(tmp_path / "image.tar", members)
    held = archive.read(path)
    assert [(len(one.ids), one.names) for one in held.images] == [(ids, ("x:1",))]
    assert unpacked <= held.unpacked < unpacked + 2000
    # The whole file, and beside it what becomes of it.
    assert path.stat().st_size + unpacked < held.room < path.stat().st_size + 1.2 * unpacked
    assert archive.told(json.loads(json.dumps(held.facts()))["archived"]) == list(held.images)


def test_a_compressed_file_is_an_estimate(tmp_path: Path) -> None:
    path = tmp_path / "image.tar.gz"
    path.write_bytes(gzip.compress(b"x") + bytes(MB))
    held = archive.read(path)
    assert held.compressed and not held.images and held.room > 6 * MB


@pytest.mark.parametrize(
    "content",
    [b"", b"something", {"a": b"b"}, {"manifest.json": b"{"}, {"manifest.json": b"[1]"}, {"index.json": b"[]"}],
)
def test_what_is_no_archive_is_one_of_the_expected_errors(tmp_path: Path, content: bytes | dict[str, bytes]) -> None:
    path = tmp_path / "image.tar"
    packed(path, content) if isinstance(content, dict) else path.write_bytes(content)
    with pytest.raises(archive.NOT_READABLE):
        archive.read(path)


def header(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", patch: tuple[int, bytes] | None = None) -> bytes:
    """A member's header without content; ``patch`` writes bytes into it, and its checksum is right then."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    raw = bytearray(member.tobuf(tarfile.GNU_FORMAT)[-512:])
    if patch:
        raw[patch[0] : patch[0] + len(patch[1])] = patch[1]
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


#: A size below zero leads a reader back to where it was; a file with holes claims 100 GB that are not there.
BACK = header("x") + header("manifest.json", patch=(124, (-1024).to_bytes(12, "big", signed=True)))
HOLES = header("manifest.json", tarfile.GNUTYPE_SPARSE, patch=(483, b"\x80" + (100 << 30).to_bytes(11, "big")))
TRICKS = {
    "a link to itself": header("manifest.json", tarfile.SYMTYPE, "manifest.json"),
    "a hard link to itself": header("manifest.json", tarfile.LNKTYPE, "manifest.json"),
    "links in a circle": header("manifest.json", tarfile.SYMTYPE, "b") + header("b", tarfile.SYMTYPE, "manifest.json"),
    "a pipe": header("manifest.json", tarfile.FIFOTYPE),
    "a negative size": BACK,
    "a file with holes": HOLES,
    "more members than an image has": b"".join(header(str(number)) for number in range(archive.MEMBERS + 1)),
}
LISTS = {
    "nested": b"[" * 200_000,
    "no text": b"\xff\xfe",
    "large": b" " * (archive.LARGEST_LIST + 1),
    "a text": b'"abc"',
}


@pytest.mark.parametrize("content", TRICKS.values(), ids=TRICKS)
def test_tricks_of_tar_end_as_an_expected_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(content + bytes(1024))
    with pytest.raises(archive.NOT_READABLE):
        archive.read(path)


@pytest.mark.parametrize("name", ["manifest.json", "index.json"])
@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_a_list_of_images_that_is_none_is_an_expected_error(tmp_path: Path, content: bytes, name: str) -> None:
    with pytest.raises(archive.NOT_READABLE, match="as Docker writes it"):
        archive.read(packed(tmp_path / "image.tar", {name: content}))


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.tar")
    with pytest.raises(OSError, match="is not a file"):
        archive.read(tmp_path / "image.tar")


def test_names_of_another_kind_are_names(tmp_path: Path) -> None:
    odd = json.dumps([{"Config": f"{HEX}.json", "RepoTags": [["x"], 5]}]).encode()
    (one,) = archive.read(packed(tmp_path / "image.tar", {"manifest.json": odd})).images
    assert all(isinstance(name, str) for name in one.names)
