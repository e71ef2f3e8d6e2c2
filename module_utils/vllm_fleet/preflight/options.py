# SPDX-License-Identifier: Apache-2.0
"""The options of preflight_host that the node's side reads, parsed once in ``main()``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.finding import Finding, told
from ..host.driver_table import Table, parse
from ..host.server_needs import Archive, ServerNeeds

SIZING: dict[str, Any] = {
    "args": {"type": "dict", "default": {}},
    "env": {"type": "dict", "default": {}},
    "devices": {"type": "list", "elements": "str"},
    "revision": {"type": "str", "default": ""},
    "config": {"type": "dict", "default": {}},
    "weights_bytes": {"type": "int", "default": 0},
    "min_vllm": {"type": "str", "default": ""},
    "image_version": {"type": "str", "default": ""},
    "preset": {"type": "str", "default": ""},
    "exact": {"type": "bool", "default": False},
    "gated": {"type": "bool", "default": False},
}
ADAPTERS: dict[str, Any] = {
    "adapters": {"type": "raw"},
    "args": {"type": "dict", "default": {}},
    "served": {"type": "list", "elements": "str", "default": []},
    "cached": {"type": "bool", "default": True},
    "hub": {"type": "bool", "default": False},
    "endpoint": {"type": "str", "default": ""},
    "token": {"type": "str", "default": "", "no_log": True},
}
ARCHIVE: dict[str, Any] = {
    "path": {"type": "str", "default": ""},
    "location": {"type": "str", "choices": ["node", "controller"], "default": "node"},
    "expected_id": {"type": "str", "default": ""},
    "cache": {"type": "str", "default": "~/.cache/vllm-fleet"},
    "held": {"type": "dict", "default": {}},
    "trouble": {"type": "str", "default": ""},
    "here": {"type": "bool", "default": False},
}
#: Options of the module preflight_host.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "accelerator": {"type": "str", "choices": ["rocm", "cpu"], "default": "rocm"},
    "allowed_driver_versions": {"type": "list", "elements": "str", "default": []},
    "wanted_driver": {"type": "str", "default": ""},
    "drivers": {"type": "dict"},
    "gpus": {"type": "int", "default": 8},
    "gpu_name": {"type": "str", "default": ""},
    "idle_vram": {"type": "int", "default": 5_000_000_000},
    "foreign_level": {"type": "str", "choices": ["warning", "refused"], "default": "refused"},
    "utilization": {"type": "float"},
    "name": {"type": "str", "default": "vllm"},
    "wanted_gpus": {"type": "raw"},
    "wanted_cpus": {"type": "raw"},
    "neighbours": {"type": "list", "elements": "dict", "default": []},
    "state_dir": {"type": "path", "default": "/var/lib/vllm-fleet"},
    "leaves_out": {"type": "bool", "default": True},
    "installs_driver": {"type": "bool", "default": True},
    "allows_reboot": {"type": "bool", "default": False},
    "sets_numa_balancing": {"type": "bool", "default": True},
    "min_ram": {"type": "int"},
    "image": {"type": "str", "default": ""},
    "image_source": {"type": "str", "choices": ["", "pull", "build", "archive"], "default": ""},
    "archive": {"type": "dict", "options": ARCHIVE},
    "disk_image": {"type": "int", "default": 0},
    "cache": {"type": "path"},
    "cache_create": {"type": "bool", "default": True},
    "model": {"type": "str", "default": ""},
    "sizing": {"type": "dict", "options": SIZING},
    "adapters": {"type": "dict", "options": ADAPTERS},
    "disk_weights": {"type": "int", "default": 0},
    "port": {"type": "int", "default": 0},
    "bind": {"type": "str", "default": "127.0.0.1"},
    "clock": {"type": "bool", "default": True},
    "sysctls": {"type": "dict", "default": {}},
    "accept": {"type": "list", "elements": "str", "default": []},
    "ask": {"type": "list", "elements": "str", "default": []},
    "conclude": {"type": "dict", "default": {}},
    "of_role": {"type": "bool", "default": False},
    "findings": {"type": "list", "elements": "dict", "default": []},
    "inventory": {"type": "bool", "default": True},
    "late": {"type": "dict", "default": {}},
    "host": {"type": "bool", "default": True},
    "min_python": {"type": "str", "default": "3.10"},
    "sysfs_root": {"type": "path", "default": "/sys"},
    "proc_root": {"type": "path", "default": "/proc"},
    "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
}
SPEC: dict[str, Any] = {"argument_spec": ARGUMENTS}


@dataclass(frozen=True, kw_only=True)
class PreflightOptions(ServerNeeds):
    """What a node should be, and what is to run there.

    The page of the module describes each option. ``look``: the node is looked at, not only the inventory.
    """

    look: bool
    accelerator: str
    allowed_driver_versions: tuple[str, ...]
    wanted_driver: str
    drivers: Table
    gpus: int
    gpu_name: str
    idle_vram: int
    foreign_level: str
    utilization: float | None
    wanted_gpus: Any
    wanted_cpus: Any
    neighbours: tuple[Mapping[str, Any], ...]
    state_dir: str
    leaves_out: bool
    installs_driver: bool
    allows_reboot: bool
    sets_numa_balancing: bool
    min_ram: int | None
    sizing: Mapping[str, Any] | None
    adapters: Mapping[str, Any] | None
    accept: tuple[str, ...]
    findings: tuple[Finding, ...]
    sysfs_root: str
    proc_root: str
    docker_socket: str

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> PreflightOptions:
        """Return the options out of the module's checked ``params``; those of its action are left out."""
        archive = params["archive"]
        parsed = {
            "look": params["host"],
            "archive": Archive(**archive) if archive and archive["path"] else None,
            "cache": Path(params["cache"]) if params["cache"] else None,
            "sysctls": {name: str(value) for name, value in params["sysctls"].items()},
            "allowed_driver_versions": tuple(params["allowed_driver_versions"]),
            "drivers": parse(params["drivers"]) if params["drivers"] else Table(),
            "accept": tuple(params["accept"]),
            "neighbours": tuple(params["neighbours"]),
            "findings": tuple(map(told, params["findings"])),
        }
        as_given = {name: params[name] for name in cls.__dataclass_fields__ if name not in parsed}
        return cls(**parsed, **as_given)
