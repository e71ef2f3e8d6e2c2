# SPDX-License-Identifier: Apache-2.0
"""Work that outlives the call which began it: followed, joined, killed, and silent about secrets."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ansible.module_utils.vllm_fleet.common import detached
from ansible.module_utils.vllm_fleet.common.meter import Meter


@pytest.fixture(autouse=True)
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(detached, "JOBS", str(tmp_path / "jobs"))
    return tmp_path / "jobs"


def slow(gate: Path, count: Path) -> detached.Work:
    """Work that counts itself and ends when `gate` is there."""

    def work(meter: Meter) -> dict[str, Any]:
        with count.open("a") as file:
            file.write("x")
        meter.begin("hashing", 200)
        meter.add(50)
        meter.begin("copying", 100)
        meter.add(40)
        while not gate.exists():
            time.sleep(0.02)
        return {"changed": True, "token": "kept in memory"}

    return work


def ask(**more: Any) -> dict[str, Any]:
    return {"wait": 0.5, "follow": None, "what": "this", "secret": "hf_canary", **more}


def test_without_wait_it_is_done_here_and_now(tmp_path: Path, jobs: Path) -> None:
    assert detached.perform("name", ask(wait=None), lambda _: {"pid": os.getpid()}) == {"pid": os.getpid()}
    assert not jobs.exists()


def test_it_is_followed_to_its_answer_and_joined_by_whoever_asks_for_the_same(tmp_path: Path, jobs: Path) -> None:
    gate, count = tmp_path / "gate", tmp_path / "count"
    first = detached.perform("name", ask(), slow(gate, count), ("secret",))
    assert first["running"], first
    assert (first["step"], first["done"], first["total"], first["joined"]) == ("copying", 0, 100, False)
    second = detached.perform("name", ask(secret="hf_other"), slow(gate, count), ("secret",))
    assert (second["run_id"], second["joined"]) == (first["run_id"], True)
    gate.touch()
    for answer in (first, second):
        ended = detached.perform("name", ask(wait=10, follow=answer["run_id"]), slow(gate, count), ("secret",))
        assert ended == {"changed": True, "token": "kept in memory"}
    assert count.read_text() == "x"
    assert not any(b"canary" in path.read_bytes() for path in jobs.rglob("*") if path.is_file())
    assert jobs.stat().st_mode & 0o077 == 0 or all(path.stat().st_mode & 0o077 == 0 for path in jobs.iterdir())

    again = detached.perform("name", ask(wait=10), slow(gate, count), ("secret",))
    assert again["changed"] and count.read_text() == "xx"


def test_another_wish_is_another_job(tmp_path: Path) -> None:
    gate, count = tmp_path / "gate", tmp_path / "count"
    one = detached.perform("name", ask(), slow(gate, count), ("secret",))
    two = detached.perform("name", ask(what="that"), slow(gate, count), ("secret",))
    assert one["run_id"] != two["run_id"] and not two["joined"]
    gate.touch()
    for what, answer in (("this", one), ("that", two)):
        assert detached.perform(
            "name", ask(wait=10, what=what, follow=answer["run_id"]), slow(gate, count), ("secret",)
        )["changed"]


def test_what_breaks_in_it_reaches_the_one_who_follows(tmp_path: Path) -> None:
    def work(_: Meter) -> dict[str, Any]:
        raise RuntimeError("such a pity")

    found = detached.perform("name", ask(wait=10), work)
    assert found["failed"] and found["msg"] == "RuntimeError: such a pity"
    assert "test_detached.py" in found["exception"]


def test_killed_it_says_so_and_the_next_call_begins_anew(tmp_path: Path, jobs: Path) -> None:
    gate, count = tmp_path / "gate", tmp_path / "count"
    found = detached.perform("name", ask(), slow(gate, count), ("secret",))
    end = time.monotonic() + 30
    while not count.exists():
        assert time.monotonic() < end, "it never began"
        time.sleep(0.02)
    (pid,) = jobs.rglob("*.pid")
    os.killpg(int(pid.read_text()), signal.SIGKILL)
    killed = detached.perform("name", ask(wait=10, follow=found["run_id"]), slow(gate, count), ("secret",))
    assert killed["failed"] and "was killed from outside" in killed["msg"]
    gate.touch()
    assert detached.perform("name", ask(wait=10), slow(gate, count), ("secret",))["changed"]
    assert count.read_text() == "xx"
