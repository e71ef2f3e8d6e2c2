"""The few questions to Docker that have to work before its SDK is installed, over the engine's Unix socket.

Standard library only: the probe of a bare node must tell "no Docker" from "no SDK", and a look at one image should
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

DEFAULT_SOCKET = "/var/run/docker.sock"
#: Docker Hub's key in the client's configuration is older than the registry protocol.
_HUB_KEY = "https://index.docker.io/v1/"


class DockerUnavailable(Exception):
    """No engine answers. ``denied`` is true when the socket is there but not for this user."""

    def __init__(self, message: str, denied: bool = False) -> None:
        """Keep the sentence and the reason."""
        super().__init__(message)
        self.denied = denied


class DockerRefused(Exception):
    """The engine answered with an error; the text is its own explanation."""


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class DockerApi:
    """One engine behind a Unix socket."""

    def __init__(self, path: str = DEFAULT_SOCKET, timeout: float = 60.0) -> None:
        """Remember where the engine listens; nothing is connected yet. ``timeout`` is per call, in seconds."""
        self._path = path
        self._timeout = timeout

    def _call(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any, Any]:
        connection = _SocketConnection(self._path, self._timeout)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            response = connection.getresponse()
            body = response.read()
        except PermissionError as exc:
            raise DockerUnavailable(f"{self._path} may not be opened by this user", denied=True) from exc
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise DockerUnavailable(f"no Docker engine answers at {self._path}: {reason}") from exc
        finally:
            connection.close()
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
        """Give the engine's API version, such as (1, 41). Raises DockerUnavailable when none answers."""
        status, _, headers = self._call("GET", "/_ping")
        if status != http.client.OK:
            raise DockerUnavailable(f"the Docker engine at {self._path} answers its ping with HTTP {status}")
        major, _, minor = str(headers.get("Api-Version", "1.0")).partition(".")
        return int(major), int(minor)

    def info(self) -> dict[str, Any]:
        """Give `docker info`."""
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

    def images_with_label(self, label: str) -> list[str]:
        """Ids of the images that carry ``label`` (``key=value``), newest first."""
        query = urlencode({"filters": json.dumps({"label": [label]})})
        found = self._ask("GET", f"/images/json?{query}") or []
        return [str(row["Id"]) for row in sorted(found, key=lambda row: -int(row["Created"]))]

    def tag(self, image_id: str, name: str, tag: str) -> None:
        """Point ``name:tag`` at an image. Raises DockerRefused."""
        status, data, _ = self._call("POST", f"/images/{quote(image_id)}/tag?{urlencode({'repo': name, 'tag': tag})}")
        if status != http.client.CREATED:
            raise DockerRefused(data.get("message", "") if isinstance(data, dict) else f"HTTP {status}")

    def registry_digest(self, ref: str) -> str:
        """Ask the registry, through the engine, which digest ``name:tag`` stands for now. Raises DockerRefused."""
        headers = {}
        auth = registry_auth(registry_of(ref))
        if auth:
            headers["X-Registry-Auth"] = base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()
        status, data, _ = self._call("GET", f"/distribution/{quote(ref, safe='/:@')}/json", headers)
        if status != http.client.OK:
            raise DockerRefused(data.get("message", "") if isinstance(data, dict) else f"HTTP {status}")
        return str(data["Descriptor"]["digest"])


def registry_of(ref: str) -> str:
    """Give the registry host of an image reference; ``docker.io`` for a name without one."""
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
            told = subprocess.run(
                [f"docker-credential-{helper}", "get"],
                input=key,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
            found = json.loads(told.stdout)
            return {"username": found["Username"], "password": found["Secret"], "serveraddress": registry}
    entry = (settings.get("auths") or {}).get(key) or {}
    if entry.get("identitytoken"):
        return {"identitytoken": entry["identitytoken"], "serveraddress": registry}
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return {"username": user, "password": password, "serveraddress": registry}
    return None
