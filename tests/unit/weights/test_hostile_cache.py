# SPDX-License-Identifier: Apache-2.0
"""Whoever may write into a cache puts pipes, devices, endless and senseless files there: no reader waits, or dies of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import COMMIT, REPO, FakeCache

from ansible.module_utils.vllm_fleet.common import received
from ansible.module_utils.vllm_fleet.common.meter import Meter
from ansible.module_utils.vllm_fleet.models import model_files
from ansible.module_utils.vllm_fleet.weights import snapshot, snapshot_call
from ansible.module_utils.vllm_fleet.weights.layout import Repository, SnapshotError

SENSELESS = (
    b'{"format_version": 1, "files": {"x": [1]}, "metadata": {"total_size": Infinity}, "weight_map": {"a": ["b"]},'
    b' "max_position_embeddings": ' + b"9" * 3000 + b', "rope_scaling": {"rope_type": "linear", "factor": 1e999}}'
)


def larger(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(received.LARGEST + 1)


PLANT: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a folder": Path.mkdir,
    "a large file": larger,
    "nested brackets": lambda path: path.write_bytes(b"[" * 200_000),
    "senseless figures": lambda path: path.write_bytes(SENSELESS),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\0"),
}
PLACES = (
    f"trees/{COMMIT}.json",
    "refs/main",
    f"snapshots/{COMMIT}/config.json",
    f"snapshots/{COMMIT}/model.safetensors.index.json",
    f"snapshots/{COMMIT}/model-00001-of-00003.safetensors",
)
ASKED = {
    **dict.fromkeys(("preset", "min_vllm", "revision"), ""),
    **{"exact": True, "config": {}, "weights_bytes": 0, "gated": False, "env": {}, "args": {}},
    **{"image_version": "0.32.0", "devices": None},
}


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    def over(*_: object) -> None:
        raise TimeoutError("a reader waits")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def call(cache: Path, state: str, **more: Any) -> dict[str, Any]:
    options = {name: option.get("default") for name, option in snapshot_call.ARGUMENTS.items()}
    request = snapshot_call.parse({**options, "repo_id": REPO, "cache": cache, **more}, Meter(), dry=True)
    return snapshot_call.work(request, state)


@pytest.mark.parametrize("tree", [True, False], ids=["its list there", "without a list"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("plant", PLANT.values(), ids=PLANT)
def test_every_reader_of_a_cache_ends_with_a_sentence(
    plant: Callable[[Path], object], place: str, tree: bool, tmp_path: Path
) -> None:
    made = FakeCache(tmp_path, tree=tree)
    path = made.repo / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    plant(path)
    for state, more in (
        ("verified", {}),
        ("verified", {"verify": "full"}),
        ("pruned", {"keep": [COMMIT]}),
        ("absent", {}),
    ):
        found = call(tmp_path, state, **more)
        assert not found.get("failed") or found["msg"], state
    _, findings = model_files.on_node(REPO, ASKED, None, tmp_path)
    assert all(one.sentence for one in findings)
    try:
        snapshot.weights(Repository(tmp_path, REPO), COMMIT)
    except SnapshotError as error:
        assert str(error)
