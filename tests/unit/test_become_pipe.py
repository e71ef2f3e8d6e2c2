# SPDX-License-Identifier: Apache-2.0
"""rsync whose far end is run by a sudo that wants a password on its standard input, without ssh in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plugin_utils import become_pipe

PASSWORD = "p'w \"x$y`"
#: Like sudo -S: it asks on standard error, three times, and reads up to the end of the line and no byte more.
SUDO = r"""#!/bin/sh
echo "We trust you have received the usual lecture" >&2
for try in 1 2 3; do
  printf '%s' "$2" >&2
  IFS= read -r given || exit 1
  if [ "$given" = "$WANTED" ]; then shift 2; exec "$@"; fi
  echo 'Sorry, try again.' >&2
done
"""
#: ssh gives the rest of its words to a shell. What a profile says comes before.
SSH = '#!/bin/sh\necho "Welcome to this node"\nshift\nexec sh -c "$*"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("sudo", SUDO), ("ssh", SSH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from/with space").write_bytes(os.urandom(3 << 20))
    return tmp_path


def push(folder: Path, secret: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "command": f"{folder}/sudo -p '[key] password:' sh -c 'echo BECOME-SUCCESS-key ; {become_pipe.FAR_END}'",
        "program": "rsync",
        "success": "BECOME-SUCCESS-key",
        "prompt": "[key] password:",
        "method": "sudo",
        "secret": f"{folder}/secret",
    }
    (folder / "become.json").write_text(json.dumps(settings))
    os.mkfifo(folder / "secret")
    giver = threading.Thread(target=(folder / "secret").write_text, args=(secret,), daemon=True)
    giver.start()
    pipe = f"{sys.executable} -I {become_pipe.__file__} {folder}/become.json"
    argv = ["rsync", "--recursive", f"--rsh={pipe} {folder}/ssh", f"--rsync-path={become_pipe.MARK}"]
    done = subprocess.run(
        [*argv, f"{folder}/from/", f"node:{folder}/to/"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "WANTED": PASSWORD},
    )
    giver.join(5)
    return done


def test_the_password_goes_first_and_no_byte_of_rsync_is_lost(folder: Path) -> None:
    done = push(folder, PASSWORD)
    assert done.returncode == 0, done.stderr
    assert (folder / "to/with space").read_bytes() == (folder / "from/with space").read_bytes()
    assert "[key] password:" not in done.stderr and PASSWORD not in done.stdout + done.stderr


def test_a_wrong_password_ends_it_with_one_sentence(folder: Path) -> None:
    done = push(folder, "other")
    assert done.returncode and "sudo on the node refused the become password\n" in done.stderr, done.stderr
    assert not list((folder / "to").iterdir())


@pytest.mark.parametrize(
    ("prompt", "said", "asked"),
    [
        ("[key] password:", {2: b"lecture\n[key] password:"}, 1),
        ("[key] password:", {2: b"[key] password:Sorry, try again.\n[key] password:"}, 2),
        ("[key] password:", {2: b"another password: "}, 0),
        ("", {1: b"Password: "}, 1),
        ("", {2: b"doas (ops@node) password: "}, 1),
        ("", {2: b"the password: changes tomorrow\n"}, 0),
    ],
)
def test_what_counts_as_being_asked(prompt: str, said: dict[int, bytes], asked: int) -> None:
    talk = become_pipe.Handshake({"success": "OK-1", "prompt": prompt})
    for stream, data in said.items():
        assert talk.take(stream, data) is None
    assert talk.asked == asked


def test_the_stream_begins_after_the_mark_wherever_the_reads_cut_it() -> None:
    whole = b"Welcome\nBECOME-SUCCESS-a\n\x1f\x00rsync"
    for cut in range(len(whole) + 1):
        talk = become_pipe.Handshake({"success": "BECOME-SUCCESS-a", "prompt": "p:"})
        first = talk.take(1, whole[:cut])
        rest = whole[cut:] if first is not None else talk.take(1, whole[cut:])
        assert (first or b"") + (rest or b"") == b"\x1f\x00rsync"
