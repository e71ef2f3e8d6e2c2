# SPDX-License-Identifier: Apache-2.0
"""Which files belong to a commit is not a node's word: it is the Hub's list, a pinned digest, or all that hold it agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import COMMIT, FakeCache, blob_name, model_files

from ansible.module_utils.vllm_fleet.common.meter import Meter
from ansible.module_utils.vllm_fleet.weights import snapshot, snapshot_call, team
from ansible.module_utils.vllm_fleet.weights.manifest import Entry, Manifest

CODE = b"import os\n"


def asked(cache: FakeCache, state: str = "verified", **options: Any) -> dict[str, Any]:
    defaults = {name: spec.get("default") for name, spec in snapshot_call.ARGUMENTS.items()}
    given = {**defaults, "cache": str(cache.cache), "repo_id": cache.repo_id, "margin": 0, **options}
    request = snapshot_call.parse(given, Meter(), dry=False)
    return snapshot_call.work(request, state, with_manifest=True)


@pytest.fixture
def good(tmp_path: Path) -> FakeCache:
    return FakeCache(tmp_path / "good", model_files(2, 4096))


@pytest.fixture
def spoilt(tmp_path: Path) -> FakeCache:
    """The same commit with code in it: every hash is right, and the list is another one."""
    return FakeCache(tmp_path / "spoilt", {**model_files(2, 4096), "modeling_x.py": CODE})


def test_files_of_another_list_are_whole_by_their_hashes_and_refused_by_the_digest(
    good: FakeCache, spoilt: FakeCache
) -> None:
    digest = asked(good)["list_digest"]
    assert len(digest) == 64
    assert asked(spoilt, verify="full")["complete"]
    assert asked(good, list_digest=digest)["complete"]
    found = asked(spoilt, list_digest=digest)
    assert found["failed"]
    assert found["failure"]["class"] == "weights_corrupt"
    assert found["problems"][0]["kind"] == "wrong_list"


def test_another_list_is_not_taken_over_and_a_spoilt_one_is_replaced(good: FakeCache, spoilt: FakeCache) -> None:
    digest = asked(good)["list_digest"]
    target = FakeCache(good.cache.parent / "target", {"config.json": b"{}"}, ref=None)
    found = asked(target, "present", source=str(spoilt.cache), list_digest=digest)
    assert found["failed"]
    assert "than the pinned ones" in found["msg"]
    assert not (target.snapshot / "modeling_x.py").exists()
    found = asked(spoilt, "present", source=str(good.cache), list_digest=digest)
    assert (found.get("failed"), found["complete"]) == (None, True), found
    assert "modeling_x.py" not in json.loads(spoilt.tree.read_text())["files"]


def test_a_file_that_is_linked_and_in_no_list_shows_where_links_are_the_list(good: FakeCache) -> None:
    digest = asked(good)["list_digest"]
    good.tree.unlink()
    assert asked(good, list_digest=digest)["complete"]
    name = blob_name("modeling_x.py", CODE)
    (good.repo / "blobs" / name).write_bytes(CODE)
    (good.snapshot / "modeling_x.py").symlink_to(f"../../blobs/{name}")
    assert asked(good, list_digest=digest)["failed"]


def test_what_no_server_reads_does_not_count() -> None:
    entries = (Entry("config.json", 2, "a" * 40), Entry("model.safetensors", 9, "b" * 64))
    more = (Entry("README.md", 2, "c" * 40), Entry("pytorch_model.bin", 9, "d" * 64))
    digests = {snapshot.list_digest(Manifest(COMMIT, (*entries, *rest), "tree")) for rest in ((), more)}
    assert len(digests) == 1
    assert snapshot.list_digest(Manifest(COMMIT, (*entries, Entry("x.py", 1, "e" * 40)), "tree")) not in digests
    assert snapshot.list_digest(Manifest(COMMIT, (*entries, Entry("x.py", None, None)), "links")) == ""


def holder(digest: str, commit: str = COMMIT) -> dict[str, Any]:
    return {"repo_id": "org/m", "revision": "main", "complete": True, "commit": commit, "list_digest": digest}


def test_holders_with_different_lists_are_named() -> None:
    probes = {"n1": holder("1" * 64), "n2": holder("2" * 64), "n3": holder(""), "n4": holder("1" * 64)}
    conflict = team.team(probes, probes["n1"], "n1")["conflict"]
    assert f"n1, n4: {'1' * 64}; n2: {'2' * 64}" in conflict
    assert not team.same_everywhere(probes.values())
    del probes["n2"]
    assert team.team(probes, probes["n1"], "n1")["conflict"] == ""
    assert team.same_everywhere(probes.values())


def test_the_seed_s_list_is_compared_with_the_hub_s() -> None:
    listed = {
        "files": {"config.json": {"size": 2, "blob": "a" * 40}, "model.safetensors": {"size": 9, "blob": "b" * 64}}
    }
    assert team.list_fault(listed, listed, "n1") == ""
    part = {"files": {"config.json": listed["files"]["config.json"]}}
    assert team.list_fault(part, listed, "n1") == ""
    odd = {
        "files": {
            **listed["files"],
            "config.json": {"size": 2, "blob": "c" * 40},
            "x.py": {"size": 1, "blob": "d" * 40},
        }
    }
    fault = team.list_fault(odd, listed, "n1")
    assert fault.startswith("The snapshot of n1 is not what the Hub has")
    assert "config.json (other content), x.py (not in it)" in fault


def test_a_probe_of_several_snapshots_tells_the_first_that_is_not_whole(good: FakeCache) -> None:
    """As for a server with adapters: one call, and no `everything is there` unless it is."""

    def probed(*also: str) -> tuple[str, bool]:
        defaults = {name: spec.get("default") for name, spec in snapshot_call.ARGUMENTS.items()}
        given = {**defaults, "cache": str(good.cache), "repo_id": good.repo_id}
        more = [{"repo_id": name, "revision": COMMIT, "list_digest": ""} for name in also]
        found = snapshot_call.probe(snapshot_call.parse(given, Meter(), dry=True), more)
        return found["repo_id"], bool(found["complete"]) and not found.get("failed")

    FakeCache(good.cache, {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, repo_id="acme/lora")
    FakeCache(good.cache, {"adapter_config.json": b"{}"}, repo_id="acme/cut").blob("adapter_config.json").unlink()
    assert probed() == (good.repo_id, True)
    assert probed("acme/lora") == (good.repo_id, True)
    assert probed("acme/lora", "acme/none") == ("acme/none", False)
    assert probed("acme/cut", "acme/none") == ("acme/cut", False)
    good.blob("config.json").unlink()
    assert probed("acme/none") == (good.repo_id, False)
