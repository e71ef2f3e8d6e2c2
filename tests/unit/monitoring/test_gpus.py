# SPDX-License-Identifier: Apache-2.0
"""GPUs in /sys by the names of AMD's exporter."""

from __future__ import annotations

import trees

from ansible.module_utils.vllm_fleet.monitoring import gpus


def found(tree, name):
    return {labels["gpu_id"]: value for one, value, labels in gpus.samples(tree.sys) if one == name}


def test_what_a_driver_says(tmp_path):
    tree = trees.mi300x(tmp_path)
    sick, device = tree.device_dir(2), tree.device_dir(3)
    tree.write(sick / "ras/umc_err_count", "ue: 1\nce: 12")
    tree.write(sick / "ras/gfx_err_count", "ue: 0\nce: 1")
    tree.write(device / "gpu_busy_percent", 97)
    for name, value in {"power1_average": 742000000, "temp1_input": 61000, "temp1_label": "junction"}.items():
        tree.write(device / "hwmon/hwmon4" / name, value)
    assert found(tree, "gpu_total_vram") == dict.fromkeys("01234567", 196592.0)
    assert found(tree, "gpu_ecc_uncorrect_total") == {"2": 1}
    assert found(tree, "gpu_ecc_correct_total") == {"2": 13}
    assert found(tree, "gpu_gfx_activity") == {"3": 97}
    assert found(tree, "gpu_package_power") == {"3": 742}
    assert found(tree, "gpu_junction_temperature") == {"3": 61}
    assert set(found(tree, "gpu_link_degraded").values()) == {False}
    assert set(found(tree, "pcie_speed").values()) == {32.0}


def test_a_node_without_gpus_has_no_samples(tmp_path):
    assert list(gpus.samples(tmp_path)) == []
