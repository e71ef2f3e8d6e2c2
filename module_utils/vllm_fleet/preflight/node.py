# SPDX-License-Identifier: Apache-2.0
"""One look at a node: what it is made of, judged by what is to run there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..common import finding
from ..container.api import DockerApi
from ..host import gpu_memory, probe, rocm
from ..models import model_files, sizing, sizing_table
from ..vllm.cli import CommandError
from . import judge
from .options import PreflightOptions


def result(options: PreflightOptions) -> dict[str, Any]:
    """Return what preflight_host returns for its ``options``, of a failure too. Nothing changes."""
    found = list(options.findings)
    answer: dict[str, Any] = {}
    if options.look:
        try:
            answer, more = look(options)
        except ValueError as error:
            return {"failed": True, "msg": str(error)}
        found = [*found, *more]
    found = finding.accept(found, options.accept)
    return {
        "changed": False,
        "ansible_facts": {"ansible_distribution_release": rocm.operating_system(Path("/etc"))["version_codename"]},
        "findings": [asdict(one) for one in found],
        "worst": finding.worst(found),
        "refusals": [one.sentence for one in found if one.level in finding.ENDING],
        **answer,
    }


def look(options: PreflightOptions) -> tuple[dict[str, Any], list[finding.Finding]]:
    """Return what rocm_info says (node) and what the model takes (sizing), where there is such, and all findings."""
    engine = DockerApi(options.docker_socket, timeout=20)
    own = probe.own_container(engine, options.name)
    node = None
    if options.accelerator == "rocm":
        allowed = options.allowed_driver_versions
        node = rocm.look(
            rocm.Roots(
                options.sysfs_root,
                options.proc_root,
                docker_socket=options.docker_socket,
                own_container=options.name,
                allowed_driver_versions=allowed,
            )
        )
        if not allowed:
            node["driver"]["allowed"] = None
    share, used = wants(options, node)
    expected = judge.Expected(
        gpus=options.gpus,
        gpu_name=options.gpu_name,
        idle_vram=options.idle_vram,
        own_container=options.name,
        own_container_id=str(own.get("Id") or ""),
        foreign_level=options.foreign_level,
        utilization=share,
        used=used,
        installs_driver=options.installs_driver,
        allows_reboot=options.allows_reboot,
        sets_numa_balancing=options.sets_numa_balancing,
        min_ram=options.min_ram,
        port=options.port,
        clock=options.clock,
        sysctls=options.sysctls,
    )
    found = judge.judge(node, probe.look(options, engine, own), expected)
    answer: dict[str, Any] = {} if node is None else {"node": node}
    answer["place"] = {
        "machine": probe.machine(Path(options.proc_root)),
        "name": options.name,
        "bind": options.bind,
        "port": options.port,
    }
    if options.sizing and options.model:
        sized, about_model = model_files.on_node(options.model, options.sizing, node, options.cache)
        found = [*about_model, *found]
        if sized:
            answer["sizing"] = sizing_table.as_row(sized)
    return answer, found


def wants(options: PreflightOptions, node: dict[str, Any] | None) -> tuple[float, list[int] | None]:
    """Return the share of each GPU's memory that the server will ask for, and of which GPUs (None: of all)."""
    asked = options.sizing or {"args": {}, "env": {}, "devices": None}
    try:
        share, used = sizing.wants((node or {}).get("gpus") or [], asked["args"], asked["env"], asked["devices"])
    except (CommandError, ValueError):  # the sizing of the model reports it
        share, used = gpu_memory.DEFAULT_UTILIZATION, None
    given = options.utilization
    return (share if given is None else given), (used if options.sizing else None)
