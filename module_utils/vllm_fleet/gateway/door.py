# SPDX-License-Identifier: Apache-2.0
"""Whether a gateway lets in whom it should: its own ports, asked without a key and with one."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

from ..common import exchange

# The gateway answers itself, and it counts neither for a client's limits nor in the accounts.
METHOD, PATH = "HEAD", "/v1/models"
TIMEOUT = 5.0


def look(doors: Iterable[Mapping[str, Any]], tls: bool) -> list[str]:
    """Return what is wrong with the doors of a gateway, as short phrases; none where all is as it should be.

    A door is `host` and `port` on this machine, and the `key` that it must open to; without a key it is open to all.
    """
    found = []
    for door in doors:
        port, key = door["port"], door.get("key")
        without = _status(door["host"], int(port), "", tls)
        if not isinstance(without, int):
            found.append(f"{port} does not answer ({without})")
        elif key and without != 401:
            found.append(f"{port} gives {without} without a key")
        elif key and (status := _status(door["host"], int(port), str(key), tls)) != 200:
            found.append(f"{port} gives {status} with a right key")
    return found


def _status(host: str, port: int, key: str, tls: bool) -> int | str:
    """The status of an answer, or why there was none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It is this machine's own port, and its certificate is for another name.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = exchange.Connection(host, port, exchange.Deadline(TIMEOUT), context=context if tls else None)
    try:
        connection.request(METHOD, PATH, headers={"Authorization": f"Bearer {key}"} if key else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
