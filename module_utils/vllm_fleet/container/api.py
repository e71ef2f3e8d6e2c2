# SPDX-License-Identifier: Apache-2.0
"""The few questions to Docker that have to work before its SDK is installed, over the engine's Unix socket.

Standard library only: the probe of a bare node must know "no Docker" from "no SDK", and a look at one image should
not pay for importing the SDK.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode

DEFAULT_SOCKET = "/var/run/docker.sock"
#: Docker Hub's key in the client's configuration is older than the registry protocol.
_HUB_KEY = "https://index.docker.io/v1/"

#: Seconds after which a registry that has not answered, or whose engine gave up on it, counts as silent.
SILENCE = 5.0
#: What was said of registries that were silent, by socket and reference.
_silent: dict[tuple[str, str], DockerUnavailable | DockerRefused] = {}


class DockerUnavailable(Exception):
    """No engine answers. ``denied`` is true when the socket is there but not for this user."""

    def __init__(self, message: str, denied: bool = False) -> None:
        """Keep the sentence and the reason."""
        super().__init__(message)
        self.denied = denied


class DockerRefused(Exception):
    """The engine answered with an error; the text is its own explanation."""


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class DockerApi:
    """One engine behind a Unix socket."""

    def __init__(self, path: str = DEFAULT_SOCKET, timeout: float | None = 60.0) -> None:
        """Remember where the engine listens; nothing is connected yet.

        ``timeout`` is what one answer may take, in seconds; None for ever, as a load of many gigabytes may.
        """
        self._path = path
        self._timeout = timeout

    def _call(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any, Any]:
        with self._connected() as connection:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            body = response.read()
        data = json.loads(body) if body and "json" in (response.getheader("Content-Type") or "") else body
        return response.status, data, response.headers

    def _ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Any:
        status, data, _ = self._call(method, path, headers)
        if status == http.client.NOT_FOUND:
            return None
        if status >= http.client.BAD_REQUEST:
            raise DockerRefused(data.get("message", "") if isinstance(data, dict) else f"HTTP {status}")
        return data

    def ping(self) -> tuple[int, int]:
        """Return the engine's API version, such as (1, 41). Raises DockerUnavailable when none answers."""
        status, _, headers = self._call("GET", "/_ping")
        if status != http.client.OK:
            raise DockerUnavailable(f"the Docker engine at {self._path} answers its ping with HTTP {status}")
        major, _, minor = str(headers.get("Api-Version", "1.0")).partition(".")
        return int(major), int(minor)

    def info(self) -> dict[str, Any]:
        """Return `docker info`."""
        found: dict[str, Any] = self._ask("GET", "/info")
        return found

    def image(self, ref: str) -> dict[str, Any] | None:
        """Inspect an image by reference or id; None when the node does not have it."""
        found: dict[str, Any] | None = self._ask("GET", f"/images/{quote(ref, safe='/:@')}/json")
        return found

    def container(self, name: str) -> dict[str, Any] | None:
        """Inspect a container by name or id; None when there is none."""
        found: dict[str, Any] | None = self._ask("GET", f"/containers/{quote(name, safe='')}/json")
        return found

    def list_with_label(self, label: str) -> list[dict[str, Any]]:
        """List all containers with ``label`` (``key=value``), also those that do not run, in Docker's short form."""
        query = urlencode({"all": 1, "filters": json.dumps({"label": [label]})})
        return list(self._ask("GET", f"/containers/json?{query}") or [])

    def containers_with_label(self, label: str) -> list[dict[str, Any]]:
        """Inspect the same."""
        found = (self.container(str(row["Id"])) for row in self.list_with_label(label))
        return [one for one in found if one]  # without one that was removed in between

    def processes(self, name: str) -> list[int]:
        """Process ids (the node's) of a running container; empty when it does not run."""
        try:
            found = self._ask("GET", f"/containers/{quote(name, safe='')}/top?ps_args=-eo+pid") or {}
        except DockerRefused:
            return []
        return [int(row[0]) for row in found.get("Processes") or [] if row and str(row[0]).isdigit()]

    def log_tail(self, name: str, lines: int, limit: int) -> bytes:
        """Return a container's last ``lines`` of both streams, with time stamps, and of that the last ``limit`` bytes.

        Raises DockerRefused, DockerUnavailable.
        """
        kept = b""
        for piece in self.log_pieces(name, tail=lines):
            kept = (kept + piece)[-limit:]
        return kept

    def log_pieces(self, name: str, **query: Any) -> Iterator[bytes]:
        """Return a container's log of both streams piece by piece, each with its time stamp.

        ``query`` is Docker's: `tail`, `since` (seconds since 1970), `follow`. Raises DockerRefused, DockerUnavailable,
        also when a followed log is silent for the timeout.
        """
        words = urlencode({"stdout": 1, "stderr": 1, "timestamps": 1, **query})
        with self._connected() as connection:
            connection.request("GET", f"/containers/{quote(name, safe='')}/logs?{words}")
            response = connection.getresponse()
            if response.status >= http.client.BAD_REQUEST:
                raise DockerRefused(_message(response.read()) or f"HTTP {response.status}")
            kind = response.getheader("Content-Type") or ""
            yield from _pieces(response, multiplexed="raw" not in kind or "multiplexed" in kind)

    def images_with_label(self, label: str) -> list[str]:
        """Ids of the images that carry ``label`` (``key=value``), newest first."""
        query = urlencode({"filters": json.dumps({"label": [label]})})
        found = self._ask("GET", f"/images/json?{query}") or []
        return [str(row["Id"]) for row in sorted(found, key=lambda row: -int(row["Created"]))]

    def images(self) -> list[dict[str, Any]]:
        """All images that have a name or had one (no intermediate ones), as `docker images` lists them."""
        found: list[dict[str, Any]] = self._ask("GET", "/images/json") or []
        return found

    def images_in_use(self) -> set[str]:
        """Ids of the images of all containers, running or not."""
        return {str(row["ImageID"]) for row in self._ask("GET", "/containers/json?all=1") or []}

    def remove_image(self, ref: str) -> None:
        """Take a name from an image, and the image with its last name; never by force. Raises DockerRefused."""
        self._ask("DELETE", f"/images/{quote(ref, safe='/:@')}")

    def pull(self, name: str, reference: str) -> Iterator[dict[str, Any]]:
        """Pull ``name`` by tag or digest; the engine's messages one by one. Raises DockerRefused."""
        query = urlencode({"fromImage": name, "tag": reference})
        return self._stream(f"/images/create?{query}", auth_header(f"{name}:x"))

    def push(self, name: str, tag: str) -> Iterator[dict[str, Any]]:
        """Push ``name:tag`` to its registry; the engine's messages one by one. Raises DockerRefused."""
        # Docker wants the header also where there is nothing to say.
        headers = auth_header(f"{name}:{tag}") or {"X-Registry-Auth": base64.urlsafe_b64encode(b"{}").decode()}
        return self._stream(f"/images/{quote(name, safe='/:')}/push?{urlencode({'tag': tag})}", headers)

    def save(self, ref: str) -> Iterator[bytes]:
        """Return the `docker save` archive of one image in pieces of a megabyte. Raises DockerRefused."""
        with self._connected() as connection:
            connection.request("GET", f"/images/get?{urlencode({'names': ref})}")
            response = connection.getresponse()
            if response.status >= http.client.BAD_REQUEST:
                raise DockerRefused(_message(response.read()) or f"HTTP {response.status}")
            while chunk := response.read(1 << 20):
                yield chunk

    def load(self, body: IO[bytes] | Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """Load a `docker save` archive; the engine's messages one by one. Raises DockerRefused."""
        return self._stream("/images/load?quiet=0", {"Content-Type": "application/x-tar"}, body)

    def _stream(
        self, path: str, headers: Mapping[str, str], body: IO[bytes] | Iterable[bytes] | None = None
    ) -> Iterator[dict[str, Any]]:
        with self._connected() as connection:
            # An engine that refuses in the middle of the body closes; its answer says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", path, body=body, headers=dict(headers), encode_chunked=body is not None)
            response = connection.getresponse()
            if response.status >= http.client.BAD_REQUEST:
                raise DockerRefused(_message(response.read()) or f"HTTP {response.status}")
            for line in response:
                if line.strip():
                    event: dict[str, Any] = json.loads(line)
                    if "error" in event:
                        raise DockerRefused(str(event["error"]))
                    yield event

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        """Connect for the length of a block. Raises DockerUnavailable for whatever goes wrong on the way."""
        connection = _SocketConnection(self._path, self._timeout)
        try:
            yield connection
        except PermissionError as exc:
            raise DockerUnavailable(f"{self._path} may not be opened by this user", denied=True) from exc
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise DockerUnavailable(f"no Docker engine answers at {self._path}: {reason}") from exc
        finally:
            connection.close()

    def tag(self, image_id: str, name: str, tag: str) -> None:
        """Point ``name:tag`` at an image. Raises DockerRefused."""
        status, data, _ = self._call("POST", f"/images/{quote(image_id)}/tag?{urlencode({'repo': name, 'tag': tag})}")
        if status != http.client.CREATED:
            raise DockerRefused(data.get("message", "") if isinstance(data, dict) else f"HTTP {status}")

    def registry_digest(self, ref: str) -> str:
        """Ask the registry, through the engine, which digest ``name:tag`` stands for now. Raises DockerRefused.

        A silent one is waited for once in a process, where several probes may have the same question.
        """
        if (self._path, ref) in _silent:
            raise _silent[self._path, ref]
        began = time.monotonic()
        try:
            status, data, _ = self._call("GET", f"/distribution/{quote(ref, safe='/:@')}/json", auth_header(ref))
            if status != http.client.OK:
                raise DockerRefused(data.get("message", "") if isinstance(data, dict) else f"HTTP {status}")
        except (DockerRefused, DockerUnavailable) as exc:
            if time.monotonic() - began >= min(SILENCE, self._timeout or SILENCE):
                _silent[self._path, ref] = exc
            raise
        return str(data["Descriptor"]["digest"])


def _pieces(response: IO[bytes], *, multiplexed: bool) -> Iterator[bytes]:
    """Yield the output in an answer of Docker. Without a terminal each piece has a head: stream, 3 zeros, length.

    Engines before 20.10.18 name no type of the answer, so the first head decides. Source: Docker's API, "attach".
    """
    head = response.read(8)
    if not (multiplexed and head[:1] in (b"\0", b"\1", b"\2") and head[1:4] == b"\0\0\0"):
        while head:
            yield head
            head = response.read(1 << 16)
        return
    while len(head) == 8:
        yield response.read(int.from_bytes(head[4:], "big"))
        head = response.read(8)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body).get("message", ""))
    except (ValueError, AttributeError):
        return body.decode(errors="replace").strip()


def auth_header(ref: str) -> dict[str, str]:
    """Return the header with the credentials for the registry of ``ref``; empty for anonymous."""
    auth = registry_auth(registry_of(ref))
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()} if auth else {}


def registry_of(ref: str) -> str:
    """Return the registry host of an image reference; ``docker.io`` for a name without one."""
    first, slash, _ = ref.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def registry_auth(registry: str, config: Path | None = None) -> dict[str, str] | None:
    """Credentials that `docker login` left for ``registry``, as the engine wants them; None for anonymous.

    Source: the Docker CLI's config.json with its ``auths``, ``credHelpers`` and ``credsStore``.
    """
    path = config or Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser() / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    key = _HUB_KEY if registry == "docker.io" else registry
    helper = (settings.get("credHelpers") or {}).get(registry) or settings.get("credsStore")
    if helper:
        with contextlib.suppress(OSError, ValueError, KeyError, subprocess.SubprocessError):
            done = subprocess.run(
                [f"docker-credential-{helper}", "get"],
                input=key,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
            found = json.loads(done.stdout)
            return {"username": found["Username"], "password": found["Secret"], "serveraddress": registry}
    entry = (settings.get("auths") or {}).get(key) or {}
    if entry.get("identitytoken"):
        return {"identitytoken": entry["identitytoken"], "serveraddress": registry}
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return {"username": user, "password": password, "serveraddress": registry}
    return None
