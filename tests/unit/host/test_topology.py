# SPDX-License-Identifier: Apache-2.0
"""Which GPUs and CPUs are near to one another, from trees of files as /sys has them."""

from __future__ import annotations

from dataclasses import asdict

import trees

from ansible.module_utils.vllm_fleet.host import gpu, render_nodes, topology


def gpus(tree):
    """The GPUs as rocm_info returns them."""
    return [asdict(one) for one in gpu.read(tree.sys).gpus]


def test_numa_nodes_and_links_of_gpus(tmp_path):
    tree = trees.mi300x(tmp_path)
    tree.neighbourhood()
    units = topology.gpu_units(tree.sys, gpus(tree), {3: "pid 1"})
    assert [unit.numa for unit in units] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert units[0].links == dict.fromkeys(range(1, 8), 15)
    assert (units[3].against, units[4].against) == ("pid 1", "")
    assert len({unit.device for unit in units}) == 8


def test_what_the_node_does_not_say_is_not_known(tmp_path):
    tree = trees.mi300x(tmp_path)
    tree.write(tree.device_dir(0) / "numa_node", -1)
    units = topology.gpu_units(tree.sys, gpus(tree), {})
    assert {unit.numa for unit in units} == {None}
    assert not any(unit.links for unit in units)
    assert topology.cpu_units(tree.sys) == []


def test_partitions_have_their_device(tmp_path):
    tree = trees.cpx_nps4(tmp_path)
    tree.neighbourhood()
    units = topology.gpu_units(tree.sys, gpus(tree), {})
    assert [unit.device for unit in units[:9]] == [units[0].device] * 8 + [units[8].device]
    assert [units[at].numa for at in (0, 31, 32, 63)] == [0, 0, 1, 1]


def test_threads_of_a_core_are_one_device(tmp_path):
    tree = trees.mi300x(tmp_path)
    tree.cpus(cores=4)
    units = topology.cpu_units(tree.sys)
    assert [(unit.index, unit.numa, unit.device) for unit in units] == [
        (0, 0, "core 0"),
        (1, 0, "core 1"),
        (2, 1, "core 2"),
        (3, 1, "core 3"),
        (4, 0, "core 0"),
        (5, 0, "core 1"),
        (6, 1, "core 2"),
        (7, 1, "core 3"),
    ]
    assert [unit.index for unit in topology.cpu_units(tree.sys, {1, 5, 99})] == [1, 5]


def test_render_nodes_and_their_addresses(tmp_path):
    tree = trees.one_missing(tmp_path)
    found = render_nodes.addresses(tree.sys)
    assert found["renderD128"] == "0000:05:00.0"
    assert len(found) == 7
    assert "0000:a6:00.0" not in found.values()
