# SPDX-License-Identifier: Apache-2.0
"""gpu.py against trees of files that look like an Instinct node's /sys (trees.py names each value's source)."""

import json
from pathlib import Path

import pytest
from sysfs import trees

from ansible.module_utils.vllm_fleet.host import driver, gpu

GIB = 1 << 30


def read(tree: trees.Tree, **options) -> gpu.Inventory:
    return gpu.read(tree.sys, tree.proc, tree.modules, docker_root=tree.docker, **options)


@pytest.mark.parametrize(
    ("scenario", "name", "gfx", "total"),
    [
        ("mi300x", "AMD Instinct MI300X", "gfx942", 206141652992),
        ("mi325x", "AMD Instinct MI325X", "gfx942", 262128 << 20),
        ("mi355x", "AMD Instinct MI355X", "gfx950", 309220868096),
    ],
)
def test_whole_node(tmp_path, scenario, name, gfx, total):
    tree = trees.SCENARIOS[scenario](tmp_path)
    found = read(tree)
    assert [g.index for g in found.gpus] == list(range(8))
    assert {(g.name, g.gfx, g.vram_total, g.partition) for g in found.gpus} == {(name, gfx, total, "SPX/NPS1")}
    assert [g.pci for g in found.gpus] == [f"0000:{bus:02x}:00.0" for bus in trees.BUSES]
    # Minors step by 8 on a driver that can partition.
    assert [g.render for g in found.gpus] == [f"renderD{minor}" for minor in range(128, 192, 8)]
    for g in found.gpus:
        assert g.vram_used == tree.model.idle_used
        assert g.vram_free == total - tree.model.idle_used
        assert (g.link.width, g.link.speed, g.link.degraded) == (16, "32.0 GT/s PCIe", False)
        assert (g.holders, g.notes) == ([], [])
    assert found.notes == []
    assert found.kernel == driver.Kernel(trees.KERNEL, trees.GOOD_CMDLINE, [], [], 0, None, 2 * 10**12 // 1024 * 1024)


def test_inventory_is_json(tmp_path):
    found = json.loads(json.dumps(read(trees.foreign_holder(tmp_path)).as_dict()))
    assert found["gpus"][3]["holders"][0]["pid"] == 4711


def test_partitions_are_reported_as_what_they_are(tmp_path):
    tree = trees.cpx_nps4(tmp_path)
    container = "ab" * 32
    tree.process(99, ["vllm"], container, "vllm")
    tree.hold(9, 99, 5 * GIB)
    found = read(tree)
    assert len(found.gpus) == 64
    assert {g.partition for g in found.gpus[::8]} == {"CPX/NPS4"}
    assert [g.partition_id for g in found.gpus[:8]] == list(range(8))
    assert {g.pci for g in found.gpus[:8]} == {"0000:05:00.0"}
    # 48 GB each, never the whole device's 192.
    assert {g.vram_total for g in found.gpus} == {206141652992 // 4}
    assert found.gpus[9].vram_used == 5 * GIB
    assert [h.container_name for h in found.gpus[9].holders] == ["vllm"]
    assert found.gpus[8].vram_used == 0
    assert "partition" in found.gpus[9].notes[-1]


def test_a_partition_has_no_more_free_than_its_device(tmp_path):
    tree = trees.Tree(tmp_path)
    tree.host()
    tree.driver()
    tree.add_gpu(0, "CPX", "NPS4", used=tree.model.vram_total - 3 * GIB)
    assert [g.vram_free for g in read(tree).gpus] == [3 * GIB] * 8


def test_partition_number_in_the_pci_function(tmp_path):
    """Older drivers put the partition's number into the function digit of location_id."""
    tree = trees.Tree(tmp_path)
    tree.host()
    tree.add_gpu(0, "CPX", "NPS4")
    for part in range(8):
        path = tree.kfd / f"topology/nodes/{part + 1}/properties"
        text = path.read_text()
        path.write_text(text.replace(f"location_id {0x500 | part << 28}", f"location_id {0x500 | part}"))
    assert [(g.pci, g.partition_id) for g in read(tree).gpus] == [("0000:05:00.0", part) for part in range(8)]


def test_gpu_missing_from_the_driver_is_named(tmp_path):
    found = read(trees.one_missing(tmp_path))
    assert len(found.gpus) == 7
    assert len(found.pci_devices) == 8
    assert found.notes == [
        "AMD Instinct MI300X at 0000:a6:00.0 is on the PCI bus (bound to no driver)"
        " but the driver made no compute GPU of it"
    ]


def test_no_driver(tmp_path):
    found = read(trees.no_driver(tmp_path))
    assert found.gpus == []
    assert len(found.pci_devices) == 8
    assert found.driver == driver.Driver(False, None, None, None, None, None, None, False)
    assert found.notes[-1] == "the amdgpu driver is not loaded"


def test_empty_machine(tmp_path):
    found = gpu.read(tmp_path / "sys", tmp_path / "proc", tmp_path / "modules")
    assert (found.gpus, found.pci_devices, found.processes) == ([], [], [])
    assert found.kernel == driver.Kernel(None, None, [], [], None, None, None)


def test_foreign_holder_is_named(tmp_path):
    found = read(trees.foreign_holder(tmp_path))
    (holder,) = found.gpus[3].holders
    assert holder.pid == 4711
    assert holder.command == "python3 train.py --api-key *** --lr=1e-4"
    assert (holder.container, holder.container_name) == (trees.FOREIGN_CONTAINER, "trainer")
    assert round(found.gpus[3].vram_free / GIB, 2) == 164.76
    assert [g.holders for g in found.gpus if g.index != 3] == [[]] * 7
    assert [p.pid for p in found.processes] == [4711]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["a", "--api-key", "s3cret", "s3cret", "-b"], "a --api-key *** *** -b"),
        (["a", "--api-key=s3cret"], "a --api-key=***"),
        (["env", "HF_TOKEN=s3cret", "vllm"], "env HF_TOKEN=*** vllm"),
        (["a", "--password", "s3cret"], "a --password ***"),
        (["vllm", "--tokenizer", "x/y", "--ssl-keyfile", "/k", "--max-tokens", "5"], None),
        (["a", "--token", "--flag"], "a --token --flag"),
    ],
)
def test_secrets_of_a_command_are_hidden(tmp_path, words, shown):
    tree = trees.mi300x(tmp_path)
    tree.process(7, words)
    tree.hold(0, 7, 1)
    assert read(tree).gpus[0].holders[0].command == (shown or " ".join(words))


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        (f"0::/system.slice/docker-{'a1' * 32}.scope", "a1" * 32),
        (f"12:memory:/docker/{'b2' * 32}\n1:name=systemd:/docker/{'b2' * 32}", "b2" * 32),
        # Docker in Docker: the innermost is the one that the node's own engine knows.
        (f"0::/docker/{'c3' * 32}/docker/{'d4' * 32}", "d4" * 32),
        (f"0::/kubepods.slice/pod12.slice/cri-containerd-{'e5' * 32}.scope", "e5" * 32),
        ("0::/user.slice/session-3.scope", None),
    ],
)
def test_container_of_a_holder(tmp_path, cgroup, container):
    tree = trees.mi300x(tmp_path)
    tree.process(7, ["x"])
    tree.write(tree.proc / "7/cgroup", cgroup)
    tree.hold(0, 7, 1)
    (holder,) = read(tree, container_names={"a1" * 32: "known"}).gpus[0].holders
    assert holder.container == container
    assert holder.container_name == ("known" if container == "a1" * 32 else None)


def test_holder_that_proc_does_not_know(tmp_path):
    tree = trees.mi300x(tmp_path)
    tree.hold(0, 31337, GIB)
    found = read(tree)
    assert found.gpus[0].holders == [gpu.Holder(31337, None, None, None, GIB)]
    assert "31337" in found.notes[0]


def test_read_errors_give_null_and_a_note(tmp_path):
    found = read(trees.read_error(tmp_path))
    broken = found.gpus[2]
    assert (broken.vram_total, broken.vram_used, broken.vram_free) == (206141652992, None, None)
    assert (broken.link.speed, broken.link.degraded, broken.link.width) == (None, None, 16)
    assert len(broken.notes) == 2
    assert all("Input/output error" in note for note in broken.notes)
    assert all(g.vram_free for g in found.gpus if g.index != 2)


@pytest.mark.parametrize(
    ("lost", "still"),
    [
        ("class/kfd/kfd/topology/nodes/1/properties", {"index": 0, "gfx": None, "pci": None}),
        ("class/kfd/kfd/topology/nodes/1/gpu_id", {"gfx": "gfx942", "kfd_id": None}),
        ("bus/pci/devices/0000:05:00.0/mem_info_vram_total", {"vram_total": 206141652992}),
        ("bus/pci/devices/0000:05:00.0/mem_info_vram_used", {"vram_used": None, "vram_free": None}),
        ("bus/pci/devices/0000:05:00.0/current_memory_partition", {"partition": "SPX"}),
        ("bus/pci/devices/0000:05:00.0/max_link_width", {"pci": "0000:05:00.0"}),
    ],
)
@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "error"])
def test_half_missing_files_never_crash(tmp_path, lost, still, how):
    tree = trees.mi300x(tmp_path)
    path = tree.sys / lost
    if how == "missing":
        path.unlink()
    elif how == "error":
        tree.break_file(path)
    else:
        path.write_text("" if how == "empty" else "\x00\xff?? nonsense\n", encoding="latin-1")
    found = read(tree)
    assert len(found.gpus) == 8
    if not (how == "garbage" and "partition" in lost):
        assert {key: getattr(found.gpus[0], key) for key in still} == still
        assert found.gpus[0].notes
    assert found.gpus[1].notes == []


def test_memory_that_exceeds_its_total_counts_as_full(tmp_path):
    tree = trees.mi300x(tmp_path)
    tree.write(tree.device_dir(0) / "mem_info_vram_used", 206141652993)
    assert read(tree).gpus[0].vram_free == 0


def test_drm_directories_alone_are_enough(tmp_path):
    """A tree with nothing under bus/pci: class/drm/renderD128/device is the device."""
    tree = trees.mi300x(tmp_path)
    for link in (tree.sys / "class/drm").glob("*/device"):
        real = link.resolve()
        link.unlink()
        link.mkdir()
        for name in ("mem_info_vram_total", "mem_info_vram_used"):
            (link / name).write_text((real / name).read_text())
    (tree.sys / "bus").rename(tree.sys / "bus.gone")
    found = read(tree)
    assert len(found.gpus) == 8
    assert found.gpus[0].vram_free == 206141652992 - tree.model.idle_used


def test_degraded_link(tmp_path):
    tree = trees.mi300x(tmp_path)
    tree.write(tree.device_dir(1) / "current_link_width", 8)
    assert [g.link.degraded for g in read(tree).gpus[:3]] == [False, True, False]


def test_dockers_folder_is_asked_for_once_and_only_for_a_container(tmp_path):
    asked = []
    tree = trees.foreign_holder(tmp_path)
    tree.process(9, ["x"], "ab" * 32, "other")
    tree.hold(0, 9, 1)

    def root():
        asked.append(1)
        return tree.docker

    found = gpu.read(tree.sys, tree.proc, tree.modules, docker_root=root)
    assert [one.container_name for one in found.processes] == ["other", "trainer"]
    assert asked == [1]
    tree = trees.mi300x(tmp_path / "idle")
    gpu.read(tree.sys, tree.proc, tree.modules, docker_root=root)
    assert asked == [1]


@pytest.mark.parametrize(
    ("version", "name"), [(90402, "gfx942"), (90500, "gfx950"), (90010, "gfx90a"), (110501, "gfx1151"), (0, None)]
)
def test_gfx_names(version, name):
    assert gpu.gfx_name(version) == name


def test_generator_command_line(tmp_path, capsys):
    assert trees.main(["cpx_nps4", str(tmp_path)]) == 0
    assert len(gpu.read(tmp_path / "sys", tmp_path / "proc", tmp_path / "modules").gpus) == 64
    assert trees.main(["nothing", str(tmp_path)]) == 2
    assert "cpx_nps4" in capsys.readouterr().err


def test_a_reader_changes_nothing(tmp_path):
    def state(root: Path) -> list:
        return [(p, p.lstat().st_mtime_ns) for p in sorted(root.rglob("*"))]

    tree = trees.foreign_holder(tmp_path)
    before = state(tmp_path)
    read(tree)
    assert state(tmp_path) == before
