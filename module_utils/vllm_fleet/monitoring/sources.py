# SPDX-License-Identifier: Apache-2.0
"""Where a machine's figures come from: Docker, the servers, HAProxy, /sys, certificates. Each may be silent."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.received import parsed
from ..container.api import DockerApi, DockerRefused, DockerUnavailable
from ..container.inspected import Inspected, running
from ..container.spec import LABEL_MANAGED, LABEL_SERVER
from ..server.endpoint import of_container
from ..vllm import readiness
from ..vllm.endpoint import Endpoint
from . import gpus

#: Seconds for one answer of a server, of HAProxy, of Docker; and for one look at all GPUs.
SERVER, GATEWAY, DOCKER, GPUS = 3.0, 3.0, 5.0, 3.0
#: Seconds for which what Docker told of a container is believed while its state is the same.
BELIEVED = 60.0
#: Bytes of HAProxy's page that are read: 200 servers make 2 MB.
LARGEST = 16 << 20


class Containers:
    """The servers of the project that Docker has, by name; inspected again where one has changed, or once a minute."""

    def __init__(self, path: str) -> None:
        """Nothing is asked yet."""
        self._docker = DockerApi(path, DOCKER)
        self._kept: dict[str, tuple[tuple[str, str], float, Inspected]] = {}

    def find(self) -> dict[str, Inspected] | None:
        """Return the servers; None where Docker does not answer."""
        found: dict[str, Inspected] = {}
        try:
            for row in self._docker.list_with_label(f"{LABEL_MANAGED}=true"):
                name = str((row.get("Labels") or {}).get(LABEL_SERVER) or "")
                if f"/{name}" not in (row.get("Names") or []):
                    continue  # one that was replaced, or is about to replace another one
                stamp, kept = (str(row.get("Id")), str(row.get("State"))), self._kept.get(name)
                if kept is None or kept[0] != stamp or time.monotonic() - kept[1] > BELIEVED:
                    inspected = self._docker.container(str(row["Id"]))
                    if inspected is None:
                        continue
                    kept = self._kept[name] = (stamp, time.monotonic(), inspected)
                found[name] = kept[2]
        except (DockerUnavailable, DockerRefused, OSError, http.client.HTTPException, ValueError, KeyError):
            return None
        return found


@dataclass(frozen=True)
class Answer:
    """What a server said: its page of metrics, None where it did not answer; what it is made for."""

    endpoint: Endpoint | None
    page: str | None


def ask(containers: Mapping[str, Inspected]) -> dict[str, Answer]:
    """Ask all servers at the same time."""
    names = list(containers)
    with ThreadPoolExecutor(max(1, min(len(names), 16))) as pool:
        return dict(zip(names, pool.map(_ask, containers.values()), strict=True))


def _ask(container: Inspected) -> Answer:
    endpoint = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        endpoint = of_container(container)
        if endpoint is not None and running(container):
            return Answer(endpoint, readiness.page(endpoint, "/metrics", SERVER))
    return Answer(endpoint, None)


def version(endpoint: Endpoint) -> str | None:
    """Return what a server says of its version."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return str(parsed(readiness.page(endpoint, "/version", SERVER).encode()).get("version"))
    return None


def gateway(port: int) -> str | None:
    """Return HAProxy's page; None where it does not answer."""
    asked = readiness.connection(Endpoint("127.0.0.1", port, ()), GATEWAY)
    try:
        asked.request("GET", "/metrics?scope=global&scope=frontend&scope=backend&scope=server")
        response = asked.getresponse()
        text = response.read(LARGEST).decode(errors="replace")
        return text if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        asked.close()


class Gpus:
    """The node's GPUs. A driver that is being reset may not answer for ever, so each look has a thread."""

    def __init__(self, sysfs: Path) -> None:
        """Nothing is read yet."""
        self._sysfs = sysfs
        self._thread: threading.Thread | None = None
        self._found: Sequence[gpus.Sample] = ()

    def look(self) -> Sequence[gpus.Sample] | None:
        """Return what there is; None while a look hangs."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        self._thread.join(GPUS)
        return None if self._thread.is_alive() else self._found

    def _look(self) -> None:
        self._found = ()
        with contextlib.suppress(OSError, ValueError):
            self._found = list(gpus.samples(self._sysfs))


def expiry(path: str) -> float | None:
    """Return when the first certificate of a file ends, in seconds since 1970; None where it cannot be read."""
    try:
        found: dict[str, Any] = ssl._ssl._test_decode_cert(path)  # type: ignore[attr-defined]
        return float(ssl.cert_time_to_seconds(found["notAfter"]))
    except (OSError, ValueError, KeyError, AttributeError):
        return None
