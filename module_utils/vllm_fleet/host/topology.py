# SPDX-License-Identifier: Apache-2.0
"""How near the GPUs and the CPUs of a node are to one another, as /sys says it. Reads files only.

What cannot be read is not known, and makes no difference between two sets. Links: Linux, kfd_topology.c (io_links,
p2p_links); CPUs: Documentation/admin-guide/cputopology.rst.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..container.fields import SpecError, parse_numbers
from . import gpu
from .files import Files
from .share import Unit


def gpu_units(sysfs: Path, gpus: Sequence[Mapping[str, Any]], against: Mapping[int, str]) -> list[Unit]:
    """Return GPUs, as rocm_info has them, as units; ``against`` says what speaks against one, by index."""
    links = _links(sysfs, gpus)
    units = []
    for one in gpus:
        index, pci = int(one["index"]), one.get("pci")
        numa = Files().number(sysfs / "bus/pci/devices" / str(pci) / "numa_node", expected=False) if pci else None
        # Linux writes -1 where the firmware does not say.
        known = numa if numa is not None and numa >= 0 else None
        units.append(Unit(index, known, str(pci or ""), links.get(index, {}), against.get(index, "")))
    return units


def _links(sysfs: Path, gpus: Sequence[Mapping[str, Any]]) -> dict[int, dict[int, int]]:
    """Return the weights of the links between GPUs, by index and index; less is nearer."""
    folders = gpu.topology_nodes(sysfs)
    index_of = {int(folders[one["kfd_id"]].name): int(one["index"]) for one in gpus if one.get("kfd_id") in folders}
    found: dict[int, dict[int, int]] = {}
    for node, index in index_of.items():
        for kind in ("io_links", "p2p_links"):
            for link in Files().entries(sysfs / "class/kfd/kfd/topology/nodes" / str(node) / kind, expected=False):
                properties = Files().properties(link / "properties")
                other, weight = index_of.get(properties.get("node_to", -1)), properties.get("weight")
                if other is not None and weight is not None:
                    known = found.setdefault(index, {})
                    known[other] = min(weight, known.get(other, weight))
    return found


def cpu_units(sysfs: Path, allowed: Collection[int] | None = None) -> list[Unit]:
    """Return the CPUs that are online; ``allowed``: no others than these. Both threads of a core are one device."""
    folder = sysfs / "devices/system"
    online = _numbers(folder / "cpu/online")
    numa = {
        number: int(node.name.removeprefix("node"))
        for node in Files().entries(folder / "node", expected=False)
        if node.name.removeprefix("node").isdigit()
        for number in _numbers(node / "cpulist")
    }
    units = []
    for number in online:
        if allowed is not None and number not in allowed:
            continue
        threads = _numbers(folder / f"cpu/cpu{number}/topology/thread_siblings_list")
        units.append(Unit(number, numa.get(number), f"core {min(threads or (number,))}"))
    return units


def _numbers(path: Path) -> tuple[int, ...]:
    text = Files().text(path, expected=False)
    try:
        return parse_numbers(text, path.name) if text else ()
    except SpecError:
        return ()
