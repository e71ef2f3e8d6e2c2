# SPDX-License-Identifier: Apache-2.0
"""One failure: its class, its cause, its remedy, and what proves it. Pure.

Every part that can fail makes this value, and ``as_result`` writes it for a module's result, so all results look alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class FailureClass(str, Enum):
    """The public classes of ``failure.class``; docs/troubleshooting.md explains each."""

    GPU_MEMORY_TAKEN = "gpu_memory_taken"
    CONTEXT_TOO_LONG = "context_too_long"
    KV_CACHE_TOO_SMALL = "kv_cache_too_small"
    GATED_MODEL = "gated_model"
    REMOTE_CODE_REFUSED = "remote_code_refused"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    BAD_PARALLELISM = "bad_parallelism"
    NOT_ENOUGH_GPUS = "not_enough_gpus"
    GPU_PERMISSION = "gpu_permission"
    DRIVER_MISSING = "driver_missing"
    PORT_TAKEN = "port_taken"
    IMAGE_MISSING = "image_missing"
    SHARED_MEMORY = "shared_memory"
    HOST_MEMORY = "host_memory"
    DISK_FULL = "disk_full"
    MODEL_TOO_LARGE = "model_too_large"
    WEIGHTS_CORRUPT = "weights_corrupt"
    CACHE_INCOMPLETE = "cache_incomplete"
    CACHE_MISS_OFFLINE = "cache_miss_offline"
    MODEL_NOT_FOUND = "model_not_found"
    BAD_ARGUMENT = "bad_argument"
    NO_GPU = "no_gpu"
    READY_TIMEOUT = "ready_timeout"
    STALLED = "stalled"
    WRONG_MODEL_SERVED = "wrong_model_served"
    STOPPED_BY_SIGNAL = "stopped_by_signal"
    COLLECTIVE_INIT = "collective_init"
    ENGINE_DIED = "engine_died"
    KERNEL_UNSUPPORTED = "kernel_unsupported"
    BROKEN_IMAGE = "broken_image"
    WEIGHTS_MISMATCH = "weights_mismatch"
    COMPILE_CACHE = "compile_cache"
    FILE_PERMISSION = "file_permission"
    DOWNLOAD_FAILED = "download_failed"
    HOST_LIMITS = "host_limits"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        """Return the public name. Python 3.12 changed what an f-string makes of such an enum."""
        return str(self.value)


@dataclass(frozen=True)
class Failure:
    """Why something failed.

    ``cause`` and ``remedy`` are one sentence each without the full stop, ``evidence`` the few lines that prove it,
    ``exit_code`` the server's, if it ended. ``host`` names the node of a replica that failed; ``lost`` says that the
    reason was read in the log of a rank that was ended together with its partners.
    """

    class_: FailureClass
    cause: str
    evidence: list[str] = field(default_factory=list)
    remedy: str = ""
    exit_code: int | None = None
    host: str = ""
    lost: bool = False

    def as_result(self) -> dict[str, Any]:
        """Return the ``failure`` of a module's result, as plain JSON values."""
        more: dict[str, Any] = {"host": self.host} if self.host else {}
        return {
            "class": self.class_.value,
            "cause": self.cause,
            "evidence": list(self.evidence),
            "remedy": self.remedy,
            "exit_code": self.exit_code,
            **more,
            **({"lost": True} if self.lost else {}),
        }

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Failure:
        """Return the failure that ``as_result`` wrote. Raises ValueError for a class that does not exist."""
        return cls(
            FailureClass(result["class"]),
            str(result.get("cause") or ""),
            [str(line) for line in result.get("evidence") or []],
            str(result.get("remedy") or ""),
            result.get("exit_code"),
            str(result.get("host") or ""),
            bool(result.get("lost")),
        )

    def sentence(self, where: str) -> str:
        """Return ``msg``: where it failed, why, of which class, and what to do."""
        return f"{where}: {self.cause} ({self.class_}). {self.remedy}."
