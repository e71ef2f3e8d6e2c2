# SPDX-License-Identifier: Apache-2.0
"""One look at a node: what it is made of, judged by what is to run there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..common import finding
from ..container.api import DockerApi
from ..host import gpu_memory, probe, rocm
from ..models import model_files, sizing, sizing_table
from ..vllm.cli import CommandError
from . import judge

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
    "gpus": {"type": "int", "default": 8},
    "gpu_name": {"type": "str", "default": ""},
    "idle_vram": {"type": "int", "default": 5_000_000_000},
    "foreign_level": {"type": "str", "choices": ["warning", "refused"], "default": "refused"},
    "utilization": {"type": "float"},
    "name": {"type": "str", "default": "vllm"},
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
    "disk_weights": {"type": "int", "default": 0},
    "port": {"type": "int", "default": 0},
    "bind": {"type": "str", "default": "127.0.0.1"},
    "clock": {"type": "bool", "default": True},
    "sysctls": {"type": "dict", "default": {}},
    "accept": {"type": "list", "elements": "str", "default": []},
    "ask": {"type": "list", "elements": "str", "default": []},
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


def result(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what preflight_host returns for its checked ``options``, of a failure too. Nothing changes."""
    found = [finding.Finding(**one) for one in options["findings"]]
    answer: dict[str, Any] = {}
    if options["host"]:
        try:
            answer, more = look(options)
        except ValueError as error:
            return {"failed": True, "msg": str(error)}
        found = [*found, *more]
    found = finding.accept(found, options["accept"])
    return {
        "changed": False,
        "ansible_facts": {"ansible_distribution_release": rocm.operating_system(Path("/etc"))["version_codename"]},
        "findings": [asdict(one) for one in found],
        "worst": finding.worst(found),
        "refusals": [one.sentence for one in found if one.level in finding.ENDING],
        **answer,
    }


def look(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[finding.Finding]]:
    """Return what rocm_info says (node) and what the model takes (sizing), where there is such, and all findings."""
    engine = DockerApi(options["docker_socket"], timeout=20)
    own = probe.own_container(engine, options["name"])
    node = None
    if options["accelerator"] == "rocm":
        allowed = options["allowed_driver_versions"]
        node = rocm.look(
            rocm.Roots(
                options["sysfs_root"],
                options["proc_root"],
                docker_socket=options["docker_socket"],
                own_container=options["name"],
                allowed_driver_versions=allowed,
            )
        )
        if not allowed:
            node["driver"]["allowed"] = None
    share, used = wants(options, node)
    expected = judge.Expected(
        gpus=options["gpus"],
        gpu_name=options["gpu_name"],
        idle_vram=options["idle_vram"],
        own_container=options["name"],
        own_container_id=str(own.get("Id") or ""),
        foreign_level=options["foreign_level"],
        utilization=share,
        used=used,
        installs_driver=options["installs_driver"],
        allows_reboot=options["allows_reboot"],
        sets_numa_balancing=options["sets_numa_balancing"],
        min_ram=options["min_ram"],
        port=options["port"],
        clock=options["clock"],
        sysctls={name: str(value) for name, value in options["sysctls"].items()},
    )
    found = judge.judge(node, probe.look(options, engine, own), expected)
    answer: dict[str, Any] = {} if node is None else {"node": node}
    answer["place"] = {
        "machine": probe.machine(Path(options["proc_root"])),
        **{name: options[name] for name in ("name", "bind", "port")},
    }
    if options["sizing"] and options["model"]:
        cache = Path(options["cache"]) if options["cache"] else None
        sized, about_model = model_files.on_node(options["model"], options["sizing"], node, cache)
        found = [*about_model, *found]
        if sized:
            answer["sizing"] = sizing_table.as_row(sized)
    return answer, found


def wants(options: Mapping[str, Any], node: dict[str, Any] | None) -> tuple[float, list[int] | None]:
    """Tell the share of each GPU's memory that the server will ask for, and of which GPUs (None: of all)."""
    asked = options["sizing"] or {"args": {}, "env": {}, "devices": None}
    try:
        share, used = sizing.wants((node or {}).get("gpus") or [], asked["args"], asked["env"], asked["devices"])
    except (CommandError, ValueError):  # told by the arithmetic of what fits
        share, used = gpu_memory.DEFAULT_UTILIZATION, None
    given = options["utilization"]
    return (share if given is None else given), (used if options["sizing"] else None)
