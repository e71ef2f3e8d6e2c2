# SPDX-License-Identifier: Apache-2.0
"""Tells the gateways whether to send requests: HAProxy connects each second and reads one line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

#: Seconds that a gateway may take for its line.
TIMEOUT = 1.0
#: Connections that may wait; further ones are refused, and change nothing at the gateway.
BACKLOG = 16


class Agent:
    """Answers on one address in a thread of its own, so that a slow server keeps no gateway waiting."""

    def __init__(self) -> None:
        """Listen nowhere yet, and say ``up``."""
        self.line = b"up\n"
        self.address: tuple[str, int] | None = None
        self._socket: socket.socket | None = None

    def listen(self, address: tuple[str, int] | None) -> None:
        """Listen there and nowhere else; None for nowhere. Raises OSError, and listens nowhere then."""
        if address == self.address:
            return
        self.close()
        if address is None:
            return
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        # `::` is all addresses for a server, too, those of IPv4 among them.
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        made = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
        self._socket, self.address = made, address
        threading.Thread(target=self._answer, args=(made,), daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        if self._socket:
            # Closing alone does not wake a thread that waits for a connection.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._socket = self.address = None

    def _answer(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                if self._socket is not listening:
                    return
                time.sleep(
                    0.1
                )  # a client that was gone before it was answered; without handles it fails at once, again
                continue
            with connection, contextlib.suppress(OSError):
                connection.settimeout(TIMEOUT)
                connection.sendall(self.line)
                connection.shutdown(socket.SHUT_WR)
