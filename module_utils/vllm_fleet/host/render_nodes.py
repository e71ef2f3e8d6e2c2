# SPDX-License-Identifier: Apache-2.0
"""Which GPU a render node (``renderD128``) is: by its PCI address, as the KFD topology says it. Reads files only.

Source: Linux, kfd_topology.c. ``location_id`` has the partition's number in bits 31:28; older drivers have it in the
PCI function.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .files import Files


def addresses(sysfs: Path) -> dict[str, str]:
    """Return the PCI addresses of a node's GPUs by their render nodes; all partitions of a GPU have its address."""
    found = {}
    for node in Files().entries(sysfs / "class/kfd/kfd/topology/nodes", expected=False):
        properties = Files().properties(node / "properties")
        render = of_properties(properties)
        if render and "location_id" in properties:
            found[render] = pci_address(sysfs, properties.get("domain", 0), properties["location_id"])[0]
    return found


def of_properties(properties: Mapping[str, int]) -> str | None:
    """Return the render node of a node of the topology; None where it has none, as a CPU."""
    minor = properties.get("drm_render_minor", -1)
    return f"renderD{minor}" if minor > 0 else None


def pci_address(sysfs: Path, domain: int, location: int) -> tuple[str, int]:
    """Return the PCI address of a GPU, and the number of its partition."""
    bus, slot, function = location >> 8 & 0xFF, location >> 3 & 0x1F, location & 7
    address = f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"
    devices = sysfs / "bus/pci/devices"
    if function and not (devices / address).exists():
        whole = f"{domain:04x}:{bus:02x}:{slot:02x}.0"
        if (devices / whole).exists():
            return whole, function
    return address, location >> 28 & 0xF
