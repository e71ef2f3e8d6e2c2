"""Parts of vllm_server's result. Pure."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

from ..common.failure import Failure, FailureClass
from ..common.refused import Refused

#: What to do when Docker does not answer.
ENGINE_REMEDY = (
    "see `systemctl status docker` and `journalctl -u docker` on the node, start it (role docker_engine) or run as a "
    "user who may use it, then run again: a start that was going on is taken up where it stands"
)


def no_engine(name: str, host: str, error: Exception) -> dict[str, Any]:
    """Give the result of a run that found no Docker engine."""
    failure = Failure(FailureClass.UNKNOWN, str(error), remedy=ENGINE_REMEDY)
    return {
        "failed": True,
        "msg": f"{host}, container {name}: {error}. {ENGINE_REMEDY[:1].upper()}{ENGINE_REMEDY[1:]}.",
        "failure": failure.as_result(),
        **{"changed": False, "rolled_back": False, "confirmed": False, "elapsed": 0.0},
        **{key: [] for key in ("actions", "differences", "stages", "notes")},
        **dict.fromkeys(("container", "spec", "downtime", "log_file")),
        "diff": {},
    }


def unwritable(error: OSError, folder: str) -> Refused:
    """Say in words why the project's folder on the node cannot be written."""
    path = str(error.filename or folder)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused(
            FailureClass.DISK_FULL, f"there is no space left to write {path}", "free space on that disk, then run again"
        )
    return Refused(
        FailureClass.UNKNOWN,
        f"{path} cannot be written ({error.strerror or error})",
        "run as root (become: true), or set state_dir (vllm_server_state_dir) to a folder that this user may write",
    )


def names(running: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names of containers by their ids, from Docker's list."""
    return {str(c["Id"]): str((c.get("Names") or [c["Id"]])[0]).lstrip("/") for c in running}


def listed(running: Sequence[Mapping[str, Any]], port: int) -> bool:
    """Tell whether Docker lists a running container that publishes ``port``."""
    return any(entry.get("PublicPort") == port for container in running for entry in container.get("Ports") or [])


def made_of(variables: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the container of a host is made of: ``spec`` of the last answer that vllm_server gave there in this run.

    ``variables`` are the host's. Empty where there is no container, None where the host was not asked.
    """
    for name in ("__vllm_server_restored", "__vllm_server_started"):
        answer = variables.get(name) or {}
        if "spec" in answer:
            return dict(answer["spec"] or {})
    return None


def describe(container: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give the result's ``container`` from Docker's inspect."""
    if container is None:
        return None
    state, config = container["State"], container.get("Config") or {}
    return {
        "id": container["Id"],
        "name": str(container["Name"]).lstrip("/"),
        "image": config.get("Image"),
        "image_id": container.get("Image"),
        "started_at": state.get("StartedAt"),
        "status": state.get("Status"),
    }
