"""hf_snapshot downloads by a real huggingface_hub from a stand-in for the Hub that does what Hubs do."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import COMMIT, blob_name, model_files, tree_of
from hf_snapshot_tools import module
from hub_standin import CANARY, Hub, hub_reads

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".cache" / "huggingface"


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(model_files())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_from_the_hub_is_pinned_repaired_by_file_and_keeps_the_token_to_itself(
    hub: Hub, target: Path, hub_python: str
) -> None:
    environment = {"HF_ENDPOINT": hub.url}
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY}
    check = module(check=True, environment=environment, **options)
    assert check["changed"], check
    assert not hub.gets
    assert not target.exists()
    real = module(environment=environment, **options)
    assert real.get("changed"), real
    assert real["commit"] == COMMIT
    assert check["diff"] == real["diff"]
    assert sorted(hub.gets) == sorted(hub.files)
    assert (hub_reads(hub_python, target) / SHARD).read_bytes() == hub.files[SHARD]
    assert CANARY not in json.dumps([check, real])
    assert not any(CANARY.encode() == content for _kind, _mode, content in tree_of(target).values())
    assert not module(**options)["changed"]  # complete: the Hub is not asked

    hub.gets.clear()
    os.truncate(target / "hub" / "models--org--model" / "blobs" / blob_name(SHARD, hub.files[SHARD]), 10)
    assert module(environment=environment, **options)["changed"]
    assert hub.gets == [SHARD]
    assert module(cache=str(target), state="verified", verify="full")["complete"]


def test_what_the_hub_refuses_is_said_in_one_sentence(hub: Hub, target: Path, hub_python: str) -> None:
    environment = {"HF_ENDPOINT": hub.url}
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"hf_token": None}, "gated_model", "is gated"),
        ({"repo_id": "org/other"}, "model_not_found", "has no model org/other"),
        ({"revision": "d" * 40}, "model_not_found", "has no revision " + "d" * 40),
        ({"hub_python": "/usr/bin/env"}, "unknown", "ended with exit code"),
        ({"hub_python": "/nonexistent/python"}, "unknown", "cannot be started"),
    ]
    for changes, failure, words in cases:
        result = module(environment=environment, **(options | changes))
        assert result["failed"]
        assert (result["failure"]["class"], words in result["msg"]) == (failure, True), result["msg"]
        assert "\n" not in result["msg"]
    assert not target.exists()


def test_a_hub_that_refuses_stalls_and_breaks_off_is_outlived_and_whole_files_are_kept(
    hub: Hub, target: Path, hub_python: str
) -> None:
    hub.trouble = {"config.json": ["429"], SHARD: ["stall"], "model-00003-of-00003.safetensors": ["drop"]}
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY, "hub_stall": 3}
    result = module(hub_endpoint=hub.url, **options)
    hub.release.set()
    assert result.get("complete"), result
    assert not any(hub.trouble.values())
    assert any("stood still for 3 s and was taken up by plain HTTP" in note for note in result["notes"])
    assert len(hub.gets) == len(set(hub.gets)), "a whole file was fetched twice"
    assert not list(target.rglob("*.incomplete"))
    assert CANARY not in json.dumps(result)


def test_a_download_by_xet_that_stands_still_is_taken_up_by_plain_http(hub: Hub, target: Path, hub_python: str) -> None:
    hub.xet = True
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY, "hub_stall": 2}
    result = module(hub_endpoint=hub.url, **options)
    assert result.get("complete"), result
    assert hub.asked_xet, "Xet was never asked"
    assert [note for note in result["notes"] if "stood still for 2 s and was taken up by plain HTTP" in note]
    asked = len(hub.asked_xet)
    hub.release.set()
    assert sorted(hub.gets) == sorted(set(hub.gets)) and len(hub.asked_xet) == asked
    assert (hub_reads(hub_python, target) / SHARD).read_bytes() == hub.files[SHARD]


def test_a_hub_that_only_stalls_is_given_up_with_a_sentence(hub: Hub, target: Path, hub_python: str) -> None:
    hub.trouble = {SHARD: ["stall"] * 9}
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY, "hub_stall": 1}
    result = module(hub_endpoint=hub.url, **options)
    hub.release.set()
    assert result["failed"]
    assert "stood still for 1 s, 4 times" in result["msg"]
    assert not (target / "hub" / "models--org--model" / "refs").exists()
