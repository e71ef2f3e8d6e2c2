# SPDX-License-Identifier: Apache-2.0
"""Sick GPUs, told from trees of files that look like sysfs and from lines as amdgpu writes them."""

from __future__ import annotations

import shutil

import pytest
from trees import Tree

from ansible.module_utils.vllm_fleet.host import gpu_health
from ansible.module_utils.vllm_fleet.host.gpu_health import Gpu

FIRST, SECOND = "0000:05:00.0", "0000:26:00.0"
WELL = Gpu(0, 0, 0)


@pytest.fixture
def tree(tmp_path):
    made = Tree(tmp_path)
    for number in range(8):
        made.add_gpu(number)
    return made


def test_healthy_gpus(tree):
    found = gpu_health.read(tree.sys)
    assert len(found) == 8
    assert set(found.values()) == {Gpu(None, None, None)}, "without RAS nothing is counted, and nothing is wrong"
    assert gpu_health.judge(found, found, {}) == []


def test_what_is_wrong_with_each(tree):
    known = gpu_health.read(tree.sys)
    umc, gfx = (tree.device_dir(0) / f"ras/{block}_err_count" for block in ("umc", "gfx"))
    tree.write(umc, "ue: 2\nce: 7\n")
    tree.write(gfx, "ue: 1\nce: 0\nde: 0\n")
    tree.write(tree.device_dir(1) / "current_link_width", 8)
    # A virtual function says nothing of its link, and one without work goes slower.
    tree.write(tree.device_dir(3) / "current_link_width", 0)
    tree.write(tree.device_dir(4) / "current_link_speed", "2.5 GT/s PCIe")
    tree.write(
        tree.device_dir(2) / "ras/gpu_vram_bad_pages", "0x00001a2b : 0x00001000 : R\n0x00001a2c : 0x00001000 : P\n"
    )
    shutil.rmtree(tree.device_dir(7))
    now = gpu_health.read(tree.sys)
    assert now[FIRST] == Gpu(3, 7, None)
    faults = [(fault.kind, fault.pci, fault.serious) for fault in gpu_health.judge(known, now, {})]
    assert faults == [
        ("gone", "0000:e5:00.0", True),
        ("uncorrectable", FIRST, True),
        ("link", SECOND, False),
        ("bad_pages", "0000:46:00.0", False),
    ]
    says = [fault.says for fault in gpu_health.judge(known, now, {})]
    assert says[1] == f"GPU {FIRST} has 3 uncorrectable errors of memory or logic"
    assert says[2] == f"the link of GPU {SECOND} runs at x8 of x16"


def test_heat_and_memory_that_nobody_holds(tree):
    gb = 10**9
    hwmon = tree.device_dir(0) / "hwmon/hwmon4"
    for name, value in {"temp2_crit": 100_000, "temp2_input": 100_500, "temp2_label": "junction"}.items():
        tree.write(hwmon / name, value)
    tree.write(tree.device_dir(1) / "hwmon/hwmon5/temp3_crit", 100_000)
    tree.write(tree.device_dir(1) / "hwmon/hwmon5/temp3_input", 99_000)
    tree.hold(2, 4242, 100 * gb)
    used = tree.device_dir(3) / "mem_info_vram_used"
    tree.write(used, int(used.read_text()) + 20 * gb)
    now = gpu_health.read(tree.sys)
    assert [(pci, gpu.hot, gpu.loose) for pci, gpu in now.items() if gpu.hot or gpu.loose] == [
        (FIRST, "junction", False),
        (tree.device_dir(3).name, "", True),
    ]
    says = [fault.says for fault in gpu_health.judge(now, now, {})]
    assert says == [
        f"the junction of GPU {FIRST} is at its critical temperature, so the GPU slows down",
        f"more than 5 GB of the memory of GPU {tree.device_dir(3).name} is held by no process; a reset of the GPU gives it"
        " free",
    ]
    assert not any(fault.serious for fault in gpu_health.judge(now, now, {}))


def test_a_display_card_and_a_card_of_another_maker_are_no_accelerators(tree):
    for number, (name, value) in enumerate((("class", "0x030000"), ("vendor", "0x10de"))):
        tree.write(tree.device_dir(number) / name, value)
    assert len(gpu_health.read(tree.sys)) == 6


#: As amdgpu of different ages writes them.
FATAL = f"amdgpu {FIRST}: amdgpu: {{1}}uncorrectable hardware error(ERREVENT_ATHUB_INTERRUPT) detected!"
NEWER = f"[ 8390.785329] amdgpu {FIRST}: {{1}}uncorrectable hardware error(ERREVENT_ATHUB_INTERRUPT) detected!"
COUNTED = f"amdgpu {FIRST}: amdgpu: 1 uncorrectable hardware errors detected in umc block"
NONE = f"amdgpu {FIRST}: amdgpu: 0 uncorrectable hardware errors detected in umc block"
BEGIN = f"amdgpu {FIRST}: amdgpu: GPU reset begin!"
SUCCEEDED = f"amdgpu {FIRST}: amdgpu: GPU reset(2) succeeded!"
RESUMES = f"amdgpu {FIRST}: GPU reset succeeded, trying to resume"
ENDED = f"amdgpu {FIRST}: amdgpu: GPU reset end with ret = -22"
HANG = f"amdgpu {FIRST}: amdgpu: ring comp_1.0.0 timeout, signaled seq=63, emitted seq=65"
OTHER = f"amdgpu {SECOND}: amdgpu: ring sdma0 timeout, signaled seq=1, emitted seq=2"
LOST = f"amdgpu {FIRST}: amdgpu: device lost from bus!"
USUAL = f"amdgpu {FIRST}: amdgpu: ring gfx_0.0.0 uses VM inv eng 0 on hub 0"


@pytest.mark.parametrize(
    ("lines", "states"),
    [
        ([USUAL, NONE, "usb 1-1: reset high-speed USB device"], {}),
        ([FATAL], {FIRST: "fatal"}),
        ([NEWER], {FIRST: "fatal"}),
        ([COUNTED], {FIRST: "fatal"}),
        ([HANG, BEGIN], {FIRST: "reset"}),
        ([HANG, BEGIN, SUCCEEDED], {FIRST: "well"}),
        ([HANG, BEGIN, RESUMES], {FIRST: "well"}),
        ([BEGIN, ENDED, USUAL], {FIRST: "failed"}),
        # Nothing that comes later heals it, but a reset that succeeded.
        ([FATAL, BEGIN, HANG], {FIRST: "fatal"}),
        ([FATAL, BEGIN, SUCCEEDED], {FIRST: "well"}),
        ([FATAL, BEGIN, ENDED, BEGIN, SUCCEEDED], {FIRST: "well"}),
        ([LOST, OTHER], {FIRST: "gone", SECOND: "hang"}),
    ],
)
def test_what_the_kernels_log_says_last(lines, states):
    assert gpu_health.states(lines) == states


@pytest.mark.parametrize(
    ("state", "serious"),
    [("fatal", True), ("gone", True), ("failed", True), ("well", None), ("reset", None), ("hang", None)],
)
def test_a_gpu_that_heals_by_itself_is_no_fault(state, serious):
    faults = gpu_health.judge([FIRST], {FIRST: WELL}, {FIRST: state})
    assert [fault.serious for fault in faults] == ([serious] if serious else [])


def test_a_gpu_is_told_once():
    assert len(gpu_health.judge([FIRST], {FIRST: Gpu(1, 0, 0)}, {FIRST: "fatal"})) == 1
