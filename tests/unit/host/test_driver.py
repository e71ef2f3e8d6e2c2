# SPDX-License-Identifier: Apache-2.0
"""What sysfs, modules and the kernel's files say about driver and kernel, read from trees of text files."""

import pytest
from sysfs import trees

from ansible.module_utils.vllm_fleet.host import driver, gpu


def read(tree: trees.Tree, **options) -> gpu.Inventory:
    return gpu.read(tree.sys, tree.proc, tree.modules, docker_root=tree.docker, **options)


def test_driver_in_memory_and_on_disk(tmp_path):
    tree = trees.mi300x(tmp_path)
    driver = read(tree).driver
    assert (driver.loaded, driver.version, driver.release) == (True, "6.16.13", "30.30")
    assert driver.on_disk == str(tree.modules / trees.KERNEL / "updates/dkms/amdgpu.ko")
    assert (driver.on_disk_version, driver.reboot_required) == ("6.16.13", False)

    tree.on_disk("6.19.14", "FFFFFFFFFFFFFFFFFFFFFFF")
    driver = read(tree).driver
    assert (driver.on_disk_version, driver.reboot_required) == ("6.19.14", True)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("6.19.14.31400000", "31.40"),  # amd-smi and modinfo of nodes, since 31.40
        ("6.19.14.31400100", "31.40.1"),
        ("7.1.3.31500000", "31.50"),
        ("6.19.14", "31.40"),
        ("6.18.4", "31.10"),
        ("6.20.1", None),
    ],
)
def test_the_release_that_a_module_says(tmp_path, version, release):
    tree = trees.Tree(tmp_path)
    tree.host()
    tree.driver(version=version)
    assert read(tree).driver.release == release


def test_inbox_driver(tmp_path):
    tree = trees.Tree(tmp_path)
    tree.host()
    tree.driver(version=None)
    trees.write_module(
        tree.modules / trees.KERNEL / "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko", None, trees.LOADED_SRCVERSION
    )
    driver = read(tree).driver
    assert (driver.release, driver.version, driver.on_disk_version, driver.reboot_required) == (
        "inbox",
        None,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("memory", "disk", "required"),
    [
        # Debian's kernel: no srcversion of modules without a version, as its own amdgpu is.
        ((None, None), ("6.16.13", "F" * 23), True),
        (("6.16.13", "F" * 23), (None, None), True),
        ((None, None), (None, None), None),
        (("6.16.13", "F" * 23), ("6.19.14", None), True),
        (("6.16.13", "F" * 23), ("6.16.13", None), None),
        (("6.16.13", "F" * 23), ("6.16.13", "E" * 23), True),
        ((None, "D" * 23), (None, "D" * 23), False),
        ((None, "D" * 23), (None, "C" * 23), True),
    ],
)
def test_whether_the_module_on_disk_is_another(tmp_path, memory, disk, required):
    tree = trees.Tree(tmp_path)
    tree.host()
    tree.driver(*memory)
    tree.on_disk(*disk)
    assert read(tree).driver.reboot_required is required


@pytest.mark.parametrize("content", [b"\x28\xb5\x2f\xfd compressed", b"", b"\x7fELF\x02\x01" + bytes(70)])
def test_module_file_that_cannot_be_parsed(tmp_path, content):
    tree = trees.mi300x(tmp_path)
    tree.on_disk().write_bytes(content)
    found = read(tree)
    assert (found.driver.on_disk_srcversion, found.driver.reboot_required) == (None, None)
    assert "without modinfo" in found.notes[0]


@pytest.mark.parametrize(
    ("cmdline", "missing"),
    [
        ("ro pci=realloc=off pci=bfsort iommu=pt", []),
        ("ro pci=realloc=off,bfsort iommu=pt intel_iommu=on", []),
        ("ro quiet", ["pci=realloc=off", "pci=bfsort", "iommu=pt"]),
        ("pci=realloc pci=bfsort iommu=pt", ["pci=realloc=off"]),
        ("pci=realloc=off pci=bfsort iommu=pt iommu=on", ["iommu=pt"]),
        ("pci=realloc=off pci=bfsort xiommu=pt", ["iommu=pt"]),
    ],
)
def test_kernel_command_line(cmdline, missing):
    assert driver.missing_cmdline(cmdline) == missing


@pytest.mark.parametrize(("vendor", "missing"), [("GenuineIntel", ["intel_iommu=on"]), ("AuthenticAMD", [])])
def test_an_intel_host_needs_its_iommu_switched_on(tmp_path, vendor, missing):
    tree = trees.mi300x(tmp_path)
    tree.write(tree.proc / "cpuinfo", f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: " + "fpu " * 4000)
    assert read(tree).kernel.missing == missing
    tree.write(tree.proc / "cmdline", trees.GOOD_CMDLINE + " intel_iommu=on")
    assert read(tree).kernel.missing == []


def test_blacklists_are_found(tmp_path):
    tree = trees.mi300x(tmp_path)
    tree.host(trees.GOOD_CMDLINE + " modprobe.blacklist=nouveau,amdgpu", numa_balancing=1)
    folder = tree.root / "modprobe.d"
    tree.write(folder / "vendor.conf", "# amdgpu comes later\nblacklist amdgpu")
    tree.write(folder / "other.conf", "blacklist amdgpu_pro\n#blacklist amdgpu\noptions amdgpu vm_size=1")
    kernel = read(tree, modprobe_dirs=[folder, tree.root / "absent"]).kernel
    assert kernel.blacklisted_by == [
        "kernel command line: modprobe.blacklist=nouveau,amdgpu",
        str(folder / "vendor.conf"),
    ]
    assert kernel.numa_balancing == 1


@pytest.mark.parametrize(("content", "state"), [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (b"\6", None)])
def test_secure_boot(tmp_path, content, state):
    tree = trees.mi300x(tmp_path)
    path = tree.sys / "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert read(tree).kernel.secure_boot is state


# AMD's driver releases and the DKMS versions that belong to them.
@pytest.mark.parametrize(
    ("package", "release"),
    [
        ("6.14.14.30100200-2226257", "30.10.2"),
        ("1:6.16.6.30200100-2255209.22.04", "30.20.1"),
        ("1:6.16.13.30300400-2341068.24.04", "30.30.4"),
        ("1:6.19.4.31300000-2337710.24.04", "31.30"),
        ("6.19.14.31400000-2364437", "31.40"),
        ("1:6.8.5.60200-2009582.22.04", None),  # before drivers had releases of their own
        ("", None),
    ],
)
def test_release_of_a_package(package, release):
    assert driver.driver_release(package) == release


@pytest.mark.parametrize(
    ("release", "version", "allowed", "verdict"),
    [
        ("30.30.4", "6.16.13", ["30.30"], True),
        ("30.30.4", "6.16.13", ["30.30.3"], False),
        ("30.30", "6.16.13", ["30.30"], True),
        ("30.30", "6.16.13", ["30.30.4"], False),  # the exact release is not known: not taken for granted
        ("31.40", "6.19.14", ["31.40.0"], True),
        ("30.30.4", "6.16.13", ["30.3"], False),
        (None, "6.99.0", ["6.99.0"], True),
        (None, "6.99.0", ["30.30", "inbox"], False),
        ("inbox", None, ["inbox"], True),
        ("inbox", None, ["30.30"], False),
        ("30.30", "6.16.13", [], False),
    ],
)
def test_allowed_drivers(release, version, allowed, verdict):
    assert driver.driver_allowed(release, version, allowed) is verdict
