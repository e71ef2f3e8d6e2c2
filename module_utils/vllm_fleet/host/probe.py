# SPDX-License-Identifier: Apache-2.0
"""What a server needs of a node beside GPUs: room on the disks, image, cache, port, clock. Reads only."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common import finding
from ..container import archive, image_rocm
from ..container.api import DockerApi, DockerRefused, DockerUnavailable
from ..container.image import Wanted, chosen, is_wanted, misnamed
from ..weights import layout
from . import facts, ports
from .server_needs import ServerNeeds

PROC = Path("/proc")
DOCKER_ROOT = "/var/lib/docker"

#: Microseconds. systemd's own criterion: the kernel lets the error grow to this when nothing corrects it.
LARGEST_CLOCK_ERROR = 16_000_000


class Timex(ctypes.Structure):
    """The beginning of Linux's ``struct timex`` on 64-bit machines, and room for the rest of its 208 bytes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_char * 256),
    )


def look(needs: ServerNeeds, engine: DockerApi, own: Mapping[str, Any]) -> facts.Host:
    """Return what the node has of what the server ``needs``. ``own`` is the server's container, see own_container."""
    holder, ours = port_holder(needs, own)
    about = engine_facts(engine)
    image = image_state(needs, engine)
    held, problem = archive_state(needs, engine)
    if held is not None and image is not None:
        image = dataclasses.replace(image, present=image.present and is_held(needs, engine, held))
    return facts.Host(
        rooms=rooms(needs, str(about.get("DockerRootDir") or DOCKER_ROOT), image, held),
        image=image,
        archive=problem,
        folder=folder_state(needs),
        port_holder=holder,
        port_is_ours=ours,
        clock_synchronised=clock_synchronised() if needs.clock else None,
        sysctls={name: sysctl(PROC, name) for name in needs.sysctls},
        users_are_mapped=mapped_users(about),
    )


def engine_facts(engine: DockerApi) -> dict[str, Any]:
    """Return what Docker says of itself; nothing without an engine."""
    try:
        return engine.info()
    except (DockerUnavailable, DockerRefused):
        return {}


def mapped_users(about: Mapping[str, Any]) -> bool:
    """Return whether Docker maps a container's users to others of the node's (userns-remap)."""
    return any("name=userns" in str(item).split(",") for item in about.get("SecurityOptions") or ())


def machine(proc: Path = PROC, etc: Path = Path("/etc")) -> str:
    """Name the machine, the same by every address that leads to it; empty where that is unknown.

    Copies of one disk have the same machine-id, and containers of one kernel the same boot id; of two whose boot,
    machine-id and network are one, each would have the other's containers and ports.
    """
    parts = []
    with contextlib.suppress(OSError):
        parts.append((proc / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
        for read in ((etc / "machine-id").read_text, (proc / "self/ns/net").readlink):
            with contextlib.suppress(OSError):
                parts.append(str(read()).strip())
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16] if parts else ""


def image_state(needs: ServerNeeds, engine: DockerApi) -> facts.Image | None:
    """Return whether the engine has the image and, where it would be pulled, whether the registry has it."""
    name, source = needs.image, needs.image_source
    if not name:
        return None
    try:
        found, named = engine.image(name), True
        expected = needs.archive.expected_id if needs.archive else ""
        if expected and (found is None or found.get("Id") != expected) and (by_id := engine.image(expected)):
            # A deployment gives it its name, and does not read the archive.
            found, named = by_id, False
        if found is not None:
            ident = str(found.get("Id") or "")
            return facts.Image(name, True, source, rocm=image_rocm.rocm_of(found), ident=ident, named=named)
    except (DockerUnavailable, DockerRefused):
        return facts.Image(name, None, source)
    if source != "pull":
        return facts.Image(name, False, source)
    try:
        return facts.Image(name, False, source, engine.registry_digest(name))
    except (DockerUnavailable, DockerRefused) as error:
        answer = " ".join(str(error).split())
        # How registries and Docker's engine word it (OCI distribution: MANIFEST_UNKNOWN, NAME_UNKNOWN).
        gone = any(words in answer.lower() for words in ("manifest unknown", "name unknown", "no such manifest"))
        return facts.Image(name, False, source, answer[:200], gone)


def archive_state(needs: ServerNeeds, engine: DockerApi) -> tuple[Mapping[str, Any] | None, finding.Finding | None]:
    """Read the archive that the image is to come from: what it holds (`Held.facts`), and what is wrong with it.

    Both are None where it is not needed. A file of the controller was read there; its facts are in the option.
    """
    asked = needs.archive
    if not asked or _has(engine, asked.expected_id):
        return None, None
    path, wanted = asked.path, f"a `docker save` file with {needs.image}"
    held, trouble, remedy = asked.held, asked.trouble, "correct vllm_image_archive"
    if asked.location == "node":
        try:
            found = archive.read(Path(path).expanduser())
            held = {**found.facts(), "compressed": found.compressed}
        except FileNotFoundError:
            trouble = f"{path} is not on this node"
            remedy = "copy it to this node or correct vllm_image_archive"
            if asked.here:
                remedy = "it is on the controller: set vllm_image_archive_location: controller"
        except archive.NOT_READABLE as error:
            trouble = f"{path} cannot be read: {error}"
    if not trouble and held and held["compressed"] and not asked.expected_id:
        trouble = f"{path} is compressed and cannot be looked into"
        remedy = "unpack it, or set vllm_image_expected_id to the id that the image had where it was saved"
    if trouble:
        return None, finding.Finding("refused", "archive", wanted, trouble, remedy)
    name, _, tag = needs.image.rpartition(":")
    meant = Wanted("archive", name, tag, archive=path, expected_id=asked.expected_id)
    other = misnamed(meant, archive.told(held["archived"])) if held else None
    if other:
        return None, finding.Finding("refused", "archive", wanted, f"one with {other[0]}", other[1])
    return held, None


def is_held(needs: ServerNeeds, engine: DockerApi, held: Mapping[str, Any]) -> bool:
    """Return whether the engine's image of that name is the one of the archive."""
    name, _, tag = needs.image.rpartition(":")
    wanted = Wanted("archive", name, tag, expected_id=needs.archive.expected_id if needs.archive else "")
    meant = chosen(archive.told(held["archived"]), needs.image)
    try:
        image = engine.image(needs.image)
    except (DockerUnavailable, DockerRefused):
        return False
    return image is not None and is_wanted(wanted, image, meant) is None


def _has(engine: DockerApi, ident: str) -> bool:
    with contextlib.suppress(DockerUnavailable, DockerRefused):
        return bool(ident) and engine.image(ident) is not None
    return False


def folder_state(needs: ServerNeeds) -> facts.Folder | None:
    """Return the state of the cache, or of the model's own folder where a path is given for it."""
    model = needs.model
    by_path = model.startswith("/")
    path = Path(model) if by_path else needs.cache
    if path is None:
        return None
    try:
        kind = "folder" if path.is_dir() else "file" if path.exists() else "none"
    except OSError:
        kind = "unreadable"
    what = "model's folder" if by_path else "cache"
    held = cached(path, model) if kind == "folder" and not by_path else 0
    return facts.Folder(what, str(path), kind, needs.cache_create and not by_path, held)


def rooms(
    needs: ServerNeeds,
    root: str,
    image: facts.Image | None,
    held: Mapping[str, Any] | None = None,
) -> list[facts.Room]:
    """Return what has to fit where; image, archive and weights on one file system are one sum.

    ``root`` is Docker's folder, ``held`` the archive that would be loaded (`Held.facts`): what it takes counts unless a
    figure is given.
    """
    wanted: list[tuple[str, Path, int]] = []
    needed = needs.disk_image or (held["room"] if held else 0)
    if needed and not (image and image.present):
        wanted.append(("image", Path(root), needed))
        asked = needs.archive
        if held and asked and asked.location == "controller":
            cache = Path(asked.cache).expanduser()
            wanted.append(("archive", cache, max(0, held["size"] - _bytes(cache / Path(asked.path).name))))
    if needs.disk_weights and needs.cache:
        wanted.append(("weights", needs.cache, max(0, needs.disk_weights - cached(needs.cache, needs.model))))
    by_device: dict[int | str, facts.Room] = {}
    for purpose, path, needed in wanted:
        try:
            place = next(one for one in (path, *path.parents) if one.exists())
            device: int | str = place.stat().st_dev
            state = os.statvfs(place)
            free: int | None = state.f_bavail * state.f_frsize
        except OSError:
            device, free = str(path), None
        other = by_device.get(device)
        purposes = [*other.purposes, purpose] if other else [purpose]
        known = other or facts.Room(str(path), [], 0, free)
        by_device[device] = facts.Room(known.path, purposes, known.needed + needed, free)
    return [room for room in by_device.values() if room.needed]


def _bytes(path: Path) -> int:
    """Bytes of a file, such as a copy that broke off; 0 without one."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def cached(cache: Path, model: str) -> int:
    """Return the bytes that the cache already holds of a model."""
    try:
        return sum(entry.stat().st_size for entry in layout.Repository(cache, model).blobs.iterdir())
    except (OSError, ValueError):
        return 0


def own_container(engine: DockerApi, name: str) -> dict[str, Any]:
    """Return what Docker says of the server's container; nothing without one, or without an engine."""
    try:
        return (engine.container(name) if name else None) or {}
    except (DockerUnavailable, DockerRefused):
        return {}


def port_holder(needs: ServerNeeds, own: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return who listens on the server's port ("" no process, None not known) and whether that is our own server."""
    proc, port = PROC, needs.port
    if not port:
        return "", False
    if not (proc / "net/tcp").is_file():
        return None, False
    holders = ports.listeners(needs.bind, port, proc)
    if not holders:
        return "", False
    pid, command = next(iter(holders.items()))
    running = bool((own.get("State") or {}).get("Running"))
    published = [
        str(entry.get("HostPort"))
        for entries in ((own.get("NetworkSettings") or {}).get("Ports") or {}).values()
        for entry in entries or []
    ]
    # Published, the port is held by Docker's proxy; on the host's network by the container's own process.
    ours = running and (str(port) in published or in_container(proc, pid, str(own.get("Id"))))
    return (f"our server {needs.name}" if ours else f"pid {pid} ({command})"), ours


def in_container(proc: Path, pid: int, container: str) -> bool:
    """Return by its control group whether a process lives in a container."""
    try:
        return container in (proc / str(pid) / "cgroup").read_text(encoding="utf-8")
    except OSError:
        return False


def clock_synchronised() -> bool | None:
    """Return whether the kernel, to which every time daemon reports, is synchronised; None where it does not answer."""
    state = Timex()
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else state.maxerror < LARGEST_CLOCK_ERROR


def sysctl(proc: Path, name: str) -> str | None:
    """Return a kernel setting as the kernel prints it, None without it."""
    try:
        return (proc / "sys" / name.replace(".", "/")).read_text(encoding="utf-8").strip()
    except OSError:
        return None
