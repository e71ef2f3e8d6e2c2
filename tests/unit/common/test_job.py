# SPDX-License-Identifier: Apache-2.0
"""Detached jobs: what is shown, what is joined, what survives a kill."""

import os
import signal
import time
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.common.job import (
    Job,
    JobError,
    fingerprint,
    free_bytes,
    progress_line,
    short_of_space,
    tail_lines,
)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\n\n  \ntwo", ["one", "two"]),
        (b"10%\r20%\r30%", ["20%", "30%"]),
        (b"\x1b[32mgreen\x1b[0m \n", ["green"]),
        ("täil".encode()[:2], ["t\ufffd"]),
    ],
)
def test_tail_is_what_a_terminal_would_show(data: bytes, lines: list[str]) -> None:
    assert tail_lines(data, 2) == lines


@pytest.mark.parametrize(
    ("lines", "pattern", "shown"),
    [
        (["a", "b"], None, "b"),
        ([], None, ""),
        (["Step 1/4", "noise"], r"Step \d+/\d+", "Step 1/4"),
        (["#6 0.4 Processing x", "#6 0.5 Installing y"], r"^#\d+ [\d.]+ (?P<progress>.*)", "Installing y"),
        (["noise"], r"Step \d+", ""),
    ],
)
def test_progress_line(lines: list[str], pattern: str | None, shown: str) -> None:
    assert progress_line(lines, pattern) == shown


def test_short_of_space_names_path_need_and_what_is_there() -> None:
    said = short_of_space({"/a": 2**30, "/b": 6 * 2**30}, {"/a": 2**30, "/b": 2**29}, "building image x:1")
    assert said == (
        "building image x:1 needs 6.0 GiB free under /b, which has 0.5 GiB: free space there or use a larger disk"
    )
    assert short_of_space({"/a": 1}, {"/a": 1}, "x") is None
    said = short_of_space({"/a": 2**30}, {"/a": 0}, "x", "vllm_image_min_free_gib")
    assert said and said.endswith("or use a larger disk, or set vllm_image_min_free_gib (GiB)")


def test_free_bytes_of_a_folder_yet_to_be_made(tmp_path: Path) -> None:
    assert free_bytes(str(tmp_path / "not" / "yet")) > 0


def test_fingerprint_tells_commands_apart() -> None:
    base = fingerprint(["a", "b"], None, {})
    assert base != fingerprint(["a b"], None, {})
    assert base != fingerprint(["a", "b"], "/", {})
    assert base != fingerprint(["a", "b"], None, {"X": "1"})
    assert base == fingerprint(["a", "b"], None, {})


def run(job: Job, *argv: str) -> str:
    return job.begin(argv, None, {})[0]


def test_exit_code_and_both_streams(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    state = job.wait(run(job, "sh", "-c", "echo out; echo err >&2; exit 7"), 10)
    assert (state.running, state.rc, state.tail) == (False, 7, ["out", "err"])


def test_environment_folder_and_arguments_arrive_unharmed(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    run_id, _ = job.begin(["sh", "-c", 'pwd; echo "$X|$1"', "sh", "a 'b' $c"], str(tmp_path), {"X": "y z"})
    assert job.wait(run_id, 10).tail == [str(tmp_path), "y z|a 'b' $c"]


def test_waiting_ends_with_the_command_and_not_with_the_timeout(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    run_id = run(job, "sleep", "0.5")
    assert job.wait(run_id, 0.1).running
    begun = time.monotonic()
    state = job.wait(run_id, 30)
    assert not state.running and state.rc == 0
    assert time.monotonic() - begun < 5


def test_a_second_begin_joins_the_running_command(tmp_path: Path) -> None:
    first = Job(tmp_path / "j")
    run_id = run(first, "sh", "-c", f"echo x >>{tmp_path}/count; sleep 1")
    again, joined = Job(tmp_path / "j").begin(["sh", "-c", f"echo x >>{tmp_path}/count; sleep 1"], None, {})
    assert (again, joined) == (run_id, True)
    assert first.wait(run_id, 10).rc == 0
    assert (tmp_path / "count").read_text() == "x\n"


def test_a_command_is_joined_by_what_it_is_whatever_key_it_was_given_for_this_run(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    assert job.running() is None
    run_id, _ = job.begin(["sleep", "30"], None, {}, ["copy"])
    assert job.running() == (run_id, fingerprint(["copy"], None, {}))
    assert job.begin(["sleep", "31"], None, {}, ["copy"]) == (run_id, True)
    with pytest.raises(JobError, match="already running another command"):
        job.begin(["sleep", "30"], None, {}, ["another copy"])
    job.stop(run_id)
    assert job.running() is None


def test_another_command_under_the_same_name_is_refused_while_it_runs(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    run_id = run(job, "sleep", "30")
    with pytest.raises(JobError, match="already running another command"):
        run(job, "sleep", "31")
    job.stop(run_id)
    assert job.wait(run(job, "true"), 10).rc == 0


def test_a_killed_run_has_no_exit_code_and_is_started_anew(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    run_id = run(job, "sleep", "30")
    job.wait(run_id, 0.3)
    os.killpg(int((tmp_path / "j" / f"{run_id}.pid").read_text()), signal.SIGKILL)
    state = job.wait(run_id, 10)
    assert (state.running, state.rc) == (False, None)
    again, joined = job.begin(["true"], None, {})
    assert again != run_id and not joined
    assert job.wait(again, 10).rc == 0


def test_a_run_whose_supervisor_was_killed_is_not_doubled(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    argv = ["sleep", "1.5"]
    run_id = run(job, *argv)
    job.wait(run_id, 0.3)
    os.kill(int((tmp_path / "j" / f"{run_id}.pid").read_text()), signal.SIGKILL)
    assert job.begin(argv, None, {}) == (run_id, True)
    state = job.wait(run_id, 10)
    assert (state.running, state.rc) == (False, None)


def test_a_daemon_left_behind_does_not_keep_the_run_alive(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    state = job.wait(run(job, "sh", "-c", "sleep 3 & echo $!"), 2)
    assert (state.running, state.rc) == (False, 0)
    os.kill(int(state.tail[0]), signal.SIGKILL)


def test_stop_ends_all_processes_of_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    run_id = run(job, "sh", "-c", "sleep 60 & echo $!; wait")
    child = 0
    while not child:
        child = int((job.state(run_id).tail or ["0"])[0])
    job.stop(run_id)
    assert not job.state(run_id).running
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_a_command_that_is_not_there_fails_in_the_shell_s_words(tmp_path: Path) -> None:
    job = Job(tmp_path / "j")
    state = job.wait(run(job, "no-such-program"), 10)
    assert state.rc == 127
    assert "not found" in state.tail[-1]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot start true in /no/such: No such file or directory"):
        Job(tmp_path / "j").begin(["true"], "/no/such", {})
