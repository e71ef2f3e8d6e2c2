# SPDX-License-Identifier: Apache-2.0
"""Builds trees of text files that look like /sys, /proc and /lib/modules of a node with AMD GPUs.

    python tests/sysfs/trees.py --list
    python tests/sysfs/trees.py mi300x DIRECTORY

Each value names where it was seen; what nobody published is marked "derived" and says from what. Nothing here was
recorded on our own hardware. Standard library only, so that a test node can run it too.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Model:
    """One product. Sizes in bytes."""

    name: str
    device: str
    gfx_target_version: int
    simd_count: int
    vram_total: int
    idle_used: int


MODELS = {
    # Device id, gfx_target_version, simd_count, num_xcc: AMD acceptance documents and KFD properties of a real node.
    # VRAM total and idle use: rocm-smi of an 8-GPU MI300X, ROCm/legacy-rocm-build#4750 (196592 MiB, 284 MiB).
    "mi300x": Model("AMD Instinct MI300X", "0x74a1", 90402, 1216, 206141652992, 297771008),
    # Device id: AMD. VRAM derived: 256 GiB less the 16 MiB by which the other two stay under theirs. Idle as MI300X.
    "mi325x": Model("AMD Instinct MI325X", "0x74a5", 90402, 1216, 262128 * MIB, 297771008),
    # Device id, gfx950: AMD. VRAM: amd-smi metric of an MI355X, 294896 MB (MiB), idle 283 to 285 MiB. 256 CUs.
    "mi355x": Model("AMD Instinct MI355X", "0x75a3", 90500, 1024, 294896 * MIB, 298119168),
}

# BDFs of an 8-GPU board as in AMD's own amd-smi topology example.
BUSES = (0x05, 0x26, 0x46, 0x65, 0x85, 0xA6, 0xC6, 0xE5)

# One DRM minor per possible partition: 128, 136, 144 ... even when the GPUs are not partitioned (ROCm partition guide).
FIRST_MINOR, MINOR_STEP = 128, 8

PARTITIONS = {"SPX": 1, "DPX": 2, "QPX": 4, "CPX": 8}  # per MI300X: it has 8 XCCs (ROCm partition guide)

KERNEL = "6.8.0-90-generic"
GOOD_CMDLINE = "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro pci=realloc=off pci=bfsort iommu=pt"
LOADED_VERSION = "6.16.13"  # module version of AMD driver 30.30.x
LOADED_SRCVERSION = "0A1B2C3D4E5F60718293A4B"


def link_to(link: Path, target: Path) -> None:
    """Make a relative link, as sysfs has them: the tree may be copied elsewhere."""
    link.symlink_to(os.path.relpath(target, link.parent))


class Tree:
    """A fake node under ``root``: ``sys``, ``proc``, ``modules`` and ``docker`` are what a reader is pointed at."""

    def __init__(self, root: Path, model: str = "mi300x") -> None:
        self.root, self.model = root, MODELS[model]
        self.sys, self.proc = root / "sys", root / "proc"
        self.modules, self.docker = root / "modules", root / "docker"
        self.kfd = self.sys / "class/kfd/kfd"
        self.kfd_ids: list[int] = []

    def write(self, path: Path, content: object) -> Path:
        """Write one line (or text as it is), making the folders."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = str(content)
        path.write_text(text if text.endswith(("\n", "\0")) else text + "\n", encoding="utf-8")
        return path

    def host(self, cmdline: str = GOOD_CMDLINE, numa_balancing: int = 0) -> None:
        """Everything that is not a GPU. RAM: what AMD asks of an MI300X node, 2 TB."""
        self.write(self.proc / "cmdline", cmdline)
        self.write(self.proc / "meminfo", f"MemTotal:       {2 * 10**12 // 1024} kB")
        self.write(self.proc / "sys/kernel/osrelease", KERNEL)
        self.write(self.proc / "sys/kernel/numa_balancing", numa_balancing)
        # A CPU is a KFD node too: gpu_id 0, gfx_target_version 0.
        self.write(self.kfd / "topology/nodes/0/gpu_id", 0)
        self.write(self.kfd / "topology/nodes/0/properties", "cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0")

    def driver(self, version: str | None = LOADED_VERSION, srcversion: str | None = LOADED_SRCVERSION) -> None:
        """Load amdgpu; the distribution's own module has no version, and Debian's no srcversion either."""
        self.write(self.sys / "module/amdgpu/initstate", "live")
        if srcversion is not None:
            self.write(self.sys / "module/amdgpu/srcversion", srcversion)
        if version is not None:
            self.write(self.sys / "module/amdgpu/version", version)

    def on_disk(self, version: str | None = LOADED_VERSION, srcversion: str | None = LOADED_SRCVERSION) -> Path:
        """Put the module where DKMS puts it, and into modules.dep."""
        folder = self.modules / KERNEL
        self.write(folder / "modules.dep", "updates/dkms/amdgpu.ko: kernel/drivers/gpu/drm/ttm/ttm.ko")
        return write_module(folder / "updates/dkms/amdgpu.ko", version, srcversion)

    def device_dir(self, gpu: int) -> Path:
        """Return the PCI directory of the physical GPU ``gpu``."""
        return self.sys / "bus/pci/devices" / f"0000:{BUSES[gpu]:02x}:00.0"

    def add_gpu(self, gpu: int, compute: str = "SPX", memory: str = "NPS1", used: int | None = None) -> None:
        """Add the physical GPU number ``gpu`` with all its partitions."""
        device = self.device_dir(gpu)
        for name, value in {
            "vendor": "0x1002",
            "device": self.model.device,
            "class": "0x120000",  # processing accelerator, as lspci -nn shows an Instinct
            "mem_info_vram_total": self.model.vram_total,
            "mem_info_vram_used": self.model.idle_used if used is None else used,
            "current_compute_partition": compute,
            "current_memory_partition": memory,
            "current_link_speed": "32.0 GT/s PCIe",  # acceptance documents: LnkSta 32GT/s, x16
            "current_link_width": 16,
            "max_link_speed": "32.0 GT/s PCIe",
            "max_link_width": 16,
        }.items():
            self.write(device / name, value)
        driver = self.sys / "bus/pci/drivers/amdgpu"
        driver.mkdir(parents=True, exist_ok=True)
        link_to(device / "driver", driver)

        parts = PARTITIONS[compute]
        # With NPS4 a partition reports its quarter of the HBM ("48.0 GB" on an MI300X).
        bank = self.model.vram_total // int(memory.removeprefix("NPS"))
        for part in range(parts):
            minor = FIRST_MINOR + gpu * MINOR_STEP + part
            node = self.kfd / "topology/nodes" / str(1 + len(self.kfd_ids))
            kfd_id = 10007 + 977 * len(self.kfd_ids)
            self.kfd_ids.append(kfd_id)
            self.write(node / "gpu_id", kfd_id)
            self.write(
                node / "properties",
                f"cpu_cores_count 0\nsimd_count {self.model.simd_count // parts}\nmem_banks_count 1\n"
                f"gfx_target_version {self.model.gfx_target_version}\nvendor_id 4098\n"
                f"device_id {int(self.model.device, 16)}\n"
                # kfd_topology.c: bus and function, and the partition in bits 31:28 when there is more than one.
                f"location_id {BUSES[gpu] << 8 | part << 28}\ndomain 0\ndrm_render_minor {minor}\n"
                f"num_xcc {8 // parts}\nunique_id {7843934696581995200 + gpu}",
            )
            self.write(
                node / "mem_banks/0/properties",
                f"heap_type 1\nsize_in_bytes {bank}\nflags 0\nwidth 8192\nmem_clk_max 1300",
            )
            # The first partition is the PCI device; the others hang from a platform device without memory files.
            parent = device
            if part:
                parent = self.sys / f"devices/platform/amdgpu_xcp_{gpu * (parts - 1) + part - 1}"
                parent.mkdir(parents=True)
            for name in (f"renderD{minor}", f"card{minor - FIRST_MINOR + 1}"):
                link = self.sys / "class/drm" / name / "device"
                link.parent.mkdir(parents=True)
                link_to(link, parent)

    def add_gpus(self, count: int = 8, compute: str = "SPX", memory: str = "NPS1") -> None:
        """Add ``count`` idle GPUs."""
        for gpu in range(count):
            self.add_gpu(gpu, compute, memory)

    def neighbourhood(self) -> None:
        """Say which GPUs are near: four at each of two NUMA nodes, all linked by XGMI, weight 15 (derived: MI300X)."""
        nodes = [path for path in sorted((self.kfd / "topology/nodes").iterdir()) if path.name != "0"]
        for gpu in range(8):
            if self.device_dir(gpu).is_dir():
                self.write(self.device_dir(gpu) / "numa_node", gpu // 4)
        for node in nodes:
            for at, other in enumerate(one for one in nodes if one != node):
                text = f"type 11\nnode_from {node.name}\nnode_to {other.name}\nweight 15"
                self.write(node / f"io_links/{at}/properties", text)

    def cpus(self, cores: int = 8, threads: int = 2, sockets: int = 2) -> None:
        """Give the node CPUs, numbered as Linux does: the second threads come after all first ones."""
        folder = self.sys / "devices/system"
        self.write(folder / "cpu/online", f"0-{cores * threads - 1}")
        for core in range(cores):
            siblings = [core + thread * cores for thread in range(threads)]
            for cpu in siblings:
                text = ",".join(map(str, siblings))
                self.write(folder / f"cpu/cpu{cpu}/topology/thread_siblings_list", text)
        each = cores // sockets
        for socket in range(sockets):
            mine = [f"{socket * each + t * cores}-{(socket + 1) * each - 1 + t * cores}" for t in range(threads)]
            self.write(folder / f"node/node{socket}/cpulist", ",".join(mine))

    def process(self, pid: int, command: list[str], container: str | None = None, name: str | None = None) -> None:
        """Add a process to /proc; in a container when an id is given, known to Docker when a name is."""
        self.write(self.proc / str(pid) / "cmdline", "".join(f"{word}\0" for word in command))
        group = (
            f"/system.slice/docker-{container}.scope" if container else "/user.slice/user-1000.slice/session-3.scope"
        )
        self.write(self.proc / str(pid) / "cgroup", f"0::{group}")
        if container and name:
            config = {"ID": container, "Name": f"/{name}"}
            self.write(self.docker / "containers" / container / "config.v2.json", json.dumps(config))

    def hold(self, index: int, pid: int, size: int) -> None:
        """Let a process hold ``size`` bytes of the KFD GPU ``index``; the device's used figure rises with it."""
        folder = self.kfd / "proc" / str(pid)
        for kfd_id in self.kfd_ids:  # the kernel makes one file per GPU, most of them 0
            path = folder / f"vram_{kfd_id}"
            if not path.exists():
                self.write(path, 0)
        self.write(folder / f"vram_{self.kfd_ids[index]}", size)
        per_gpu = max(1, len(self.kfd_ids) // max(1, len(list((self.sys / "bus/pci/devices").iterdir()))))
        used = self.device_dir(index // per_gpu) / "mem_info_vram_used"
        self.write(used, int(used.read_text()) + size)

    def break_file(self, path: Path) -> None:
        """Make a file answer EIO, as sysfs does while a GPU hangs: /proc/self/mem cannot be read at its start."""
        path.unlink()
        path.symlink_to("/proc/self/mem")


def write_module(path: Path, version: str | None, srcversion: str | None) -> Path:
    """Write the smallest ELF file that modinfo reads: a null section, .modinfo and the section names."""
    fields = ["license=GPL and additional rights", "name=amdgpu"]
    if srcversion is not None:
        fields.insert(0, f"srcversion={srcversion}")
    if version is not None:
        fields.insert(0, f"version={version}")
    info = "".join(f"{field}\0" for field in fields).encode()
    names = b"\0.modinfo\0.shstrtab\0"
    info_at, names_at = 64, 64 + len(info)
    table_at = (names_at + len(names) + 7) // 8 * 8
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    table = bytes(64)
    table += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, info_at, len(info), 0, 0, 1, 0)
    table += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((header + info + names).ljust(table_at, b"\0") + table)
    return path


def _whole(root: Path, model: str) -> Tree:
    tree = Tree(root, model)
    tree.host()
    tree.driver()
    tree.on_disk()
    tree.add_gpus()
    return tree


def mi300x(root: Path) -> Tree:
    """Eight idle MI300X, SPX/NPS1, driver 30.30.x."""
    return _whole(root, "mi300x")


def mi325x(root: Path) -> Tree:
    """Eight idle MI325X."""
    return _whole(root, "mi325x")


def mi355x(root: Path) -> Tree:
    """Eight idle MI355X."""
    return _whole(root, "mi355x")


def cpx_nps4(root: Path) -> Tree:
    """Eight MI300X cut into 64 partitions of a quarter of the memory each."""
    tree = Tree(root, "mi300x")
    tree.host()
    tree.driver()
    tree.on_disk()
    tree.add_gpus(8, "CPX", "NPS4")
    return tree


def one_missing(root: Path) -> Tree:
    """Eight MI300X on the bus; the driver gave up on number 5, so KFD has seven."""
    tree = Tree(root, "mi300x")
    tree.host()
    tree.driver()
    tree.on_disk()
    for gpu in (0, 1, 2, 3, 4, 6, 7):
        tree.add_gpu(gpu)
    lost = tree.device_dir(5)
    for name, value in {"vendor": "0x1002", "device": tree.model.device, "class": "0x120000"}.items():
        tree.write(lost / name, value)
    return tree


def no_driver(root: Path) -> Tree:
    """Eight MI300X on the bus and no amdgpu: no KFD, no DRM."""
    tree = _whole(root, "mi300x")
    for path in (tree.sys / "class", tree.sys / "module"):
        shutil.rmtree(path)
    for gpu in range(8):
        for path in tree.device_dir(gpu).iterdir():
            if path.name not in ("vendor", "device", "class"):
                path.unlink()
    shutil.rmtree(tree.modules)
    return tree


FOREIGN_CONTAINER = "4f66ad0f1c1e7c9b8a53a0e9dd5f6b1e0c8f7a6b5d4c3b2a19081726354453ef"
SEED_TAKEN = 27.22  # GiB, the line that a user's MI300X printed: 164.76 of 191.98 GiB free


def foreign_holder(root: Path) -> Tree:
    """Eight MI300X; on number 3 a training job in a container holds what leaves 164.76 GiB free."""
    tree = _whole(root, "mi300x")
    size = int(SEED_TAKEN * (1 << 30)) - tree.model.idle_used
    tree.process(4711, ["python3", "train.py", "--api-key", "s3cret", "--lr=1e-4"], FOREIGN_CONTAINER, "trainer")
    tree.hold(3, 4711, size)
    return tree


def read_error(root: Path) -> Tree:
    """Eight MI300X; number 2 answers reads of its memory and link with EIO."""
    tree = _whole(root, "mi300x")
    for name in ("mem_info_vram_used", "current_link_speed"):
        tree.break_file(tree.device_dir(2) / name)
    return tree


SCENARIOS: dict[str, Callable[[Path], Tree]] = {
    build.__name__: build
    for build in (mi300x, mi325x, mi355x, cpx_nps4, one_missing, no_driver, foreign_holder, read_error)
}


def main(arguments: list[str]) -> int:
    """Command line: a scenario and a directory."""
    if arguments == ["--list"]:
        for name, build in SCENARIOS.items():
            print(f"{name:16}{build.__doc__}")
        return 0
    if len(arguments) != 2 or arguments[0] not in SCENARIOS:
        print(f"usage: trees.py {{{','.join(SCENARIOS)}}} DIRECTORY | --list", file=sys.stderr)
        return 2
    SCENARIOS[arguments[0]](Path(arguments[1]).resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
