# SPDX-License-Identifier: Apache-2.0
"""What hf_snapshot says about caches, sound and broken in every way seen in the field."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache, model_files, safetensors, tree_of

from ansible.module_utils.vllm_fleet.weights import snapshot
from ansible.module_utils.vllm_fleet.weights.layout import Repository, SnapshotError

SHARD = "model-00002-of-00003.safetensors"


def test_a_sound_snapshot_is_complete_by_name_and_by_commit_and_reading_changes_nothing(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    before = tree_of(tmp_path)
    for revision in ("main", COMMIT):
        for verify in ("quick", "full"):
            report = snapshot.inspect(Repository(tmp_path, REPO), revision, verify)
            assert report.complete, report.problems
            assert (report.commit, report.path) == (COMMIT, str(cache.snapshot))
            assert report.files == len(cache.files)
            assert report.bytes == sum(map(len, cache.files.values()))
            assert (report.missing, report.corrupt, report.litter, report.notes) == ([], [], [], [])
            assert report.hashed is (verify == "full")
    assert tree_of(tmp_path) == before


def newline(cache: FakeCache) -> None:
    cache.ref().write_text(COMMIT + "\n")


def no_ref(cache: FakeCache) -> None:
    cache.ref().unlink()


def bad_ref(cache: FakeCache) -> None:
    cache.ref().write_text("main")


def no_link(cache: FakeCache) -> None:
    (cache.snapshot / SHARD).unlink()


def dangling(cache: FakeCache) -> None:
    cache.blob(SHARD).unlink()


def dangling_shared(cache: FakeCache) -> None:
    cache.share(SHARD).unlink()


def truncated(cache: FakeCache) -> None:
    with cache.blob(SHARD).open("r+b") as file:
        file.truncate(10)


def too_long(cache: FakeCache) -> None:
    with cache.blob(SHARD).open("ab") as file:
        file.write(b"more")


def wrong_blob(cache: FakeCache) -> None:
    link = cache.snapshot / SHARD
    link.unlink()
    link.symlink_to(f"../../blobs/{cache.blob('model-00001-of-00003.safetensors').name}")


def folder(cache: FakeCache) -> None:
    (cache.snapshot / SHARD).unlink()
    (cache.snapshot / SHARD).mkdir()


def flipped(cache: FakeCache) -> None:
    content = bytearray(cache.blob(SHARD).read_bytes())
    content[-1] ^= 1
    cache.blob(SHARD).write_bytes(content)


def all_gone(cache: FakeCache) -> None:
    cache.tree.unlink()
    for link in sorted(cache.snapshot.rglob("*"), reverse=True):
        link.rmdir() if link.is_dir() else link.unlink()
    cache.snapshot.rmdir()


FAULTS: list[tuple[Callable[[FakeCache], None], str, str, str, str]] = [
    # what breaks it, list, file, kind, words of the detail
    (newline, "corrupt", "refs/main", "ref_newline", "white space"),
    (no_ref, "missing", "refs/main", "no_ref", "there is no"),
    (bad_ref, "missing", "refs/main", "bad_ref", "'main' instead of a commit"),
    (no_link, "missing", SHARD, "no_link", "is not in the snapshot"),
    (dangling, "missing", SHARD, "dangling", "does not exist"),
    (dangling_shared, "missing", SHARD, "dangling_shared", "which is gone"),
    (truncated, "corrupt", SHARD, "truncated", "has 10 bytes, expected"),
    (too_long, "corrupt", SHARD, "wrong_size", "expected"),
    (wrong_blob, "corrupt", SHARD, "wrong_blob", "is linked to blob"),
    (folder, "corrupt", SHARD, "not_a_file", "is not a file"),
    (all_gone, "missing", f"snapshots/{COMMIT}", "no_snapshot", "there is no"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_each_fault_is_found_by_the_quick_check_and_named(
    tmp_path: Path, fault: tuple[Callable[[FakeCache], None], str, str, str, str]
) -> None:
    damage, where, file, kind, words = fault
    damage(FakeCache(tmp_path))
    report = snapshot.inspect(Repository(tmp_path, REPO), "main")
    assert not report.complete
    assert [(item.file, item.kind) for item in report.problems] == [(file, kind)]
    assert words in report.problems[0].detail
    assert (report.missing, report.corrupt) == (([file], []) if where == "missing" else ([], [file]))
    assert file in report.sentence()
    assert REPO in report.sentence()


@pytest.mark.parametrize("damage", [newline, no_ref, bad_ref])
def test_a_pinned_commit_needs_no_ref(tmp_path: Path, damage: Callable[[FakeCache], None]) -> None:
    damage(FakeCache(tmp_path))
    assert snapshot.inspect(Repository(tmp_path, REPO), COMMIT).complete


def test_a_flipped_bit_is_found_by_the_full_check_only(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    flipped(cache)
    assert snapshot.inspect(Repository(tmp_path, REPO)).complete
    report = snapshot.inspect(Repository(tmp_path, REPO), verify="full")
    assert (report.corrupt, report.problems[0].kind) == ([SHARD], "wrong_hash")
    assert cache.blob(SHARD).name in report.problems[0].detail


def test_a_flipped_bit_is_found_by_the_quick_check_once_the_marker_is_there(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    report = snapshot.inspect(Repository(tmp_path, REPO), verify="full")
    marker = Repository(tmp_path, REPO).marker(COMMIT)
    marker.parent.mkdir(parents=True)
    marker.write_text(snapshot.marker_json(Repository(tmp_path, REPO), report.manifest))
    assert snapshot.inspect(Repository(tmp_path, REPO)).hashed
    mtime = cache.blob(SHARD).stat().st_mtime_ns
    os.utime(cache.blob(SHARD), ns=(mtime, mtime + 10**9))
    touched = snapshot.inspect(
        Repository(tmp_path, REPO)
    )  # the same content with another date is hashed and found right
    assert touched.complete
    assert touched.hashed
    flipped(cache)
    assert [item.kind for item in snapshot.inspect(Repository(tmp_path, REPO)).problems] == ["wrong_hash"]


def test_leftovers_of_interrupted_downloads_are_named_and_no_fault(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    (cache.repo / "blobs" / f"{'b' * 64}.1234abcd.incomplete").write_bytes(b"half")
    report = snapshot.inspect(Repository(tmp_path, REPO))
    assert report.complete
    assert report.litter == [f"hub/{cache.repo.name}/blobs/{'b' * 64}.1234abcd.incomplete"]
    assert "interrupted" in report.notes[0]


def test_the_store_that_repositories_share_counts_as_present(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    cache.share(SHARD)
    assert snapshot.inspect(Repository(tmp_path, REPO), verify="full").complete


def test_plain_files_instead_of_links_count_as_present(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    content = (cache.snapshot / SHARD).read_bytes()
    (cache.snapshot / SHARD).unlink()
    (cache.snapshot / SHARD).write_bytes(content)
    assert snapshot.inspect(Repository(tmp_path, REPO), verify="full").complete


def test_what_no_server_reads_may_be_absent_but_not_dangling(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    (cache.snapshot / "README.md").unlink()
    report = snapshot.inspect(Repository(tmp_path, REPO))
    assert report.complete
    assert report.optional == ["README.md"]
    (cache.snapshot / "README.md").symlink_to("../../blobs/" + "c" * 40)
    assert snapshot.inspect(Repository(tmp_path, REPO)).missing == ["README.md"]


def test_a_snapshot_with_a_readme_and_nothing_else_misses_everything_else(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path)
    for path in cache.files:
        (cache.snapshot / path).unlink()
    assert sorted(snapshot.inspect(Repository(tmp_path, REPO)).missing) == sorted(cache.files)


# Caches of older clients, without trees/


def test_without_a_file_list_index_and_headers_tell(tmp_path: Path) -> None:
    FakeCache(tmp_path, tree=False)
    report = snapshot.inspect(Repository(tmp_path, REPO), verify="full")
    assert report.complete
    assert report.manifest is not None
    assert report.manifest.origin == "links"
    assert report.bytes == sum(map(len, model_files().values()))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [(no_link, "no_link"), (dangling, "dangling"), (truncated, "truncated"), (too_long, "wrong_size")],
)
def test_without_a_file_list_broken_shards_are_found(
    tmp_path: Path, damage: Callable[[FakeCache], None], kind: str
) -> None:
    damage(FakeCache(tmp_path, tree=False))
    report = snapshot.inspect(Repository(tmp_path, REPO))
    assert [(item.file, item.kind) for item in report.problems] == [(SHARD, kind)]


def test_without_a_file_list_a_shard_cut_inside_its_data_is_found_by_its_header(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path, tree=False)
    whole = len(cache.files[SHARD])
    with cache.blob(SHARD).open("r+b") as file:
        file.truncate(whole - 1)
    report = snapshot.inspect(Repository(tmp_path, REPO))
    assert f"has {whole - 1} bytes, expected {whole}" in report.sentence()


def test_without_a_file_list_a_spoilt_config_is_found_by_its_hash(tmp_path: Path) -> None:
    cache = FakeCache(tmp_path, tree=False)
    cache.blob("config.json").write_bytes(b"")
    report = snapshot.inspect(Repository(tmp_path, REPO))
    assert [(item.file, item.kind) for item in report.problems] == [("config.json", "wrong_hash")]


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_without_a_file_list_config_and_weights_must_be_there(tmp_path: Path, path: str) -> None:
    files = {"config.json": b"{}\n", "tokenizer.json": b"{}\n", "model.safetensors": safetensors(1)}
    cache = FakeCache(tmp_path, files, tree=False)
    assert snapshot.inspect(Repository(tmp_path, REPO)).complete
    (cache.snapshot / path).unlink()
    assert snapshot.inspect(Repository(tmp_path, REPO)).missing == [path]


def test_an_index_that_is_none_is_named(tmp_path: Path) -> None:
    files = model_files() | {"model.safetensors.index.json": b'{"weights": {}}'}
    FakeCache(tmp_path, files, tree=False)
    report = snapshot.inspect(Repository(tmp_path, REPO))
    assert ("model.safetensors.index.json", "index") in [(item.file, item.kind) for item in report.problems]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format_version": 2, "files": {}}',
        '{"format_version": 1, "files": {}}',
        '{"format_version": 1, "files": {"../../../etc/passwd": {"size": 1, "blob_id": "' + "a" * 40 + '"}}}',
        '{"format_version": 1, "files": {"config.json": {"blob_id": "' + "a" * 40 + '"}}}',
        '{"format_version": 1, "files": {"config.json": []}}',
    ],
)
def test_a_file_list_that_cannot_be_used_is_named_and_done_without(tmp_path: Path, text: str) -> None:
    cache = FakeCache(tmp_path)
    cache.tree.write_text(text)
    report = snapshot.inspect(Repository(tmp_path, REPO))
    assert report.complete
    assert str(cache.tree) in report.notes[0]


# Names


# Weights


def test_weights_by_the_index(tmp_path: Path) -> None:
    FakeCache(tmp_path)
    found = snapshot.weights(Repository(tmp_path, REPO), COMMIT)
    assert (found.total_bytes, found.files) == (3 * 256 * 4, 3)
    assert found.config["num_hidden_layers"] == 3


def test_weights_of_a_single_file(tmp_path: Path) -> None:
    FakeCache(tmp_path, {"config.json": b"{}", "model.safetensors": safetensors(1)})
    assert snapshot.weights(Repository(tmp_path, REPO), COMMIT).total_bytes == len(safetensors(1))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": safetensors(1)}, "config.json"),
        ({"config.json": b"[]", "model.safetensors": safetensors(1)}, "no JSON object"),
        ({"config.json": b"{}"}, "no safetensors weights"),
        ({"config.json": b"{}", "model.safetensors.index.json": b"{}"}, "weight index"),
    ],
)
def test_weights_say_what_they_lack(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    FakeCache(tmp_path, files)
    with pytest.raises(SnapshotError, match=words):
        snapshot.weights(Repository(tmp_path, REPO), COMMIT)


# Speed


@pytest.mark.parametrize("tree", [True, False], ids=["file list", "headers"])
def test_a_quick_check_of_163_shards_reads_no_weights(tmp_path: Path, tree: bool) -> None:
    cache = FakeCache(tmp_path, model_files(shards=163, floats=4), tree=tree)
    size = 4_300_000_000
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    whole = 8 + len(header) + size
    for path in cache.files:
        if path.endswith(".safetensors"):
            with cache.blob(path).open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                file.truncate(whole)  # sparse: takes no space
    if tree:
        listing = json.loads(cache.tree.read_text())
        for path, info in listing["files"].items():
            if path.endswith(".safetensors"):
                info.update(size=whole, lfs_size=whole)
        cache.tree.write_text(json.dumps(listing))
    # Some 700 GB: who reads more than names, sizes and headers is not back today.
    report = snapshot.inspect(Repository(tmp_path, REPO))
    assert report.complete, report.sentence()
    assert report.bytes > 163 * size
