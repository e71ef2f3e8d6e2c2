# SPDX-License-Identifier: Apache-2.0
"""Hugging Face caches of a few kilobytes in the layout that huggingface_hub 2.4.0 writes, for tests."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

REPO = "org/model"
COMMIT = "a" * 40
XET = "5" * 64


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's own


def safetensors(seed: int, floats: int = 256) -> bytes:
    """A valid safetensors file with one tensor of `floats` float32 values."""
    header = json.dumps({f"t{seed}": {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([seed % 251]) * (4 * floats)


def model_files(shards: int = 3, floats: int = 256) -> dict[str, bytes]:
    """A small model: config, tokenizer, index and shards, a README and a file in a subfolder."""
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    index = {
        "metadata": {"total_size": shards * floats * 4},
        "weight_map": {f"t{number}": name for number, name in enumerate(names)},
    }
    return {
        "config.json": b'{"model_type": "llama", "num_hidden_layers": 3}\n',
        "tokenizer.json": b'{"version": "1.0"}\n',
        "README.md": b"# model\n",
        "sub/extra.json": b"{}\n",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: safetensors(number, floats) for number, name in enumerate(names)},
    }


def blob_name(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(".safetensors") else git_sha1(content)


class FakeCache:
    """One repository in a cache folder (what HF_HOME names)."""

    def __init__(
        self,
        cache: Path,
        files: dict[str, bytes] | None = None,
        *,
        repo_id: str = REPO,
        commit: str = COMMIT,
        tree: bool = True,
        ref: str | None = "main",
    ) -> None:
        self.cache, self.repo_id, self.commit = cache, repo_id, commit
        self.files = model_files() if files is None else files
        self.repo = cache / "hub" / ("models--" + repo_id.replace("/", "--"))
        self.snapshot = self.repo / "snapshots" / commit
        listing = {}
        for path, content in self.files.items():
            name = blob_name(path, content)
            blob, link = self.repo / "blobs" / name, self.snapshot / path
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("../" * (2 + path.count("/")) + f"blobs/{name}")
            listing[path] = {"size": len(content), "blob_id": git_sha1(content)}
            if len(name) == 64:
                listing[path] |= {"lfs_sha256": name, "lfs_size": len(content), "xet_hash": XET}
        if tree:
            self.tree.parent.mkdir(exist_ok=True)
            self.tree.write_text(json.dumps({"format_version": 1, "files": listing}, indent=1))
        if ref:
            self.ref(ref).parent.mkdir(parents=True, exist_ok=True)
            self.ref(ref).write_text(commit)

    @property
    def tree(self) -> Path:
        return self.repo / "trees" / f"{self.commit}.json"

    def ref(self, name: str = "main") -> Path:
        return self.repo / "refs" / name

    def blob(self, path: str) -> Path:
        return self.repo / "blobs" / blob_name(path, self.files[path])

    def share(self, path: str) -> Path:
        """Move a blob to the store that repositories share and leave a link; returns the payload, read-only."""
        blob = self.blob(path)
        payload = self.cache / "hub" / "blobs" / XET[:2] / XET
        payload.parent.mkdir(parents=True, exist_ok=True)
        (payload.parents[1] / ".huggingface-shared-blobs").write_text("1\n")
        blob.rename(payload)
        payload.chmod(0o444)
        blob.symlink_to(f"../../blobs/{XET[:2]}/{XET}")
        return payload


def tree_of(folder: Path) -> dict[str, tuple[str, int, bytes | str]]:
    """Everything below a folder: kind, mode and content, to see that nothing was changed."""
    found: dict[str, tuple[str, int, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if path.is_symlink():
            found[name] = ("link", mode, str(path.readlink()))
        elif path.is_dir():
            found[name] = ("folder", mode, "")
        else:
            found[name] = ("file", mode, path.read_bytes())
    return found
