# SPDX-License-Identifier: Apache-2.0
"""Docker, and the only file that imports its SDK.

Works with python3-docker 5.0 (Debian 12) and newer, against engines from 20.10 on.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .api import DockerApi, DockerRefused, DockerUnavailable
from .image import content_id
from .log_ends import TAIL_LINES, Ends, Latest
from .mounts import Volume
from .spec import LABEL_ASKED_UTILIZATION, LABEL_GPUS, LABEL_IMAGE_ID, LABEL_MANAGED, LABEL_SERVER, Image, Spec

#: Seconds that one call to the engine may take; a stop adds the container's own stop timeout.
CALL_TIMEOUT = 60
#: Seconds that an engine may take to come back.
ENGINE_RETRY_TIMEOUT = 60.0


class EngineUnavailable(Exception):
    """No Docker engine answers; the text says where it was looked for and what it said."""


class EngineError(Exception):
    """The engine refused an action; the text is its own explanation."""


#: Bytes of a command's output that are read; the help of vLLM has a fifth of a MiB.
MOST_OUTPUT = 4 << 20
#: Exit code of a program that could not be started, as of a shell.
NOT_STARTED = 127


@dataclass(frozen=True)
class Ran:
    """How a command ended, and the ends of its two streams; ``code`` is None where it was not done in time."""

    code: int | None
    output: str = ""
    error: str = ""


class Engine:
    """One Docker engine. Every method is one question or one action; nothing is decided here."""

    def __init__(self, url: str | None = None, retry_timeout: float = 0.0) -> None:
        """Connect to ``url`` (default: DOCKER_HOST or the local socket), trying for ``retry_timeout`` seconds.

        Raises EngineUnavailable.

        The SDK takes longer to import than everything that a run with nothing to change does, so such a run asks its
        few questions over the socket itself; the SDK comes in with the first action.
        """
        self._url = url or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        self._sdk_client: Any = None
        self._socket = DockerApi(self._url.removeprefix("unix://")) if self._url.startswith("unix://") else None
        self.wait(retry_timeout)

    def wait(self, timeout: float) -> None:
        """Return when the engine answers; raises EngineUnavailable when it does not within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._ping()
            except EngineUnavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.2)  # no event announces an engine that starts
            else:
                return

    def _ping(self) -> None:
        if self._socket is None:
            self._sdk_client = self._client(CALL_TIMEOUT)
            return
        try:
            self._socket.ping()
        except DockerUnavailable as exc:
            raise EngineUnavailable(str(exc)) from exc

    @property
    def _api(self) -> Any:
        if self._sdk_client is None:
            self._sdk_client = self._client(CALL_TIMEOUT)
        return self._sdk_client

    def _client(self, timeout: int) -> Any:
        try:
            from docker.api import APIClient  # noqa: PLC0415  see __init__
            from docker.errors import DockerException  # noqa: PLC0415
        except ImportError as exc:
            raise EngineUnavailable(
                f"the Docker SDK for Python is missing ({exc}); install the package python3-docker"
            ) from exc
        try:
            return APIClient(base_url=self._url, version="auto", timeout=timeout)
        except DockerException as exc:
            raise EngineUnavailable(f"no Docker engine answers at {self._url}: {exc}") from exc

    # -- questions ---------------------------------------------------------------------------------------------

    def container(self, name: str) -> Mapping[str, Any] | None:
        """Inspect a container by name or id; None when there is none."""
        found = self._inspect("container", name)
        if found is None:
            return None
        # The API also finds by id prefix: a container called "vllm" must not be answered by an id.
        if found["Name"] != f"/{name}" and not str(found["Id"]).startswith(name):
            return None
        return found

    def image(self, ref: str) -> Image | None:
        """Inspect an image by reference or id; None when the node does not have it."""
        found = self._inspect("image", ref)
        return image_from_inspect(ref, found) if found else None

    def _inspect(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """Inspect a container or an image; None when there is none. Raises EngineError."""
        if self._socket:
            try:
                return self._socket.image(name) if kind == "image" else self._socket.container(name)
            except (DockerRefused, DockerUnavailable) as exc:
                raise EngineError(f"{kind} {name}: {exc}") from exc
        from docker.errors import APIError, NotFound  # noqa: PLC0415

        try:
            ask = self._api.inspect_image if kind == "image" else self._api.inspect_container
            found: Mapping[str, Any] = ask(name)
        except NotFound:
            return None
        except APIError as exc:
            raise EngineError(f"{kind} {name}: {_explain(exc)}") from exc
        except OSError as exc:
            raise EngineError(f"{kind} {name}: the Docker engine did not answer: {exc}") from exc
        return found

    def running(self) -> list[Mapping[str, Any]]:
        """List running containers (Docker's short form: Id, Names, Ports, Labels)."""
        api = self._api
        with _errors("list containers"):
            found: list[Mapping[str, Any]] = api.containers()
        return found

    def managed(self) -> list[Mapping[str, Any]]:
        """Inspect all containers that this project made for servers, those that do not run, too. Raises EngineError."""
        found = (self._inspect("container", str(row["Id"])) for row in self._managed())
        return [one for one in found if one]  # without one that was removed in between

    def _managed(self) -> list[Mapping[str, Any]]:
        """List them in Docker's short form."""
        label = f"{LABEL_MANAGED}=true"
        if self._socket:
            try:
                return list(self._socket.list_with_label(label))
            except (DockerRefused, DockerUnavailable) as exc:
                raise EngineError(f"list the servers' containers: {exc}") from exc
        api = self._api
        with _errors("list the servers' containers"):
            rows: list[Mapping[str, Any]] = api.containers(all=True, filters={"label": label})
        return rows

    def servers(self) -> dict[str, str]:
        """Return the servers that this project has made here: Docker's word for each by the name of its container.

        A container that waits as another one's previous or next is none of its own.
        """
        names = {str(one["Names"][0]).lstrip("/"): one for one in self._managed() if one.get("Names")}
        return {name: str(one.get("State")) for name, one in names.items() if one["Labels"].get(LABEL_SERVER) == name}

    def network_exists(self, name: str) -> bool:
        """Return whether a network of that name is there."""
        api = self._api
        with _errors(f"look for network {name}"):
            return any(n["Name"] == name for n in api.networks(names=[name]))

    def survives_restart(self) -> bool:
        """Return whether containers go on while this engine restarts (live-restore), and it is this machine's."""
        try:
            return self._socket is not None and bool(self._socket.info().get("LiveRestoreEnabled"))
        except (DockerRefused, DockerUnavailable):
            return False

    def log(self, container: str, since: float | None = None, until: float | None = None) -> bytes:
        """Both streams of a container's log, in the order of their arrival, after ``since`` up to ``until``.

        Both are seconds since 1970, to a millisecond: Docker itself takes whole seconds in the SDK of Debian 12, and a
        restart by its policy comes sooner. Docker writes a death's event after the last of the output, and starts
        again after it, so two deaths' times give exactly one start. Of a long log the beginning and the end.
        """
        kept, read = Ends(), b""
        with contextlib.closing(self._pieces(container, since, until)) as pieces:
            for stamp, text in pieces:
                kept.add(text)
                read = max(read, stamp)
                # Docker reads a log's end without its middle, but the end of the log is not that of an earlier start.
                if kept.full and until is None:
                    break
        if kept.full and until is None:
            first = b""
            for stamp, text in self._pieces(container, since, until, tail=TAIL_LINES):
                first = first or stamp
                if stamp > read:
                    kept.add(text)
            kept.gap |= first > read
        return kept.text()

    def log_before(
        self, container: str, word: bytes, since: float | None = None, until: float | None = None
    ) -> tuple[bytes, bool]:
        """Of both streams what came before the line with ``word``, and whether both have such a line by now.

        For a word that was written into both: Docker copies the two side by side, so on a busy machine what was written
        to one of them before may have come after what was written to the other. Of a long log the end.
        """
        before: list[tuple[bytes, bytes]] = []
        ends = 0
        for stream in ("stdout", "stderr"):
            kept = Latest()
            # Just now the word is at the end; that of an earlier start is to be looked for.
            tail = None if until else TAIL_LINES
            with contextlib.closing(self._pieces(container, since, until, (stream,), tail)) as pieces:
                for stamp, text in pieces:
                    if word in text:
                        ends += 1
                        break
                    kept.add(stamp, text)
            before += kept.pieces
        return b"".join(text for _, text in sorted(before, key=lambda piece: piece[0])), ends == 2

    def _pieces(
        self,
        container: str,
        since: float | None,
        until: float | None,
        streams: tuple[str, ...] = ("stdout", "stderr"),
        tail: int | None = None,
    ) -> Generator[tuple[bytes, bytes], None, None]:
        """Return the timestamp and text of each piece of a log, or of its last ``tail`` ones."""
        from docker.errors import APIError  # noqa: PLC0415

        low = _stamp(since) if since and since > 0 else b""
        high = _stamp(until + 0.001) if until else b"9"
        kwargs: dict[str, Any] = {"since": int(since)} if low and since else {}
        kwargs |= {name: name in streams for name in ("stdout", "stderr")}
        kwargs |= {"tail": tail} if tail else {}
        try:
            # A client of its own: what is left of a log that is not read to its end must not wait in a shared one.
            with contextlib.closing(self._client(CALL_TIMEOUT)) as api:
                # Piece by piece: each has its own timestamp, also within a line that Docker had to cut (16 KiB).
                for piece in api.logs(container, stream=True, follow=False, timestamps=True, **kwargs):
                    stamp, _, text = piece.partition(b" ")
                    if low < stamp[: len(low)] or not low:
                        if stamp[: len(high)] > high:
                            continue
                        yield stamp, text
        except APIError as exc:
            yield b"", f"(the log could not be read: {_explain(exc)})\n".encode()
        except OSError as exc:  # the engine went away; what came is better than nothing
            yield b"9", f"(the log could not be read to its end: {exc})\n".encode()

    def deaths(self, container: str, since: float) -> list[tuple[float, int]]:
        """Times (seconds since 1970) and exit codes of a container's ends from ``since`` on, oldest first.

        Docker keeps a few hundred events, and none over its own restart: what is not listed may have been all the same.
        """
        found = []
        with contextlib.suppress(Exception):  # knowing them makes an answer better, not knowing them does not spoil it
            stream = self._api.events(
                since=f"{since:.6f}",
                until=f"{time.time():.6f}",
                filters={"type": "container", "container": container, "event": ["die"]},
                decode=True,
            )
            for event in stream:
                code = int(event["Actor"]["Attributes"].get("exitCode", -1))
                found.append((int(event["timeNano"]) / 1e9, code))
        return sorted(found)

    def usage(self, container: str) -> tuple[int, int] | None:
        """CPU nanoseconds and bytes read from and written to disks since the container's start; None if unknown.

        Network bytes are left out: asking the server for its health makes them.
        """
        try:
            # One shot: without it Docker takes a second to measure twice, for percentages that are not needed here.
            # The SDK knows the parameter since 7.0 only.
            with contextlib.closing(self._client(CALL_TIMEOUT)) as api:
                url = f"{api.base_url}/v{api.api_version}/containers/{container}/stats"
                answer = api.get(url, params={"stream": "false", "one-shot": "true"}, timeout=CALL_TIMEOUT)
                answer.raise_for_status()
                stats = answer.json()
            cpu = int(stats["cpu_stats"]["cpu_usage"]["total_usage"])
            blocks = (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
            moved = sum(int(row["value"]) for row in blocks if str(row.get("op")).lower() in ("read", "write"))
        except (EngineUnavailable, OSError, KeyError, TypeError, ValueError):
            return None  # a container that is just ending has no statistics; the event stream says that better
        return cpu, moved

    def pids(self, container: str) -> frozenset[int]:
        """Process ids (the node's) of a running container."""
        try:
            table = self._api.top(container, ps_args="-eo pid")
            return frozenset(int(row[0]) for row in table["Processes"])
        except (OSError, KeyError, ValueError):
            return frozenset()

    # -- actions -----------------------------------------------------------------------------------------------

    def create(self, spec: Spec, image: Image, name: str | None = None) -> str:
        """Create the container, under another ``name`` if one is given, and return its id. Raises EngineError."""
        from docker.types import Ulimit  # noqa: PLC0415

        name = name or spec.name
        with _errors(f"create container {name}"):
            host = self._api.create_host_config(
                binds=[str(v) for v in spec.volumes] or None,
                devices=[d if ":" in d else f"{d}:{d}:rwm" for d in spec.devices] or None,
                group_add=list(spec.groups) or None,
                ipc_mode=spec.ipc_mode,
                shm_size=spec.shm_size,
                cap_add=list(spec.capabilities) or None,
                security_opt=list(spec.security_opts) or None,
                ulimits=[Ulimit(name=u.name, soft=u.soft, hard=u.hard) for u in spec.ulimits] or None,
                network_mode=spec.network_mode,
                cpuset_cpus=spec.cpuset,
                port_bindings={inner: _address(host) for inner, host in spec.ports.items()} or None,
                restart_policy=_restart_policy(spec.restart_policy),
            )
            made = self._api.create_container(
                spec.image,  # by name, so that `docker ps` shows it; which bytes it was is noted in a label
                name=name,
                entrypoint=list(spec.entrypoint),
                command=list(spec.command),
                environment=dict(spec.env),
                ports=[tuple(inner.split("/")) for inner in spec.ports] or None,
                labels=_labels(spec, image),
                stop_timeout=spec.stop_timeout,
                host_config=host,
            )
        return str(made["Id"])

    def start(self, container: str) -> None:
        """Start a container, or let a paused one go on.

        Raises EngineError with the engine's own words (port taken, no such device, ...).
        """
        with _errors(f"start container {container}"):
            if not self._unpause(container):
                self._api.start(container)

    def stop(self, container: str, timeout: int) -> None:
        """Stop a container: SIGTERM, then SIGKILL after ``timeout`` seconds."""
        with _errors(f"stop container {container}"), contextlib.closing(self._client(CALL_TIMEOUT + timeout)) as api:
            self._unpause(container)  # a frozen process would sleep through SIGTERM
            api.stop(container, timeout=timeout)

    def _unpause(self, container: str) -> bool:
        paused = bool(self._api.inspect_container(container)["State"].get("Paused"))
        if paused:
            self._api.unpause(container)
        return paused

    def remove(self, container: str) -> None:
        """Remove a stopped container; one that is gone already is fine."""
        with _errors(f"remove container {container}"), _gone_is_fine():
            self._api.remove_container(container, v=True)

    def restart(self) -> None:
        """Restart the engine itself. Raises EngineError."""
        from . import dockerd  # noqa: PLC0415  nearly no run needs it

        try:
            dockerd.Dockerd(dockerd.Settings(socket=self._url.removeprefix("unix://"))).restart()
        except (dockerd.DockerdFailure, OSError) as exc:
            raise EngineError(f"restart the Docker engine: {exc}") from exc
        self._sdk_client = None

    def rename(self, container: str, name: str) -> None:
        """Return a container another name."""
        with _errors(f"rename container {container} to {name}"):
            self._api.rename(container, name)

    def update_restart_policy(self, container: str, policy: str) -> None:
        """Change the restart policy of a container that may keep running."""
        with _errors(f"update container {container}"):
            self._api.update_container(container, restart_policy=_restart_policy(policy))

    def run_once(
        self,
        image: Image,
        words: list[str],
        *,
        timeout: float,
        devices: tuple[str, ...] = (),
        binds: Sequence[Volume] = (),
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a command in a throw-away container without network, for at most ``timeout`` seconds.

        ``binds`` are mounted read-only. Raises EngineError when no container can be made from the image at all: a
        server's would not be either.
        """
        api = self._api
        from docker.errors import APIError  # noqa: PLC0415

        with _errors(f"make a container of {image.ref}"):
            made = api.create_container(
                image.id,
                entrypoint=words[:1],
                command=words[1:],
                environment=dict(env or {}),
                labels={LABEL_MANAGED: "probe"},
                host_config=api.create_host_config(
                    network_mode="none",
                    devices=[f"{d}:{d}:rwm" for d in devices] or None,
                    binds=[f"{volume.source}:{volume.target}:ro" for volume in binds] or None,
                ),
            )
        try:
            api.start(made["Id"])
            ended = api.wait(made["Id"], timeout=timeout)
            output = _joined(api.logs(made["Id"], stdout=True, stderr=False, stream=True), MOST_OUTPUT)
            error: bytes = api.logs(made["Id"], stdout=False, stderr=True, tail=200)
        except APIError as exc:  # such as no such program in the image
            return Ran(NOT_STARTED, error=_explain(exc)) if exc.is_client_error() else Ran(None)
        except Exception:  # noqa: BLE001  requests' and urllib3's time-outs differ by version; all mean "no answer"
            return Ran(None)
        finally:
            with contextlib.suppress(OSError):
                api.remove_container(made["Id"], force=True, v=True)
        return Ran(int(ended.get("StatusCode", NOT_STARTED)), *(x.decode(errors="replace") for x in (output, error)))

    def holds(self, image: Image, paths: Sequence[str]) -> list[str]:
        """Return those of ``paths`` at which an image has something. Nothing of it is run. Raises EngineError."""
        if not paths:
            return []
        api = self._api
        with _errors(f"look into {image.ref}"):
            made = api.create_container(image.id, entrypoint=["/"], labels={LABEL_MANAGED: "probe"})
            try:
                files = f"{api.base_url}/v{api.api_version}/containers/{made['Id']}/archive"
                asked = [api.head(files, params={"path": path}, timeout=CALL_TIMEOUT) for path in paths]
            finally:
                api.remove_container(made["Id"], force=True, v=True)
        return [path for path, answer in zip(paths, asked, strict=True) if answer.ok]

    # -- streams -----------------------------------------------------------------------------------------------

    def follow(
        self,
        container: str,
        since: int,
        sink: queue.SimpleQueue[tuple[str, Any]],
        streams: Sequence[str] = ("event", "log"),
    ) -> None:
        """Feed a container's log and events into ``sink`` from daemon threads, until it is gone.

        Items: ("log", bytes with Docker's timestamp in front), ("event", Docker's event), ("log_end" and "event_end",
        None).
        """

        def read_log() -> None:
            with contextlib.suppress(Exception):  # a broken stream is an end; the watcher inspects and decides
                for chunk in self._client(CALL_TIMEOUT).logs(
                    container, stdout=True, stderr=True, stream=True, follow=True, timestamps=True, since=since
                ):
                    sink.put(("log", chunk))
            sink.put(("log_end", None))

        def read_events() -> None:
            with contextlib.suppress(Exception):
                for event in self._events(container, since):
                    sink.put(("event", event))
            sink.put(("event_end", None))

        readers = {"event": read_events, "log": read_log}
        for name in streams:
            threading.Thread(target=readers[name], daemon=True).start()

    def _events(self, container: str, since: int) -> Iterator[Mapping[str, Any]]:
        # From the start on, for it may have ended before anybody listened; Docker keeps the latest events.
        stream: Iterator[Mapping[str, Any]] = self._client(CALL_TIMEOUT).events(
            since=since, filters={"type": "container", "container": container, "event": ["die", "oom"]}, decode=True
        )
        return stream


def image_from_inspect(ref: str, found: Mapping[str, Any]) -> Image:
    """Read Docker's image inspect JSON (both image stores)."""
    config = found.get("Config") or {}
    descriptor = found.get("Descriptor") or {}
    manifests = found.get("Manifests") or []
    ids = {found["Id"], descriptor.get("digest"), *(m.get("ID") for m in manifests)}
    ids |= {str(d).partition("@")[2] for d in found.get("RepoDigests") or []}
    return Image(
        ref=ref,
        id=str(found["Id"]),
        ids=frozenset(i for i in ids if i),
        entrypoint=tuple(config["Entrypoint"]) if config.get("Entrypoint") else None,
        cmd=tuple(config["Cmd"]) if config.get("Cmd") else None,
        env=dict(str(item).partition("=")[::2] for item in config.get("Env") or []),
        labels=dict(config.get("Labels") or {}),
        content=content_id(found),
    )


def _joined(pieces: Iterable[bytes], most: int) -> bytes:
    """Join pieces until they are ``most`` bytes or a little more."""
    whole = bytearray()
    for piece in pieces:
        whole += piece
        if len(whole) >= most:
            break
    return bytes(whole)


def _labels(spec: Spec, image: Image) -> dict[str, str]:
    """Return the user's labels and the project's own notes on a container."""
    asked = {LABEL_ASKED_UTILIZATION: spec.asked_utilization} if spec.asked_utilization else {}
    shared = {LABEL_GPUS: ",".join(map(str, spec.gpus))} if spec.gpus else {}
    return {**spec.labels, **asked, **shared, LABEL_IMAGE_ID: image.id, LABEL_MANAGED: "true", LABEL_SERVER: spec.name}


def _stamp(moment: float) -> bytes:
    """Write a time as Docker writes its own (UTC), to the microsecond, so that the two compare as text."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f").encode()


def _restart_policy(text: str) -> dict[str, Any]:
    name, _, count = text.partition(":")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def _address(host: str) -> tuple[str, int]:
    ip, _, port = host.rpartition(":")
    return ip, int(port)


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    from docker.errors import NotFound  # noqa: PLC0415

    with contextlib.suppress(NotFound):
        yield


@contextlib.contextmanager
def _errors(action: str) -> Iterator[None]:
    from docker.errors import DockerException  # noqa: PLC0415

    try:
        yield
    except DockerException as exc:  # an APIError, too; the SDK refuses some options itself
        raise EngineError(f"{action}: {_explain(exc)}") from exc
    except OSError as exc:  # requests' ConnectionError and ReadTimeout are OSErrors: the engine went away
        raise EngineError(f"{action}: the Docker engine did not answer: {exc}") from exc


def _explain(exc: Any) -> str:
    text = str(getattr(exc, "explanation", None) or exc)
    return re.sub(r"\s+", " ", text).strip()
