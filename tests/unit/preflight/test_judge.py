# SPDX-License-Identifier: Apache-2.0
"""findings.py by tables: emulated nodes of the sysfs trees, and single facts changed in a good one."""

import copy

import pytest
from sysfs import trees

from ansible.module_utils.vllm_fleet.common.finding import Finding
from ansible.module_utils.vllm_fleet.host import driver_table, gpu
from ansible.module_utils.vllm_fleet.host.facts import Folder, Host, Image, Room
from ansible.module_utils.vllm_fleet.preflight import judge
from ansible.module_utils.vllm_fleet.preflight.judge import Expected

GB = 10**9


def node(tmp_path, scenario="mi300x", **changes):
    """What rocm_info returns of a scenario, amd-smi's part included; changes are by dotted path."""
    tree = trees.SCENARIOS[scenario](tmp_path)
    facts = gpu.read(tree.sys, tree.proc, tree.modules, docker_root=tree.docker).as_dict()
    facts["driver"]["allowed"] = facts["driver"]["loaded"]
    for one in facts["gpus"]:
        one["ecc"] = {"correctable": 4, "uncorrectable": 0, "deferred": 0}
        one["bad_pages"] = {"retired": 0, "pending": 0, "unreservable": 0}
    for path, value in changes.items():
        place = facts
        *folders, last = [int(word) if word.isdigit() else word for word in path.split("__")]
        for word in folders:
            place = place[word]
        place[last] = value
    return facts


def judged(facts, host=None, **expected):
    host = host or Host(clock_synchronised=True)
    return {one.what: one for one in judge.judge(facts, host, Expected(**expected))}


def not_ok(found):
    return {what: one.level for what, one in found.items() if one.level != "ok"}


@pytest.mark.parametrize("scenario", ["mi300x", "cpx_nps4"])
def test_a_good_node_is_good(tmp_path, scenario):
    """64 logical GPUs of a partitioned node are still eight."""
    found = judged(node(tmp_path, scenario), gpu_name="mi300x")
    assert not_ok(found) == {}
    assert found["GPU count"].got == "8"
    assert all(one.remedy == "" for one in found.values())


HOLDER = {"pid": 7, "command": "vllm serve", "container": "f" * 64, "container_name": "vllm", "bytes": 180 * GB}


@pytest.mark.parametrize(
    ("scenario", "changes", "expected", "what", "level", "words"),
    [
        ("one_missing", {}, {}, "GPU count", "refused", "7 usable, without 0000:a6:00.0"),
        ("one_missing", {}, {"gpus": 7}, "GPU count", "warning", "7 usable"),
        ("one_missing", {}, {"gpus": 0}, "GPU count", "refused", "7 usable"),
        ("mi300x", {}, {"gpus": 4}, "GPU count", "refused", "8"),
        ("mi300x", {"gpus": [], "pci_devices": []}, {"gpus": 0}, "GPU count", "refused", "0"),
        ("mi325x", {}, {"gpu_name": "MI300X"}, "GPU kind", "refused", "AMD Instinct MI325X"),
        ("mi300x", {"gpus__3__name": "AMD Instinct MI325X"}, {}, "GPU kind", "refused", "7x AMD Instinct MI300X, 1x AMD"),
        ("mi300x", {"gpus__3__name": None}, {}, "GPU kind", "unknown", "AMD Instinct MI300X"),
        ("mi300x", {"gpus__3__partition": "CPX/NPS4"}, {}, "partition mode", "refused", "7x SPX/NPS1, 1x CPX/NPS4"),
        ("mi300x", {"gpus__3__partition": None}, {}, "partition mode", "unknown", "GPU 3"),
        ("mi300x", {"gpus__2__link": {"speed": "16.0 GT/s PCIe", "width": 8, "degraded": True}}, {}, "PCIe links", "warning", "GPU 2 16.0 GT/s PCIe x8"),
        ("read_error", {}, {}, "PCIe links", "unknown", "GPU 2"),
        ("read_error", {}, {}, "foreign use", "unknown", "GPU 2"),
        ("foreign_holder", {}, {}, "foreign use", "refused", "GPU 3 29.2 GB by pid 4711 (python3 train.py --api-key *** --lr=1e-4) in container trainer"),
        ("foreign_holder", {}, {"foreign_level": "warning"}, "foreign use", "warning", "pid 4711"),
        ("foreign_holder", {}, {"own_container": "trainer"}, "foreign use", "ok", "none"),
        ("foreign_holder", {}, {"own_container_id": trees.FOREIGN_CONTAINER}, "foreign use", "ok", "none"),
        ("foreign_holder", {}, {"idle_vram": 30 * GB}, "foreign use", "ok", "none"),
        ("mi300x", {"gpus__0__holders": [HOLDER], "gpus__0__vram_used": 181 * GB}, {"own_container": "vllm"}, "foreign use", "ok", "none"),
        ("mi300x", {"gpus__0__vram_used": 90 * GB}, {}, "foreign use", "refused", "90.0 GB by no process that the driver lists"),
        ("mi300x", {}, {"utilization": 0.92}, "GPU memory", "ok", "up to 0.99"),
        ("foreign_holder", {}, {"utilization": 0.9}, "GPU memory", "refused", "up to 0.85 (176.9 GB of 206.1 GB free on GPU 3)"),
        ("foreign_holder", {}, {"utilization": 0.85}, "GPU memory", "ok", "up to 0.85"),
        ("foreign_holder", {}, {"utilization": 0.9, "foreign_level": "warning"}, "GPU memory", "warning", "up to 0.85"),
        ("foreign_holder", {}, {"utilization": 0.9, "own_container": "trainer"}, "GPU memory", "ok", "up to 0.99"),
        # A server on other GPUs than the full one is not concerned.
        ("foreign_holder", {}, {"utilization": 0.9, "used": [0, 1]}, "GPU memory", "ok", "up to 0.99"),
        ("foreign_holder", {}, {"utilization": 0.9, "used": [2, 3]}, "GPU memory", "refused", "on GPU 3)"),
        ("mi300x", {"gpus__2__vram_free": None}, {"utilization": 0.9}, "GPU memory", "unknown", "unknown of GPU 2"),
        ("mi300x", {"gpus__2__vram_free": None}, {"utilization": 0.9, "used": [0]}, "GPU memory", "ok", "up to 0.99"),
        ("foreign_holder", {"gpus__2__vram_free": None}, {"utilization": 0.9}, "GPU memory", "refused", "on GPU 3)"),
        ("mi300x", {}, {"utilization": 0.9, "used": []}, "GPU memory", "unknown", "not known"),
        ("mi300x", {"gpus__5__ecc": {"uncorrectable": 2}}, {}, "ECC errors", "refused", "GPU 5: 2"),
        ("mi300x", {"gpus__5__ecc": None}, {}, "ECC errors", "unknown", "not known"),
        ("mi300x", {"gpus__5__bad_pages": {"retired": 3}}, {}, "bad pages", "warning", "GPU 5: 3 retired"),
        ("mi300x", {"gpus__5__bad_pages": {"retired": 3, "pending": 1}}, {}, "bad pages", "refused", "GPU 5: 3 retired, 1 pending"),
        ("mi300x", {"gpus__5__bad_pages": None}, {}, "bad pages", "unknown", "not known"),
        ("no_driver", {}, {}, "driver", "warning", "not loaded"),
        ("no_driver", {}, {"installs_driver": False}, "driver", "refused", "not loaded"),
        ("no_driver", {}, {}, "GPU count", "ok", "8 on the PCI bus"),
        ("no_driver", {}, {"gpus": 4}, "GPU count", "refused", "8 on the PCI bus"),
        ("no_driver", {}, {"gpu_name": "MI325X"}, "GPU kind", "refused", "AMD Instinct MI300X"),
        ("mi300x", {"driver__allowed": False}, {}, "driver", "warning", "30.30, not on the list"),
        ("mi300x", {"driver__allowed": False}, {"installs_driver": False}, "driver", "refused", "30.30, not on the list"),
        ("mi300x", {"driver__reboot_required": True}, {}, "driver on disk", "warning", "another (6.16.13)"),
        (
            "mi300x",
            {"driver__reboot_required": True, "driver__package": "1:9", "driver__package_allowed": False},
            {},
            "driver on disk",
            "warning",
            "another (6.16.13, not on the list)",
        ),
        ("mi300x", {"kernel__missing": ["iommu=pt"]}, {}, "kernel command line", "warning", "without iommu=pt"),
        ("mi300x", {"kernel__cmdline": None}, {}, "kernel command line", "unknown", "not known"),
        ("mi300x", {"kernel__blacklisted_by": ["/etc/modprobe.d/x.conf"]}, {}, "driver at boot", "warning", "x.conf"),
        ("mi300x", {"kernel__blacklisted_by": ["/etc/modprobe.d/x.conf"], "kernel__load_unit": "5" * 64}, {}, "driver at boot", "ok", "x.conf, loaded by"),
        ("mi300x", {"driver__lost_at_boot": True, "kernel__next": "6.9"}, {}, "driver at boot", "warning", "not built for 6.9"),
        (
            "mi300x",
            {"driver__reboot_required": True, "driver__on_disk_version": None, "driver__lost_at_boot": True},
            {},
            "driver on disk",
            "warning",
            "another (without a version, not on the list)",
        ),
        ("mi300x", {"kernel__numa_balancing": 1}, {}, "kernel.numa_balancing", "warning", "1"),
        ("mi325x", {}, {}, "RAM", "warning", "2.0 TB"),
        ("mi355x", {"kernel__memory_total": 3 * 10**12 - 10**10}, {}, "RAM", "ok", "3.0 TB"),
        ("mi300x", {"kernel__memory_total": None}, {}, "RAM", "unknown", "not known"),
        ("mi300x", {}, {"min_ram": 4 * 10**12}, "RAM", "warning", "2.0 TB"),
    ],
)  # fmt: skip
def test_one_thing_wrong(tmp_path, scenario, changes, expected, what, level, words):
    found = judged(node(tmp_path, scenario, **changes), **expected)[what]
    assert (found.level, words in f"{found.got} {found.remedy}") == (level, True), found
    assert bool(found.remedy) == (level != "ok")


TABLE = driver_table.parse(
    {
        "rocm": {"6.4": {"released": 739352}, "7.2": {"released": 739637}},
        "drivers": [
            {"line": "30.30", "module": "6.16.13", "releases": {"30.30.0": 739637}, "rocm": ["7.2"]},
            {"line": "31.50", "module": "7.1.3", "releases": {"31.50.0": 739854}, "rocm": []},
        ],
    }
)


@pytest.mark.parametrize(
    ("release", "rocm", "expected", "levels"),
    [
        ("30.30", "7.2.3", {}, {"driver and image": "ok", "driver": "ok"}),
        ("31.50", "6.4.1", {}, {"driver and image": "refused", "driver": "ok"}),
        ("31.50", "6.4.1", {"proven": True}, {"driver and image": "warning", "driver": "ok"}),
        ("31.60", "7.2.3", {}, {"driver and image": "unknown", "driver": "warning"}),
        ("31.60", "6.4.1", {}, {"driver and image": "refused", "driver": "warning"}),
        ("31.60", "", {}, {"driver": "warning"}),
        ("31.60", "6.4.1", {"drivers": driver_table.Table()}, {"driver": "ok", "driver and image": "unknown"}),
    ],
)
def test_the_driver_and_the_rocm_of_the_image(tmp_path, release, rocm, expected, levels):
    facts = node(tmp_path, driver__release=release)
    host = Host(clock_synchronised=True, image=Image("i:1", True, rocm=rocm))
    found = judged(facts, host, **{"drivers": TABLE, "wanted_driver": "30.30.4", **expected})
    assert {
        what: one.level for what, one in found.items() if what.startswith("driver") and what != "driver at boot"
    } == levels


@pytest.mark.parametrize(
    ("changes", "expected", "what", "words"),
    [
        (
            {"driver__allowed": False},
            {},
            "driver",
            "replaces it and stops before the reboot (rocm_allow_reboot); to keep it",
        ),
        (
            {"driver__allowed": False},
            {"allows_reboot": True},
            "driver",
            "replaces it and reboots; to keep it, add it to",
        ),
        (
            {"driver__allowed": False},
            {},
            "driver",
            "unless it is newer than rocm_driver_version, the role rocm replaces",
        ),
        (
            {"kernel__missing": ["iommu=pt", "intel_iommu=on"]},
            {},
            "kernel command line",
            "rocm_manage_kernel_cmdline: true with intel_iommu=on in rocm_kernel_cmdline and reboot",
        ),
        ({"driver__allowed": False}, {"installs_driver": False}, "driver", "add it to rocm_allowed_driver_versions"),
        ({"driver__reboot_required": True}, {}, "driver on disk", "or set rocm_allow_reboot: true"),
        (
            {"driver__reboot_required": True},
            {"allows_reboot": True},
            "driver on disk",
            "a deployment drains and reboots the node",
        ),
    ],
)
def test_what_a_reboot_would_mend(tmp_path, changes, expected, what, words):
    assert words in judged(node(tmp_path, **changes), **expected)[what].remedy


def test_ram_is_left_alone_on_request_and_for_gpus_that_amd_names_no_figure_for(tmp_path):
    facts = node(tmp_path)
    assert "RAM" not in judged(facts, min_ram=0)
    other = copy.deepcopy(facts)
    for one in [*other["gpus"], *other["pci_devices"]]:
        one["name"] = "AMD Instinct MI350X"
    assert "RAM" not in judged(other)


@pytest.mark.parametrize(
    ("host", "expected", "what", "level", "words"),
    [
        (Host(rooms=[Room("/data", ["image", "weights"], 700 * GB, 699 * GB)]), {}, "disk of /data", "refused", "699.0 GB free"),
        (Host(rooms=[Room("/data", ["image"], 60 * GB, 0)]), {}, "disk of /data", "refused", "or correct vllm_image_min_free_gib"),
        (Host(rooms=[Room("/data", ["image", "weights"], 60 * GB, 0)]), {}, "disk of /data", "refused", "vllm_image_min_free_gib and preflight_disk_weights"),
        (Host(image=Image("a:1", False, "archive"), archive=Finding("refused", "archive", "x", "not there", "copy it")), {}, "archive", "refused", "copy it"),
        (Host(rooms=[Room("/data", ["weights"], 700 * GB, 700 * GB)]), {}, "disk of /data", "ok", "700.0 GB free"),
        (Host(rooms=[Room("/data", ["weights"], 700 * GB, None)]), {}, "disk of /data", "unknown", "not known"),
        (Host(), {"port": 8000}, "port 8000", "ok", "free"),
        (Host(port_holder=None), {"port": 8000}, "port 8000", "unknown", "not known"),
        (Host(port_holder="pid 9 (nginx)"), {"port": 8000}, "port 8000", "refused", "taken by pid 9 (nginx)"),
        (Host(port_holder="our server vllm", port_is_ours=True), {"port": 8000}, "port 8000", "ok", "our server vllm"),
        (Host(clock_synchronised=False), {}, "clock", "warning", "not synchronised"),
        (Host(clock_synchronised=None), {}, "clock", "unknown", "not known"),
        (Host(sysctls={"net.core.somaxconn": "128"}), {"sysctls": {"net.core.somaxconn": "4096"}}, "net.core.somaxconn", "warning", "128"),
        (Host(sysctls={"net.ipv4.tcp_rmem": "4096\t131072\t6291456"}), {"sysctls": {"net.ipv4.tcp_rmem": "4096 131072 6291456"}}, "net.ipv4.tcp_rmem", "ok", "4096"),
        (Host(users_are_mapped=True), {}, "users in containers", "refused", "remove userns-remap from daemon.json"),
        (Host(image=Image("a:1", True)), {}, "image", "ok", "on the node"),
        (Host(image=Image("a:1", None, "pull")), {}, "image", "unknown", "no Docker engine to ask"),
        (Host(image=Image("a:1", False)), {}, "image", "unknown", "not on the node"),
        (Host(image=Image("a:1", False, "build")), {}, "image", "ok", "to be built"),
        (Host(image=Image("a:1", False, "archive")), {}, "image", "ok", "from the archive"),
        (Host(image=Image("a:1", False, "pull", "sha256:00")), {}, "image", "ok", "the registry has it"),
        (Host(image=Image("a:1", False, "pull", "manifest unknown", True)), {}, "image", "refused", "manifest unknown"),
        (Host(image=Image("a:1", False, "pull", "no such host")), {}, "image", "warning", "no such host"),
        (Host(folder=Folder("cache", "/c", "folder", held=700 * GB)), {}, "cache", "ok", "700.0 GB of the model"),
        (Host(folder=Folder("cache", "/c", "none", created=True)), {}, "cache", "ok", "to be made"),
        (Host(folder=Folder("cache", "/c", "none")), {}, "cache", "refused", "/c is not there"),
        (Host(folder=Folder("cache", "/c", "file", created=True)), {}, "cache", "refused", "/c is a file, not a folder"),
        (Host(folder=Folder("cache", "/c", "unreadable")), {}, "cache", "unknown", "is not readable"),
        (Host(folder=Folder("model's folder", "/m", "none")), {}, "model's folder", "refused", "/m is not there"),
        (Host(), {"sysctls": {"vm.x": "1"}}, "vm.x", "unknown", "not known"),
    ],
)  # fmt: skip
def test_the_host(host, expected, what, level, words):
    found = judged(None, host, **expected)[what]
    assert (found.level, words in f"{found.got} {found.remedy}") == (level, True), found
    assert bool(found.remedy) == (level != "ok")


def test_a_cpu_node_has_no_findings_unless_asked():
    assert judge.judge(None, Host(), Expected(clock=False)) == []


def test_a_node_of_which_nothing_is_known_is_no_crash_and_not_ok():
    found = judged({})
    assert (found["driver"].level, found["GPU count"].level, found["GPU kind"].level) == (
        "warning",
        "refused",
        "unknown",
    )
