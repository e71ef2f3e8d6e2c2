# SPDX-License-Identifier: Apache-2.0
"""rocm_probe.py on folders that stand for /etc: who is in a group, what the next boot sets and loads."""

import grp
import hashlib
import json

import pytest
from sysfs import trees

from ansible.module_utils.vllm_fleet.container.api import DockerUnavailable
from ansible.module_utils.vllm_fleet.host import amdsmi, gpu, rocm

UNIT = "[Service]\nExecStart=/sbin/modprobe amdgpu\n"


def test_members_are_those_of_the_group_and_those_whose_first_group_it_is(tmp_path, monkeypatch):
    entry = grp.struct_group(("render", "x", 104, ["ops", "ada"]))
    monkeypatch.setattr(rocm.grp, "getgrnam", {"render": entry}.__getitem__)
    (tmp_path / "passwd").write_text("bob:x:1003:104::/home/bob:/bin/sh\neve:x:104:1004::/:/bin/sh\nops:x:1:1::/:\n+\n")
    assert rocm.members("render", tmp_path) == ["ada", "bob", "ops"]
    assert rocm.members("video", tmp_path) == []
    (tmp_path / "passwd").unlink()
    assert rocm.members("render", tmp_path) == ["ada", "ops"]


def test_the_unit_that_loads_the_driver_counts_only_when_a_boot_runs_it(tmp_path):
    unit = tmp_path / "systemd/system" / rocm.LOAD_UNIT
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)
    assert rocm.load_unit(tmp_path) is None
    wanted = unit.parent / "multi-user.target.wants" / unit.name
    wanted.parent.mkdir()
    wanted.symlink_to(unit)
    assert rocm.load_unit(tmp_path) == hashlib.sha256(UNIT.encode()).hexdigest()
    unit.unlink()
    assert rocm.load_unit(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "value", "said_by"),
    [
        ({}, None, None),
        ({"sysctl.d/10-a.conf": "kernel.numa_balancing = 1\n"}, "1", "sysctl.d/10-a.conf"),
        (
            {"sysctl.d/10-a.conf": "kernel.numa_balancing=1", "sysctl.d/60-b.conf": "-kernel/numa_balancing = 0"},
            "0",
            "sysctl.d/60-b.conf",
        ),
        (
            {"sysctl.d/60-b.conf": "kernel.numa_balancing = 0", "sysctl.conf": "kernel.numa_balancing=1"},
            "1",
            "sysctl.conf",
        ),
        ({"sysctl.d/60-b.conf": "# kernel.numa_balancing = 0"}, None, None),
        ({"sysctl.d/60-b.txt": "kernel.numa_balancing = 0"}, None, None),
    ],
)
def test_what_the_next_boot_sets(tmp_path, files, value, said_by):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    path = str(tmp_path / said_by) if said_by else None
    assert rocm.persistent_sysctl(tmp_path, "kernel.numa_balancing") == (value, path)


class Engine:
    """Answers `docker info`, or nothing."""

    def __init__(self, root=None):
        self.root = root

    def info(self):
        if self.root is None:
            raise DockerUnavailable("no engine")
        return {"DockerRootDir": self.root}


@pytest.mark.parametrize(
    ("engine", "daemon_json", "root"),
    [
        ("/data/docker", '{"data-root": "/other"}', "/data/docker"),
        ("", '{"data-root": "/other"}', "/other"),
        (None, '{"data-root": "/other"}', "/other"),
        (None, "{}", "/var/lib/docker"),
        (None, "not JSON", "/var/lib/docker"),
        (None, "[]", "/var/lib/docker"),
        (None, None, "/var/lib/docker"),
    ],
)
def test_where_docker_keeps_the_names_of_containers(tmp_path, engine, daemon_json, root):
    if daemon_json is not None:
        (tmp_path / "docker").mkdir()
        (tmp_path / "docker/daemon.json").write_text(daemon_json)
    assert rocm.docker_root(tmp_path, Engine(engine)) == root


def test_the_own_container_is_known_where_dockers_data_lies_elsewhere(tmp_path):
    tree = trees.foreign_holder(tmp_path)
    tree.write(tmp_path / "etc/docker/daemon.json", json.dumps({"data-root": str(tree.docker)}))
    found = rocm.look(
        rocm.Roots(
            str(tree.sys),
            str(tree.proc),
            str(tree.modules),
            etc_root=str(tmp_path / "etc"),
            docker_socket=str(tmp_path / "none.sock"),
            own_container="trainer",
        )
    )
    assert [one["container_name"] for one in found["processes"]] == ["trainer"]
    assert found["safe_gpu_memory_utilization"] == 0.92


@pytest.mark.parametrize(
    ("kernels", "grub", "following"),
    [
        ([], {}, None),
        (["6.8.0-90-generic", "6.8.0-101-generic", "6.8.0-9-generic"], {}, "6.8.0-101-generic"),
        (["6.12.6+deb13-amd64", "6.12.57+deb13-amd64"], {"default/grub": "GRUB_DEFAULT=0\n"}, "6.12.57+deb13-amd64"),
        (["1", "2"], {"default/grub": 'GRUB_DEFAULT="1>2"'}, None),
        (["1", "2"], {"default/grub": "GRUB_DEFAULT=saved", "default/grub.d/a.cfg": "GRUB_DEFAULT='0'"}, None),
        (["1", "2"], {"default/grub": "#GRUB_DEFAULT=1"}, "2"),
    ],
)
def test_which_kernel_the_next_boot_takes(tmp_path, kernels, grub, following):
    for name in [*(f"boot/vmlinuz-{one}" for one in kernels), "boot/vmlinuz", "boot/config-9"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name, text in grub.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert rocm.next_kernel(tmp_path / "boot", tmp_path) == following


@pytest.mark.parametrize(
    ("version", "following", "module", "lost"),
    [
        ("6.16.13", "7", "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko", True),
        ("6.16.13", "7", None, True),
        ("6.16.13", "7", "updates/dkms/amdgpu.ko.zst", False),
        ("6.16.13", "6", None, False),  # the running one
        ("6.16.13", None, None, False),
        (None, "7", "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko", False),  # the distribution's now as then
    ],
)
def test_a_boot_into_a_kernel_without_the_driver_is_foreseen(tmp_path, version, following, module, lost):
    if module:
        (tmp_path / "7" / module).parent.mkdir(parents=True)
        (tmp_path / "7" / module).touch()
    on_disk = str(tmp_path / "6/updates/dkms/amdgpu.ko")
    found = {"version": None, "on_disk": on_disk, "on_disk_version": version}  # waits for its boot
    assert rocm.lost_at_boot(found, "6", following, tmp_path) is lost


@pytest.mark.parametrize(("folder", "lost"), [("kernel/drivers/gpu/drm/amd/amdgpu", True), ("updates/dkms", False)])
def test_a_driver_that_is_only_in_memory_is_lost_at_boot(tmp_path, folder, lost):
    found = {"version": "6.16.13", "on_disk": str(tmp_path / "6" / folder / "amdgpu.ko"), "on_disk_version": None}
    assert rocm.lost_at_boot(found, "6", "6", tmp_path) is lost


MODINFO = """\
filename:       /lib/modules/k/updates/dkms/amdgpu.ko.xz
version:        6.16.13
description:    AMD GPU
srcversion:     0A1B2C3D4E5F60718293A4B
vermagic:       k SMP
parm:           vm_size:VM address space size in gigabytes (int)
"""


@pytest.mark.parametrize(
    ("said", "version", "required"),
    [
        (MODINFO, "6.16.13", True),
        # Debian's own: neither version nor srcversion, and that is an answer.
        ("filename:       /x\nvermagic:       k SMP\n", None, None),
        ("", None, None),  # it failed
    ],
)
def test_a_compressed_module_is_told_by_modinfo(tmp_path, monkeypatch, said, version, required):
    program = tmp_path / "bin/modinfo"
    program.parent.mkdir()
    (tmp_path / "said").write_text(said)
    program.write_text(f"#!/bin/sh\n[ -s {tmp_path}/said ] && cat {tmp_path}/said\n")
    program.chmod(0o755)
    monkeypatch.setattr(rocm, "_PATH", str(program.parent) + ":/bin:/usr/bin")
    tree = trees.Tree(tmp_path / "node")
    tree.host()
    tree.driver(None, None)
    tree.on_disk().write_bytes(b"\xfd7zXZ compressed")
    inventory = gpu.read(tree.sys, tree.proc, tree.modules)
    notes = list(inventory.notes)
    found = rocm.driver(inventory.driver, ["inbox"], notes)
    assert (found["on_disk_version"], found["reboot_required"]) == (version, required)
    assert any("without modinfo" in note for note in notes) == (not said)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"umc_err_count": "ue: 1\nce: 3\n", "sdma_err_count": "ue: 0\nce: 2\n"}, amdsmi.Ecc(5, 1, None)),
        ({"umc_err_count": "ue: 0\nce: 0\nde: 7\n", "features": "feature mask: 0x5"}, amdsmi.Ecc(0, 0, 7)),
        ({"umc_err_count": "Query failed\n"}, None),
    ],
)
def test_the_kernels_own_error_counts(tmp_path, files, expected):
    tree = trees.mi300x(tmp_path)
    folder = tree.device_dir(0) / "ras"
    for name, text in files.items():
        tree.write(folder / name, text)
    assert rocm.ras_counts(folder) == expected
    gpus = gpu.read(tree.sys, tree.proc, tree.modules).as_dict()["gpus"]
    rocm.add_health(gpus, None, [])
    rocm.add_counts(gpus, tree.sys)
    assert gpus[0]["ecc"] == (vars(expected) if expected else None)
    assert gpus[1]["ecc"] is None
    if files:
        tree.break_file(folder / "umc_err_count")
        assert rocm.ras_counts(folder) is None
