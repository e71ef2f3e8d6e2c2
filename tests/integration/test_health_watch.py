# SPDX-License-Identifier: Apache-2.0
"""bin/vllm-fleet health --watch: rows that stay in their places on a terminal, and only what has changed elsewhere."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEALTH = str(ROOT / "scripts/health")


def inventory(folder: Path) -> list[str]:
    """This machine as a node whose server is not there."""
    variables = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    variables |= {"ansible_become": False, "vllm_server_name": "nobody-s-server", "vllm_server_model": "acme/m"}
    (folder / "hosts.json").write_text(json.dumps({"vllm": {"hosts": {"node1": variables}}}))
    return ["-i", str(folder / "hosts.json")]


def read_until(handle: int, text: bytes, times: int) -> bytes:
    found, end = b"", time.monotonic() + 120
    while found.count(text) < times:
        assert time.monotonic() < end, found
        found += os.read(handle, 65536)
    return found


def another_round(folder: Path) -> None:
    """Wait until the fleet was asked once more."""

    def last() -> list[int]:
        return [path.stat().st_mtime_ns for path in folder.glob("*/before")]

    before, end = last(), time.monotonic() + 120
    while last() == before or not last():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_terminal_has_one_screen(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = [HEALTH, "--watch", "1", *inventory(tmp_path)]
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    try:
        found = read_until(ours, b"\033[J", 2)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        os.close(theirs)
    frames = found.split(b"\033[H")[1:]
    rows = [[line.rstrip() for line in frame.partition(b"\033[J")[0].splitlines()[1:]] for frame in frames[:2]]
    assert rows[0] == rows[1], "nothing has changed, so nothing moves"
    assert any(b"node1" in line for line in rows[0])
    assert found.count(b"\033[2J") == 1, "the screen is cleared once"
    assert found.count(b"\033[K") == sum(
        len(frame.splitlines()) for frame in (f.partition(b"\033[J")[0] for f in frames)
    )


def test_elsewhere_a_row_is_a_line_once(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    words = [HEALTH, *inventory(tmp_path), "--watch", "1"]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(words, stdout=theirs, stderr=subprocess.PIPE, env=environ)
    try:
        found = read_until(ours, b"node1", 1)
        another_round(tmp_path)
        another_round(tmp_path)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        os.close(theirs)
    with os.fdopen(ours, "rb") as rest:
        found += rest.read()
    assert found.count(b"absent") == 1, found
    assert b"\033" not in found


@pytest.mark.parametrize("words", [["--watch"], ["--watch", "soon"], ["--watch", "0"]])
def test_seconds_that_are_none_are_refused(words: list[str]) -> None:
    done = subprocess.run([HEALTH, *words], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 2
    assert "wants whole seconds above 0" in done.stderr
