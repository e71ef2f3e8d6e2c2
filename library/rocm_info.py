#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module rocm_info: what a node has of AMD GPUs, read-only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rocm_info
short_description: Gather which AMD GPUs a node has, who holds their memory and which driver runs them
description:
  - Reads C(/sys), C(/proc) and C(/lib/modules). Needs no ROCm tool on the node and no Docker SDK.
  - Where C(amd-smi) is installed, ECC error counts and bad pages are added from its JSON; without it the kernel's own counts of
    errors. Where C(modinfo) is, the version of a compressed driver module on disk.
  - A file that is missing or cannot be read gives C(null) and a sentence in RV(notes) or in the GPU's own C(notes), never a failure.
options:
  sysfs_root:
    description:
      - Directory that stands for C(/sys). With another directory than C(/sys), C(amd-smi) is asked only if O(amd_smi) names it, because it would
        report another machine.
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
  boot_root:
    description: Directory that stands for C(/boot), where the kernels are of which the next boot takes one.
    type: path
    default: /boot
  docker_root:
    description:
      - Docker's data directory, from which the names of containers are read. By default the one that the engine at O(docker_socket)
        says, else C(data-root) of C(docker/daemon.json) under O(etc_root), else C(/var/lib/docker).
    type: path
  docker_socket:
    description: Socket of the engine that is asked for its data directory.
    type: path
    default: /var/run/docker.sock
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
        version of the module itself (V(6.16.13)), V(>31.50) for releases above a line, or V(inbox) for the distribution's module, which
        has no version.
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
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Gather a node's GPUs from the command line
  # ansible gpu1 -b -m rocm_info
  rocm_info:
  register: node

- name: Fail when another user computes on the node
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
    release: {description: "AMD's driver release: exact where the installed package has it, else its line; V(inbox) for the distribution's.", type: str}
    on_disk: {description: File that the next boot loads., type: str}
    on_disk_version: {description: Its version., type: str}
    on_disk_srcversion: {description: Its source checksum., type: str}
    reboot_required: {description: The loaded and the on-disk module differ; null when that cannot be known., type: bool}
    lost_at_boot: {description: The next boot takes a kernel (C(kernel.next)) that AMD's module was not built for., type: bool}
    package: {description: Version of the installed package C(amdgpu-dkms)., type: str}
    package_release: {description: AMD's driver release of that package., type: str}
    package_allowed: {description: The installed package is one of O(allowed_driver_versions)., type: bool}
    allowed: {description: The loaded driver is one of O(allowed_driver_versions)., type: bool}
kernel:
  description: >-
    C(release), C(cmdline), C(missing) settings that AMD requires, C(blacklisted_by) what keeps amdgpu from loading, C(load_unit) the
    SHA-256 of the role rocm's unit that loads it all the same (null without one), C(numa_balancing) now and
    C(numa_balancing_persistent) after a boot by C(numa_balancing_set_by), C(secure_boot), C(memory_total) in bytes, C(next) the kernel of the next boot
    (null where the boot loader is set to another one than the newest).
  returned: always
  type: dict
os:
  description: C(id), C(version_id) and C(version_codename) of os-release, C(architecture).
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
members:
  description: Users in C(video) and C(render), by group.
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

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.host import rocm


def main() -> None:
    """Gather the facts and return them."""
    module = AnsibleModule(
        argument_spec={
            "sysfs_root": {"type": "path", "default": "/sys"},
            "proc_root": {"type": "path", "default": "/proc"},
            "modules_root": {"type": "path", "default": "/lib/modules"},
            "dev_root": {"type": "path", "default": "/dev"},
            "etc_root": {"type": "path", "default": "/etc"},
            "boot_root": {"type": "path", "default": "/boot"},
            "docker_root": {"type": "path"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
            "amd_smi": {"type": "str", "default": "auto"},
            "own_container": {"type": "str"},
            "allowed_driver_versions": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        result = rocm.look(rocm.Roots(**module.params))
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
