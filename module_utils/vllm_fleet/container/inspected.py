# SPDX-License-Identifier: Apache-2.0
"""What Docker's inspect of a container holds, read in one way. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.secrets import values_in
from .fields import SpecError, numbers_text, parse_numbers

#: What `docker inspect` prints of one container.
Inspected = Mapping[str, Any]

_DRI = "/dev/dri"


def ident(container: Inspected) -> str:
    """Return Docker's id."""
    return str(container["Id"])


def running(container: Inspected | None) -> bool:
    """Whether its process runs; a paused one runs too."""
    return container is not None and bool(container["State"].get("Running"))


def never_started(container: Inspected) -> bool:
    """Whether it was created, and its process never ran."""
    state = container["State"]
    return state.get("Status") == "created" and str(state.get("StartedAt") or "0001-").startswith("0001-")


def command_line(container: Inspected) -> list[str]:
    """Return entrypoint and command, as one list of words."""
    config = container.get("Config") or {}
    return [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]


def environment(container: Inspected) -> dict[str, str]:
    """Return the environment by name."""
    return dict(str(item).partition("=")[::2] for item in (container.get("Config") or {}).get("Env") or [])


def secrets_of(*containers: Inspected | None) -> set[str]:
    """Return the secrets that containers were given: of an old one they are others than today's options have."""
    found: set[str] = set()
    for container in filter(None, containers):
        found |= values_in(environment(container)) | values_in(command_line(container))
    return found


def mounted_at(container: Inspected | None, target: str) -> str:
    """Return the node's path that is mounted at ``target``; empty where none is."""
    mounts = (container or {}).get("Mounts") or []
    return next((str(mount.get("Source") or "") for mount in mounts if mount.get("Destination") == target), "")


def names(containers: Sequence[Inspected]) -> dict[str, str]:
    """Return the names of containers by their ids, from Docker's list."""
    return {str(c["Id"]): str((c.get("Names") or [c["Id"]])[0]).lstrip("/") for c in containers}


def renders(container: Inspected) -> list[str] | None:
    """Return the render nodes (``renderD128``) of the GPUs that a container was given; None for all of the node."""
    host = container.get("HostConfig") or {}
    paths = [str(device.get("PathOnHost")).rstrip("/") for device in host.get("Devices") or []]
    if host.get("Privileged") or _DRI in paths:
        return None
    inside = [path.rpartition("/")[2] for path in paths if path.startswith(_DRI + "/")]
    # By another name than its own, such as by-path/..., it may be any.
    return (
        None
        if any(not name.startswith(("renderD", "card")) for name in inside)
        else sorted({name for name in inside if name.startswith("renderD")})
    )


def cpuset(container: Inspected) -> str | None:
    """Return the CPUs that a container was given, such as ``0-3,8``; None for all."""
    given = str((container.get("HostConfig") or {}).get("CpusetCpus") or "")
    try:
        return numbers_text(parse_numbers(given, "cpuset")) if given else None
    except SpecError:
        return None  # Docker takes nothing else


def publishes(containers: Sequence[Inspected], port: int) -> bool:
    """Whether a container of Docker's list publishes ``port``."""
    return any(entry.get("PublicPort") == port for container in containers for entry in container.get("Ports") or [])
