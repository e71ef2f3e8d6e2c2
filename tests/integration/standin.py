# SPDX-License-Identifier: Apache-2.0
"""Starts the stand-in for vLLM (tests/standin), as a local process or from an image of its own."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Held by all that use the images: the last of them takes these away.
USERS = Path(tempfile.gettempdir()) / "vllm-fleet-tests.lock"
SOURCE = Path(__file__).resolve().parents[1] / "standin"
# The image's python3 is the node's; the test's own may be newer.
PYTHON = "/usr/bin/python3"


def base_image() -> str:
    """The Debian image with python3 that the stand-in's image is built on."""
    return os.environ.get("VLLM_FLEET_BASE_IMAGE", "vllm-fleet-base:bookworm")


def build_image(client: Any, target: str = "plain") -> str:
    """Build the stand-in's image on the engine of a docker.DockerClient, unless it is there; returns its tag.

    `target` "plain" has no entrypoint, as rocm/vllm; "openai" has `vllm serve`, as vllm/vllm-openai-rocm.
    The tag carries a hash of the sources and of the base image's id; `vllm-standin:1` points at the latest plain one.
    """
    digest = hashlib.sha256(client.images.get(base_image()).id.encode())
    for path in sorted(SOURCE.rglob("*")):
        if path.is_file() and path.suffix != ".pyc" and path.name != "README.md":
            digest.update(f"{path.relative_to(SOURCE)}\0{path.stat().st_mode & 0o111}\0".encode())
            digest.update(path.read_bytes())
    tag = f"vllm-standin:1-{target}-{digest.hexdigest()[:12]}"
    # Tests run beside each other: one builds, and takes away what is left of the way.
    with (Path(tempfile.gettempdir()) / "vllm-fleet-standin.lock").open("a") as one:
        fcntl.flock(one, fcntl.LOCK_EX)
        if not client.images.list(name=tag):
            # The classic builder of the API: it needs no plugin on the client's side.
            client.images.build(
                path=str(SOURCE), tag=tag, target=target, buildargs={"BASE_IMAGE": base_image()}, rm=True, forcerm=True
            )
            client.images.prune(filters={"dangling": True, "label": "io.vllm-fleet.standin=whole"})
    if target == "plain":
        client.images.get(tag).tag("vllm-standin", tag="1")
    return tag


@contextlib.contextmanager
def using_images() -> Iterator[None]:
    """While this lasts, tests that end beside it leave the images alone."""
    with USERS.open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody held a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_healthy(url: str, seconds: float = 20.0, process: subprocess.Popen[bytes] | None = None) -> None:
    """Ask /health until it says 200; AssertionError after `seconds`, or at once when `process` has ended."""
    host = url.removeprefix("http://").rstrip("/")
    end = time.monotonic() + seconds
    while True:
        connection = http.client.HTTPConnection(host, timeout=2)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        connection.close()
        assert process is None or process.poll() is None, f"the stand-in ended with code {process.returncode}"
        assert time.monotonic() < end, f"{url}/health did not answer 200 within {seconds} s"
        time.sleep(0.02)


@dataclass
class Standin:
    """A running stand-in: where it answers, its process, and the file that holds both of its output streams."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        """Everything it has printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def run_process(
    *arguments: str,
    model: str = "acme/tiny",
    served: str = "tiny",
    ready: bool = True,
    port: int = 0,
    **behaviour: object,
) -> Iterator[Standin]:
    """Run `vllm serve` of the stand-in on a loopback port and, at the end of the block, stop it.

    `behaviour` are the STANDIN_* variables by their lower-case names (`nonsense=1`, `token_delay=0.1`), and any other
    environment variable by its upper-case name (`VLLM_API_KEY="x"`). `ready=False` does not wait for /health.
    """
    port = port or free_port()
    environ = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "STANDIN_START_SECONDS": "0"}
    environ |= {name if name.isupper() else f"STANDIN_{name.upper()}": str(value) for name, value in behaviour.items()}
    command = [PYTHON, str(SOURCE / "vllm"), "serve", model, "--served-model-name", served]
    command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    with tempfile.NamedTemporaryFile(prefix="standin-", suffix=".log") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
        try:
            standin = Standin(f"http://127.0.0.1:{port}", port, process, Path(log.name))
            if ready:
                wait_until_healthy(standin.url, process=process)
            yield standin
        finally:
            process.kill()
            process.wait()
