# SPDX-License-Identifier: Apache-2.0
"""Facts of a node against what is expected of it. Pure: dictionaries in, findings out.

``node`` is what ``rocm_info`` returns (see gpu.Inventory for the shapes), ``host`` is :class:`Host`. A fact that could
not be read gives a finding of level ``unknown``, never an exception and never ``ok``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..common.finding import Finding
from ..common.units import size
from ..host import driver_table, gpu_memory
from ..host.driver import INBOX, REQUIRED_ON_INTEL
from ..host.driver_table import Table
from ..host.facts import Folder, Host, Image, Room

TERA = 10**12
#: Bytes of RAM that AMD's system acceptance documents ask of an eight-GPU node, by part of the product name.
MIN_RAM: Mapping[str, int] = {"MI300X": 2 * TERA, "MI325X": 25 * TERA // 10, "MI355X": 3 * TERA}
#: Firmware and kernel keep some of the installed RAM for themselves; MemTotal is what is left.
RAM_TOLERANCE = 0.97


@dataclass(frozen=True)
class Expected:
    """What a node should be. Sizes in bytes; 0, an empty text or None leaves a check out."""

    gpus: int = 8
    gpu_name: str = ""
    idle_vram: int = 5_000_000_000  # ROCm's cluster validation suite takes a GPU above 5000 MB for occupied
    own_container: str = ""
    own_container_id: str = ""
    foreign_level: str = "refused"
    utilization: float = 0.0  # of each GPU's memory, that the server will ask for; 0 does not compare
    used: Sequence[int] | None = None  # indices of the GPUs that it will use; None is all
    given: Sequence[int] | None = None  # those that it has of a node that it shares; None is all
    neighbours: frozenset[str] = frozenset()  # ids of the other servers' containers
    installs_driver: bool = True
    #: AMD's drivers and ROCm releases; the release that the role installs; whether the server runs as it will run.
    drivers: Table = field(default_factory=Table)
    wanted_driver: str = ""
    proven: bool = False
    allows_reboot: bool = False
    sets_numa_balancing: bool = True
    min_ram: int | None = None  # None: by the GPU's name
    port: int = 0
    clock: bool = True
    sysctls: Mapping[str, str] = field(default_factory=dict)


#: The variable of each figure of needed room, for a user who has a better figure.
SOURCES_OF_NEED = {
    "image": "vllm_image_min_free_gib",
    "archive": "vllm_image_cache_path",
    "weights": "preflight_disk_weights",
}


def judge(node: Mapping[str, Any] | None, host: Host, expected: Expected) -> list[Finding]:
    """Return the findings on a node: its GPUs where ``node`` is given (a CPU node has none), then the rest."""
    found = _host(host, expected)
    if node is None:
        return found
    gpus = list(node.get("gpus") or [])
    loaded = bool((node.get("driver") or {}).get("loaded"))
    about_gpus = [_count(node, gpus, loaded, expected)]
    if expected.given is not None:
        # What is wrong with others concerns those that have them.
        gpus = [gpu for gpu in gpus if gpu["index"] in expected.given]
    about_gpus.append(_kind(node, gpus, expected))
    if gpus:
        about_gpus += [_partition(gpus), _link(gpus), _occupied(gpus, expected)]
        about_gpus += [_room(gpus, expected), _ecc(gpus), _pages(gpus)]
    driver = node.get("driver") or {}
    of_driver = [*_driver(driver, expected), *_driver_and_image(driver, host.image, expected)]
    return [*of_driver, *about_gpus, *_kernel(node, gpus, expected), *found]


def _numbers(gpus: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(str(gpu["index"]) for gpu in gpus)


def _driver(driver: Mapping[str, Any], expected: Expected) -> list[Finding]:
    wanted = "amdgpu loaded, allowed"
    name = driver.get("release") or driver.get("version") or "of unknown release"
    mended = "warning" if expected.installs_driver else "refused"
    by_role = "the role rocm installs and loads it" if expected.installs_driver else ""
    if not driver.get("loaded"):
        remedy = by_role or "load it (modprobe amdgpu), or set rocm_install_driver: true"
        found = Finding(mended, "driver", wanted, "not loaded", remedy)
    elif driver.get("allowed") is None:
        found = Finding("unknown", "driver", wanted, f"{name}, not compared", "see rocm_allowed_driver_versions")
    elif not driver["allowed"]:
        keep = "add it to rocm_allowed_driver_versions"
        boot = "and reboots" if expected.allows_reboot else "and stops before the reboot (rocm_allow_reboot)"
        newer = "" if driver.get("release") == INBOX else "unless it is newer than rocm_driver_version, "
        remedy = f"{newer}the role rocm replaces it {boot}; to keep it, {keep}" if by_role else keep
        found = Finding(mended, "driver", wanted, f"{name}, not on the list", remedy)
    elif driver_table.newer_than_known(driver.get("release"), expected.drivers):
        remedy = "it is kept; see AMD's compatibility matrix for the image's ROCm"
        found = Finding("warning", "driver", wanted, f"{name}, newer than all that is known here", remedy)
    else:
        found = Finding("ok", "driver", wanted, str(name))
    if driver.get("loaded") and driver.get("reboot_required"):
        which = driver.get("on_disk_version") or "without a version"
        not_listed = driver.get("package") and driver.get("package_allowed") is False
        of_the_kernel = driver.get("lost_at_boot") and driver.get("on_disk_version") is None
        unwanted = driver.get("allowed") and (not_listed or of_the_kernel)
        waiting = Finding(
            "warning",
            "driver on disk",
            "the loaded one",
            f"another ({which}{', not on the list' if unwanted else ''})",
            "the next boot loads it; install an allowed one, or add it to rocm_allowed_driver_versions"
            if unwanted
            else "a deployment drains and reboots the node"
            if expected.allows_reboot
            else "reboot when no server runs, or set rocm_allow_reboot: true",
        )
        return [found, waiting]
    return [found]


def _driver_and_image(driver: Mapping[str, Any], image: Image | None, expected: Expected) -> list[Finding]:
    """Hold the driver that the server will start on against the ROCm of an image that is there."""
    release = driver_table.coming(
        driver, expected.wanted_driver, installs=expected.installs_driver, reboots=expected.allows_reboot
    )
    stays = release == driver.get("release")
    rocm = image.rocm if image else ""
    found = driver_table.finding(expected.drivers, release, rocm, proven=expected.proven and stays)
    return [found] if found else []


def _count(node: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]], loaded: bool, expected: Expected) -> Finding:
    if expected.given is not None:
        return _own_count(node, gpus, expected.given, expected)
    wanted = str(expected.gpus) if expected.gpus else "any number"
    on_bus = [device["pci"] for device in node.get("pci_devices") or []]
    # A GPU whose address is not known still counts as one.
    usable = {gpu.get("pci") or f"#{gpu['index']}" for gpu in gpus}
    if not loaded:
        right = bool(on_bus) and expected.gpus in (0, len(on_bus))
        remedy = "" if right else "check the hardware (lspci -d 1002:), or set preflight_gpus, or accelerator cpu"
        return Finding("ok" if right else "refused", "GPU count", wanted, f"{len(on_bus)} on the PCI bus", remedy)
    lost = sorted(set(on_bus) - usable)
    got = str(len(usable))
    if lost:
        return Finding(
            "refused" if not expected.gpus or len(usable) < expected.gpus else "warning",
            "GPU count",
            wanted,
            f"{got} usable, without {', '.join(lost)}",
            "see `dmesg | grep amdgpu`; a GPU that the driver dropped needs a power cycle or its provider",
        )
    if not usable or expected.gpus not in (0, len(usable)):
        return Finding(
            "refused", "GPU count", wanted, got, "check the hardware (lspci -d 1002:), or set preflight_gpus"
        )
    return Finding("ok", "GPU count", wanted, got)


def _own_count(
    node: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]], given: Sequence[int], expected: Expected
) -> Finding:
    """Judge the GPUs of a server that shares its node; that others are missing there is worth a word."""
    wanted, got = f"{len(given)} for {expected.own_container}", f"GPU {', '.join(map(str, given))} of {len(gpus)}"
    on_bus = {device["pci"] for device in node.get("pci_devices") or []}
    lost = sorted(on_bus - {gpu.get("pci") for gpu in gpus})
    if lost:
        remedy = "see `dmesg | grep amdgpu`; a GPU that the driver dropped needs a power cycle or its provider"
        return Finding("warning", "GPU count", wanted, f"{got}, without {', '.join(lost)}", remedy)
    return Finding("ok", "GPU count", wanted, got)


def _kind(node: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]], expected: Expected) -> Finding:
    wanted = expected.gpu_name or "all the same"
    names = [one.get("name") for one in gpus] or [one.get("name") for one in node.get("pci_devices") or []]
    known = Counter(str(name) for name in names if name)
    got = ", ".join(known) if len(known) == 1 else ", ".join(f"{count}x {name}" for name, count in known.items())
    if not known or known.total() < len(names):
        return Finding("unknown", "GPU kind", wanted, got or "no name", "see rocm_info on this node")
    if len(known) > 1:
        return Finding("refused", "GPU kind", wanted, got, "a server needs GPUs of one kind; remove the others")
    if expected.gpu_name.lower() not in got.lower():
        return Finding(
            "refused", "GPU kind", wanted, got, "correct preflight_gpu_name, or remove the node from the inventory"
        )
    return Finding("ok", "GPU kind", wanted, got)


def _partition(gpus: Sequence[Mapping[str, Any]]) -> Finding:
    what, wanted = "partition mode", "the same on all GPUs"
    modes = Counter(gpu.get("partition") for gpu in gpus)
    if None in modes:
        unknown = _numbers(gpu for gpu in gpus if gpu.get("partition") is None)
        return Finding("unknown", what, wanted, f"unknown of GPU {unknown}", "compare with amd-smi static --partition")
    if len(modes) > 1:
        got = ", ".join(f"{count}x {mode}" for mode, count in modes.items())
        remedy = "with idle GPUs: amd-smi set --gpu all --compute-partition SPX (and --memory-partition NPS1)"
        return Finding("refused", what, wanted, got, remedy)
    return Finding("ok", what, wanted, str(next(iter(modes))))


def _link(gpus: Sequence[Mapping[str, Any]]) -> Finding:
    what, wanted = "PCIe links", "full width and speed"
    slow, unknown = [], []
    for gpu in gpus:
        link = gpu.get("link") or {}
        # Further partitions of a device have no link of their own.
        if link.get("degraded"):
            slow.append(f"GPU {gpu['index']} {link.get('speed')} x{link.get('width')}")
        elif link.get("degraded") is None and not gpu.get("partition_id"):
            unknown.append(gpu)
    if slow:
        return Finding(
            "warning", what, wanted, ", ".join(slow), "weights load slower; reseat the card, or ask the provider"
        )
    if unknown:
        return Finding("unknown", what, wanted, f"unknown of GPU {_numbers(unknown)}", "see lspci -vv, LnkSta")
    return Finding("ok", what, wanted, "all")


def _occupied(gpus: Sequence[Mapping[str, Any]], expected: Expected) -> Finding:
    what, wanted = "foreign use", f"under {size(expected.idle_vram)} a GPU"
    taken, unknown = [], []
    for gpu in gpus:
        holders = gpu.get("holders") or []
        foreign = [
            one for one in holders if not _own(one, expected) and one.get("container") not in expected.neighbours
        ]
        used = gpu.get("vram_used")
        own = sum(one.get("bytes") or 0 for one in holders if one not in foreign)
        held = sum(one.get("bytes") or 0 for one in foreign)
        # Memory that no process holds counts too: a graphics client, or memory that a killed process has left behind.
        rest = max(held, (used or 0) - own)
        if rest > expected.idle_vram:
            who = " and ".join(_holder(one) for one in foreign) or "no process that the driver lists"
            taken.append(f"GPU {gpu['index']} {size(rest)} by {who}")
        elif used is None or any(one.get("bytes") is None for one in foreign):
            unknown.append(gpu)
    if taken:
        remedy = "stop that process, or raise preflight_idle_vram if it may stay"
        return Finding(expected.foreign_level, what, wanted, "; ".join(taken), remedy)
    if unknown:
        return Finding("unknown", what, wanted, f"unknown of GPU {_numbers(unknown)}", "see rocm_info on this node")
    return Finding("ok", what, wanted, "none")


def _own(holder: Mapping[str, Any], expected: Expected) -> bool:
    # By id as well: the name is known only where Docker keeps its files at the usual place.
    by_name = bool(expected.own_container) and holder.get("container_name") == expected.own_container
    return by_name or (bool(expected.own_container_id) and holder.get("container") == expected.own_container_id)


def _holder(holder: Mapping[str, Any]) -> str:
    container = holder.get("container_name") or (holder.get("container") or "")[:12]
    inside = f" in container {container}" if container else ""
    return f"pid {holder['pid']} ({(holder.get('command') or 'unknown command')[:60]}){inside}"


def _room(gpus: Sequence[Mapping[str, Any]], expected: Expected) -> Finding:
    """Judge free memory by the fullest GPU that the server will use. Memory of our own server counts as free."""
    what = "GPU memory"
    wanted = f"room for gpu-memory-utilization {expected.utilization:g}" if expected.utilization else "known"
    used = [gpu for gpu in gpus if expected.used is None or gpu["index"] in expected.used]
    known = [
        gpu_memory.GpuMemory(gpu["index"], gpu["vram_total"], gpu["vram_free"])
        for gpu in used
        if gpu.get("vram_total") and gpu.get("vram_free") is not None
    ]
    lost = {gpu["index"] for gpu in used} - {one.number for one in known}
    unknown = f"unknown of GPU {', '.join(map(str, sorted(lost)))}" if lost else "not known"
    if not known:
        return Finding("unknown", what, wanted, unknown, "see rocm_info on this node")
    own = {
        gpu["index"]: sum(one.get("bytes") or 0 for one in gpu.get("holders") or [] if _own(one, expected))
        for gpu in used
    }
    fit = gpu_memory.fit(known, expected.utilization or gpu_memory.DEFAULT_UTILIZATION, own)
    got = f"up to {fit.highest:g} ({size(fit.free)} of {size(fit.total)} free on GPU {fit.index})"
    if expected.utilization and not fit.ok:
        remedy = f"free it, or set vllm_server_args: {{gpu-memory-utilization: {fit.highest:g}}}"
        return Finding(expected.foreign_level, what, wanted, got, remedy)
    if lost:
        return Finding("unknown", what, wanted, unknown, "see rocm_info on this node")
    return Finding("ok", what, wanted, got)


def _ecc(gpus: Sequence[Mapping[str, Any]]) -> Finding:
    what, wanted = "ECC errors", "0 uncorrectable"
    counts = {gpu["index"]: (gpu.get("ecc") or {}).get("uncorrectable") for gpu in gpus if not gpu.get("partition_id")}
    bad = {index: count for index, count in counts.items() if count}
    if bad:
        got = ", ".join(f"GPU {index}: {count}" for index, count in bad.items())
        return Finding(
            "refused",
            what,
            wanted,
            got,
            "run playbooks/repair.yml (it resets or reboots), or leave the node out with --limit; if the errors come "
            "back, replace the GPU",
        )
    if None in counts.values():
        return Finding("unknown", what, wanted, "not known", "install amd-smi on the node to count them")
    return Finding("ok", what, wanted, "0")


def _pages(gpus: Sequence[Mapping[str, Any]]) -> Finding:
    what, wanted = "bad pages", "none"
    level, seen, unknown = "ok", [], False
    for gpu in gpus:
        if gpu.get("partition_id"):
            continue
        pages = gpu.get("bad_pages") or {}
        counts = {kind: pages.get(kind) for kind in ("retired", "pending", "unreservable")}
        unknown = unknown or all(count is None for count in counts.values())
        if any(counts.values()):
            seen.append(
                f"GPU {gpu['index']}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            )
            # A retired page is out of use; the other two kinds may still be handed to a program.
            serious = counts["pending"] or counts["unreservable"]
            level = "refused" if serious or level == "refused" else "warning"
    if seen:
        remedy = (
            "reboot to retire pending pages"
            if level == "refused"
            else "watch the number; if it grows, the GPU is failing"
        )
        return Finding(level, what, wanted, "; ".join(seen), f"{remedy} (amd-smi bad-pages)")
    if unknown:
        return Finding("unknown", what, wanted, "not known", "install amd-smi on the node to count them")
    return Finding("ok", what, wanted, "none")


def _kernel(node: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]], expected: Expected) -> list[Finding]:
    kernel = node.get("kernel") or {}
    what, wanted = "kernel command line", "as AMD asks"
    missing = list(kernel.get("missing") or [])
    if kernel.get("cmdline") is None:
        found = [Finding("unknown", what, wanted, "not known", "see /proc/cmdline")]
    elif missing:
        own = [word for word in missing if word in REQUIRED_ON_INTEL]
        listed = f" with {' '.join(own)} in rocm_kernel_cmdline" if own else ""
        remedy = f"set rocm_manage_kernel_cmdline: true{listed} and reboot, or add it to the boot loader"
        found = [Finding("warning", what, wanted, f"without {' '.join(missing)}", remedy)]
    else:
        found = [Finding("ok", what, wanted, "complete")]
    if kernel.get("blacklisted_by"):
        what, wanted, got = "driver at boot", "not blocked", f"blocked by {', '.join(kernel['blacklisted_by'])}"
        remedy = "set rocm_load_blacklisted_driver: true, or the next boot has no GPUs"
        found.append(
            Finding("ok", what, wanted, f"{got}, loaded by our own unit")
            if kernel.get("load_unit")
            else Finding("warning", what, wanted, got, remedy)
        )
    elif (node.get("driver") or {}).get("lost_at_boot"):
        remedy = "build amdgpu for it (dkms autoinstall --kernelver), or remove that kernel"
        found.append(
            Finding(
                "warning",
                "driver at boot",
                "there",
                f"not built for {kernel.get('next') or kernel.get('release')}",
                remedy,
            )
        )
    if kernel.get("numa_balancing") is None:
        found.append(Finding("unknown", "kernel.numa_balancing", "0", "not known", "the kernel may lack it"))
    elif kernel["numa_balancing"] != 0:
        remedy = "the role rocm sets it" if expected.sets_numa_balancing else "sysctl -w kernel.numa_balancing=0"
        found.append(
            Finding("warning", "kernel.numa_balancing", "0", str(kernel["numa_balancing"]), remedy),
        )
    else:
        found.append(Finding("ok", "kernel.numa_balancing", "0", "0"))
    return [*found, *_ram(node, kernel, gpus, expected)]


def _ram(
    node: Mapping[str, Any], kernel: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]], expected: Expected
) -> list[Finding]:
    names = {str(one.get("name")) for one in [*gpus, *(node.get("pci_devices") or [])]}
    by_name = [need for part, need in MIN_RAM.items() if any(part in name for name in names)]
    need = max(by_name, default=0) if expected.min_ram is None else expected.min_ram
    if not need:
        return []
    what, wanted, total = "RAM", f"{size(need)} or more", kernel.get("memory_total")
    if total is None:
        return [Finding("unknown", what, wanted, "not known", "see /proc/meminfo")]
    if total < need * RAM_TOLERANCE:
        remedy = "AMD asks for it; large models load slower or not at all (preflight_min_ram)"
        return [Finding("warning", what, wanted, size(total), remedy)]
    return [Finding("ok", what, wanted, size(total))]


def _disk(room: Room) -> Finding:
    what, wanted = f"disk of {room.path}", f"{size(room.needed)} free ({', '.join(room.purposes)})"
    if room.free is None:
        return Finding("unknown", what, wanted, "not known", f"see df {room.path}")
    if room.free < room.needed:
        figures = " and ".join(SOURCES_OF_NEED[one] for one in room.purposes)
        remedy = f"make room (df, docker system df), use a larger disk, or correct {figures}"
        return Finding("refused", what, wanted, f"{size(room.free)} free", remedy)
    return Finding("ok", what, wanted, f"{size(room.free)} free")


def _mapped() -> Finding:
    # The compile cache is root's and /dev/kfd its group's, and the container's root is then neither.
    remedy = "remove userns-remap from daemon.json and restart Docker, which then shows other images and containers"
    return Finding("refused", "users in containers", "those of the node", "others (userns-remap)", remedy)


def _host(host: Host, expected: Expected) -> list[Finding]:
    found = [_disk(room) for room in host.rooms]
    if host.users_are_mapped:
        found.append(_mapped())
    if host.archive:
        found.append(host.archive)
    elif host.image:
        found.append(_image(host.image))
    if host.folder:
        found.append(_folder(host.folder))
    if expected.port:
        found.append(_port(host, expected.port))
    if expected.clock:
        found.append(_clock(host.clock_synchronised))
    for name, wanted in expected.sysctls.items():
        value = host.sysctls.get(name)
        if value is None:
            found.append(Finding("unknown", name, wanted, "not known", "this kernel may lack it"))
        elif value.split() != wanted.split():
            remedy = f"sysctl -w {name}='{wanted}', and a file in /etc/sysctl.d"
            found.append(Finding("warning", name, wanted, value, remedy))
        else:
            found.append(Finding("ok", name, wanted, value))
    return found


def _image(image: Image) -> Finding:
    what, wanted = "image", image.name
    if image.present:
        by_id = "on the node by its id, and gets this name"
        return Finding("ok", what, wanted, "on the node" if image.named else by_id)
    if image.missing:
        remedy = "correct vllm_image_name and vllm_image_tag; the registry has no such image"
        return Finding("refused", what, wanted, f"not there: {image.answer}", remedy)
    if image.source == "pull" and image.present is not None:
        if image.answer.startswith("sha256:"):
            return Finding("ok", what, wanted, "to be pulled, the registry has it")
        remedy = (
            "check the connection to the registry and docker login on the node, or use an archive (vllm_image_source)"
        )
        return Finding("warning", what, wanted, f"not there, and the registry says: {image.answer}", remedy)
    if image.source in ("build", "archive"):
        return Finding(
            "ok", what, wanted, "to be built" if image.source == "build" else "to be loaded from the archive"
        )
    got = "no Docker engine to ask" if image.present is None else "not on the node"
    return Finding("unknown", what, wanted, got, "the deployment fetches it, or fails and says why")


def _folder(folder: Folder) -> Finding:
    wanted = "a folder"
    if folder.kind == "folder":
        return Finding(
            "ok", folder.what, wanted, folder.path + (f", {size(folder.held)} of the model" if folder.held else "")
        )
    if folder.kind == "none" and folder.created:
        return Finding("ok", folder.what, wanted, f"{folder.path}, to be made")
    if folder.kind == "unreadable":
        return Finding("unknown", folder.what, wanted, f"{folder.path} is not readable", "check its permissions")
    got = f"{folder.path} is {'a file, not a folder' if folder.kind == 'file' else 'not there'}"
    remedy = (
        "mount the disk or make the folder, correct hf_cache_path, or set hf_cache_create: true"
        if folder.what == "cache"
        else "put the model there on this node, or set vllm_server_model to its id on the Hub"
    )
    return Finding("refused", folder.what, wanted, got, remedy)


def _port(host: Host, port: int) -> Finding:
    what, wanted = f"port {port}", "free, or our own server's"
    if host.port_holder is None:
        return Finding("unknown", what, wanted, "not known", f"see ss -ltnp sport = :{port}")
    if host.port_holder and not host.port_is_ours:
        remedy = "stop that program or choose another port (vllm_server_port)"
        return Finding("refused", what, wanted, f"taken by {host.port_holder}", remedy)
    return Finding("ok", what, wanted, host.port_holder or "free")


def _clock(synchronised: bool | None) -> Finding:
    what, wanted = "clock", "synchronised"
    if synchronised is None:
        return Finding("unknown", what, wanted, "not known", "see timedatectl")
    if not synchronised:
        remedy = "install or repair chrony or systemd-timesyncd; TLS and logs of several nodes need it"
        return Finding("warning", what, wanted, "not synchronised", remedy)
    return Finding("ok", what, wanted, "synchronised")
