# SPDX-License-Identifier: Apache-2.0
"""The ranks of one server over several nodes: they meet over TCP at the start, as torch.distributed's do.

As with the real one, rank 0 waits for the others, a rank that is lost during the start ends the rest of them at their
next collective operation, and one that is lost later goes unnoticed until the next request.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import time


class LostRankError(Exception):
    """Another rank's connection is gone."""


class Ranks:
    """This rank's connections to the others."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Nothing is connected yet; a server on one node has nobody to meet."""
        self._size, self._rank = options.nnodes, options.node_rank
        self._address = (options.master_addr, options.master_port)
        self._links: list[socket.socket] = []

    def meet(self) -> None:
        """Wait until all ranks are there, for as long as it takes."""
        if self._size == 1:
            return
        if self._rank:
            while True:
                with contextlib.suppress(OSError):
                    link = socket.create_connection(self._address, timeout=5)
                    link.settimeout(None)
                    if link.recv(2) == b"go":
                        self._links.append(link)
                        return
                time.sleep(0.1)
        with socket.create_server(self._address) as server:
            while len(self._links) < self._size - 1:
                self._links.append(server.accept()[0])
            for link in self._links:
                link.sendall(b"go")

    def leave(self) -> None:
        """Close the connections, as a process that ends does."""
        while self._links:
            self._links.pop().close()

    def collective(self) -> None:
        """Do something that needs all ranks; LostRankError when one is gone."""
        for link in self._links:
            link.setblocking(False)
            try:
                gone = link.recv(1) == b""
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                raise LostRankError("Connection closed by peer")
