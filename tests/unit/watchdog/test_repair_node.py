# SPDX-License-Identifier: Apache-2.0
"""What a repair finds on a node and writes there; the counts of events; what evidence opens inside a container."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time

import pytest
import trees

from ansible.module_utils.vllm_fleet.watchdog import counts, evidence, repair
from ansible.module_utils.vllm_fleet.watchdog.journal import Journal


@pytest.fixture
def tree(tmp_path):
    made = trees.Tree(tmp_path / "node")
    for number in (0, 1):
        made.add_gpu(number)
    return made


@pytest.fixture
def ask(tmp_path, tree):
    log = tmp_path / "kmsg"
    log.touch()

    def call(state="probed", *, check=False, **more):
        params = {name: option.get("default") for name, option in repair.ARGUMENTS.items()}
        params |= {"state": state, "state_dir": str(tmp_path / "state"), "sysfs_root": str(tree.sys)}
        return repair.perform({**params, "kernel_log": str(log), **more}, check_mode=check, root=tmp_path)

    call.log, call.folder = log, tmp_path / "state/vllm"
    return call


def test_a_well_node_needs_nothing_and_nothing_is_written(ask):
    found = ask()
    assert found == {
        "changed": False,
        "reasons": [],
        "sick": False,
        "gpus": ["0000:05:00.0", "0000:26:00.0"],
        "tries": 0,
        "reset": "",
        "maintenance": "",
    }
    assert not ask.folder.exists()


def test_each_fault_of_the_watchdog_is_a_reason(ask, tree):
    errors = tree.write(tree.device_dir(0) / "ras/umc_err_count", "ue: 2\nce: 0")
    assert ask()["reasons"] == ["GPU 0000:05:00.0 has 2 uncorrectable errors of memory or logic"]
    errors.write_text("ue: 0\nce: 9\n")
    tree.write(tree.device_dir(1) / "current_link_width", 8)
    assert ask()["reasons"] == [], "slow is not sick"
    ask.log.write_text("3,2,6,-;amdgpu 0000:26:00.0: amdgpu: GPU reset end with ret = -22\n")
    assert ask()["reasons"] == ["GPU 0000:26:00.0 could not be reset, as the kernel's log says"]


def test_a_repair_that_was_begun_is_known_until_it_ends_and_misses_a_gpu_after_a_boot(ask, tree, tmp_path):
    assert ask("begun", check=True)["changed"] and not ask.folder.exists()
    ask("begun", why="try 1 of 3")
    assert ask()["reasons"] == [repair.UNFINISHED]
    there = tree.device_dir(1)
    there.rename(tmp_path / "away")
    found = ask()  # nothing in /run knows of it any more
    assert (found["reasons"], found["sick"]) == (["GPU 0000:26:00.0 is gone from the PCI bus"], True)
    ask("failed", why="still gone")
    assert ask()["sick"] and ask()["tries"] == 1
    (tmp_path / "away").rename(there)
    ask("ended", why="well")
    assert ask()["reasons"] == []
    lines = (ask.folder / "events/events.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["repair", "repair_failed", "repaired"]


def test_repairs_of_a_day_are_counted_also_by_a_clock_that_was_set_back(ask):
    journal = Journal(str(ask.folder.parent), "vllm")
    journal.event("repair", "now")
    journal.event("hung", "another kind")
    rows = [json.loads(line) for line in (ask.folder / "events/events.jsonl").read_text().splitlines()]
    with (ask.folder / "events/events.jsonl.1").open("w") as file:
        for hours in (23, 25, -1):
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - hours * 3600))
            file.write(json.dumps({**rows[0], "at": at}) + "\n")
        file.write("half a li")
    assert ask()["tries"] == 3


def test_a_reset_is_a_command_and_the_gpus_are_looked_at_again(ask, tree, tmp_path):
    errors = tree.write(tree.device_dir(0) / "ras/umc_err_count", "ue: 1\nce: 0")
    command = ["sh", "-c", f"printf 'ue: 0' > {errors}"]
    assert ask(reset_command=command)["reset"].startswith("sh -c")
    done = ask("reset", reset_command=command)
    assert (done["failed_reset"], done["reasons"]) == ("", [])
    errors.write_text("ue: 1\n")
    done = ask("reset", reset_command=["sh", "-c", "echo not supported >&2; exit 3"])
    assert done["failed_reset"].endswith("not supported") and done["sick"]


def test_a_driver_that_does_not_answer_keeps_nobody_waiting(ask, tree, tmp_path, monkeypatch):
    ask("begun", why="both GPUs have to be there again")
    monkeypatch.setattr(repair, "LOOK_TIMEOUT", 0.3)
    stuck = tree.device_dir(0) / "vendor"
    stuck.unlink()
    os.mkfifo(stuck)
    found = ask()
    assert (found["reasons"], found["gpus"]) == ([repair.STUCK], ["0000:05:00.0", "0000:26:00.0"])
    # What cannot even be killed keeps neither the module nor who reads its output.
    left = []
    monkeypatch.setattr(repair.os, "kill", lambda pid, _: left.append(pid))
    ours, theirs = os.pipe()
    caller = os.fork()
    if not caller:
        os.dup2(theirs, 1)
        os.close(theirs)
        ask()
        os.write(1, str(left[0]).encode())
        os._exit(0)
    os.close(theirs)
    began = time.monotonic()
    with os.fdopen(ours, "rb") as output:
        child = int(output.read())
    assert os.waitpid(caller, 0)[1] == 0
    assert time.monotonic() - began < 5
    monkeypatch.undo()
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error", "/sys/x"), ValueError("odd")])
def test_a_look_that_cannot_be_had_is_an_error_and_no_healthy_node(ask, error, monkeypatch):
    def faults(*_, **__):
        raise error

    monkeypatch.setattr(repair.Gpus, "faults", faults)
    with pytest.raises(OSError, match="Input/output error" if error.args[0] == 5 else "without an answer"):
        ask()


def test_events_are_counted_for_node_exporter(tmp_path):
    textfiles = tmp_path / "textfiles"
    one, other = (Journal(str(tmp_path), "vllm", textfiles) for _ in range(2))
    one.event("hung", "before there is a node_exporter")
    textfiles.mkdir()
    threads = [threading.Thread(target=who.event, args=("restart", "x")) for who in (one, other) * 10]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = textfiles.iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == ("vllm-fleet-watchdog-vllm.prom", 0o644)
    lines = file.read_text().splitlines()
    assert lines[1] == "# TYPE vllm_fleet_watchdog_events_total counter"
    assert 'vllm_fleet_watchdog_events_total{server="vllm",kind="restart"} 20' in lines
    assert 'vllm_fleet_watchdog_events_total{server="vllm",kind="hung"} 1' in lines
    assert 'vllm_fleet_watchdog_events_total{server="vllm",kind="quarantine"} 0' in lines
    # A broken file begins at zero, which Prometheus takes for a restart.
    (one.folder / counts.COUNTS).write_text("half")
    one.event("hung", "x")
    assert one.trouble == "" and 'kind="hung"} 1' in file.read_text()


@pytest.mark.parametrize("link", ["", "var", "var/dumps", "var/dumps/new.txt"])
def test_evidence_opens_nothing_through_a_link_of_the_container(tmp_path, link):
    root, secret = tmp_path / "root", tmp_path / "secret"
    (root / "var/dumps").mkdir(parents=True)
    (root / "var/dumps/old.txt").write_text("stacks")
    secret.mkdir()
    (secret / "dumps").mkdir()
    for folder in (secret, secret / "dumps"):
        (folder / "new.txt").write_text("of the node")
    if link:
        place = root / link
        shutil.rmtree(place, ignore_errors=True)
        place.symlink_to(secret / link.removeprefix("var").strip("/"))
    try:
        found = evidence.newest_files(root, "/var/dumps")
    except OSError:
        found = []
    assert found == (["stacks"] if link in ("", "var/dumps/new.txt") else [])
    assert evidence.newest_files(root, "/var/../../secret") == []
