# SPDX-License-Identifier: Apache-2.0
"""What a probe of a node finds about its AMD GPUs: returned by ``rocm_info``, judged by ``preflight_host``.

Reads files (see gpu.py) and asks, where they are there, amd-smi, modinfo, dpkg-query and the Docker engine. Changes
nothing, and what cannot be read is None and a note.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..container.api import DEFAULT_SOCKET, DockerApi, DockerRefused, DockerUnavailable
from . import amdsmi, gpu, gpu_health, gpu_memory
from .driver import Driver, driver_allowed, driver_release, module_file, reboot_required

AMD_SMI_TIMEOUT = 60  # s; it queries every GPU one after the other, and a hung GPU hangs it
GROUPS = ("video", "render")
#: Written by the role rocm where something keeps amdgpu from loading by itself.
LOAD_UNIT = "vllm-fleet-amdgpu.service"
_NO_ANSWER = (OSError, ValueError, subprocess.SubprocessError)
#: Where modinfo and dpkg-query are, also for a connecting user whose PATH lacks the sbin folders.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


@dataclass(frozen=True)
class Roots:
    """Directories that stand for the node's own, and whose memory counts as free. The module documents each."""

    sysfs_root: str = "/sys"
    proc_root: str = "/proc"
    modules_root: str = "/lib/modules"
    dev_root: str = "/dev"
    etc_root: str = "/etc"
    boot_root: str = "/boot"
    docker_root: str | None = None
    docker_socket: str = DEFAULT_SOCKET
    amd_smi: str = "auto"
    own_container: str | None = None
    allowed_driver_versions: Sequence[str] = ()


def look(roots: Roots) -> dict[str, Any]:
    """Return what rocm_info returns. Raises ValueError where ``sysfs_root`` or ``proc_root`` is no directory."""
    for name in ("sysfs_root", "proc_root"):
        if not Path(getattr(roots, name)).is_dir():
            raise ValueError(f"{name} is {getattr(roots, name)}; a directory is expected there. Nothing was read.")
    etc = Path(roots.etc_root)
    inventory = gpu.read(
        Path(roots.sysfs_root),
        Path(roots.proc_root),
        Path(roots.modules_root),
        modprobe_dirs=[etc / "modprobe.d", Path("/usr/lib/modprobe.d")],
        docker_root=lambda: Path(roots.docker_root or docker_root(etc, DockerApi(roots.docker_socket, timeout=20))),
    )
    result = inventory.as_dict()
    notes: list[str] = result["notes"]
    result["driver"] = driver(inventory.driver, roots.allowed_driver_versions, notes)
    value, path = persistent_sysctl(etc, "kernel.numa_balancing")
    result["kernel"].update(numa_balancing_persistent=value, numa_balancing_set_by=path)
    result["kernel"]["load_unit"] = load_unit(etc)
    following = next_kernel(Path(roots.boot_root), etc)
    result["kernel"]["next"] = following
    result["driver"]["lost_at_boot"] = lost_at_boot(
        result["driver"], inventory.kernel.release, following, Path(roots.modules_root)
    )
    result["os"] = operating_system(etc)
    result["devices"] = devices(Path(roots.dev_root))
    result["groups"] = {name: group_id(name) for name in GROUPS}
    result["members"] = {name: members(name, etc) for name in GROUPS}
    result["user"] = connecting_user()
    result.update(free_memory(inventory.gpus, roots.own_container, notes))
    add_health(result["gpus"], amd_smi_program(roots.amd_smi, roots.sysfs_root), notes)
    add_counts(result["gpus"], Path(roots.sysfs_root))
    return result


def driver(found: Driver, allowed: Sequence[str], notes: list[str]) -> dict[str, Any]:
    """Return the driver, completed from modinfo and the package database."""
    facts = asdict(found)
    modinfo = shutil.which("modinfo", path=_PATH)
    if found.on_disk and found.on_disk_srcversion is None and modinfo:
        # All fields at once: a module without srcversion is another answer than none.
        fields = dict(re.findall(r"^(\w+): +(\S.*)$", _output([modinfo, found.on_disk]) or "", re.MULTILINE))
        if fields:
            facts.update(on_disk_version=fields.get("version"), on_disk_srcversion=fields.get("srcversion"))
            notes[:] = [note for note in notes if "without modinfo" not in note]
            facts["reboot_required"] = reboot_required(found.loaded, found.version, found.srcversion, fields)
    facts["package"] = installed_version("amdgpu-dkms")
    # The package has the exact release only of the module that it installed: versions must agree, and no other
    # module may be waiting on disk.
    release = driver_release(facts["package"] or "")
    facts["package_release"] = release
    facts["package_allowed"] = release is not None and driver_allowed(release, "", allowed)
    if release and found.version and not facts["reboot_required"]:
        upstream = facts["package"].rpartition(":")[2]
        if upstream.startswith((found.version + ".", found.version + "-")):
            facts["release"] = release
    facts["allowed"] = found.loaded and driver_allowed(facts["release"], found.version, allowed)
    return facts


def installed_version(package: str) -> str | None:
    """Return the version of an installed Debian package, None without it or without dpkg."""
    dpkg_query = shutil.which("dpkg-query", path=_PATH)
    if not dpkg_query:
        return None
    answer = _output([dpkg_query, "-W", "-f", "${db:Status-Status} ${Version}\n", package]) or ""
    status, _, version = answer.partition("\n")[0].partition(" ")
    return version if status == "installed" else None


def docker_root(etc: Path, engine: DockerApi) -> str:
    """Return Docker's data directory from the engine; without one from daemon.json, else Docker's default."""
    try:
        root = engine.info().get("DockerRootDir")
    except (DockerUnavailable, DockerRefused):
        root = None
    if not root:
        try:
            root = json.loads((etc / "docker/daemon.json").read_text(encoding="utf-8")).get("data-root")
        except (OSError, ValueError, AttributeError):
            root = None
    return str(root or "/var/lib/docker")


def next_kernel(boot: Path, etc: Path) -> str | None:
    """Return the kernel that the next boot takes: GRUB's first entry is the newest. None where another is chosen."""
    for path in [etc / "default/grub", *sorted((etc / "default/grub.d").glob("*.cfg"))]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        chosen = re.findall(r"^\s*GRUB_DEFAULT=[\"']?([^\"'\n]*)", text, re.MULTILINE)
        if chosen and chosen[-1].strip() != "0":
            return None
    releases = [path.name.removeprefix("vmlinuz-") for path in boot.glob("vmlinuz-*")]
    return max(releases, key=_by_version, default=None)


def _by_version(release: str) -> list[tuple[int, str]]:
    """Sort as `sort -V`, which GRUB asks: numbers as numbers."""
    return [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", release)]


def lost_at_boot(found: dict[str, Any], running: str | None, following: str | None, modules: Path) -> bool:
    """Return whether a node with AMD's module would come up without it: the next kernel has only its own, or none."""
    if found["version"] is None and found["on_disk_version"] is None:
        return False
    if following in (None, running):
        # In memory, but no longer on disk.
        return found["on_disk"] is not None and (modules / str(running) / "kernel") in Path(found["on_disk"]).parents
    path = module_file(modules / str(following))
    return path is None or (modules / str(following) / "kernel") in path.parents


def _output(command: list[str]) -> str | None:
    """Return what a program prints, None when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def persistent_sysctl(etc: Path, name: str) -> tuple[str | None, str | None]:
    """Return the value that the next boot gives a sysctl, and the file that sets it.

    Later files win, /etc shadows a file of the same name.
    """
    files: dict[str, Path] = {}
    for folder in (Path("/usr/lib/sysctl.d"), Path("/run/sysctl.d"), etc / "sysctl.d"):
        if folder.is_dir():
            files.update({path.name: path for path in folder.glob("*.conf")})
    ordered = [files[key] for key in sorted(files)]
    value, said_by = None, None
    for path in [*ordered, etc / "sysctl.conf"]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for match in re.finditer(rf"^\s*-?\s*{re.escape(name)}\s*=\s*(\S+)", text.replace("/", "."), re.MULTILINE):
            value, said_by = match[1], str(path)
    return value, said_by


def load_unit(etc: Path) -> str | None:
    """Return the SHA-256 of the unit that loads amdgpu before Docker; None where no boot runs it."""
    wanted = etc / "systemd/system/multi-user.target.wants" / LOAD_UNIT
    try:
        return hashlib.sha256(wanted.read_bytes()).hexdigest()
    except OSError:
        return None


def operating_system(etc: Path) -> dict[str, str | None]:
    """Return id, version_id and version_codename of os-release and the machine's architecture."""
    try:
        text = (etc / "os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return {
        "id": fields.get("ID"),
        "version_id": fields.get("VERSION_ID"),
        "version_codename": fields.get("VERSION_CODENAME"),
        "architecture": platform.machine(),
    }


def devices(dev: Path) -> list[dict[str, Any]]:
    """Return the device nodes of the compute driver that exist, with their numeric group and mode."""
    found = []
    for path in [dev / "kfd", *sorted((dev / "dri").glob("renderD*"), key=lambda node: (len(node.name), node.name))]:
        try:
            state = path.stat()
        except OSError:
            continue
        found.append({"path": str(path), "gid": state.st_gid, "mode": f"{stat.S_IMODE(state.st_mode):04o}"})
    return found


def group_id(name: str) -> int | None:
    """Return a group's numeric id on this node; the same name may be another number, or missing, in an image."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def members(group: str, etc: Path) -> list[str]:
    """Return the users in a group: those it lists, and local ones that have it as their first group."""
    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return []
    found = set(entry.gr_mem)
    try:
        lines = (etc / "passwd").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found |= {fields[0] for fields in (line.split(":") for line in lines) if fields[3:4] == [str(entry.gr_gid)]}
    return sorted(found)


def connecting_user() -> dict[str, Any]:
    """Return the user who connected (before sudo) and the GPU groups that it is not in; root needs none."""
    name = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    missing = []
    for group in GROUPS if name != "root" else ():
        try:
            entry = grp.getgrnam(group)
            member = name in entry.gr_mem or pwd.getpwnam(name).pw_gid == entry.gr_gid
        except KeyError:
            member = False
        if not member:
            missing.append(group)
    return {"name": name, "missing_groups": missing}


def free_memory(gpus: list[gpu.Gpu], own: str | None, notes: list[str]) -> dict[str, Any]:
    """Return the utilization that the tightest GPU has room for, counting the own container's memory as free."""
    known, unknown = gpu_memory.readable(gpus)
    if unknown:
        notes.append(f"GPU memory is not known of GPU {', '.join(map(str, unknown))}: left out of the utilization")
    if not known:
        return {"safe_gpu_memory_utilization": None}

    def is_own(holder: gpu_memory.HolderLike) -> bool:
        return bool(own) and (holder.container_name == own or (holder.container or "").startswith(own or "\0"))

    mine = {one.number: sum(holder.bytes or 0 for holder in one.holders if is_own(holder)) for one in known}
    others = [one._replace(holders=[holder for holder in one.holders if not is_own(holder)]) for one in known]
    verdict = gpu_memory.fit(others, gpu_memory.DEFAULT_UTILIZATION, mine)
    return {
        "safe_gpu_memory_utilization": min(verdict.highest, gpu_memory.DEFAULT_UTILIZATION),
        "memory": {key: getattr(verdict, key) for key in ("index", "total", "free", "taken", "highest", "sentence")},
    }


def amd_smi_program(wanted: str, sysfs_root: str) -> str | None:
    """Return the amd-smi to run: the one that was named, or the node's own when its own /sys is read."""
    if wanted != "auto":
        return wanted or None
    if Path(sysfs_root) != Path("/sys"):
        return None
    newest_first = sorted(Path("/opt").glob("rocm*/bin/amd-smi"), reverse=True)
    return shutil.which("amd-smi") or next((str(path) for path in newest_first), None)


def add_health(gpus: list[dict[str, Any]], program: str | None, notes: list[str]) -> None:
    """Add ecc and bad_pages to every GPU; null where amd-smi is absent or does not say."""
    for one in gpus:
        one.update(ecc=None, bad_pages=None)
    if program is None or not gpus:
        return
    try:
        rows = amdsmi.identities(ask(program, "list"))
    except _NO_ANSWER as error:
        notes.append(f"ECC errors and bad pages are not known: {error}")
        return
    errors: dict[int, amdsmi.Ecc] = {}
    pages: dict[int, amdsmi.BadPages] = {}
    # Each on its own: neither depends on the other's answer.
    try:
        errors = amdsmi.ecc(ask(program, "metric", "--ecc"))
    except _NO_ANSWER as error:
        notes.append(f"ECC errors are not known: {error}")
    try:
        pages = amdsmi.bad_pages(ask(program, "bad-pages"))
    except _NO_ANSWER as error:
        notes.append(f"bad pages are not known: {error}")
    by_kfd = {row.kfd_id: row.gpu for row in rows if row.kfd_id is not None}
    by_bdf = {row.bdf: row.gpu for row in rows if row.bdf is not None}
    for one in gpus:
        number = by_kfd.get(one["kfd_id"], by_bdf.get(one["pci"]))
        if number is None:
            one["notes"].append("amd-smi does not list this GPU")
            continue
        one["ecc"] = asdict(errors[number]) if number in errors else None
        one["bad_pages"] = asdict(pages[number]) if number in pages else None


def add_counts(gpus: list[dict[str, Any]], sysfs: Path) -> None:
    """Take the errors that amd-smi did not report from the kernel's own counters; partitions have none of their own."""
    for one in gpus:
        if one["ecc"] is None and one["pci"] and not one["partition_id"]:
            counts = ras_counts(sysfs / "bus/pci/devices" / one["pci"] / "ras")
            one["ecc"] = asdict(counts) if counts else None


def ras_counts(folder: Path) -> amdsmi.Ecc | None:
    """Return the sums of a GPU's own counters; None where any cannot be read."""
    sums = gpu_health.ras_counts(folder)
    return amdsmi.Ecc(sums.get("ce"), sums.get("ue"), sums.get("de")) if sums else None


def ask(program: str, *arguments: str) -> str:
    """Run amd-smi with --json, return what it printed. Raises OSError, TimeoutExpired, ValueError without output."""
    done = subprocess.run(
        [program, *arguments, "--json"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=AMD_SMI_TIMEOUT,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0 and not done.stdout.strip():
        complaint = " ".join(done.stderr.split())[-200:]
        raise ValueError(f"`amd-smi {' '.join(arguments)}` ended with {done.returncode}: {complaint}")
    return done.stdout
