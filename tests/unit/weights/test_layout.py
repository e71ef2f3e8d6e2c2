# SPDX-License-Identifier: Apache-2.0
"""Names and paths of a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache

from ansible.module_utils.vllm_fleet.weights import layout, snapshot
from ansible.module_utils.vllm_fleet.weights.layout import Repository, SnapshotError

HERE = Repository(Path("/c"), "org/model")


@pytest.mark.parametrize("repo_id", ["gpt2", "deepseek-ai/DeepSeek-V3.1", "Qwen/Qwen3-0.6B", "a_b/c.d"])
def test_good_model_ids(repo_id: str) -> None:
    layout.check_repo_id(repo_id)


@pytest.mark.parametrize(
    ("repo_id", "words"),
    [
        ("DeepSeek V3.1", "a space"),
        ("deepseek-ai/DeepSeek V3.1", "a space"),
        ("", "only letters"),
        ("/models/x", "more than one slash"),
        ("a/b/c", "more than one slash"),
        ("a--b/c", "`--`"),
        ("../x", "`..`"),
        ("org/-x", "not at an end"),
        ("x" * 97, "longer than 96"),
    ],
)
def test_bad_model_ids_are_refused_with_the_reason(tmp_path: Path, repo_id: str, words: str) -> None:
    with pytest.raises(SnapshotError) as caught:
        snapshot.inspect(Repository(tmp_path, repo_id))
    assert words in str(caught.value)
    assert repr(repo_id) in str(caught.value)


@pytest.mark.parametrize("revision", ["", "../main", "a b", "/main", "main/"])
def test_bad_revisions_are_refused(tmp_path: Path, revision: str) -> None:
    with pytest.raises(SnapshotError, match="Revision"):
        snapshot.inspect(Repository(tmp_path, REPO), revision)


def test_known_models_and_the_one_that_was_meant(tmp_path: Path) -> None:
    for repo_id in ("deepseek-ai/DeepSeek-V3.1", "Qwen/Qwen3-0.6B", "gpt2"):
        FakeCache(tmp_path, {"config.json": b"{}"}, repo_id=repo_id)
    known = layout.known_repos(tmp_path)
    assert known == ["Qwen/Qwen3-0.6B", "deepseek-ai/DeepSeek-V3.1", "gpt2"]
    assert layout.nearest("deepseek-ai/deepseek-v3.1", known) == ["deepseek-ai/DeepSeek-V3.1"]
    assert layout.nearest("deepseek/DeepSeek-V31", known) == ["deepseek-ai/DeepSeek-V3.1"]
    assert layout.nearest("mistralai/Mixtral", known) == []
    assert layout.known_repos(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        (HERE.folder, "hub/models--org--model"),
        (HERE.blobs, "hub/models--org--model/blobs"),
        (HERE.refs, "hub/models--org--model/refs"),
        (HERE.snapshot(COMMIT), f"hub/models--org--model/snapshots/{COMMIT}"),
        (HERE.tree(COMMIT), f"hub/models--org--model/trees/{COMMIT}.json"),
        (HERE.no_exist(COMMIT), f"hub/models--org--model/.no_exist/{COMMIT}"),
        (HERE.staging, "hub/models--org--model/.vllm-fleet"),
        (HERE.locks, "hub/.locks/models--org--model"),
        (HERE.marker(COMMIT), f".vllm-fleet/models--org--model/{COMMIT}.json"),
    ],
)
def test_where_everything_of_a_repository_is(path: Path, inside: str) -> None:
    assert HERE.relative(path) == inside


@pytest.mark.parametrize(
    ("path", "inside"),
    [("~", "/root"), ("~/hf", "/root/hf"), ("~me/hf", "~me/hf"), ("/data/~", "/data/~"), ("", "")],
)
def test_a_tilde_stands_for_the_home_of_the_nodes_user(path, inside):
    assert layout.in_home(path, "/root") == inside
