# SPDX-License-Identifier: Apache-2.0
"""File lists: written and read, and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_hf_cache import COMMIT, FakeCache, blob_name

from ansible.module_utils.vllm_fleet.weights import manifest as lists
from ansible.module_utils.vllm_fleet.weights.layout import SnapshotError

SHARD = "model-00002-of-00003.safetensors"


def test_the_file_list_written_is_the_one_read(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    manifest = lists.tree_manifest(cache.tree.read_text(), COMMIT)
    assert lists.tree_manifest(lists.tree_json(manifest), COMMIT) == manifest
    entry = json.loads(lists.tree_json(manifest))["files"][SHARD]
    assert entry["lfs_sha256"] == blob_name(SHARD, cache.files[SHARD])
    assert lists.given_manifest(COMMIT, manifest.as_files()).entries == manifest.entries


@pytest.mark.parametrize(
    ("path", "info"),
    [
        ("/etc/passwd", {"size": 1, "blob": "a" * 40}),
        ("a/../../b", {"size": 1, "blob": "a" * 40}),
        ("config.json", {"size": "1", "blob": "a" * 40}),
        ("config.json", {"size": 1, "blob": "../x"}),
        ("config.json", {}),
    ],
)
def test_a_given_manifest_cannot_lead_out_of_the_snapshot(path: str, info: dict[str, object]) -> None:
    with pytest.raises(SnapshotError, match="Manifest entry"):
        lists.given_manifest(COMMIT, {path: info})
