# SPDX-License-Identifier: Apache-2.0
"""The options of one run of vllm_server, parsed once in ``main()``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..container.options import ContainerOptions, container_fields

#: Where a node keeps what it has to remember.
DEFAULT_STATE_DIR = "/var/lib/vllm-fleet"


@dataclass(frozen=True, kw_only=True)
class ServerOptions(ContainerOptions):
    """What the container is made of, and what the run is to do with it. Timeouts are seconds.

    ``record`` is what a release's record takes from the run; None where nothing is to be recorded.
    """

    state: str = "started"
    engine_cache: bool = True
    ready_timeout: float = 3600.0
    stall_timeout: float = 900.0
    gpu_memory_policy: str = "strict"
    sysfs_root: str = "/sys"
    state_dir: str = DEFAULT_STATE_DIR
    record: Mapping[str, Any] | None = None

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ServerOptions:
        """Return the options out of the module's ``params``; what is missing or null has the module's default."""
        fields = container_fields(params)
        for name in ("state", "gpu_memory_policy", "sysfs_root", "state_dir"):
            if params.get(name) is not None:
                fields[name] = str(params[name])
        for name in ("ready_timeout", "stall_timeout"):
            if params.get(name) is not None:
                fields[name] = float(params[name])
        engine_cache = params.get("engine_cache")
        return cls(**fields, engine_cache=engine_cache is None or bool(engine_cache), record=params.get("record"))
