# SPDX-License-Identifier: Apache-2.0
"""The options of one run of vllm_server, parsed once in ``main()``. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..common.secrets import values_in
from ..container.options import ContainerOptions, container_fields

#: Where a node keeps what it has to remember.
DEFAULT_STATE_DIR = "/var/lib/vllm-fleet"

#: Options of the module vllm_server.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "default": "vllm"},
    "state": {
        "type": "str",
        "choices": ["started", "stopped", "absent", "restored", "restarted", "confirmed"],
        "default": "started",
    },
    "because": {"type": "str"},
    "started_at": {"type": "str"},
    "mode": {"type": "str", "choices": ["deploy", "plan", "status"], "default": "deploy"},
    "verification": {"type": "dict", "no_log": True},  # holds a key
    "use_cached_result": {"type": "bool", "default": False},
    "image": {"type": "str"},
    "allow_latest": {"type": "bool", "default": False},
    "model": {"type": "str"},
    "revision": {"type": "str"},
    "args": {"type": "dict", "default": {}},
    "env": {"type": "dict", "default": {}},
    "entrypoint": {"type": "list", "elements": "str"},
    "port": {"type": "int", "default": 8000},
    "bind": {"type": "str", "default": "127.0.0.1"},
    "allow_unauthenticated": {"type": "bool", "default": False},
    "hf_cache": {"type": "str"},
    "engine_cache": {"type": "bool", "default": True},
    "engine_cache_reset": {"type": "bool", "default": False},
    "accelerator": {"type": "str", "choices": ["rocm", "cpu"], "default": "rocm"},
    "gpus": {"type": "raw"},
    "cpus": {"type": "raw"},
    "neighbours": {"type": "list", "elements": "dict", "default": []},
    "devices": {"type": "list", "elements": "str"},
    "groups": {"type": "list", "elements": "str"},
    "ipc_mode": {"type": "str"},
    "shm_size": {"type": "str"},
    "capabilities": {"type": "list", "elements": "str"},
    "security_opts": {"type": "list", "elements": "str"},
    "ulimits": {"type": "list", "elements": "str"},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "labels": {"type": "dict", "default": {}},
    "network_mode": {"type": "str", "default": "bridge"},
    "restart_policy": {"type": "str", "default": "unless-stopped"},
    "stop_timeout": {"type": "int", "default": 60},
    "api_key": {"type": "str", "no_log": True},
    "hf_token": {"type": "str", "no_log": True},
    "ready_timeout": {"type": "float", "default": 3600},
    "stall_timeout": {"type": "float", "default": 900},
    "gpu_memory_policy": {"type": "str", "choices": ["strict", "fit", "off"], "default": "strict"},
    "sysfs_root": {"type": "path", "default": "/sys"},
    "state_dir": {"type": "path", "default": DEFAULT_STATE_DIR},
    "record": {"type": "dict"},
    "docker_host": {"type": "str"},
    "reported_host": {"type": "str"},
    "watch_slice": {"type": "float"},
    # A position in a watch, not a secret; the name would make Ansible ask.
    "watch_token": {"type": "dict", "no_log": False},
    "replica": {"type": "dict"},
    "place": {"type": "dict"},
    "replica_step": {"type": "dict"},
}
SPEC: dict[str, Any] = {"argument_spec": ARGUMENTS, "required_if": [("state", "started", ["image", "model"])]}


@dataclass(frozen=True, kw_only=True)
class ServerOptions(ContainerOptions):
    """What the container is made of, and what the run is to do with it. Timeouts are seconds.

    ``record`` is what a release's record takes from the run; None where nothing is to be recorded. ``because`` is why a
    server is restarted, ``started_at`` which start of it. ``gpus`` and ``cpus`` are what is wanted of a node that it
    shares, as the user wrote it, and ``neighbours`` the servers that the inventory has on that node.
    """

    state: str = "started"
    gpus: Any = None
    cpus: Any = None
    neighbours: tuple[Mapping[str, Any], ...] = ()
    engine_cache: bool = True
    engine_cache_reset: bool = False
    ready_timeout: float = 3600.0
    stall_timeout: float = 900.0
    gpu_memory_policy: str = "strict"
    sysfs_root: str = "/sys"
    state_dir: str = DEFAULT_STATE_DIR
    record: Mapping[str, Any] | None = None
    because: str = ""
    started_at: str = ""

    @property
    def shares(self) -> bool:
        """Whether the server is to have a part of its node, or has neighbours there."""
        return self.gpus not in (None, "") or self.cpus not in (None, "") or len(self.neighbours) > 1

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ServerOptions:
        """Return the options out of the module's ``params``; what is missing or null has the module's default."""
        fields = container_fields(params)
        for name in ("state", "because", "started_at", "gpu_memory_policy", "sysfs_root", "state_dir"):
            if params.get(name) is not None:
                fields[name] = str(params[name])
        for name in ("ready_timeout", "stall_timeout"):
            if params.get(name) is not None:
                fields[name] = float(params[name])
        fields |= {name: params.get(name) for name in ("gpus", "cpus")}
        fields["neighbours"] = tuple(params.get("neighbours") or ())
        fields["engine_cache_reset"] = bool(params.get("engine_cache_reset"))
        engine_cache = params.get("engine_cache")
        return cls(**fields, engine_cache=engine_cache is None or bool(engine_cache), record=params.get("record"))


def call(given: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Return the module's options for a role's options: those of ``place`` win, where they say anything."""
    # An empty list is an answer, too: no devices at all.
    place = {key: value for key, value in (given.get("place") or {}).items() if value is not None}
    return {"reported_host": host, **{key: value for key, value in given.items() if key != "place"}, **place}


def secrets(params: Mapping[str, Any], as_dict: Callable[[str], Mapping[str, Any]]) -> set[str]:
    """Return the secrets in ``env`` and ``args`` of unchecked options: Ansible does not know them as such.

    ``as_dict`` reads a dictionary that is given as on a command line; it raises TypeError or ValueError.
    """
    found = set()
    for given in (params, params.get("place")):
        if not isinstance(given, Mapping):
            continue
        for name in ("env", "args"):
            value = given.get(name)
            found |= values_in(value)
            if isinstance(value, str):
                with contextlib.suppress(TypeError, ValueError):
                    found |= values_in(as_dict(value))
    return found
