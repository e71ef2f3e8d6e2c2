#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Moves one image, and prints how far it is: pull, push, load, save, serve to other nodes, fetch from another node.

`guard` ends a server that no node is connected to any more.

Run by the role vllm_image as a detached command. Its companions in the same folder are two files of the project,
docker_api.py and units.py; otherwise it needs the standard library of Python 3.10 alone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from docker_api import DockerApi, DockerRefused, DockerUnavailable
from units import size

#: Seconds between two lines in the log; the terminal shows fewer.
_PAUSE = 2.0
_CHUNK = 1 << 20
#: The engine's words for a layer that it will deal with.
_BEGUN = {"Pulling fs layer", "Waiting", "Preparing", "Downloading", "Loading layer", "Pushing"} | {
    "Already exists",
    "Layer already exists",
}
#: Where a node's image is served from.
_PATH = "/image.tar"


class SourceLost(Exception):
    """The stream that was to be loaded broke off; the text is one sentence. No OSError: those are the engine's side."""


class Layers:
    """An engine's messages while it pulls or loads, summed up over the layers."""

    def __init__(self) -> None:
        """Begin with no layer."""
        self._bytes: dict[str, tuple[int, int]] = {}
        self._seen: set[str] = set()
        self._done: set[str] = set()
        self._there = 0
        self._unpacking = ""

    def take(self, event: dict[str, Any]) -> None:
        """Count one message of the engine."""
        layer, status = str(event.get("id", "")), str(event.get("status", ""))
        detail = event.get("progressDetail") or {}
        if layer and status in _BEGUN:
            self._seen.add(layer)
        if status in ("Already exists", "Layer already exists"):
            self._there += 1
            self._done.add(layer)
        elif status in ("Downloading", "Loading layer", "Pushing") and detail.get("total", 0) > 0:
            self._bytes[layer] = (min(detail["current"], detail["total"]), detail["total"])
        elif status in ("Verifying Checksum", "Download complete", "Pull complete", "Pushed"):
            if layer in self._bytes:
                self._bytes[layer] = (self._bytes[layer][1],) * 2
            if status in ("Pull complete", "Pushed"):
                self._done.add(layer)
        if status == "Extracting" and detail.get("total", 0) > 0:
            self._unpacking = f", unpacking {layer}: {100 * detail['current'] // detail['total']} %"
        elif status in ("Pull complete", "Downloading"):
            self._unpacking = ""

    @property
    def current(self) -> int:
        """Bytes that have come."""
        return sum(current for current, _ in self._bytes.values())

    def travelled(self, rate: float) -> str:
        """Return how far a pull or push is; ``rate`` in bytes per second. A layer's size is known once it has begun."""
        total = sum(total for _, total in self._bytes.values())
        percent = f"{100 * self.current // total} % of " if total else ""
        there = f", {self._there} were here" if self._there else ""
        speed = f", {size(rate)}/s" if rate >= 1 else ""
        done = f"{len(self._done)} of {len(self._seen)} layers{there}"
        return f"{percent}{size(total)} begun so far{speed}, {done}{self._unpacking}"

    def loaded(self) -> str:
        """Return how far the unpacking of an archive is."""
        complete = sum(current >= total for current, total in self._bytes.values())
        return f"unpacked {size(self.current)}, {complete} of {len(self._seen)} layers begun so far"


class Meter:
    """Prints lines, not too many, and knows the rate of the last of them."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        """Print with ``say``; ``clock`` gives seconds."""
        self._say, self._clock = say, clock
        self._last, self._bytes = clock(), 0

    def report(self, count: int, line: Callable[[float], str]) -> None:
        """Print ``line(rate)`` if the last line is old enough; ``count`` is the bytes so far."""
        now = self._clock()
        if now - self._last >= _PAUSE:
            self._say(line((count - self._bytes) / (now - self._last)))
            self._last, self._bytes = now, count


def moved(count: int, total: int, rate: float) -> str:
    """Return how far a stream of known length is."""
    if not total:
        return f"{size(count)}, {size(rate)}/s"
    left = f", {int((total - count) / rate)} s left" if rate >= 1 else ""
    return f"{100 * count // total} % of {size(total)}, {size(rate)}/s{left}"


def metered(source: IO[bytes] | http.client.HTTPResponse, total: int, meter: Meter) -> Iterator[bytes]:
    """Yield the chunks of ``source`` and report progress. Raises SourceLost when it ends before ``total`` bytes."""
    count = 0
    while True:
        try:
            chunk = source.read(_CHUNK)
        except (OSError, http.client.HTTPException) as exc:
            raise SourceLost(f"the stream broke off after {size(count)} of {size(total)}: {exc}") from exc
        if not chunk:
            break
        count += len(chunk)
        yield chunk
        meter.report(count, lambda rate, count=count: moved(count, total, rate))  # type: ignore[misc]
    if count < total:
        raise SourceLost(f"the stream ended after {size(count)} of {size(total)}")


def say(line: str) -> None:
    """Print at once: someone follows the log."""
    print(line, flush=True)


def _split(ref: str) -> tuple[str, str]:
    name, _, reference = ref.rpartition("@") if "@" in ref else ref.rpartition(":")
    return name, reference


def pull(engine: DockerApi, ref: str, own: str | None = None) -> None:
    """Pull ``name@digest`` or ``name:tag``; with ``own`` (name:tag) the image is called that, and ``ref`` no more."""
    name, reference = _split(ref)
    follow(engine.pull(name, reference))
    if own:
        image = engine.image(ref)
        if image is None:
            raise DockerRefused(f"{ref} is not there after its pull")
        engine.tag(str(image["Id"]), *_split(own))
        if name != _split(own)[0]:
            engine.remove_image(ref)


def push(engine: DockerApi, ref: str, remote: str) -> None:
    """Push an image under another repository name, which the node then forgets."""
    name, tag = _split(ref)
    if name != remote:
        engine.tag(ref, remote, tag)
    try:
        follow(engine.push(remote, tag))
    finally:
        if name != remote:
            engine.remove_image(f"{remote}:{tag}")


def follow(events: Iterator[dict[str, Any]]) -> None:
    """Follow a pull or push to its end."""
    layers, meter = Layers(), Meter(say, time.monotonic)
    for event in events:
        layers.take(event)
        meter.report(layers.current, layers.travelled)
        if event.get("status") and (not event.get("id") or "digest: sha256:" in event["status"]):
            say(str(event["status"]))


def save(engine: DockerApi, ref: str, archive: Path) -> None:
    """Save an image; the file has its name when it is complete."""
    meter, part, count = Meter(say, time.monotonic), archive.with_name(f"{archive.name}.part"), 0
    with part.open("wb") as handle:
        for chunk in engine.save(ref):
            handle.write(chunk)
            count += len(chunk)
            meter.report(count, lambda rate, count=count: moved(count, 0, rate))  # type: ignore[misc]
    part.rename(archive)
    say(f"saved {size(count)}")


def load(engine: DockerApi, body: Iterator[bytes]) -> None:
    """Load an archive that comes as a stream."""
    layers, meter = Layers(), Meter(say, time.monotonic)
    for event in engine.load(body):
        layers.take(event)
        meter.report(layers.current, lambda _: layers.loaded())
        if "stream" in event:
            say(str(event["stream"]).strip())


def load_file(engine: DockerApi, path: Path) -> None:
    """Load an archive of this node."""
    with path.open("rb") as handle:
        load(engine, metered(handle, path.stat().st_size, Meter(say, time.monotonic)))


def fetch(engine: DockerApi, address: str, port: int, pem: Path) -> None:
    """Load the archive that another node serves, without keeping a copy; the certificate was for this once."""
    connection = http.client.HTTPSConnection(address, port, context=tls(pem, server=False), timeout=120)
    pem.unlink()
    with contextlib.suppress(OSError):
        pem.parent.rmdir()
    try:
        connection.request("GET", _PATH)
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as exc:
        raise SourceLost(
            f"{address}:{port} cannot be reached from here: {getattr(exc, 'strerror', None) or exc}; the build host's "
            "address on the nodes' network is vllm_image_build_address, the port vllm_image_build_port"
        ) from exc
    if response.status != http.client.OK:
        raise SourceLost(f"{address}:{port} answers with HTTP {response.status}")
    total = int(response.getheader("Content-Length") or 0)
    load(engine, metered(response, total, Meter(say, time.monotonic)))


def tls(pem: Path, server: bool) -> ssl.SSLContext:
    """Both ends show the one certificate of the run, and take no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pem)
    context.load_cert_chain(pem)
    return context


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    daemon_threads = True

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for a client that was turned away or went away; a traceback would say less."""
        say(f"{client_address[0]}: {sys.exc_info()[1]}")


def serve(archive: Path, port: int, pem: Path, bind: str = "") -> None:
    """Serve one archive at ``bind`` (all addresses without one) until stopped."""
    context = tls(pem, server=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 300

        def setup(self) -> None:
            # The handshake belongs into the connection's own thread: a silent client must not keep the others out.
            self.request.settimeout(30)
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            super().finish()
            self.request.close()

        def do_GET(self) -> None:
            """Send the archive."""
            if self.path != _PATH:
                self.send_error(404)
                return
            with archive.open("rb") as handle:
                self.send_response(200)
                self.send_header("Content-Length", str(os.fstat(handle.fileno()).st_size))
                self.end_headers()
                shutil.copyfileobj(handle, self.wfile, _CHUNK)

    _Server((f"::ffff:{bind}" if _mapped(bind) else bind, port), Handler).serve_forever()


def _mapped(address: str) -> bool:
    """Return whether an address has to be written as IPv6's name for an IPv4 address, to be listened at."""
    return _Server.address_family == socket.AF_INET6 and "." in address and ":" not in address


def connected(port: int, tables: Sequence[str]) -> bool:
    """Return, from the text of /proc/net/tcp and tcp6, whether a port of this machine has a connection."""
    for line in (line for table in tables for line in table.splitlines()[1:]):
        fields = line.split()
        if fields[3] == "01" and int(fields[1].rpartition(":")[2], 16) == port:
            return True
    return False


def guard(port: int, idle: float, argv: list[str]) -> int:
    """Run a server until it ends, or nothing has been connected to it for ``idle`` seconds; return its exit code.

    A run that was killed cannot stop it, and the nodes may have got all they wanted.
    """
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    with subprocess.Popen(argv) as process:
        last = time.monotonic()
        while process.poll() is None:
            now = time.monotonic()
            if connected(port, [path.read_text(encoding="ascii") for path in tables if path.exists()]):
                last = now
            elif now - last > idle:
                say(f"no node has been connected for {idle:.0f} s")
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(5.0, idle / 4))
        return process.returncode


def main() -> int:
    """Do what the command line says; the last line of a failure is its reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", default="/var/run/docker.sock")
    verbs = parser.add_subparsers(dest="verb", required=True)
    found = verbs.add_parser("pull")
    found.add_argument("ref", help="name@digest or name:tag")
    found.add_argument("--as", dest="own", metavar="NAME:TAG")
    for verb, second in (("push", "remote"), ("save", "archive")):
        found = verbs.add_parser(verb)
        found.add_argument("ref", help="name:tag")
        found.add_argument(second)
    verbs.add_parser("load").add_argument("archive")
    for verb, first in (("fetch", "address"), ("serve", "archive")):
        found = verbs.add_parser(verb)
        found.add_argument(first)
        found.add_argument("port", type=int)
        found.add_argument("pem", type=Path, help="certificate and key of both ends")
        if verb == "serve":
            found.add_argument("--bind", default="", help="the one address to listen at")
    found = verbs.add_parser("guard")
    found.add_argument("port", type=int)
    found.add_argument("idle", type=float, help="seconds without a connection")
    # With its options, which are not the guard's.
    found.add_argument("argv", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    if asked.verb == "guard":
        return guard(asked.port, asked.idle, asked.argv)
    engine = DockerApi(asked.socket, timeout=None)
    archive = Path(getattr(asked, "archive", "")).expanduser()
    work: dict[str, Callable[[], None]] = {
        "pull": lambda: pull(engine, asked.ref, asked.own),
        "push": lambda: push(engine, asked.ref, asked.remote),
        "load": lambda: load_file(engine, archive),
        "save": lambda: save(engine, asked.ref, archive),
        "fetch": lambda: fetch(engine, asked.address, asked.port, asked.pem),
        "serve": lambda: serve(archive, asked.port, asked.pem, asked.bind),
    }
    try:
        work[asked.verb]()
    except DockerRefused as exc:
        say(f"Docker says: {exc}")
        return 1
    except (DockerUnavailable, SourceLost, OSError) as exc:
        say(str(exc))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
