# SPDX-License-Identifier: Apache-2.0
"""What of a repository is brought in: not the copies of its weights in formats that no server reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache, blob_name, model_files, safetensors

from ansible.module_utils.vllm_fleet.weights import fetch, hub, snapshot, team
from ansible.module_utils.vllm_fleet.weights.fetch_plan import Plan
from ansible.module_utils.vllm_fleet.weights.fetch_source import Source
from ansible.module_utils.vllm_fleet.weights.layout import Repository
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


def test_a_hub_that_does_not_answer_the_controller_keeps_no_run_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on without the list there; a node that needs it waits longer."""
    (silent := tmp_path / "python3").write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    monkeypatch.setattr(fetch, "ASIDE_PATIENCE", 0.5)
    request = fetch.Request(Repository(tmp_path, REPO), "main", client=hub.Client(str(silent)))
    began = time.monotonic()
    with pytest.raises(fetch.FetchError, match="not whole after 0 s"):
        fetch.listed(request, fetch.Result(snapshot.Report(request.repository, "main")))
    assert time.monotonic() - began < 10
    assert request.client.patience > 60


def test_the_hub_s_list_has_the_copies_which_a_cache_of_others_may_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is brought in leaves them out."""
    files = {"pytorch_model.bin": "a" * 64, "model-q4.gguf": "b" * 64, "model.safetensors": "c" * 64}
    answer = {"commit": COMMIT, "files": {path: {"size": 1, "blob": blob} for path, blob in files.items()}}
    monkeypatch.setattr(hub, "_listing", lambda *args: answer)
    repository = Repository(tmp_path, REPO)
    result = fetch.Result(snapshot.Report(repository, "main"))
    fetch.listed(request := fetch.Request(repository, "main"), result)
    there = fetch.as_listed(result.report)
    held = {"files": {path: {"blob": blob} for path, blob in files.items() if path != "model.safetensors"}}
    assert team.list_fault(held, there, "n1") == ""
    source = hub.hub_source(repository, "main", request.client, request.meter)
    assert [entry.path for entry in source.manifest.entries] == ["model.safetensors"]


def test_a_whole_cache_gives_the_part_that_is_read(tmp_path: Path) -> None:
    """The copy is complete, says so, and has no list of files that it lacks."""
    seed = FakeCache(tmp_path / "seed", {**model_files(), **KEPT, **COPIES})
    target = tmp_path / "target"
    result = fetch.Result(snapshot.Report(Repository(tmp_path, REPO), "main"))
    request = fetch.Request(Repository(target, REPO), "main", source=str(seed.cache), margin=0)
    fetch.present(request, result)
    read = {**model_files(), **KEPT}
    assert (result.report.complete, result.report.files) == (True, len(read))
    assert result.plan.copy_bytes < sum(map(len, COPIES.values()))
    blobs = {path.name for path in (target / "hub" / seed.repo.name / "blobs").iterdir()}
    assert blobs == {blob_name(path, content) for path, content in read.items()}
    assert not (target / "hub" / seed.repo.name / "trees").exists()
    again = fetch.Result(snapshot.Report(Repository(tmp_path, REPO), "main"))
    fetch.present(request, again)
    assert not again.changed
    # Nor does the list that travels to other nodes name them.
    report = snapshot.inspect(Repository(seed.cache, REPO))
    told = fetch.export(report)
    assert (set(told["files"]), told["origin"]) == (set(read), "links")


@pytest.mark.parametrize(("revision", "at"), [("main", ""), (COMMIT, f" --revision {COMMIT}")])
def test_a_model_that_a_cache_lacks_is_answered_with_how_to_get_it(tmp_path: Path, revision: str, at: str) -> None:
    result = fetch.Result(snapshot.Report(Repository(tmp_path, REPO), revision))
    (tmp_path / "hub").mkdir()
    with pytest.raises(fetch.FetchError) as error:
        fetch.verified(fetch.Request(Repository(tmp_path, REPO), revision), result)
    assert f"does not have {REPO}; download it there (`hf download {REPO}{at}`), or set hf_cache_source: hub." in str(
        error.value
    )


def test_a_list_of_files_that_are_not_there_goes(tmp_path: Path) -> None:
    """huggingface_hub writes the whole list whatever it fetches, and refuses offline what lacks a file of it."""
    cache = FakeCache(tmp_path, {**model_files(), **COPIES})
    hub._forget_list(Repository(cache.cache, REPO), Plan(commit=COMMIT))
    assert cache.tree.exists()
    (cache.snapshot / "metal/model.bin").unlink()
    hub._forget_list(Repository(cache.cache, REPO), Plan(commit=COMMIT, links=[Entry("metal/model.bin", 1, "0" * 40)]))
    assert cache.tree.exists()  # its link is about to be written
    # What a download by patterns left is put right, too.
    result = fetch.Result(snapshot.Report(Repository(tmp_path, REPO), "main"))
    fetch.present(fetch.Request(Repository(tmp_path, REPO), "main"), result)
    assert result.changed and not cache.tree.exists()
    assert result.report.complete
    cache = FakeCache(tmp_path / "other", {**model_files(), **COPIES})
    (cache.snapshot / "metal/model.bin").unlink()
    hub._forget_list(Repository(cache.cache, REPO), Plan(commit=COMMIT))
    assert not cache.tree.exists()


def test_the_hubs_list_is_taken_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path: {"size": 1, "blob": "0" * 40} for path in [*model_files(), *COPIES]}
    monkeypatch.setattr(hub, "_hub", lambda *_args, **_more: {"commit": COMMIT, "files": files})
    source: Source = hub.hub_source(Repository(tmp_path, REPO), "main", hub.Client(), fetch.Meter())
    assert {entry.path for entry in source.manifest.entries} == set(model_files())


@pytest.fixture
def inspections(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the caches whose files were gone through, one entry for each time."""
    found: list[Path] = []
    check = snapshot._check_entries

    def counted(*args: Any, report: snapshot.Report, **more: Any) -> Any:
        found.append(report.repository.cache)
        return check(*args, report=report, **more)

    monkeypatch.setattr(snapshot, "_check_entries", counted)
    return found


@pytest.mark.parametrize("verify", ["quick", "full"])
@pytest.mark.parametrize(
    ("scene", "times"),
    [("complete", 1), ("lost link", 2), ("lost blob", 2), ("empty", 2), ("staged", 2)],
)
def test_a_snapshot_is_inspected_once_before_and_once_after_writing(
    tmp_path: Path, inspections: list[Path], scene: str, times: int, verify: str
) -> None:
    """What is read again was written in between; a source's list is no reason where it says nothing new."""
    seed = FakeCache(tmp_path / "seed")
    target = tmp_path / "target"
    more: dict[str, Any] = {"source": str(seed.cache)}
    if scene == "staged":
        manifest = fetch.export(snapshot.inspect(Repository(seed.cache, REPO)))
        more = {"source": str(seed.repo / "blobs"), "manifest": manifest}
    elif scene != "empty":
        cache = FakeCache(target)
        if scene == "lost link":
            (cache.snapshot / "config.json").unlink()
        elif scene == "lost blob":
            cache.blob("config.json").unlink()
    inspections.clear()
    result = fetch.Result(snapshot.Report(Repository(target, REPO), "main"))
    request = fetch.Request(Repository(target, REPO), COMMIT, margin=0, verify=verify, **more)
    fetch.present(request, result)
    assert result.report.complete and result.changed == (scene != "complete")
    assert inspections.count(target) == times
