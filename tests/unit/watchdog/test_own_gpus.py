# SPDX-License-Identifier: Apache-2.0
"""Which sick GPUs concern which server of a node that several share."""

from __future__ import annotations

import json
import shutil

import pytest
from sysfs import trees

from ansible.module_utils.vllm_fleet.watchdog.gpus import Gpus


def container(*devices):
    """A container with these devices."""
    return {"HostConfig": {"Devices": [{"PathOnHost": path} for path in ("/dev/kfd", *devices)]}}


WHOLE = container("/dev/dri")
FIRST, SECOND = container("/dev/dri/renderD128"), container("/dev/dri/renderD136")
BOTH = container("/dev/dri/renderD128", "/dev/dri/renderD136")


@pytest.fixture
def tree(tmp_path):
    made = trees.Tree(tmp_path / "node")
    for number in (0, 1):
        made.add_gpu(number)
    return made


@pytest.fixture
def look(tree, tmp_path):
    """What a new look says to each of the four."""

    def looked():
        gpus = Gpus(tmp_path / "gpus.json", tree.sys, tmp_path / "kmsg")
        faults = gpus.faults()
        return [[fault.says for fault in gpus.own(one, faults)] for one in (WHOLE, FIRST, SECOND, BOTH)]

    (tmp_path / "kmsg").touch()
    return looked


def test_a_sick_gpu_concerns_those_that_have_it(tree, look):
    assert look() == [[], [], [], []]
    tree.write(tree.device_dir(1) / "ras/umc_err_count", "ue: 1\nce: 4")
    said = ["GPU 0000:26:00.0 has 1 uncorrectable error of memory or logic"]
    assert look() == [said, [], said, said]


def test_a_gpu_that_is_gone_concerns_those_that_had_it(tree, look):
    assert look() == [[], [], [], []]
    shutil.rmtree(tree.device_dir(1))
    shutil.rmtree(tree.kfd / "topology/nodes/2")
    said = ["GPU 0000:26:00.0 is gone from the PCI bus"]
    assert look() == [said, [], said, said]


def test_where_it_is_not_known_which_gpus_a_server_has_all_concern_it(tree, look, tmp_path):
    (tmp_path / "gpus.json").write_text(json.dumps({"gpus": ["0000:05:00.0", "0000:26:00.0", "0000:46:00.0"]}))
    said = ["GPU 0000:46:00.0 is gone from the PCI bus"]
    assert look()[:2] == [said, []]
    gpus = Gpus(tmp_path / "gpus.json", tree.sys, tmp_path / "kmsg")
    faults = gpus.faults()
    for one in (container("/dev/dri/renderD144"), container("/dev/dri/by-path/pci-0000"), container()):
        assert [fault.says for fault in gpus.own(one, faults)] == said


def test_memory_that_nobody_holds_is_told_when_it_was_so_before(tree, tmp_path):
    gpus = Gpus(tmp_path / "gpus.json", tree.sys, tmp_path / "kmsg")
    used = tree.device_dir(0) / "mem_info_vram_used"
    free = used.read_text()
    tree.write(used, int(free) + 20 * 10**9)
    assert gpus.faults() == [], "its process may have ended a moment ago"
    assert [fault.kind for fault in gpus.faults()] == ["memory"]
    tree.write(used, free)
    assert gpus.faults() == []
