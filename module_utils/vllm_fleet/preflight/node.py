# SPDX-License-Identifier: Apache-2.0
"""One look at a node: what it is made of, judged by what is to run there."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common import finding, maintenance
from ..container.api import DockerApi, DockerRefused, DockerUnavailable
from ..container.spec import LABEL_MANAGED
from ..host import gpu_memory, place, probe, rocm
from ..host.place import Place
from ..host.share import NoPlace
from ..models import adapter_files, model_files, sizing, sizing_table
from ..vllm import adapters
from ..vllm.cli import CommandError
from . import judge
from .options import PreflightOptions


def result(options: PreflightOptions) -> dict[str, Any]:
    """Return what preflight_host returns for its ``options``, of a failure too. Nothing changes."""
    resting = maintenance.look(options.state_dir, options.name) if options.leaves_out else ""
    found = [] if resting else list(options.findings)
    answer: dict[str, Any] = {"maintenance": resting} if resting else {}
    if options.look and not resting:
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
    shared = look_for_place(options, node, engine)
    options = dataclasses.replace(options, sizing=shared.sizing)
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
        given=shared.place.gpus if shared.place else None,
        neighbours=shared.neighbours,
        installs_driver=options.installs_driver,
        drivers=options.drivers,
        wanted_driver=options.wanted_driver,
        allows_reboot=options.allows_reboot,
        sets_numa_balancing=options.sets_numa_balancing,
        min_ram=options.min_ram,
        port=options.port,
        clock=options.clock,
        sysctls=options.sysctls,
    )
    host = probe.look(options, engine, own)
    ident = host.image.ident if host.image else ""
    proven = bool(ident) and own.get("Image") == ident and bool((own.get("State") or {}).get("Running"))
    found = judge.judge(node, host, dataclasses.replace(expected, proven=proven))
    found += shared.findings
    answer: dict[str, Any] = {} if node is None else {"node": node}
    answer["place"] = {
        "machine": probe.machine(Path(options.proc_root)),
        "name": options.name,
        "bind": options.bind,
        "port": options.port,
    }
    found += _adapters(options)
    if options.sizing and options.model:
        sized, about_model = model_files.on_node(options.model, options.sizing, node, options.cache)
        found = [*(_with_wish(one, shared.place) for one in about_model), *found]
        if sized:
            answer["sizing"] = sizing_table.as_row(sized)
    return answer, found


def _adapters(options: PreflightOptions) -> list[finding.Finding]:
    """Return what speaks against the adapters: the inventory first, then each one's own file."""
    asked = options.adapters
    if not asked:
        return []
    try:
        wanted = adapters.parse(asked["adapters"])
    except adapters.AdapterError:  # the inventory's own finding
        return []
    found = adapters.judge(wanted, asked["args"], asked["served"], cached=asked["cached"])
    return [*found, *adapter_files.findings(wanted, asked, options.model, options.cache)]


@dataclass(frozen=True)
class Shared:
    """The server's place on a node that it shares, the sizing of its model there, and the neighbours' containers."""

    sizing: Mapping[str, Any] | None
    place: Place | None = None
    neighbours: frozenset[str] = frozenset()
    findings: tuple[finding.Finding, ...] = ()


def look_for_place(options: PreflightOptions, node: Mapping[str, Any] | None, engine: DockerApi) -> Shared:
    """Find the place that the server would get now; nothing is written down."""
    sizing_of = options.sizing or {}
    asked = place.Asked(
        place.Asker(options.name, options.wanted_gpus, options.wanted_cpus, options.accelerator == "rocm"),
        tuple(place.Asker.from_option(one) for one in options.neighbours),
        Path(options.state_dir),
        Path(options.sysfs_root),
        place.chosen_by_hand(sizing_of.get("env") or {}, sizing_of.get("devices")),
    )
    if not asked.shared:
        return Shared(options.sizing)
    containers: list[dict[str, Any]] = []
    with contextlib.suppress(DockerUnavailable, DockerRefused):  # no engine yet, so no container
        containers = engine.containers_with_label(f"{LABEL_MANAGED}=true")
    gpus = (node or {}).get("gpus") or []
    try:
        if asked.own.rocm and not gpus:
            place.check(asked)  # the driver is yet to come, and says then what there is
            return Shared(options.sizing)
        found = place.find(asked, containers, gpus)
    except NoPlace as exc:
        wrong = finding.Finding("refused", "place on the node", "a place of its own", exc.why, exc.remedy)
        return Shared(options.sizing, findings=(wrong,))
    except OSError as exc:
        level = "unknown" if exc.errno in (errno.EACCES, errno.EPERM) else "refused"
        remedy = "see what is wrong with it and its disk, then move it away"
        got = f"{exc.filename} cannot be read ({exc.strerror})"
        wrong = finding.Finding(level, "place on the node", "a place of its own", got, remedy)
        return Shared(options.sizing, findings=(wrong,))
    others = frozenset(str(one["Id"]) for one in containers if place.server_of(one) != options.name)
    if found is None or found.gpus is None:
        return Shared(options.sizing, found, others)
    rendered = None if options.sizing is None else {**options.sizing, "devices": place.devices(found)}
    return Shared(rendered, found, others)


def _with_wish(found: finding.Finding, given: Place | None) -> finding.Finding:
    """Say of GPUs that the model lacks which variable gives them."""
    if given is None or given.gpus is None or found.what != sizing.GPUS_FOR_THE_MODEL:
        return found
    remedy = f"set vllm_server_gpus to {found.expected}, or {found.remedy} to {len(given.gpus)}"
    return dataclasses.replace(found, remedy=remedy)


def wants(options: PreflightOptions, node: dict[str, Any] | None) -> tuple[float, list[int] | None]:
    """Return the share of each GPU's memory that the server will ask for, and of which GPUs (None: of all)."""
    asked = options.sizing or {"args": {}, "env": {}, "devices": None}
    try:
        share, used = sizing.wants((node or {}).get("gpus") or [], asked["args"], asked["env"], asked["devices"])
    except (CommandError, ValueError):  # the sizing of the model reports it
        share, used = gpu_memory.DEFAULT_UTILIZATION, None
    given = options.utilization
    return (share if given is None else given), (used if options.sizing else None)
