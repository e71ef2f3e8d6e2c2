# SPDX-License-Identifier: Apache-2.0
"""What a node's files say about its amdgpu driver and the kernel settings that AMD asks for.

Reads files only, under roots that the caller gives; needs neither modinfo nor another tool. What cannot be read is
None with a note. Sources: AMD's driver release table, and ROCm's system acceptance documents for the command line.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import Files

# Kernel module version -> AMD driver release line. Modules before 31.40 do not carry the release; only the version of
# the package does (see driver_release). Later ones do (see module_release). As roles/rocm/files/drivers.yml has it.
MODULE_RELEASES: Mapping[str, str] = {
    "6.14.14": "30.10",
    "6.16.6": "30.20",
    "6.16.13": "30.30",
    "6.18.4": "31.10",
    "6.19.0": "31.20",
    "6.19.4": "31.30",
    "6.19.14": "31.40",
    "7.1.3": "31.50",
}

# "Required" in AMD's system acceptance documents for Instinct nodes. The bare `pci=realloc` is the opposite.
REQUIRED_CMDLINE = ("pci=realloc=off", "pci=bfsort", "iommu=pt")

REQUIRED_ON_INTEL = ("intel_iommu=on",)

INBOX = "inbox"

_RELEASE = re.compile(r"\.(\d\d)(\d\d)(\d\d)(\d\d)-\d+")
_OF_MODULE = re.compile(r"\d+\.\d+\.\d+\.(\d\d)(\d\d)(\d\d)\d\d$")


@dataclass(frozen=True)
class Driver:
    """The amdgpu module in memory and the one that the next boot would load.

    ``release`` is AMD's driver line as far as the loaded module's version shows it (``30.30``), ``inbox`` for the
    distribution's own module (it carries no version). ``reboot_required`` is None where that cannot be known.
    """

    loaded: bool
    version: str | None
    srcversion: str | None
    release: str | None
    on_disk: str | None
    on_disk_version: str | None
    on_disk_srcversion: str | None
    reboot_required: bool | None


@dataclass(frozen=True)
class Kernel:
    """Kernel settings that AMD asks for. ``blacklisted_by`` lists what keeps amdgpu from loading at boot."""

    release: str | None
    cmdline: str | None
    missing: list[str]
    blacklisted_by: list[str]
    numa_balancing: int | None
    secure_boot: bool | None
    memory_total: int | None


def driver_release(package_version: str) -> str | None:
    """Return AMD's driver release out of a package version, without a trailing ``.0``.

    ``1:6.16.13.30300400-2341068.24.04`` is release 30.30.4, ``6.19.14.31400000-2364437`` is 31.40. None where the
    version follows another scheme.
    """
    return _spelled(_RELEASE.search(package_version))


def module_release(version: str | None) -> str | None:
    """Return AMD's driver release out of the version of a kernel module, None where it does not carry it.

    ``6.19.14.31400100`` is release 31.40.1. Seen since 31.40; before, the version is ``6.16.13`` alone.
    """
    return _spelled(_OF_MODULE.match(version or ""))


def _spelled(match: re.Match[str] | None) -> str | None:
    return strip_zero(".".join(str(int(part)) for part in match.groups()[:3])) if match else None


def strip_zero(release: str) -> str:
    """Return a release without a third part of 0, as AMD's repository paths have it: 31.40.0 is 31.40."""
    return re.sub(r"^(\d+\.\d+)\.0$", r"\1", release)


def driver_allowed(release: str | None, version: str | None, allowed: Iterable[str]) -> bool:
    """Return whether a loaded driver is on the list.

    An entry matches AMD's release (``30.30.4``), a line of releases (``30.30`` matches 30.30.4) or the module's own
    version (``6.16.13``); ``>31.50`` a release above that line; ``inbox`` stands for the distribution's module, which
    has no version.
    """
    for entry in allowed:
        wanted = strip_zero(str(entry))
        if entry == version or (wanted == INBOX and version is None and release in (None, INBOX)):
            return True
        if release is not None and (release == wanted or release.startswith(wanted + ".")):
            return True
        if wanted.startswith(">") and release not in (None, INBOX) and _parts(str(release)) > _parts(wanted):
            return True
    return False


def _parts(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)[:2]]


def read_driver(files: Files, sysfs: Path, proc: Path, modules_root: Path) -> Driver:
    """Return the driver in memory and on disk; ``modules_root`` stands for /lib/modules."""
    module = sysfs / "module/amdgpu"
    loaded = module.is_dir()
    version = files.text(module / "version", expected=False) if loaded else None
    srcversion = files.text(module / "srcversion", expected=False) if loaded else None
    release = None
    if loaded:
        release = INBOX if version is None else module_release(version) or MODULE_RELEASES.get(version)

    kernel = files.text(proc / "sys/kernel/osrelease", expected=False)
    on_disk = module_file(modules_root / kernel, files) if kernel else None
    info: dict[str, str] | None = None
    if on_disk is not None:
        try:
            info = module_info(on_disk)
        except (OSError, ValueError) as error:
            files.notes.append(f"version of {on_disk} unknown without modinfo: {error}")
    known = info or {}
    return Driver(
        loaded=loaded,
        version=version,
        srcversion=srcversion,
        release=release,
        on_disk=str(on_disk) if on_disk else None,
        on_disk_version=known.get("version"),
        on_disk_srcversion=known.get("srcversion"),
        reboot_required=reboot_required(loaded, version, srcversion, info),
    )


def reboot_required(
    loaded: bool, version: str | None, srcversion: str | None, on_disk: Mapping[str, str] | None
) -> bool | None:
    """Return whether the module in memory is another than the one on disk; None when that cannot be known.

    ``on_disk`` are the fields of the module on disk, None when they cannot be read. /run/reboot-required is no help:
    it is not written when DKMS replaces a module that is in use.
    """
    if not loaded:
        return False
    if on_disk is None:
        return None
    # A kernel without MODULE_SRCVERSION_ALL (Debian's) has srcversions only of modules with a version, such as AMD's;
    # its own amdgpu has neither.
    if version != on_disk.get("version"):
        return True
    if srcversion is None or "srcversion" not in on_disk:
        return None
    return srcversion != on_disk["srcversion"]


def module_file(modules: Path, files: Files | None = None) -> Path | None:
    """Return the amdgpu module that modprobe would take: depmod's choice, else depmod's search order by hand."""
    files = files or Files()
    for line in (files.text(modules / "modules.dep", expected=False) or "").splitlines():
        name = line.partition(":")[0]
        if name.rpartition("/")[2].startswith("amdgpu.ko"):
            return modules / name
    for folder in ("updates/dkms", "updates", "extra", "kernel/drivers/gpu/drm/amd/amdgpu"):
        for suffix in (".ko", ".ko.zst", ".ko.xz", ".ko.gz"):
            candidate = modules / folder / f"amdgpu{suffix}"
            if candidate.is_file():
                return candidate
    return None


def module_info(path: Path) -> dict[str, str]:
    """Return the ``.modinfo`` fields of an uncompressed 64-bit kernel module (the last value of a repeated field).

    Raises ValueError for a compressed or foreign file, OSError when it cannot be read.
    """
    with path.open("rb") as module:
        header = module.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not an uncompressed 64-bit little-endian ELF file")
        table, size, count, names = *struct.unpack_from("<Q", header, 0x28), *struct.unpack_from("<HHH", header, 0x3A)
        module.seek(table)
        raw = module.read(size * count)
        if size < 64 or len(raw) < size * count or names >= count:
            raise ValueError("its ELF section table is cut off")
        # A section header: name, type, flags, address, offset, size, ...
        sections = [struct.unpack_from("<IIQQQQ", raw, index * size) for index in range(count)]
        module.seek(sections[names][4])
        strings = module.read(sections[names][5])
        for name, _, _, _, offset, length in sections:
            if strings[name:].split(b"\0", 1)[0] == b".modinfo":
                module.seek(offset)
                fields = module.read(length).decode("utf-8", "replace").split("\0")
                return dict(pair.split("=", 1) for pair in fields if "=" in pair)
    raise ValueError("it has no .modinfo section")


def read_kernel(files: Files, sysfs: Path, proc: Path, modprobe_dirs: Sequence[Path]) -> Kernel:
    """Return the kernel's settings; ``modprobe_dirs`` are searched for a blacklist of amdgpu."""
    cmdline = files.text(proc / "cmdline")
    blacklisted = [f"kernel command line: {word}" for word in (cmdline or "").split() if _blacklists(word)]
    for folder in modprobe_dirs:
        for path in files.entries(folder, expected=False):
            if path.suffix == ".conf" and any(
                re.match(r"\s*(blacklist\s+amdgpu\s*(#.*)?$|install\s+amdgpu\s+\S*/(false|true)\b)", line)
                for line in (files.text(path, expected=False) or "").splitlines()
            ):
                blacklisted.append(str(path))
    required = REQUIRED_CMDLINE + (REQUIRED_ON_INTEL if _is_intel(proc / "cpuinfo") else ())
    memory = re.search(r"^MemTotal:\s+(\d+) kB", files.text(proc / "meminfo", expected=False) or "", re.MULTILINE)
    return Kernel(
        release=files.text(proc / "sys/kernel/osrelease", expected=False),
        cmdline=cmdline,
        missing=missing_cmdline(cmdline, required) if cmdline is not None else [],
        blacklisted_by=blacklisted,
        numa_balancing=files.number(proc / "sys/kernel/numa_balancing", expected=False),
        secure_boot=_secure_boot(files, sysfs),
        memory_total=int(memory[1]) * 1024 if memory else None,
    )


def _is_intel(cpuinfo: Path) -> bool:
    """Return whether the first processor is Intel's: the kernel needs a while for the whole file of a large node."""
    try:
        with cpuinfo.open("rb") as file:
            return b"GenuineIntel" in file.read(1024)
    except OSError:
        return False


def _blacklists(word: str) -> bool:
    name, _, value = word.partition("=")
    return name in ("modprobe.blacklist", "module_blacklist") and "amdgpu" in value.split(",")


def missing_cmdline(cmdline: str, required: Sequence[str] = REQUIRED_CMDLINE) -> list[str]:
    """Return which required settings a kernel command line lacks.

    ``pci=`` may be given several times or once with commas; a later ``iommu=`` replaces an earlier one, as the kernel
    reads it.
    """
    pci: set[str] = set()
    values: dict[str, str] = {}
    for word in cmdline.split():
        name, _, value = word.partition("=")
        if name == "pci":
            pci.update(value.split(","))
        values[name] = value
    missing = []
    for setting in required:
        name, _, value = setting.partition("=")
        present = value in pci if name == "pci" else name in values and values[name] == value
        if not present:
            missing.append(setting)
    return missing


def _secure_boot(files: Files, sysfs: Path) -> bool | None:
    """Return the state from the EFI variable: four bytes of attributes, then 1 or 0. None without EFI or access."""
    path = sysfs / "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        files.notes.append(f"{path} cannot be read: {error.strerror or error}")
        return None
    return content[4] == 1 if len(content) >= 5 else None
