# SPDX-License-Identifier: Apache-2.0
"""What the role rocm has left to do, and what speaks against a reboot."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.host import rocm_work
from ansible.module_utils.vllm_fleet.host.rocm_work import Access

NODE = {
    "groups": {"video": 44, "render": 104},
    "members": {"video": ["ops", "ada"], "render": ["ops"]},
    "devices": [{"path": "/dev/kfd", "gid": 104, "mode": "0660"}],
}
OPS = {"name": "ops", "missing_groups": []}
DRIVER = {
    "version": "6.16.13",
    "allowed": True,
    "package": "1:6.16.13.30300400-1.24.04",
    "package_allowed": True,
    "on_disk_version": "6.16.13",
    "reboot_required": False,
}


@pytest.mark.parametrize(
    ("changes", "users", "connecting", "found"),
    [
        ({}, [], OPS, Access([], False, [])),
        ({}, [], {"missing_groups": ["render"]}, Access([], True, [])),
        ({}, ["ops"], {"missing_groups": ["render"]}, Access([], False, [])),
        ({}, ["ops", "ada"], OPS, Access([], True, [])),
        ({"groups": {"video": None, "render": 104}}, [], OPS, Access(["video"], False, [])),
        ({"devices": [{"path": "/a", "gid": 0, "mode": "0666"}]}, [], OPS, Access([], False, ["/a"])),
        ({"devices": [{"path": "/a", "gid": 44, "mode": "0640"}]}, [], OPS, Access([], False, ["/a"])),
        ({"devices": [{"path": "/a", "gid": 44, "mode": "0670"}]}, [], OPS, Access([], False, [])),
        ({"devices": []}, [], OPS, Access([], False, [])),
    ],
)
def test_what_keeps_users_from_the_gpus(changes, users, connecting, found):
    assert rocm_work.access(NODE | changes, users, connecting) == found
    assert found.needed == (found != Access([], False, []))


@pytest.mark.parametrize(
    ("cmdline", "missing", "wanted", "lacks"),
    [
        ("ro pci=bfsort,realloc=off iommu=pt", [], ["pci=bfsort", "pci=realloc=off", "iommu=pt"], []),
        ("ro", ["pci=bfsort", "pci=realloc=off", "iommu=pt"], ["iommu=pt"], ["iommu=pt"]),
        # A later iommu=off takes it away, though the word is there.
        ("iommu=pt iommu=off", ["iommu=pt"], ["iommu=pt"], ["iommu=pt"]),
        ("ro x=1", [], ["x=1", "x=2"], ["x=2"]),
        (None, [], ["x=1"], []),
    ],
)
def test_words_that_the_kernel_runs_without(cmdline, missing, wanted, lacks):
    assert rocm_work.missing_words({"cmdline": cmdline, "missing": missing}, wanted) == lacks


@pytest.mark.parametrize(
    ("grub_cfg", "lacks"),
    [
        ("menuentry {\n\tlinux\t/vmlinuz ro pci=bfsort\n}\n# iommu=pt\n", ["iommu=pt"]),
        ("linux /a pci=bfsort\nlinux /b iommu=pt\n", []),
        ("set x=pci=bfsort\n", ["pci=bfsort", "iommu=pt"]),
        ("", ["pci=bfsort", "iommu=pt"]),
    ],
)
def test_words_that_grub_gives_no_kernel(grub_cfg, lacks):
    assert rocm_work.unwritten_words(["pci=bfsort", "iommu=pt"], grub_cfg) == lacks


WAITS = "the amdgpu module on disk (6.16.13) is not the one in memory (of the distribution)"


@pytest.mark.parametrize(
    ("changes", "allowed", "missing", "reasons"),
    [
        ({}, ["30.30"], [], []),
        ({"reboot_required": None}, ["30.30"], [], []),
        ({}, ["30.30"], ["a=1", "b"], ["the kernel runs without a=1 b"]),
        ({"reboot_required": True, "version": None, "allowed": False}, [], ["a"], [WAITS, "the kernel runs without a"]),
        # A good driver stays rather than one that is not allowed, AMD's or the distribution's.
        ({"reboot_required": True, "package_allowed": False}, [], [], []),
        ({"reboot_required": True, "on_disk_version": None}, [], [], []),
        (
            {"reboot_required": True, "on_disk_version": None},
            ["inbox"],
            [],
            ["the amdgpu module on disk (of the distribution) is not the one in memory (6.16.13)"],
        ),
        # Built by hand, without a package.
        (
            {"reboot_required": True, "package": None, "package_allowed": False, "version": "6.10.5"},
            [],
            [],
            ["the amdgpu module on disk (6.16.13) is not the one in memory (6.10.5)"],
        ),
    ],
)
def test_why_only_a_reboot_helps(changes, allowed, missing, reasons):
    assert rocm_work.reboot_reasons(DRIVER | changes, allowed, missing) == reasons


LOST = (
    "amdgpu was not built for: install its headers and have DKMS build it (dkms autoinstall --kernelver), or take that"
)
OUT = "amdgpu is kept out by a, b and nothing here loads it at boot: take the entry away, or set"


@pytest.mark.parametrize(
    ("lost", "kernel", "allowed", "loads", "says"),
    [
        (False, {}, [], False, ""),
        (True, {}, [], False, f"the next boot takes kernel 6.8, which {LOST} kernel away"),
        (True, {"next": "6.9"}, [], False, f"the next boot takes kernel 6.9, which {LOST} kernel away"),
        (True, {}, ["inbox"], False, ""),
        (False, {"blacklisted_by": ["a", "b"]}, [], False, f"{OUT} rocm_load_blacklisted_driver to true"),
        (True, {"blacklisted_by": ["a", "b"]}, ["inbox"], False, f"{OUT} rocm_load_blacklisted_driver to true"),
        (False, {"blacklisted_by": ["a"]}, [], True, ""),
        (False, {"blacklisted_by": ["a"], "load_unit": "0"}, [], False, ""),
    ],
)
def test_a_boot_that_would_lose_the_driver(lost, kernel, allowed, loads, says):
    node = {
        "driver": {"lost_at_boot": lost},
        "kernel": {"release": "6.8", "next": None, "blacklisted_by": [], "load_unit": None, **kernel},
    }
    assert rocm_work.lost_by_boot(node, allowed, loads_blacklisted=loads) == says


def process(pid, name=None, container=None, command=None):
    return {"pid": pid, "container_name": name, "container": container, "command": command}


OURS, OTHER = process(1, "vllm", "c1", "python"), process(2, None, "c2", "python")


@pytest.mark.parametrize(
    ("processes", "containers", "gateway", "says"),
    [
        ([], 0, False, ""),
        ([], 0, True, "it is a gateway"),
        ([], 2, True, "2 container(s) run"),
        ([OURS, OTHER], 2, True, "the GPUs are in use by pid 1 (vllm), pid 2 (c2)"),
        (
            [process(3, command="rocm-bench"), process(4)],
            0,
            False,
            "the GPUs are in use by pid 3 (rocm-bench), pid 4 (unknown)",
        ),
    ],
)
def test_whom_a_reboot_would_hit(processes, containers, gateway, says):
    assert rocm_work.busy_with(processes, containers, gateway=gateway) == says


@pytest.mark.parametrize(
    ("busy", "processes", "drained", "says"),
    [
        ("", [], False, ""),
        ("it is a gateway", [], False, "it is a gateway: drain the node and set rocm_drained to true"),
        ("it is a gateway", [], True, ""),
        ("x", [OURS], True, ""),
        ("x", [OURS], False, "x: drain the node and set rocm_drained to true"),
        ("x", [OURS, OTHER], True, "x, which is not our server: stop the process first"),
    ],
)
def test_what_stands_in_the_way_of_a_reboot(busy, processes, drained, says):
    assert rocm_work.in_the_way(busy, processes, "vllm", drained=drained) == says


@pytest.mark.parametrize(
    ("before", "after", "bus", "lost"),
    [
        (["a", "b", "b"], ["b", "a"], ["a", "b", "c"], []),
        (["a", "b", "b"], ["a"], ["a", "b", "c"], ["b"]),
        ([], ["a"], ["a", "b"], ["b"]),
        ([None], [None], ["a"], ["a"]),
        ([], [], [], []),
    ],
)
def test_gpus_that_did_not_come_back(before, after, bus, lost):
    def gpus(addresses):
        return [{"pci": pci} for pci in addresses]

    found = rocm_work.gpus_lost({"gpus": gpus(before)}, {"gpus": gpus(after), "pci_devices": gpus(bus)})
    assert found == lost


@pytest.mark.parametrize(
    ("loaded", "may_reboot", "says"),
    [
        (False, False, ""),
        (False, True, ""),
        (True, True, "; a reboot brings it into the kernel"),
        (
            True,
            False,
            "; the run would end there, for only a reboot brings it into the kernel, and rocm_allow_reboot is false",
        ),
    ],
)
def test_what_follows_an_installation(loaded, may_reboot, says):
    assert rocm_work.after_install(loaded=loaded, may_reboot=may_reboot) == says


@pytest.mark.parametrize(
    ("said", "clause"),
    [
        ("Timed out waiting for last boot time check (timeout=60)", "it is not back after 60 s (Timed out waiting"),
        ("Reboot command\n  failed", "that failed (Reboot command failed)."),
        ("", "that failed (no answer)."),
        ("x" * 500, f"that failed ({'x' * 200})."),
    ],
)
def test_a_node_that_does_not_come_back(said, clause):
    message = rocm_work.not_back("node1", ["the kernel runs without iommu=pt", "another"], said, 60)
    assert message.startswith("node1: told to reboot because the kernel runs without iommu=pt and another, but ")
    assert clause in message and message.endswith("needs a larger rocm_reboot_timeout.")


def test_what_was_done_before_a_repository_did_not_answer():
    assert rocm_work.left_off(certificates=True) == "The driver was not installed."
    assert rocm_work.left_off(certificates=False) == "Nothing was changed."
