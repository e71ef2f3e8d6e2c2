# SPDX-License-Identifier: Apache-2.0
"""What is read from a `docker save` file: its images, and the room that loading it takes."""

from __future__ import annotations

import gzip
import io
import json
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
