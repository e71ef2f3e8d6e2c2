# SPDX-License-Identifier: Apache-2.0
"""long_command through ansible-playbook: progress while it runs, and a controller that is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import play


def task(folder: Path, script: str, **options: Any) -> dict[str, Any]:
    said = {"argv": ["sh", "-c", script], "label": "counting", "job": "test", "jobs_dir": str(folder / "jobs")}
    return {"name": "Count", "long_command": {**said, "interval": 1, **options}, "register": "counted"}


def test_progress_is_shown_while_it_runs(tmp_path: Path) -> None:
    script = "for i in 1 2 3; do echo noise; echo step $i/3; sleep 1; done"
    run = play.run(tmp_path, [task(tmp_path, script, progress="step (?P<progress>.*)")], facts=["counted"]).ok()
    shown = re.findall(r"^\[localhost\] counting: (\d)/3 \(\d s\)$", run.output, re.MULTILINE)
    assert 2 <= len(shown) <= 3 and shown == sorted(shown), run.output
    assert run.output.index("TASK [Count]") < run.output.index("[localhost] counting:")
    assert run.facts["counted"]["rc"] == 0 and run.facts["counted"]["line"] == "3/3"
    assert run.recap("changed") == 1


def test_failure_is_one_sentence_with_the_last_lines_as_evidence(tmp_path: Path) -> None:
    run = play.run(tmp_path, [task(tmp_path, "echo why >&2; exit 3")])
    assert (
        run.failed()
        == f"counting: failed with exit code 3 after 0 s; last lines in `tail`, all of it in {tmp_path}/jobs/test/log"
    )
    assert re.search(r"tail:\s+- why", run.output)


def test_over_time_it_is_ended(tmp_path: Path) -> None:
    run = play.run(tmp_path, [task(tmp_path, "sleep 60 & echo $!; wait", timeout=2)])
    assert "counting: not done after 2 s, stopped" in run.failed()
    child = int((tmp_path / "jobs" / "test" / "log").read_text(encoding="utf-8"))
    status = Path(f"/proc/{child}/status")
    assert not status.exists() or "State:\tZ" in status.read_text(encoding="utf-8")


def test_what_it_creates_is_respected_and_predicted(tmp_path: Path) -> None:
    made = tmp_path / "made"
    tasks = [task(tmp_path, f"touch {made}", creates=str(made))]
    assert play.run(tmp_path, tasks, None, "--check").ok().recap("changed") == 1
    assert not made.exists()
    assert play.run(tmp_path, tasks).ok().recap("changed") == 1
    assert play.run(tmp_path, tasks).ok().recap("changed") == 0
    assert play.run(tmp_path, tasks, None, "--check").ok().recap("changed") == 0


def test_a_killed_controller_s_command_goes_on_and_is_joined(tmp_path: Path) -> None:
    started, count = tmp_path / "started", tmp_path / "count"
    script = f"echo x >>{count}; touch {started}; sleep 15; echo done"
    # Each run brings words of its own, such as a key; what is counted is the same.
    first, second = (task(tmp_path, f"{script}; : {key}", identity=["count"]) for key in ("key1", "key2"))
    path = play.write(tmp_path, [first], {}, ["counted"])
    with subprocess.Popen(
        play.arguments(path),
        cwd=play.ROOT,
        env=play.environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as controller:
        deadline = time.monotonic() + 30
        while not started.exists():
            assert time.monotonic() < deadline and controller.poll() is None
            time.sleep(0.05)
        os.killpg(controller.pid, signal.SIGKILL)
    run = play.run(tmp_path, [second], facts=["counted"]).ok()
    assert "[localhost] counting: joined the run that was going on" in run.output
    assert run.facts["counted"]["joined"] is True and run.facts["counted"]["tail"] == ["done"]
    assert count.read_text(encoding="utf-8") == "x\n", "it ran once"
