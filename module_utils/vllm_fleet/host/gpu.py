# SPDX-License-Identifier: Apache-2.0
"""What a node's files say about its AMD GPUs and their memory; driver and kernel are read by driver.py.

Reads files only, under roots that the caller gives, so the same code reads a live node and a tree of text
files; needs no ROCm tool. A file that is missing, empty or unreadable gives ``None`` and a note, never an exception:
a half-dead GPU is exactly when the report is wanted. All sizes are bytes.

Where the files are described: Linux Documentation/gpu/amdgpu (mem_info_vram_*), drivers/gpu/drm/amd/amdkfd
(topology, proc). Everything about partitions follows
kfd_topology.c: one KFD node per partition, ``location_id`` carrying the partition number in bits 31:28 (older
drivers: in the PCI function), and a DRM device of their own whose parent is the platform device ``amdgpu_xcp_N``,
which has no ``mem_info_vram_*``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common import secrets
from ..common.terminal import plain
from . import render_nodes
from .driver import Driver, Kernel, read_driver, read_kernel
from .files import Files

AMD_VENDOR = "0x1002"

# PCI device id -> marketing name. AMD's acceptance documents; virtual functions (VF) from cloud images.
INSTINCT: Mapping[str, str] = {
    "0x74a1": "AMD Instinct MI300X",
    "0x74a5": "AMD Instinct MI325X",
    "0x75a0": "AMD Instinct MI350X",
    "0x75a3": "AMD Instinct MI355X",
    "0x74b5": "AMD Instinct MI300X VF",
    "0x74b9": "AMD Instinct MI325X VF",
    "0x75b0": "AMD Instinct MI350X VF",
    "0x75b3": "AMD Instinct MI355X VF",
}


_ACCELERATOR_CLASS = "0x1200"  # PCI base class 12h: processing accelerators

_COMMAND_LENGTH = 300
_MI300_FAMILY = (90400, 90599)  # KFD's gfx_target_version
_CONTAINER = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Holder:
    """A process that holds VRAM of one GPU. ``bytes`` is None where the kernel does not say."""

    pid: int
    command: str | None
    container: str | None
    container_name: str | None
    bytes: int | None


@dataclass(frozen=True)
class Link:
    """The GPU's PCIe link: speeds as the kernel prints them (``32.0 GT/s PCIe``), widths in lanes."""

    speed: str | None
    width: int | None
    max_speed: str | None
    max_width: int | None
    degraded: bool | None


@dataclass(frozen=True)
class Gpu:
    """One GPU as HIP sees it: a whole device, or one partition of it.

    ``index`` follows the KFD topology, which is HIP's and so vLLM's order. ``partition`` is ``SPX/NPS1`` and so on,
    ``partition_id`` the number of the partition within its device. ``vram_used`` of a partition is what the processes
    in it hold (the driver has no figure per partition) or more where the whole device has less left.
    """

    index: int
    name: str | None
    gfx: str | None
    pci: str | None
    kfd_id: int | None
    render: str | None
    vram_total: int | None
    vram_used: int | None
    vram_free: int | None
    partition: str | None
    partition_id: int
    link: Link
    holders: list[Holder]
    notes: list[str]


@dataclass(frozen=True)
class PciDevice:
    """An AMD accelerator on the PCI bus, whether or not a driver made a GPU of it."""

    pci: str
    device: str
    name: str
    driver: str | None


@dataclass(frozen=True)
class Inventory:
    """Everything that :func:`read` found. ``processes`` are all KFD processes, also those that hold no VRAM."""

    gpus: list[Gpu]
    pci_devices: list[PciDevice]
    processes: list[Holder]
    driver: Driver
    kernel: Kernel
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists and dictionaries, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Node:
    """One GPU node of the KFD topology, before its PCI device has been read."""

    path: Path
    properties: dict[str, int]
    kfd_id: int | None
    pci: str | None
    partition_id: int
    notes: list[str]


def read(
    sysfs_root: Path,
    proc_root: Path = Path("/proc"),
    modules_root: Path = Path("/lib/modules"),
    *,
    modprobe_dirs: Sequence[Path] = (),
    docker_root: Path | Callable[[], Path] | None = None,
    container_names: Mapping[str, str] | None = None,
) -> Inventory:
    """Return what a node's files say.

    ``sysfs_root``, ``proc_root`` and ``modules_root`` stand for /sys, /proc and /lib/modules; ``modprobe_dirs`` are
    searched for a blacklist of amdgpu. Container names come from ``container_names`` (id to name) or, where
    ``docker_root`` is given (as a function: asked only when there is a container to name), from Docker's own
    ``containers/<id>/config.v2.json``. What the tree lacks is never an error.
    """
    files = Files()
    nodes = _gpu_nodes(files, sysfs_root)
    pci_devices = _pci_devices(files, sysfs_root)
    processes = _processes(files, sysfs_root, proc_root, _ContainerNames(files, docker_root, container_names or {}))
    shared = [node.pci for node in nodes if node.pci is not None]
    gpus = [
        _gpu(index, node, sysfs_root, processes, partitioned=node.pci is not None and shared.count(node.pci) > 1)
        for index, node in enumerate(nodes)
    ]
    driver = read_driver(files, sysfs_root, proc_root, modules_root)
    kernel = read_kernel(files, sysfs_root, proc_root, modprobe_dirs)

    notes = list(files.notes)
    with_gpu = {gpu.pci for gpu in gpus}
    for device in pci_devices:
        if device.pci not in with_gpu:
            bound = f"bound to {device.driver}" if device.driver else "bound to no driver"
            notes.append(
                f"{device.name} at {device.pci} is on the PCI bus ({bound}) but the driver made no compute GPU of it"
            )
    if not driver.loaded:
        notes.append("the amdgpu driver is not loaded")
    return Inventory(gpus, pci_devices, [holder for holder, _ in processes], driver, kernel, notes)


def topology_nodes(sysfs_root: Path) -> dict[int, Path]:
    """Return the folders of the GPUs in the KFD topology, by their KFD ids."""
    return {node.kfd_id: node.path for node in _gpu_nodes(Files(), sysfs_root) if node.kfd_id}


def kinds(sysfs_root: Path) -> list[str]:
    """Return the compiler's names of the node's kinds of GPUs, each once, sorted."""
    found = {gfx_name(node.properties.get("gfx_target_version", 0)) for node in _gpu_nodes(Files(), sysfs_root)}
    return sorted(name for name in found if name)


def gfx_name(target_version: int) -> str | None:
    """Return the compiler's name for KFD's ``gfx_target_version``: 90402 is gfx942, 90010 is gfx90a; 0 (a CPU) None."""
    if target_version <= 0:
        return None
    major, minor, step = target_version // 10000, target_version // 100 % 100, target_version % 100
    return f"gfx{major}{minor:x}{step:x}"


def _gpu_nodes(files: Files, sysfs: Path) -> list[_Node]:
    nodes = []
    for path in files.entries(sysfs / "class/kfd/kfd/topology/nodes"):
        if not path.name.isdigit():
            continue
        local = Files()
        properties = local.properties(path / "properties")
        kfd_id = local.number(path / "gpu_id")
        # A CPU has gpu_id 0. With `properties` unreadable the id alone still shows that a GPU is there.
        if not (kfd_id or properties.get("gfx_target_version")):
            files.notes.extend(local.notes)
            continue
        location = properties.get("location_id")
        pci, partition_id = None, 0
        if location is None:
            local.notes.append(f"{path / 'properties'} has no location_id: PCI address unknown")
        else:
            pci, partition_id = render_nodes.pci_address(sysfs, properties.get("domain", 0), location)
        nodes.append(_Node(path, properties, kfd_id, pci, partition_id, local.notes))
    return nodes


def _pci_devices(files: Files, sysfs: Path) -> list[PciDevice]:
    found = []
    for path in files.entries(sysfs / "bus/pci/devices", expected=False):
        if files.text(path / "vendor", expected=False) != AMD_VENDOR:
            continue
        device = files.text(path / "device") or ""
        kind = files.text(path / "class", expected=False) or ""
        if device in INSTINCT or kind.startswith(_ACCELERATOR_CLASS):
            driver = path / "driver"
            bound = driver.resolve().name if driver.exists() else None
            found.append(PciDevice(path.name, device, INSTINCT.get(device, f"AMD accelerator {device}"), bound))
    return found


class _ContainerNames:
    """Names of containers by id: given by the caller, else from Docker's own files, else unknown."""

    def __init__(self, files: Files, docker_root: Path | Callable[[], Path] | None, given: Mapping[str, str]) -> None:
        self._files, self._docker_root, self._given = files, docker_root, given

    def of(self, container: str) -> str | None:
        """Return the name without Docker's leading slash, or None."""
        if container in self._given:
            return self._given[container]
        if self._docker_root is None:
            return None
        if not isinstance(self._docker_root, Path):
            self._docker_root = self._docker_root()
        content = self._files.text(self._docker_root / "containers" / container / "config.v2.json", expected=False)
        try:
            name = json.loads(content or "{}").get("Name")
        except (ValueError, AttributeError):
            return None
        return str(name).lstrip("/") if name else None


def _processes(
    files: Files, sysfs: Path, proc: Path, names: _ContainerNames
) -> list[tuple[Holder, dict[int, int | None]]]:
    """Return every KFD process with its bytes by KFD GPU id. The directory names are PIDs of the host."""
    found: list[tuple[Holder, dict[int, int | None]]] = []
    for path in files.entries(sysfs / "class/kfd/kfd/proc", expected=False):
        if not path.name.isdigit():
            continue
        held: dict[int, int | None] = {}
        for entry in files.entries(path):
            kind, _, gpu = entry.name.partition("_")
            if kind == "vram" and gpu.isdigit():
                held[int(gpu)] = files.number(entry)
        process = proc / path.name
        command = _command(files, process)
        if command is None:
            files.notes.append(
                f"process {path.name} has the GPUs open but {process} does not show its command:"
                " it is exiting, or belongs to another PID namespace"
            )
        container = _container(files, process)
        known = [size for size in held.values() if size is not None]
        total = sum(known) if known else None
        name = names.of(container) if container else None
        found.append((Holder(int(path.name), command, container, name, total), held))
    return found


def _command(files: Files, process: Path) -> str | None:
    line = files.text(process / "cmdline", expected=False)
    if not line:
        return files.text(process / "comm", expected=False)
    return plain(" ".join(secrets.command(line.rstrip("\0").split("\0"))))[:_COMMAND_LENGTH]


def _container(files: Files, process: Path) -> str | None:
    """Return the id of the container that a process lives in: the innermost 64-digit id in its cgroup path."""
    for line in (files.text(process / "cgroup", expected=False) or "").splitlines():
        ids = _CONTAINER.findall(line)
        if ids:
            return str(ids[-1])
    return None


def _gpu(
    index: int,
    node: _Node,
    sysfs: Path,
    processes: Sequence[tuple[Holder, Mapping[int, int | None]]],
    *,
    partitioned: bool,
) -> Gpu:
    files = Files()
    files.notes.extend(node.notes)
    minor = node.properties.get("drm_render_minor", -1)
    render = f"renderD{minor}" if minor >= 0 else None
    device = _device_dir(sysfs, node.pci, render)

    target = node.properties.get("gfx_target_version", 0)
    # Only the MI300 family (gfx94x, gfx950) has partitions; elsewhere the files are rightly absent.
    partitions = _MI300_FAMILY[0] <= target <= _MI300_FAMILY[1]

    def mode(name: str) -> str | None:
        return files.text(device / name, expected=partitions) if device else None

    if device is None:
        files.notes.append(
            f"no device directory for {node.pci or render or node.path}: link and partition unknown,"
            " memory known from the KFD topology only"
        )
    device_id = node.properties.get("device_id")
    product = files.text(device / "product_name", expected=False) if device else None
    name = product or INSTINCT.get(f"0x{device_id:04x}" if device_id is not None else "")
    compute, memory = mode("current_compute_partition"), mode("current_memory_partition")
    modes = [value for value in (compute, memory) if value]
    partitioned = partitioned or node.partition_id > 0 or compute not in (None, "SPX")

    holders = _holders(node.kfd_id, processes)
    total, used = _vram(files, node, device, holders, partitioned=partitioned)
    free = None
    if total is not None and used is not None:
        if used > total:
            files.notes.append(f"{used} bytes of VRAM used of {total}: taken as full")
        free = max(0, total - used)
    return Gpu(
        index=index,
        name=name,
        gfx=gfx_name(target),
        pci=node.pci,
        kfd_id=node.kfd_id,
        render=render,
        vram_total=total,
        vram_used=used,
        vram_free=free,
        partition="/".join(modes) or None,
        partition_id=node.partition_id,
        link=_link(files, device),
        holders=holders,
        notes=files.notes,
    )


def _device_dir(sysfs: Path, pci: str | None, render: str | None) -> Path | None:
    """Return the PCI device's directory. One directory a device, so card and render nodes are never counted twice."""
    candidates = [sysfs / "bus/pci/devices" / pci] if pci else []
    if render:
        candidates.append(sysfs / "class/drm" / render / "device")
    return next((path for path in candidates if path.is_dir()), None)


def _holders(kfd_id: int | None, processes: Iterable[tuple[Holder, Mapping[int, int | None]]]) -> list[Holder]:
    found = []
    for process, held in processes:
        if kfd_id is None or kfd_id not in held or held[kfd_id] == 0:
            continue
        found.append(
            Holder(process.pid, process.command, process.container, process.container_name, bytes=held[kfd_id])
        )
    return found


def _vram(
    files: Files, node: _Node, device: Path | None, holders: Sequence[Holder], *, partitioned: bool
) -> tuple[int | None, int | None]:
    """Return (total, used). A partition has no figures of its own in mem_info_vram_*: those are the whole device's."""
    whole = files.number(device / "mem_info_vram_total") if device else None
    whole_used = files.number(device / "mem_info_vram_used") if device else None
    if not partitioned and whole is not None:
        return whole, whole_used
    total = _bank_bytes(files, node.path)
    if not partitioned:
        if total is not None:
            files.notes.append("VRAM total taken from the KFD memory banks")
        return total, whole_used
    if total is None:
        files.notes.append("a partition's VRAM is known from its KFD memory banks only, and those cannot be read")
        return None, None
    held = sum(holder.bytes or 0 for holder in holders)
    free = total - held
    if whole is not None and whole_used is not None:
        free = min(free, whole - whole_used)
    files.notes.append("partition: VRAM used is what its processes hold, as the driver counts per device only")
    return total, total - free


def _bank_bytes(files: Files, node: Path) -> int | None:
    sizes = []
    for bank in files.entries(node / "mem_banks", expected=False):
        properties = files.properties(bank / "properties")
        if properties.get("heap_type", 0) != 0 and "size_in_bytes" in properties:  # heap 0 is system memory
            sizes.append(properties["size_in_bytes"])
    return sum(sizes) if sizes else None


def _link(files: Files, device: Path | None) -> Link:
    if device is None:
        return Link(None, None, None, None, None)
    speed, max_speed = files.text(device / "current_link_speed"), files.text(device / "max_link_speed")
    width, max_width = files.number(device / "current_link_width"), files.number(device / "max_link_width")
    degraded = None
    if None not in (speed, max_speed, width, max_width):
        degraded = speed != max_speed or width != max_width
    return Link(speed, width, max_speed, max_width, degraded)
