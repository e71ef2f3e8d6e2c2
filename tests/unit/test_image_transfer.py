# SPDX-License-Identifier: Apache-2.0
"""What the transfer program says while an image moves: recorded messages of Docker's engine in, lines out."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def transfer() -> ModuleType:
    """The program, with its companions beside it as on a node."""
    sys.modules["docker_api"] = importlib.import_module("ansible.module_utils.vllm_fleet.container.api")
    sys.modules["units"] = importlib.import_module("ansible.module_utils.vllm_fleet.common.units")
    try:
        spec = importlib.util.spec_from_file_location(
            "image_transfer", ROOT / "roles/vllm_image/files/image_transfer.py"
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        del sys.modules["docker_api"], sys.modules["units"]
    return module


def event(status: str, layer: str, current: int = 0, total: int = 0) -> dict[str, object]:
    return {"status": status, "id": layer, "progressDetail": {"current": current, "total": total} if total else {}}


def test_a_pull_tells_bytes_rate_layers_and_unpacking(transfer: ModuleType) -> None:
    layers = transfer.Layers()
    for told in (
        {"status": "Pulling from team/vllm", "id": "v1"},
        event("Already exists", "a"),
        event("Pulling fs layer", "b"),
        event("Pulling fs layer", "c"),
        event("Downloading", "b", 25_000_000, 100_000_000),
    ):
        layers.take(told)
    assert layers.travelled(5e6) == "25 % of 100.0 MB begun so far, 5.0 MB/s, 1 of 3 layers, 1 were here"
    for told in (event("Verifying Checksum", "b"), event("Download complete", "b"), event("Extracting", "b", 30, 60)):
        layers.take(told)
    assert layers.current == 100_000_000
    assert layers.travelled(0).endswith("1 of 3 layers, 1 were here, unpacking b: 50 %")
    layers.take(event("Pull complete", "b"))
    assert layers.travelled(0) == "100 % of 100.0 MB begun so far, 2 of 3 layers, 1 were here"


def test_a_push_tells_what_need_not_travel(transfer: ModuleType) -> None:
    layers = transfer.Layers()
    for told in (
        event("Preparing", "a"),
        event("Preparing", "b"),
        event("Layer already exists", "a"),
        event("Pushing", "b", 7_000_000, 5_000_000),  # Docker counts what it sends, headers included
    ):
        layers.take(told)
    assert layers.travelled(1e6) == "100 % of 5.0 MB begun so far, 1.0 MB/s, 1 of 2 layers, 1 were here"
    layers.take(event("Pushed", "b"))
    assert "2 of 2 layers" in layers.travelled(0)


def test_a_load_tells_percent_rate_and_the_time_left(transfer: ModuleType) -> None:
    assert transfer.moved(25_000_000, 100_000_000, 5e6) == "25 % of 100.0 MB, 5.0 MB/s, 15 s left"
    assert transfer.moved(25_000_000, 0, 5e6) == "25.0 MB, 5.0 MB/s"
    said: list[str] = []
    times = iter([0.0, 1.0, 3.0, 3.5])
    meter = transfer.Meter(said.append, lambda: next(times))
    body = io.BytesIO(b"x" * 3 * (1 << 20))
    assert sum(len(chunk) for chunk in transfer.metered(body, 3 << 20, meter)) == 3 << 20
    assert said == ["66 % of 3.1 MB, 699.1 kB/s, 1 s left"]  # a line every two seconds, not one for each piece


def test_a_stream_that_ends_early_is_not_an_image(transfer: ModuleType) -> None:
    meter = transfer.Meter(print, lambda: 0.0)
    with pytest.raises(transfer.SourceLost, match=r"ended after 1\.0 kB of 5\.0 MB"):
        list(transfer.metered(io.BytesIO(b"x" * 1000), 5_000_000, meter))


def test_who_is_connected_is_read_from_the_kernel_s_tables(transfer: ModuleType) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue\n"
    listening = "   0: 00000000:1543 00000000:0000 0A 00000000:00000000\n"
    connected = "   1: 0A00000A:1543 0B00000A:9C40 01 00000000:00000000\n"
    outward = "   2: 0A00000A:9C40 0B00000A:1543 01 00000000:00000000\n"
    sixth = "   0: 0000000000000000FFFF00000A00000A:1543 0000000000000000FFFF00000B00000A:9C40 01 0:0\n"
    assert not transfer.connected(5443, [head + listening + outward, head])
    assert transfer.connected(5443, [head + listening + connected])
    assert transfer.connected(5443, [head + listening, head + sixth])


def test_a_server_ends_when_nobody_is_connected_and_its_exit_code_is_kept(transfer: ModuleType) -> None:
    assert transfer.guard(1, 0.2, [sys.executable, "-c", "import time; time.sleep(60)"]) == -15
    assert transfer.guard(1, 60, [sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_the_guarded_command_keeps_its_options(transfer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = []
    monkeypatch.setattr(transfer, "guard", lambda *args: guarded.append(args) or 0)
    command = ["/usr/bin/python3", "image_transfer.py", "serve", "a.tar", "5443", "pem", "--bind", "10.0.0.1"]
    monkeypatch.setattr("sys.argv", ["image_transfer.py", "guard", "5443", "600", *command])
    assert transfer.main() == 0
    assert guarded == [(5443, 600.0, command)]
