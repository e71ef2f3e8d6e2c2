# SPDX-License-Identifier: Apache-2.0
"""What the project reads of a container's log, from a real engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engine

WORD = b"the guard ends it"
#: What was written to one stream late may have been written early: only each stream by itself is in order.
SCRIPT = f"""
echo 'serving'; echo 'No space left' >&2; sleep 0.2
echo '{WORD.decode()}'; sleep 0.2
echo 'late copied' >&2; sleep {{pause}}; echo '{WORD.decode()}' >&2
echo 'KeyboardInterrupt' >&2; echo 'shutting down'
sleep 60
"""
BEFORE = {b"serving", b"No space left", b"late copied"}


def read(engine: Any, ident: str) -> tuple[set[bytes], bool]:
    """Give the lines as a set: what was said to different streams at one moment may be in either order."""
    text, whole = engine.log_before(ident, WORD)
    return set(text.splitlines()), whole


@pytest.fixture
def said(engine: Any, docker_client: Any, standin_image: str) -> Iterator[Any]:
    """Start a container that says all that, and wait for a word of it."""
    made = []

    def until(text: bytes, pause: float = 0.2) -> str:
        words = ["sh", "-c", SCRIPT.format(pause=pause)]
        container = docker_client.containers.run(standin_image, words, detach=True, init=True)
        made.append(container)
        for chunk in container.logs(stream=True, follow=True):
            if text in chunk:
                break
        return str(container.id)

    yield until
    for container in made:
        container.remove(force=True)


def test_each_stream_is_read_up_to_the_word_in_it(engine: Any, said: Any) -> None:
    ident = said(b"shutting down")
    assert read(engine, ident) == (BEFORE, True)
    whole = engine.log(ident)
    assert whole.count(WORD) == 2
    assert b"KeyboardInterrupt" in whole


def test_a_stream_in_which_the_word_is_not_yet_is_told(engine: Any, said: Any) -> None:
    ident = said(b"late copied", pause=60)
    assert read(engine, ident) == (BEFORE, False)


#: What a run does with the log of a start that failed, in a process of its own: its peak is that of no other test.
READ = """
import sys, time
sys.path.insert(0, sys.argv[1])
from ansible.module_utils import basic  # as in a module
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.vllm_fleet.common.secrets import scrub
from ansible.module_utils.vllm_fleet.container.engine import Engine
from ansible.module_utils.vllm_fleet.diagnosis import diagnose
began = time.monotonic()
engine = Engine()
log = scrub(engine.log(sys.argv[2]).decode(errors="replace"), ("CANARY-0123456789",))
found = diagnose.diagnose(log, diagnose.ExitFacts(1), diagnose.Context())
before, _ = engine.log_before(sys.argv[2], b"no such word")
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(found.class_, len(log), len(before), int(peak) // 1024, round(time.monotonic() - began, 1))
"""


def test_a_long_log_takes_little_memory(engine: Any, docker_client: Any, standin_image: str) -> None:
    """100 MB of lines that look as if they had secrets, with the reason of the failure at the end."""
    line = "(EngineCore pid=1) WARNING 01-01 00:00:00 [a.py:1] token 512 of 4096 went by, api_key=CANARY-0123456789"
    script = f"yes '{line}' | head -c 100m; echo; echo 'OSError: [Errno 28] No space left on device' >&2; exit 1"
    container = docker_client.containers.run(standin_image, ["sh", "-c", script], detach=True, network_mode="none")
    try:
        assert container.wait(timeout=120)["StatusCode"] == 1
        modules = str(Path(__file__).resolve().parents[2] / "module_utils")
        done = subprocess.run(
            [sys.executable, "-c", READ, modules, container.id],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        kind, length, before, peak, seconds = done.stdout.split()
        assert kind == "disk_full"
        assert 4 << 20 < int(length) < 6 << 20
        assert int(before) < 6 << 20
        assert int(peak) < 64, (peak, seconds)  # MiB, of which Python and the SDK are 35
    finally:
        container.remove(force=True)
