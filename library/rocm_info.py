#!/usr/bin/python
"""Ansible module rocm_info: what a node says about its AMD GPUs, read-only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rocm_info
short_description: Tell which AMD GPUs a node has, who holds their memory and which driver runs them
description:
  - Reads C(/sys), C(/proc) and C(/lib/modules). Needs no ROCm tool on the node and no Docker SDK.
  - Where C(amd-smi) is installed, ECC error counts and bad pages are added from its JSON; where C(modinfo) is, the version of a
    compressed driver module on disk.
  - A file that is missing or cannot be read gives C(null) and a sentence in RV(notes) or in the GPU's own C(notes), never a failure.
options:
  sysfs_root:
    description:
      - Directory that stands for C(/sys). With any other one than C(/sys), C(amd-smi) is not asked unless O(amd_smi) names it,
        as it would speak of another machine.
    type: path
    default: /sys
  proc_root:
    description: Directory that stands for C(/proc).
    type: path
    default: /proc
  modules_root:
    description: Directory that stands for C(/lib/modules).
    type: path
    default: /lib/modules
  dev_root:
    description: Directory that stands for C(/dev).
    type: path
    default: /dev
  etc_root:
    description: Directory that stands for C(/etc), for C(modprobe.d), C(sysctl.d) and C(os-release).
    type: path
    default: /etc
  docker_root:
    description: Docker's data directory, from which the names of containers are read.
    type: path
    default: /var/lib/docker
  amd_smi:
    description:
      - Program to ask for ECC errors and bad pages. V(auto) looks in C(PATH) and under C(/opt/rocm*); an empty string asks none.
    type: str
    default: auto
  own_container:
    description:
      - Name or id of a container whose GPU memory counts as free, because it is about to be replaced.
    type: str
  allowed_driver_versions:
    description:
      - Drivers that are good as they are, for RV(driver.allowed). A release (V(30.30.4)), a line of releases (V(30.30)), the
        version of the module itself (V(6.16.13)), or V(inbox) for the distribution's module, which has no version.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: This module does not change anything.
  diff_mode:
    support: none
    description: This module does not change anything.
author:
  - The vllm-fleet developers
"""

EXAMPLES = r"""
- name: Look at a node from the command line
  # ansible gpu1 -b -m rocm_info
  rocm_info:
  register: node

- name: Refuse a node on which somebody else computes
  ansible.builtin.assert:
    that: node.processes | length == 0
    fail_msg: "{{ inventory_hostname }}: {{ node.processes | map(attribute='command') | join(', ') }} use the GPUs"

- name: How much would fit once the running server is gone
  rocm_info:
    own_container: vllm
"""

RETURN = r"""
gpus:
  description: The GPUs in HIP's order, which is vLLM's; every partition of a partitioned GPU is one.
  returned: always
  type: list
  elements: dict
  contains:
    index: {description: HIP's number., type: int}
    name: {description: Product name., type: str}
    gfx: {description: Compiler target such as V(gfx942)., type: str}
    pci: {description: PCI address of the device., type: str}
    kfd_id: {description: The kernel's id of the GPU in C(/sys/class/kfd)., type: int}
    render: {description: DRM node such as V(renderD128)., type: str}
    vram_total: {description: Bytes., type: int}
    vram_used: {description: "Bytes. Of a partition: what its processes hold.", type: int}
    vram_free: {description: Bytes., type: int}
    partition: {description: Compute and memory partition such as V(SPX/NPS1)., type: str}
    partition_id: {description: Number of the partition within its device., type: int}
    link: {description: "PCIe link: C(speed), C(width), C(max_speed), C(max_width), C(degraded).", type: dict}
    holders: {description: "Processes that hold memory: C(pid), C(command), C(container), C(container_name), C(bytes).", type: list}
    ecc: {description: "C(correctable), C(uncorrectable), C(deferred) errors since the driver was loaded.", type: dict}
    bad_pages: {description: "C(retired), C(pending), C(unreservable) pages.", type: dict}
    notes: {description: What could not be read., type: list}
pci_devices:
  description: AMD accelerators on the PCI bus with the driver each is bound to, whether or not they are usable.
  returned: always
  type: list
  elements: dict
processes:
  description: All processes that have the compute driver open, also those that hold no memory.
  returned: always
  type: list
  elements: dict
driver:
  description: The amdgpu module.
  returned: always
  type: dict
  contains:
    loaded: {description: Whether the module is in the kernel., type: bool}
    version: {description: Version of the loaded module; null for the distribution's., type: str}
    srcversion: {description: Source checksum of the loaded module., type: str}
    release: {description: "AMD's driver release: exact where the installed package tells, else its line; V(inbox) for the distribution's.", type: str}
    on_disk: {description: File that the next boot loads., type: str}
    on_disk_version: {description: Its version., type: str}
    on_disk_srcversion: {description: Its source checksum., type: str}
    reboot_required: {description: The loaded and the on-disk module differ; null when that cannot be known., type: bool}
    package: {description: Version of the installed package C(amdgpu-dkms)., type: str}
    package_release: {description: AMD's driver release of that package., type: str}
    package_allowed: {description: The installed package is one of O(allowed_driver_versions)., type: bool}
    allowed: {description: The loaded driver is one of O(allowed_driver_versions)., type: bool}
kernel:
  description: >-
    C(release), C(cmdline), C(missing) settings that AMD requires, C(blacklisted_by) what keeps amdgpu from loading, C(numa_balancing) now and
    C(numa_balancing_persistent) after a boot, C(secure_boot), C(memory_total) in bytes.
  returned: always
  type: dict
os:
  description: C(id) and C(version_id) of os-release, C(architecture).
  returned: always
  type: dict
devices:
  description: "C(/dev/kfd) and C(/dev/dri/renderD*): C(path), C(gid), C(mode)."
  returned: always
  type: list
  elements: dict
groups:
  description: Numeric ids of C(video) and C(render) on this node, null for one that does not exist.
  returned: always
  type: dict
user:
  description: The connecting user's C(name), and which of the groups it lacks in C(missing_groups).
  returned: always
  type: dict
safe_gpu_memory_utilization:
  description:
    - The largest gpu-memory-utilization that the tightest GPU has room for now, but at most vLLM's default of 0.92.
      Null when no GPU's memory is known.
  returned: always
  type: float
memory:
  description: "The tightest GPU: C(index), C(total), C(free), C(taken) in bytes, C(highest) without the limit of 0.92, C(sentence)."
  returned: when a GPU's memory is known
  type: dict
notes:
  description: Findings about the node in words.
  returned: always
  type: list
  elements: str
"""

import grp
import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet import amdsmi, gpu, memory

AMD_SMI_TIMEOUT = 60  # s; it queries every GPU one after the other, and a hung GPU hangs it
GROUPS = ("video", "render")


def main() -> None:
    """Read, add what amd-smi and modinfo know, and answer."""
    module = AnsibleModule(
        argument_spec={
            "sysfs_root": {"type": "path", "default": "/sys"},
            "proc_root": {"type": "path", "default": "/proc"},
            "modules_root": {"type": "path", "default": "/lib/modules"},
            "dev_root": {"type": "path", "default": "/dev"},
            "etc_root": {"type": "path", "default": "/etc"},
            "docker_root": {"type": "path", "default": "/var/lib/docker"},
            "amd_smi": {"type": "str", "default": "auto"},
            "own_container": {"type": "str"},
            "allowed_driver_versions": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    options = module.params
    for name in ("sysfs_root", "proc_root"):
        if not Path(options[name]).is_dir():
            module.fail_json(msg=f"{name} is {options[name]}; a directory is expected there. Nothing was read.")
    etc = Path(options["etc_root"])
    inventory = gpu.read(
        Path(options["sysfs_root"]),
        Path(options["proc_root"]),
        Path(options["modules_root"]),
        modprobe_dirs=[etc / "modprobe.d", Path("/usr/lib/modprobe.d")],
        docker_root=Path(options["docker_root"]),
    )
    result = inventory.as_dict()
    notes: list[str] = result["notes"]
    result["driver"] = driver(module, inventory.driver, options["allowed_driver_versions"], notes)
    result["kernel"]["numa_balancing_persistent"] = persistent_sysctl(etc, "kernel.numa_balancing")
    result["os"] = operating_system(etc)
    result["devices"] = devices(Path(options["dev_root"]))
    result["groups"] = {name: group_id(name) for name in GROUPS}
    result["user"] = connecting_user()
    result.update(free_memory(inventory.gpus, options["own_container"], notes))
    add_health(result["gpus"], amd_smi_program(options["amd_smi"], options["sysfs_root"]), notes)
    module.exit_json(changed=False, **result)


def driver(module: AnsibleModule, found: gpu.Driver, allowed: list[str], notes: list[str]) -> dict[str, Any]:
    """Complete the driver with what modinfo and the package database say."""
    facts = asdict(found)
    if found.on_disk and found.on_disk_srcversion is None and module.get_bin_path("modinfo"):
        for field in ("version", "srcversion"):
            code, out, _ = module.run_command(["modinfo", "-F", field, found.on_disk])
            facts[f"on_disk_{field}"] = (out.strip() or None) if code == 0 else None
        if facts["on_disk_srcversion"]:
            notes[:] = [note for note in notes if "without modinfo" not in note]
        facts["reboot_required"] = gpu.reboot_required(found.loaded, found.srcversion, facts["on_disk_srcversion"])
    facts["package"] = installed_version(module, "amdgpu-dkms")
    # The package tells the exact release only of the module that it installed: versions must agree, and no other
    # module may be waiting on disk.
    release = gpu.driver_release(facts["package"] or "")
    facts["package_release"] = release
    facts["package_allowed"] = release is not None and gpu.driver_allowed(release, "", allowed)
    if release and found.version and not facts["reboot_required"]:
        upstream = facts["package"].rpartition(":")[2]
        if upstream.startswith(found.version + "."):
            facts["release"] = release
    facts["allowed"] = found.loaded and gpu.driver_allowed(facts["release"], found.version, allowed)
    return facts


def installed_version(module: AnsibleModule, package: str) -> str | None:
    """Return the version of an installed Debian package, None without it or without dpkg."""
    if not module.get_bin_path("dpkg-query"):
        return None
    code, out, _ = module.run_command(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package])
    status, _, version = out.partition(" ")
    return version if code == 0 and status == "installed" else None


def persistent_sysctl(etc: Path, name: str) -> str | None:
    """Return the value that the next boot gives a sysctl; later files win, /etc shadows a file of the same name."""
    files: dict[str, Path] = {}
    for folder in (Path("/usr/lib/sysctl.d"), Path("/run/sysctl.d"), etc / "sysctl.d"):
        if folder.is_dir():
            files.update({path.name: path for path in folder.glob("*.conf")})
    ordered = [files[key] for key in sorted(files)]
    value = None
    for path in [*ordered, etc / "sysctl.conf"]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for match in re.finditer(rf"^\s*-?\s*{re.escape(name)}\s*=\s*(\S+)", text.replace("/", "."), re.MULTILINE):
            value = match[1]
    return value


def operating_system(etc: Path) -> dict[str, str | None]:
    """Return id and version_id of os-release and the machine architecture."""
    try:
        text = (etc / "os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return {"id": fields.get("ID"), "version_id": fields.get("VERSION_ID"), "architecture": platform.machine()}


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
    known, unknown = memory.readable(gpus)
    if unknown:
        notes.append(f"GPU memory is not known of GPU {', '.join(map(str, unknown))}: left out of the utilization")
    if not known:
        return {"safe_gpu_memory_utilization": None}

    def is_own(holder: memory.HolderLike) -> bool:
        return bool(own) and (holder.container_name == own or (holder.container or "").startswith(own or "\0"))

    mine = {one.number: sum(holder.bytes or 0 for holder in one.holders if is_own(holder)) for one in known}
    others = [one._replace(holders=[holder for holder in one.holders if not is_own(holder)]) for one in known]
    verdict = memory.fit(others, memory.DEFAULT_UTILIZATION, mine)
    return {
        "safe_gpu_memory_utilization": min(verdict.highest, memory.DEFAULT_UTILIZATION),
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
        errors = amdsmi.ecc(ask(program, "metric", "--ecc"))
        pages = amdsmi.bad_pages(ask(program, "bad-pages"))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        notes.append(f"ECC errors and bad pages are not known: {error}")
        return
    by_kfd = {row.kfd_id: row.gpu for row in rows if row.kfd_id is not None}
    by_bdf = {row.bdf: row.gpu for row in rows if row.bdf is not None}
    for one in gpus:
        number = by_kfd.get(one["kfd_id"], by_bdf.get(one["pci"]))
        if number is None:
            one["notes"].append("amd-smi does not list this GPU")
            continue
        one["ecc"] = asdict(errors[number]) if number in errors else None
        one["bad_pages"] = asdict(pages[number]) if number in pages else None


def ask(program: str, *arguments: str) -> str:
    """Run amd-smi with --json and return what it printed. Raises OSError, TimeoutExpired, or ValueError without output."""
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


if __name__ == "__main__":
    main()
