# SPDX-License-Identifier: Apache-2.0
"""hf_snapshot downloads by a real huggingface_hub from a stand-in for the Hub that does what Hubs do."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hf_cache import COMMIT, blob_name, model_files, tree_of
from hf_snapshot_tools import module, start
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


def test_copies_of_the_weights_are_not_fetched_and_the_snapshot_is_whole_without_them(
    hub: Hub, target: Path, hub_python: str
) -> None:
    """Offline a real huggingface_hub, asked for the whole as vLLM asks it, must not miss them."""
    copies = {"original/consolidated.00.pth": b"o" * 90, "metal/model.bin": b"m" * 90, "pytorch_model.bin": b"p" * 90}
    wanted = sorted(hub.files)
    hub.files = {**hub.files, **copies}
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY}
    check = module(check=True, environment={"HF_ENDPOINT": hub.url}, **options)
    real = module(environment={"HF_ENDPOINT": hub.url}, **options)
    assert (real["complete"], real["files"]) == (True, len(wanted)), real
    assert check["diff"] == real["diff"]
    assert sorted(hub.gets) == wanted
    assert hub_reads(hub_python, target).name == COMMIT
    assert not module(**options)["changed"]
    hub.gets.clear()
    os.truncate(target / "hub" / "models--org--model" / "blobs" / blob_name(SHARD, hub.files[SHARD]), 10)
    assert module(environment={"HF_ENDPOINT": hub.url}, **options)["changed"]
    assert hub.gets == [SHARD]
    assert hub_reads(hub_python, target).name == COMMIT
    assert sorted(module(cache=str(target), state="verified", with_manifest=True)["manifest"]["files"]) == wanted


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
    hub.trouble["listing"] = ["429", "503", "stall"]
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY, "hub_stall": 3}
    result = module(hub_endpoint=hub.url, **options)
    hub.release.set()
    assert result.get("complete"), result
    assert not any(hub.trouble.values())
    assert any("stood still for 3 s and was resumed by plain HTTP" in note for note in result["notes"])
    assert len(hub.gets) == len(set(hub.gets)), "a whole file was fetched twice"
    assert not list(target.rglob("*.incomplete"))
    assert CANARY not in json.dumps(result)


def test_a_download_by_xet_that_stands_still_is_taken_up_by_plain_http(hub: Hub, target: Path, hub_python: str) -> None:
    hub.xet = True
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY, "hub_stall": 2}
    result = module(hub_endpoint=hub.url, **options)
    assert result.get("complete"), result
    assert hub.asked_xet, "Xet was never asked"
    assert [note for note in result["notes"] if "stood still for 2 s and was resumed by plain HTTP" in note]
    assert not (target / "xet").exists() and not (target / "hub" / "models--org--model" / ".vllm-fleet").exists()
    asked = len(hub.asked_xet)
    hub.release.set()
    assert sorted(hub.gets) == sorted(set(hub.gets)) and len(hub.asked_xet) == asked
    assert (hub_reads(hub_python, target) / SHARD).read_bytes() == hub.files[SHARD]


def test_a_hub_that_never_gives_the_file_list_is_given_up_with_a_sentence(
    hub: Hub, target: Path, hub_python: str
) -> None:
    hub.trouble = {"listing": ["stall", "429", "429", "429", "429"]}
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY, "hub_stall": 1}
    result = module(hub_endpoint=hub.url, **options)
    hub.release.set()
    assert result["failed"]
    assert result["msg"].startswith("Model org/model could not be read from the Hub: ") and "429" in result["msg"]
    assert hub.trouble == {"listing": ["429"]}  # asked four times
    assert not target.exists()


def test_the_token_of_the_cache_s_user_is_not_ours_to_use(hub: Hub, target: Path, hub_python: str) -> None:
    target.mkdir(parents=True, mode=0o755)
    (target / "token").write_text(CANARY)
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hub_endpoint": hub.url}
    assert module(**options)["failure"]["class"] == "gated_model"
    assert module(**options, environment={"HF_TOKEN": CANARY})["complete"]  # an environment is given, not found
    assert (target.stat().st_mode & 0o777, (target / "token").read_text()) == (0o755, CANARY)


def test_a_download_does_not_outlive_the_run_that_began_it(hub: Hub, target: Path, hub_python: str) -> None:
    hub.trouble = {SHARD: ["stall"]}
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY, "hub_stall": 60}
    began = start(options, {"HF_ENDPOINT": hub.url})
    children = Path(f"/proc/{began.pid}/task/{began.pid}/children")
    deadline = time.monotonic() + 60
    while hub.trouble[SHARD]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (child,) = map(int, children.read_text().split())
    download = os.pidfd_open(child)
    began.kill()
    assert select.select([download], [], [], 10)[0], "it goes on"
    os.close(download)
    began.communicate()


def test_a_hub_that_only_stalls_is_given_up_with_a_sentence(hub: Hub, target: Path, hub_python: str) -> None:
    hub.trouble = {SHARD: ["stall"] * 9}
    options = {"cache": str(target), "source": "hub", "hub_python": hub_python, "hf_token": CANARY, "hub_stall": 1}
    result = module(hub_endpoint=hub.url, **options)
    hub.release.set()
    assert result["failed"]
    assert "stood still for 1 s, 4 times" in result["msg"]
    assert not (target / "hub" / "models--org--model" / "refs").exists()
