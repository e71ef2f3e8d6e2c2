"""What of a repository is brought in: not the copies of its weights in formats that no server reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache, blob_name, model_files, safetensors

from ansible.module_utils.vllm_fleet.weights import fetch, hub, snapshot
from ansible.module_utils.vllm_fleet.weights.fetch_plan import Plan
from ansible.module_utils.vllm_fleet.weights.fetch_source import Source
from ansible.module_utils.vllm_fleet.weights.manifest import Entry, Manifest

COPIES = {
    "original/consolidated.00.pth": b"o" * 9000,
    "original/model--00001-of-00002.safetensors": safetensors(7),
    "metal/model.bin": b"m" * 9000,
    "onnx/model.onnx": b"x" * 9000,
    "pytorch_model-00001-of-00002.bin": b"p" * 9000,
    "model-q4.gguf": b"g" * 9000,
}
#: Beside no safetensors, or read by somebody.
KEPT = {"2_Dense/pytorch_model.bin": b"d" * 90, "1_Pooling/config.json": b"{}", "vocab.bin": b"v"}


def listed(*paths: str) -> Manifest:
    return Manifest(COMMIT, tuple(Entry(path, 1, "0" * 40) for path in paths), "tree")


def test_copies_of_the_weights_are_left_out_and_nothing_else() -> None:
    wanted = [*model_files(), *KEPT]
    found = snapshot.without_copies(listed(*wanted, *COPIES))
    assert [entry.path for entry in found.entries] == wanted
    assert found.origin == "links"  # the repository's own list has more
    assert snapshot.without_copies(listed(*wanted)).origin == "tree"


@pytest.mark.parametrize("paths", [["pytorch_model.bin", "config.json"], ["original/a.safetensors", "model.gguf"]])
def test_without_safetensors_nothing_is_a_copy(paths: list[str]) -> None:
    assert len(snapshot.without_copies(listed(*paths)).entries) == len(paths)


def test_a_whole_cache_gives_the_part_that_is_read(tmp_path: Path) -> None:
    """The copy is complete, says so, and has no list of files that it lacks."""
    seed = FakeCache(tmp_path / "seed", {**model_files(), **KEPT, **COPIES})
    target = tmp_path / "target"
    outcome = fetch.Outcome(snapshot.Report(REPO, "main"))
    wish = fetch.Wish(target, REPO, "main", source=str(seed.cache), margin=0)
    fetch.present(wish, outcome)
    read = {**model_files(), **KEPT}
    assert (outcome.report.complete, outcome.report.files) == (True, len(read))
    assert outcome.plan.copy_bytes < sum(map(len, COPIES.values()))
    blobs = {path.name for path in (target / "hub" / seed.repo.name / "blobs").iterdir()}
    assert blobs == {blob_name(path, content) for path, content in read.items()}
    assert not (target / "hub" / seed.repo.name / "trees").exists()
    again = fetch.Outcome(snapshot.Report(REPO, "main"))
    fetch.present(wish, again)
    assert not again.changed
    # Nor does the list that travels to other nodes name them.
    report = snapshot.inspect(seed.cache, REPO)
    told = fetch.export(seed.snapshot, report)
    assert (set(told["files"]), told["origin"]) == (set(read), "links")


def test_a_list_of_files_that_are_not_there_goes(tmp_path: Path) -> None:
    """huggingface_hub writes the whole list whatever it fetches, and refuses offline what lacks a file of it."""
    cache = FakeCache(tmp_path, {**model_files(), **COPIES})
    hub._forget_list(cache.repo, Plan(commit=COMMIT))
    assert cache.tree.exists()
    (cache.snapshot / "metal/model.bin").unlink()
    hub._forget_list(cache.repo, Plan(commit=COMMIT, links=[Entry("metal/model.bin", 1, "0" * 40)]))
    assert cache.tree.exists()  # its link is about to be written
    # What a download by patterns left is put right, too.
    outcome = fetch.Outcome(snapshot.Report(REPO, "main"))
    fetch.present(fetch.Wish(tmp_path, REPO, "main"), outcome)
    assert outcome.changed and not cache.tree.exists()
    assert outcome.report.complete
    cache = FakeCache(tmp_path / "other", {**model_files(), **COPIES})
    (cache.snapshot / "metal/model.bin").unlink()
    hub._forget_list(cache.repo, Plan(commit=COMMIT))
    assert not cache.tree.exists()


def test_the_hubs_list_is_taken_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path: {"size": 1, "blob": "0" * 40} for path in [*model_files(), *COPIES]}
    monkeypatch.setattr(hub, "_hub", lambda *_args, **_more: {"commit": COMMIT, "files": files})
    source: Source = hub.hub_source(tmp_path, REPO, "main", hub.Client(), fetch.Meter())
    assert {entry.path for entry in source.manifest.entries} == set(model_files())
