# SPDX-License-Identifier: Apache-2.0
"""What must hold before a start, checked while the old server still answers. Reads the node, changes nothing."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container.fields import ALL_CAPABILITIES, CAPABILITIES, ROCM_DEVICES, Ulimit
from ..container.mounts import HF_HOME, Volume
from ..container.spec import overlap
from ..host.ports import listeners
from ..weights import snapshot
from ..weights.layout import Repository, SnapshotError

#: Programs that listen for containers: the proxy of each published port, or the engine itself.
_DOCKERS_OWN = ("docker-proxy", "dockerd")


class Leaked(Refused):
    """Docker itself holds the port, for a container that does not run: only the engine's restart frees it.

    An engine that is killed while it starts a container restores the container's port when it comes back, then throws
    its unfinished network away and forgets the port (moby/libnetwork issue 1790).
    """


def port_is_free(
    bind: str,
    port: int,
    running: Sequence[Mapping[str, Any]],
    own: Sequence[str],
    own_pids: Callable[[], frozenset[int]] = frozenset,
) -> None:
    """Refuse (``port_taken``) where another program listens on bind:port; Leaked where Docker lost track of the port.

    ``running`` are Docker's running containers, ``own`` the names whose containers are stopped before the start, and
    ``own_pids`` asks for their processes: on the host's network one holds a port that Docker does not list.
    """
    for container in running:
        names = [str(n).lstrip("/") for n in container.get("Names") or []]
        taken = any(
            p.get("PublicPort") == port and overlap(bind, str(p.get("IP") or "")) for p in container.get("Ports") or []
        )
        if taken and set(names) & set(own):
            return
        if taken:
            raise _port_taken(bind, port, f"the container {names[0] if names else container['Id'][:12]}")
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        # As vLLM and Docker's proxy bind: connections that linger in TIME_WAIT are no obstacle.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1" if bind == "localhost" else bind, port))
            trial.listen(1)
        except OSError as exc:
            if exc.errno == 98:  # EADDRINUSE
                holders = listeners(bind, port)
                if holders and holders.keys() <= own_pids():
                    return
                if holders and all(Path(name.split(" ")[0]).name in _DOCKERS_OWN for name in holders.values()):
                    raise _leaked(bind, port, min(holders)) from None
                who = next((f"{name} (pid {pid})" for pid, name in holders.items()), "another program")
                raise _port_taken(bind, port, who) from None
            raise Refused(
                FailureClass.BAD_ARGUMENT,
                f"bind: {bind}:{port} cannot be used on this node ({exc.strerror})",
                "give an address that the node has (`ip addr`), or 127.0.0.1",
            ) from None


def _leaked(bind: str, port: int, pid: int) -> Leaked:
    return Leaked(
        FailureClass.PORT_TAKEN,
        f"port {port} on {bind} is still held by Docker itself (pid {pid}) for a container that does not run: the "
        "engine was killed while it started one, and lost track of it",
        "restart the engine (`systemctl restart docker`; with live-restore the other containers go on), then run again",
        [f"listening on port {port}: docker-proxy or dockerd (pid {pid})"],
    )


def _port_taken(bind: str, port: int, who: str) -> Refused:
    return Refused(
        FailureClass.PORT_TAKEN,
        f"port {port} on {bind} is already taken by {who}",
        "stop that program or choose another port (vllm_server_port)",
        [f"listening on port {port}: {who}"],
    )


def volumes_exist(volumes: Iterable[Volume]) -> None:
    """Refuse host paths that are not there: Docker would silently make empty folders, owned by root."""
    for volume in volumes:
        if volume.source.startswith("/") and not Path(volume.source).exists():
            raise Refused(
                FailureClass.CACHE_MISS_OFFLINE if volume.target.startswith(HF_HOME) else FailureClass.BAD_ARGUMENT,
                f"{volume.source} (to be mounted at {volume.target}) does not exist on this node",
                "create it, or correct the path; it is the node's path, not the controller's",
            )


#: Files that Docker makes for every container; another file may be mounted over them.
_DOCKERS_FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")


def mounts_have_a_place(volumes: Sequence[Volume]) -> None:
    """Refuse a mount that its place cannot take: Docker sees that only when it starts the container.

    In a read-only mount the place has to be there, for Docker cannot make it. A file lies on a file, a folder on a
    folder.
    """
    for volume in volumes:
        if volume.target in _DOCKERS_FILES:
            _same_kind(volume, volume.target, folder=False)
        around = [v for v in volumes if volume.target.startswith(v.target + "/")]
        outer = max(around, key=lambda v: len(v.target), default=None)
        if outer is None or not outer.source.startswith("/"):
            continue
        place = Path(outer.source, volume.target[len(outer.target) + 1 :])
        if place.exists():
            _same_kind(volume, f"{place} on the node", folder=place.is_dir())
        elif Path(outer.source).is_file():
            raise Refused(
                FailureClass.BAD_ARGUMENT,
                f"volumes: {volume.target} lies in {outer.target}, where a file is mounted ({outer.source})",
                f"mount the folder that holds {outer.source}, or mount {volume.source} somewhere else",
            )
        elif "ro" in outer.mode.split(","):
            raise Refused(
                FailureClass.BAD_ARGUMENT,
                f"volumes: {volume.target} lies in {outer.target}, which is mounted read-only and has no place for it",
                f"create {place} on the node, or mount {volume.source} somewhere else",
            )


def _same_kind(volume: Volume, place: str, *, folder: bool) -> None:
    """Refuse a folder where none is, and a file where a folder is. A named volume is a folder."""
    source = Path(volume.source)
    if volume.source.startswith("/") and not source.exists():
        return  # of the server's own folders one may be made later
    if (source.is_dir() or not volume.source.startswith("/")) != folder:
        wanted, got = ("folder", "file") if folder else ("file", "folder")
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"volumes: expected a {wanted} to mount at {volume.target}, for {place} is one, got the {got} "
            f"{volume.source}",
            f"name a {wanted}, or mount {volume.source} somewhere else",
        )


def limits_can_be_set(ulimits: Iterable[Ulimit], allowed: Path = Path("/proc/sys/fs/nr_open")) -> None:
    """Refuse more open files than the node's kernel allows any process."""
    with contextlib.suppress(OSError, ValueError):
        most = int(allowed.read_text())
        for limit in ulimits:
            if limit.name == "nofile" and not 0 <= limit.hard <= most:
                raise Refused(
                    FailureClass.BAD_ARGUMENT,
                    f"ulimits: expected at most {most} for nofile on this node, got {limit.hard}",
                    "lower it (vllm_server_ulimits), or raise the node's limit (sysctl fs.nr_open)",
                )


def devices_exist(devices: Iterable[str]) -> None:
    """Refuse devices that are not there; without /dev/kfd or /dev/dri it is the driver that is missing."""
    paths = [Path(device.partition(":")[0]) for device in devices]
    missing = [str(path) for path in paths if not path.exists()]
    if {*missing} & {*ROCM_DEVICES}:
        raise Refused(
            FailureClass.DRIVER_MISSING,
            f"this node has no {' and no '.join(missing)}: the amdgpu driver is not loaded",
            "load or install it (role rocm; `modprobe amdgpu`, `dkms status`), or set vllm_server_accelerator: cpu",
        )
    other = [str(path) for path in paths if not _is_device(path)]
    if other:
        what = "this node has no" if missing else "no device is"
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"devices: {what} {', '.join(missing or other)}",
            "correct vllm_server_devices: it names paths of this node as they are, such as /dev/kfd and "
            "/dev/dri/renderD128",
        )


def _is_device(path: Path) -> bool:
    """Whether it is one; a folder has to have some, at any depth."""
    one_of = path.rglob("*") if path.is_dir() else [path]
    return any(one.is_char_device() or one.is_block_device() for one in one_of)


def capabilities_can_be_given(wanted: Sequence[str], status: Path = Path("/proc/1/status")) -> None:
    """Refuse capabilities that this node gives to no process, such as one that is a container itself."""
    try:
        line = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    except OSError:
        return
    has = int(line[1], 16) if line else -1
    # Those that the kernel is too old for are not part of ALL.
    asked = CAPABILITIES[: has.bit_length()] if tuple(wanted) == ALL_CAPABILITIES else wanted
    missing = [name for name in asked if not has >> CAPABILITIES.index(name) & 1]
    if missing:
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"capabilities: {', '.join(wanted)} asks for {', '.join(missing)}, which no process of this node may have",
            "name those that the server needs (vllm_server_capabilities), such as SYS_PTRACE",
        )


def model_folder_exists(model: str) -> None:
    """Refuse a model given as a path on the node where there is no such folder, or none that holds a model."""
    folder = Path(model)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist on this node"
        raise Refused(
            FailureClass.MODEL_NOT_FOUND,
            f"model: expected a folder with a model, but {model} {what}",
            "correct vllm_server_model; a path is the node's, not the controller's",
        )
    if not (folder / "config.json").is_file() and not (folder / "params.json").is_file():
        raise Refused(
            FailureClass.MODEL_NOT_FOUND,
            f"model: {model} holds neither a config.json nor a params.json",
            "name the folder that holds the model's files; of a Hugging Face cache that is snapshots/<commit>",
        )


def cache_folder(cache: str) -> Path:
    """Return the cache's folder; refuse a path that Docker would take for something else, or make by itself."""
    folder = Path(cache)
    if not folder.is_absolute():
        raise Refused(
            FailureClass.BAD_ARGUMENT,
            f"hf_cache: expected an absolute path on the node, got {cache!r}",
            "begin it with / or with ~/ (the connecting user's home on the node)",
        )
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise Refused(
            FailureClass.CACHE_MISS_OFFLINE,
            f"hf_cache: expected a folder on the node, but {cache} {what}",
            "run the role hf_cache first, or correct hf_cache_path",
        )
    return folder


def model_in_cache(cache: str, model: str, revision: str | None) -> None:
    """Refuse when the snapshot that an offline server would load is not complete in the node's cache."""
    folder = cache_folder(cache)
    try:
        report = snapshot.inspect(Repository(folder, model), revision or "main")
    except SnapshotError as exc:
        raise Refused(FailureClass.MODEL_NOT_FOUND, str(exc), "correct vllm_server_model") from None
    if report.complete:
        return
    wrong = [*report.missing, *report.corrupt]
    if report.commit is None or report.files == 0:
        raise Refused(
            FailureClass.CACHE_MISS_OFFLINE,
            f"{model} at revision {revision or 'main'} is not in the cache {cache}",
            "put it there with the role hf_cache, or set env HF_HUB_OFFLINE to 0 to let the server download it",
            [f"missing: {item}" for item in wrong[:5]],
        )
    raise Refused(
        FailureClass.CACHE_INCOMPLETE,
        f"the snapshot of {model} in {cache} is not whole: {len(wrong)} of its files are missing or damaged",
        "run the role hf_cache: it fetches only what is missing",
        [f"missing: {m}" for m in report.missing[:5]] + [f"damaged: {c}" for c in report.corrupt[:5]],
    )
