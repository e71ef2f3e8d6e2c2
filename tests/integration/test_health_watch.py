# SPDX-License-Identifier: Apache-2.0
"""Live tables, by health --watch and by status -e status_watch: rows that stay in their places on a terminal, changes elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import termios
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


def terminal(rows: int, here: Path, words: list[str], **environ: str) -> tuple[int, int]:
    """Start words on a terminal of their own: their process, and the terminal's other end."""
    pid, ours = pty.fork()
    if not pid:
        os.chdir(here)
        os.execvpe(words[0], words, {**os.environ, "TERM": "xterm", **environ})  # noqa: S606
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
    return pid, ours


def frames(found: bytes) -> list[list[bytes]]:
    """The lines of each whole screen without the time, after the one that says what is waited for."""
    return [
        [line.rstrip() for line in frame.partition(b"\033[J")[0].splitlines()] for frame in found.split(b"\033[H")[2:]
    ]


def test_a_terminal_has_one_screen_until_ctrl_c(tmp_path: Path) -> None:
    """From another folder, by the name of status.yml: what Ansible keeps from its children reaches the live table."""
    words = [str(ROOT / "bin/vllm-fleet"), "status", "-e", "status_watch=1", *inventory(tmp_path)]
    pid, ours = terminal(24, tmp_path, words)
    try:
        found = read_until(ours, b"\033[J", 2)
        os.write(ours, b"\x03")
        with contextlib.suppress(OSError):  # the terminal's end
            while more := os.read(ours, 65536):
                found += more
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(ours)
    assert code == 0, found
    seen = frames(found)
    assert seen[0][1:] == seen[1][1:], "nothing has changed, so nothing moves"
    assert any(b"node1" in line for line in seen[0])
    assert b"TASK" not in found and b"PLAY" not in found
    assert found.count(b"\033[2J") == 1, "the screen is cleared once"
    assert all(line.endswith(b"\033[K") for frame in seen[:2] for line in frame)
    assert found.endswith(b"\033[?25h\033[?7h\r\n"), "the cursor is back"


FAKE = """#!/bin/sh
for word in "$@"; do case $word in health_text=*) to=${word#*=} ;; esac; done
{ echo 'NODE WHAT IS WRONG'
for n in $(seq 64); do [ $((n % BAD)) -eq 0 ] && echo "node$n it is odd" || echo "node$n \u2013"; done
echo 'acme/other: no server up'; echo '64 servers.'; } >"$to"
"""


@pytest.mark.parametrize(
    ("every", "first", "rows"),
    [
        (30, "  62 rows without a fault are left out", ["node30 it is odd", "node60 it is odd"]),
        (
            3,
            "  43 rows without a fault are left out, 15 with one do not fit",
            [f"node{n} it is odd" for n in (48, 51, 54, 57, 60, 63)],
        ),
    ],
)
def test_a_table_longer_than_the_screen_keeps_what_is_wrong(
    every: int, first: str, rows: list[str], tmp_path: Path
) -> None:
    for made in ("scripts", ".venv/bin"):
        (tmp_path / made).mkdir(parents=True)
    shutil.copy(HEALTH, tmp_path / "scripts")
    fake = tmp_path / ".venv/bin/ansible-playbook"
    fake.write_text(FAKE)
    fake.chmod(0o700)
    pid, ours = terminal(11, tmp_path, [str(tmp_path / "scripts/health"), "--watch", "9"], BAD=str(every))
    found = read_until(ours, b"\033[J", 1)
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    os.close(ours)
    told = [line.removesuffix(b"\033[K").decode() for line in frames(found)[0]]
    assert told[0][len("00:00:00") :] == first
    assert told[1:] == ["NODE WHAT IS WRONG", *rows, "acme/other: no server up", "64 servers."]


def test_elsewhere_a_row_is_a_line_once(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    words = [str(ROOT / "bin/vllm-fleet"), "status", *inventory(tmp_path), "-e", '{"status_watch": 1}']
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
