# SPDX-License-Identifier: Apache-2.0
"""What a watchdog writes and reads on its node: events, its standing, traces of others, the gateways' line."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time

import pytest

from ansible.module_utils.vllm_fleet.watchdog import journal, others
from ansible.module_utils.vllm_fleet.watchdog.agent import Agent
from ansible.module_utils.vllm_fleet.watchdog.journal import Journal
from ansible.module_utils.vllm_fleet.watchdog.others import Others
from ansible.module_utils.vllm_fleet.watchdog.places import Places
from ansible.module_utils.vllm_fleet.watchdog.settings import Settings
from ansible.module_utils.vllm_fleet.watchdog.standing import Standing


def test_events_are_lines_and_are_rotated(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "ROTATE", 2000)
    made = Journal(str(tmp_path), "vllm")
    for number in range(60):
        made.event("hung", f"reason {number}", seconds=number, evidence=None)
    lines = [json.loads(line) for line in (made.folder / "events.jsonl").read_text().splitlines()]
    older = [json.loads(line) for line in (made.folder / "events.jsonl.1").read_text().splitlines()]
    assert lines[-1]["why"] == "reason 59"
    assert set(lines[-1]) == {"at", "server", "kind", "why", "seconds"}
    assert len(older) + len(lines) < 60
    assert (made.folder / "events.jsonl").stat().st_mode & 0o777 == 0o600
    assert made.folder.stat().st_mode & 0o777 == 0o700


def test_the_latest_evidence_is_kept(tmp_path):
    made = Journal(str(tmp_path), "vllm")
    folders = []
    for number in range(journal.KEPT + 2):
        folders.append(made.new_evidence())
        os.utime(folders[-1], (number + 1, number + 1))
    assert [folder.exists() for folder in folders] == [False, False, *[True] * journal.KEPT]


def test_what_a_full_disk_does(tmp_path):
    (tmp_path / "vllm").write_text("no folder")
    made = Journal(str(tmp_path), "vllm")
    assert made.event("hung", "why")["kind"] == "hung"
    assert "events cannot be kept" in made.trouble


def test_a_standing_goes_from_one_watchdog_to_the_next():
    left = Standing(state="out", why="x", container="c", restarts=[1, 2], restarts_boot=[10.0, 5000.0], hold=True)
    assert Standing.of(json.loads(json.dumps(left.as_dict()))) == left
    assert Standing.of({**left.as_dict(), "state": "hung"}).state == "starting"
    assert Standing.of({}) == Standing.of({"state": "lost"}) == Standing()
    # As another version wrote it: what was out stays out.
    assert Standing.of({"state": "out", "why": "x", "more": 1}) == Standing(state="out", why="x")
    left.forget(5001.0)
    assert (left.restarts, left.restarts_boot) == ([2], [5000.0])
    left.forget(3.0)  # another boot
    assert (left.restarts, left.restarts_boot) == ([], [])


RUNNING = {"State": {"Running": True, "Status": "running"}}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, ""),
        ({"Paused": True}, "paused"),
        ({"Restarting": True}, "policy"),
        ({"Running": False, "Status": "exited", "ExitCode": 3}, "does not run (exited, exit code 3)"),
    ],
)
def test_what_a_container_says(tmp_path, state, says):
    found = Others(Settings("vllm", str(tmp_path), 20.0), Places("vllm", run_dir=str(tmp_path)))
    reason = found.reason({"State": {**RUNNING["State"], **state}})
    assert says in reason and bool(says) == bool(reason)


def test_a_lock_and_a_note(tmp_path, monkeypatch):
    found = Others(Settings("vllm", str(tmp_path), 20.0), Places("vllm", run_dir=str(tmp_path / "run")))
    (tmp_path / "vllm").mkdir()
    with (tmp_path / "vllm" / "lock").open("w") as lock:
        assert found.reason(RUNNING) == ""
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "vllm_server" in found.reason(RUNNING)
    assert found.reason(RUNNING) == ""
    resting = tmp_path / "vllm" / "maintenance.json"
    resting.write_text("")
    assert "maintenance" in found.reason(RUNNING)
    resting.unlink()
    note = tmp_path / "run" / "vllm" / "rollout"
    note.parent.mkdir(parents=True)
    note.write_text("")
    assert "rollout" in found.reason(RUNNING)
    # The node's clock is set back by an hour: an hour of the watchdog's own ends it all the same.
    os.utime(note, (time.time() + 3600,) * 2)
    assert "rollout" in found.reason(RUNNING)
    later = time.monotonic() + 3601
    monkeypatch.setattr(others.time, "monotonic", lambda: later)
    assert found.reason(RUNNING) == ""


def test_the_agent_answers_everyone_and_goes_elsewhere_when_told():
    agent = Agent()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def asked():
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            return connection.makefile("rb").read()

    agent.listen(("127.0.0.1", port))
    silent = [socket.create_connection(("127.0.0.1", port), timeout=2) for _ in range(5)]
    assert asked() == b"up\n"
    agent.line = b"down #hung\n"
    assert asked() == b"down #hung\n"
    with pytest.raises(OSError, match="in use"):
        Agent().listen(("127.0.0.1", port))
    agent.listen(None)
    with pytest.raises(OSError, match="refused"):
        asked()
    agent.listen(("127.0.0.1", port))
    assert asked() == b"down #hung\n"
    agent.close()
    for connection in silent:
        connection.close()
    assert threading.active_count() < 20
