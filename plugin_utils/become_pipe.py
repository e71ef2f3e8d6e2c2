# SPDX-License-Identifier: Apache-2.0
"""rsync's remote shell on the controller: ssh, with the far end run through Ansible's become.

rsync speaks with its far end over this program's standard input and output. sudo reads a password from the same
stream, because there is no terminal. So the password goes first, when sudo asks for it, and rsync's stream begins after
the mark with which Ansible recognises that become has worked.

Run by the action push_files as ``become_pipe.py SETTINGS ssh ... MARK rsync's words``. Standard library alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Stands for the far end's command in what Ansible makes of it, and for the program in rsync's own command line.
MARK = "vllm-fleet-far-end"
#: What become is asked to run. In the place of the mark come letters, digits, +, / and = only: no quoting can break.
FAR_END = f'eval "$(echo {MARK} | base64 -d)"'
#: Seconds until root's shell answers, the connection included.
PATIENCE = 120.0
#: How other ways than sudo ask; sudo is given a prompt of its own.
PROMPT = r"(?i)passw(?:or)?d[^\n]*:\s*$"

_CHUNK = 1 << 20


class Refused(Exception):
    """Become did not work; the text is one sentence."""


def far_command(command: str, program: str, words: list[str]) -> str:
    """Put rsync's words, quoted by it for one shell, in the place of the mark in ``command``."""
    whole = " ".join(["exec", program, *words])
    return command.replace(MARK, base64.b64encode(whole.encode(errors="surrogateescape")).decode())


class Handshake:
    """What the far end says until its shell runs: when to give the password, and when the stream begins."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Take ``success`` and ``prompt``; without a prompt any line that looks like one counts."""
        self._success = str(settings["success"]).encode()
        asked = settings.get("prompt")
        self._prompt = re.compile((re.escape(asked.strip()) if asked else PROMPT).encode())
        self._said = {1: b"", 2: b""}
        self.asked = 0

    def take(self, stream: int, data: bytes) -> bytes | None:
        """Take what came on a stream (1 or 2). Gives the beginning of rsync's own stream once the mark has come."""
        self._said[stream] += data
        begun = re.search(re.escape(self._success) + rb"\r?\n", self._said[1])
        if begun:
            return self._said[1][begun.end() :]
        self.asked = sum(len(self._prompt.findall(said)) for said in self._said.values())
        return None

    @property
    def errors(self) -> str:
        """What came on standard error, without the prompts."""
        return self._prompt.sub(b"", self._said[2]).decode(errors="replace").lstrip()


def agree(process: subprocess.Popen[bytes], settings: Mapping[str, Any]) -> bytes:
    """Give the password when it is asked for. Gives the first bytes of rsync's stream; raises Refused."""
    assert process.stdin and process.stdout and process.stderr  # noqa: S101  all three are pipes
    talk, given, deadline = Handshake(settings), 0, time.monotonic() + PATIENCE
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ, 1)
        ready.register(process.stderr, selectors.EVENT_READ, 2)
        while True:
            keys = ready.select(deadline - time.monotonic())
            if not keys:
                raise Refused(f"no answer of {settings['method']} within {PATIENCE:.0f} s: {talk.errors.strip()}")
            for key, _ in keys:
                data = os.read(key.fd, _CHUNK)
                if not data:
                    ready.unregister(key.fileobj)
                    if key.data == 1:
                        raise Refused(_ended(process, talk, settings))
                    continue
                stream = talk.take(key.data, data)
                if stream is not None:
                    sys.stderr.write(talk.errors)
                    return stream
            if talk.asked > given:
                if given:
                    raise Refused(f"{settings['method']} on the node refused the become password")
                given = 1
                secret = Path(settings["secret"]).read_bytes()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(secret + b"\n")
                    process.stdin.flush()


def _ended(process: subprocess.Popen[bytes], talk: Handshake, settings: Mapping[str, Any]) -> str:
    rest = process.stderr.read() if process.stderr else b""
    talk.take(2, rest)
    said = " ".join(talk.errors.split())
    return f"{settings['method']} on the node did not run rsync: {said or 'the connection ended'}"


def relay(process: subprocess.Popen[bytes], first: bytes) -> int:
    """Carry rsync's streams both ways until the far end has ended; gives its exit code."""
    assert process.stdin and process.stdout and process.stderr  # noqa: S101  all three are pipes
    far = process.stdin

    def carry(source: int, target: int) -> None:
        while data := os.read(source, _CHUNK):
            while data:
                data = data[os.write(target, data) :]

    def send() -> None:
        with contextlib.suppress(OSError):
            carry(0, far.fileno())
        with contextlib.suppress(OSError):
            far.close()

    def receive(source: int, target: int) -> None:
        with contextlib.suppress(OSError):
            carry(source, target)

    threading.Thread(target=send, daemon=True).start()
    errors = threading.Thread(target=receive, args=(process.stderr.fileno(), 2))
    errors.start()
    with contextlib.suppress(OSError):
        while first:
            first = first[os.write(1, first) :]
        carry(process.stdout.fileno(), 1)
    code = process.wait()
    errors.join()
    return code


def main(arguments: list[str]) -> int:
    """Connect, become, carry. A failure is one line on standard error and ssh's exit code or 1."""
    settings = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    words = arguments[1:]
    at = words.index(MARK)
    command = far_command(settings["command"], settings["program"], words[at + 1 :])
    pipe = subprocess.PIPE
    with subprocess.Popen([*words[:at], command], bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            return relay(process, agree(process, settings))
        except Refused as refused:
            process.kill()
            sys.stderr.write(f"{refused}\n")
            return process.wait() or 1


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    os._exit(code if code >= 0 else 1)  # a thread may still wait for rsync's last byte
