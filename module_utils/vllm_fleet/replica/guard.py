# SPDX-License-Identifier: Apache-2.0
"""First process of every container of a server that spans several nodes: its ranks live and die together.

vLLM itself does not notice when a rank on another node is gone until the next request, and a rank that Docker restarts
cannot join an engine that is already running. So each rank runs under this guard. The workers' guards keep a connection
to the head's; no rank starts before all are there, and when one is lost every guard ends its own server, so that
Docker's restart policy brings all of them back, to meet again.

Runs in the server's image, alone: standard library of Python 3.10 or newer, nothing of this project.

usage: replica_guard.py --rank N --size N --head ADDRESS --port PORT --id TEXT [--exec SHELL] -- COMMAND...
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TextIO

#: Exit code when another rank was lost (EX_TEMPFAIL): try again.
LOST = 75
#: What both streams of the log say when another rank is lost, before the server is ended; who watches waits for it.
ENDING = "ending, so that all ranks start again together"
#: Seconds between two attempts to reach the head, and between two lines that say who is waited for.
RETRY, SAY = 0.5, 30.0
#: Seconds for a connection to say who it is.
HELLO_TIMEOUT = 5.0
#: Connections that have not said yet who they are; with more of them the oldest goes.
UNKNOWN = 32
#: Seconds that a server has to end after SIGTERM when its replica is broken; it cannot answer any more.
GRACE = 5.0
#: A silent link is tested after 5 s and given up 3 tests of 2 s later: a node without power says no goodbye.
KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 11000))


class Broken(Exception):
    """A rank is lost; the text says which."""


def say(options: argparse.Namespace, text: str, stream: TextIO | None = None) -> None:
    """Print a line into the container's log."""
    print(f"[replica] rank {options.rank} of {options.size}: {text}", file=stream, flush=True)


def keep_alive(link: socket.socket) -> None:
    """Let the kernel notice a peer that vanished."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Guard:
    """One rank's guard."""

    def __init__(self, options: argparse.Namespace, command: Sequence[str]) -> None:
        """Nothing runs yet."""
        self.options, self.command = options, list(command)
        self.child: subprocess.Popen[bytes] | None = None
        self.links: dict[int, socket.socket] = {}
        #: Who has not said yet who it is: until when it may, and from where it comes.
        self.unknown: dict[socket.socket, tuple[float, str]] = {}
        self.server: socket.socket | None = None
        self.stopping = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def run(self) -> int:
        """Meet, serve, and give the exit code."""
        try:
            self._meet()
            if self.stopping:
                return 0
            say(self.options, "all ranks are here, starting")
            self.child = child = subprocess.Popen(self.command, start_new_session=True)
            return self._watch(child)
        except Broken as broken:
            say(self.options, f"{broken}; {ENDING}")
            # Docker copies the streams side by side: what the server itself said before stands before this in each.
            say(self.options, ENDING, sys.stderr)
            self._end()
            return LOST

    # -- before ------------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Wait until every rank has a connection, and everyone knows it."""
        (self._gather if self.options.rank == 0 else self._join)()

    def _gather(self) -> None:
        options = self.options
        family = socket.AF_INET6 if ":" in options.head else socket.AF_INET
        self.server = server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((options.head, options.port))
        server.listen(64)
        server.setblocking(False)
        said = -SAY
        while len(self.links) < options.size - 1 and not self.stopping:
            if time.monotonic() - said >= SAY:
                said = time.monotonic()
                missing = [str(r) for r in range(1, options.size) if r not in self.links]
                say(options, f"waiting for rank {', '.join(missing)} at {options.head}:{options.port}")
            self._hear(server)
            self._drop_lost()
        for link in self.unknown:
            link.close()
        for rank, link in self.links.items():
            self._tell(rank, link)

    def _hear(self, server: socket.socket) -> None:
        """Take what comes: a connection, or the word of one that has not said who it is. None holds up another."""
        with selectors.DefaultSelector() as selector:
            for one in (server, *self.unknown):
                selector.register(one, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(RETRY)]
        now = time.monotonic()
        for link, (until, peer) in list(self.unknown.items()):
            if link in ready or now >= until or len(self.unknown) > UNKNOWN:
                del self.unknown[link]
                self._admit(link, peer)
        if server in ready:
            with contextlib.suppress(OSError):
                link, peer = server.accept()
                link.setblocking(False)
                self.unknown[link] = (now + HELLO_TIMEOUT, str(peer[0]))

    def _admit(self, link: socket.socket, peer: str) -> None:
        rank = self._hello(link)
        if rank is None or rank in self.links:
            link.close()
            return
        keep_alive(link)
        self.links[rank] = link
        say(self.options, f"rank {rank} is here, from {peer}")

    def _hello(self, link: socket.socket) -> int | None:
        """Read who connects; None for a stranger, a rank of another release, or who says nothing."""
        with contextlib.suppress(OSError, ValueError):
            words = link.recv(256).decode().split()
            if len(words) == 3 and words[0] == "rank" and words[2] == self.options.id:
                rank = int(words[1])
                return rank if 0 < rank < self.options.size else None
        return None

    def _drop_lost(self) -> None:
        """A worker that went away again before the start simply comes again."""
        for rank, link in list(self.links.items()):
            link.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                try:
                    gone = link.recv(16) == b""
                except BlockingIOError:
                    raise
                except OSError:
                    gone = True
                if gone:
                    link.close()
                    del self.links[rank]

    def _tell(self, rank: int, link: socket.socket) -> None:
        link.settimeout(HELLO_TIMEOUT)
        try:
            link.sendall(b"go\n")
        except OSError:
            raise Broken(f"rank {rank} is gone") from None

    def _join(self) -> None:
        options = self.options
        said = -SAY
        while not self.stopping:
            if time.monotonic() - said >= SAY:
                said = time.monotonic()
                say(options, f"waiting for the head at {options.head}:{options.port}")
            link = None
            with contextlib.suppress(OSError):
                link = socket.create_connection((options.head, options.port), timeout=HELLO_TIMEOUT)
                keep_alive(link)
                link.sendall(f"rank {options.rank} {options.id}".encode())
                if self._told(link):
                    self.links[0] = link
                    return
            if link is not None:
                link.close()
            time.sleep(RETRY)  # nothing announces that a port on another machine opens

    def _told(self, link: socket.socket) -> bool:
        """Wait for the head's go; False when it went away, or is another release's head."""
        link.settimeout(RETRY)
        while not self.stopping:
            with contextlib.suppress(socket.timeout):
                return link.recv(16).startswith(b"go")
        return False

    # -- while it runs -----------------------------------------------------------------------------------------

    def _watch(self, child: subprocess.Popen[bytes]) -> int:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ, None)
            for rank, link in self.links.items():
                link.setblocking(False)
                selector.register(link, selectors.EVENT_READ, rank)
            if self.server is not None:
                # Stays open: a worker that was restarted must hear a "no" and not hang.
                self.server.setblocking(False)
                selector.register(self.server, selectors.EVENT_READ, -1)
            while True:
                code = child.poll()
                if code is not None:
                    return self._ended(code)
                for key, _ in selector.select(60.0):
                    self._look(key.data, child)

    def _look(self, rank: int | None, child: subprocess.Popen[bytes]) -> None:
        if rank is None:
            os.read(self._wake_read, 512)
            self._reap(child)
        elif rank < 0 and self.server is not None:
            with contextlib.suppress(OSError):
                self.server.accept()[0].close()
        else:
            try:
                data = self.links[rank].recv(16)
            except BlockingIOError:
                return
            except OSError as error:
                raise Broken(f"rank {rank} is lost ({error.strerror or error})") from None
            if not data and not self.stopping:
                raise Broken(f"rank {rank} has ended")

    def _reap(self, child: subprocess.Popen[bytes]) -> None:
        """Bury what the server's own processes left behind: as the container's first process this one inherits it."""
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in (0, child.pid):
                    return  # the server itself: its Popen asks for it
                os.waitpid(found.si_pid, os.WNOHANG)

    def _ended(self, code: int) -> int:
        if not self.stopping:
            say(self.options, f"the server ended with code {code}")
        self._end()  # what is left of its processes
        return 128 - code if code < 0 else code

    # -- the end -----------------------------------------------------------------------------------------------

    def _on_stop(self, number: int, _frame: object) -> None:
        self.stopping = True
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.send_signal(number)

    def _end(self) -> None:
        """End the server and everything that it started."""
        if self.child is None:
            return
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(patience)
                if number == signal.SIGTERM:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(self.child.pid, signal.SIGKILL)
                return


def main(arguments: Sequence[str]) -> int:
    """Run; gives the exit code."""
    parser = argparse.ArgumentParser(prog="replica_guard.py")
    for name, kind in (("rank", int), ("size", int), ("head", str), ("port", int), ("id", str)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--exec", default="")
    cut = list(arguments).index("--")
    options = parser.parse_args(list(arguments)[:cut])
    rest: list[str] = list(arguments)[cut + 1 :]
    return Guard(options, ["sh", "-c", options.exec, "vllm", *rest] if options.exec else rest).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
