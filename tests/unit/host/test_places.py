# SPDX-License-Identifier: Apache-2.0
"""A server's place on a node: what there is, what is written down, what containers have, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import asdict

import pytest
import trees

from ansible.module_utils.vllm_fleet.common import durable
from ansible.module_utils.vllm_fleet.host import gpu, place
from ansible.module_utils.vllm_fleet.host.place import Asked, Asker, Place
from ansible.module_utils.vllm_fleet.host.share import NoPlace
from ansible.module_utils.vllm_fleet.server import state

GIB = 1 << 30


class Node:
    """Eight GPUs and sixteen CPUs, containers, and the folder of the records."""

    def __init__(self, folder, build=trees.mi300x):
        self.tree = build(folder / "node")
        self.tree.neighbourhood()
        self.tree.cpus()
        self.state_dir = folder / "state"
        self.containers = []
        self.described = []

    def describe(self, name, *, gpus=None, cpus=None, rocm=True):
        """Add a server to the inventory."""
        self.described.append(Asker(name, gpus, cpus, rocm))

    def run(self, name, gpus=None, cpuset="", *, suffix="", server=None):
        """Add a container; without GPUs named it has all of them."""
        paths = ["/dev/dri"] if gpus is None else [f"/dev/dri/renderD{128 + 8 * index}" for index in gpus]
        made = {
            "Id": f"{len(self.containers):064x}",
            "Name": f"/{name}{suffix}",
            "State": {"Running": not suffix},
            "Config": {"Labels": {"io.vllm-fleet.server": server or name}},
            "HostConfig": {"Devices": [{"PathOnHost": path} for path in ["/dev/kfd", *paths]], "CpusetCpus": cpuset},
        }
        self.containers.append(made)
        return made

    def gpus(self):
        """The GPUs as rocm_info returns them."""
        return [asdict(one) for one in gpu.read(self.tree.sys, self.tree.proc).gpus]

    def asked(self, name, by_hand=""):
        """What a server of the inventory asks for."""
        own = next(one for one in self.described if one.name == name)
        return Asked(own, tuple(self.described), self.state_dir, self.tree.sys, by_hand)

    def find(self, name, **more):
        """Find a server's place."""
        return place.find(self.asked(name, **more), self.containers, self.gpus())

    def take(self, name):
        """Find it and write it down, as a run does."""
        with place.locked(self.state_dir):
            found, gpus = self.find(name), self.gpus()
            current = next((one for one in self.containers if one["Name"] == f"/{name}"), None)
            old, everything = place.read(self.state_dir, name), [one["render"] for one in gpus]
            place.write(self.state_dir, name, place.record(found, current, old, everything))
        return found


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_a_place_has_render_nodes_cpus_and_numa_nodes(node):
    node.describe("a", gpus=2, cpus=4)
    node.describe("b", gpus="4-7", cpus=[1, 9])
    found = node.take("a")
    assert found == Place((0, 1), ("renderD128", "renderD136"), (2, 3, 10, 11), ((2, 10), (3, 11)), (0,))
    assert place.devices(found) == ["/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD136"]
    assert found.facts() == {"gpus": [0, 1], "cpus": "2-3,10-11", "numa": [0]}
    assert node.take("b").facts() == {"gpus": [4, 5, 6, 7], "cpus": "1,9", "numa": [0, 1]}
    written = json.loads((node.state_dir / "a/place.json").read_text())
    assert written == {**found.facts(), "renders": ["renderD128", "renderD136"], "before": None, "format": 1}
    assert (node.state_dir / "a/place.json").stat().st_mode & 0o777 == 0o600


def test_none_is_asked_for(node):
    node.describe("a")
    node.describe("b", rocm=False)
    assert node.find("a") is None
    assert node.find("b") is None
    assert not node.state_dir.exists()


def test_what_was_written_down_stays_though_no_container_came_of_it(node):
    node.describe("a", gpus=1)
    node.describe("b", gpus=4)
    node.take("b")
    node.described[0] = Asker("a", 4)
    assert node.take("a").gpus == (4, 5, 6, 7)
    # The order of the inventory would give b the others now.
    node.described.reverse()
    assert node.take("b").gpus == (0, 1, 2, 3)


def test_a_record_is_gone_and_the_container_says_what_it_has(node):
    node.describe("a", gpus=2)
    node.describe("b", gpus=2)
    node.run("a", [3, 6])
    assert node.find("a").gpus == (3, 6)
    assert node.find("b").gpus == (0, 1)


def test_a_damaged_record_is_told_from_none(node):
    node.describe("a", gpus=1)
    node.describe("b", gpus=1)
    node.take("b")
    path = node.state_dir / "b/place.json"
    for text in ("", "{", '{"format": 2}', '{"format": 1, "cpus": "x"}', '{"format": 1, "renders": 7}'):
        path.write_text(text)
        for name in ("a", "b"):
            with pytest.raises(durable.Unreadable) as unreadable:
                node.find(name)
            assert unreadable.value.filename == str(path)
    path.unlink()
    assert node.find("a").gpus == (0,)
    # One that concerns nobody is not read.
    (node.state_dir / "old").mkdir()
    (node.state_dir / "old/place.json").write_text("{")
    assert node.find("a").gpus == (0,)


def test_a_container_that_no_host_describes_has_its_gpus(node):
    node.describe("a", gpus=1)
    node.run("old", [0])
    node.run("older", [1], suffix=".previous")
    assert node.find("a").gpus == (1,)
    node.described[0] = Asker("a", [0])
    with pytest.raises(NoPlace, match="GPU 0 is used by old, which no host"):
        node.find("a")
    node.containers.clear()
    assert node.find("a").gpus == (0,)


def test_a_server_of_the_whole_node_becomes_one_of_several(node):
    """Its old container has all GPUs until the new one was verified."""
    node.describe("vllm", gpus=2)
    node.describe("b", gpus=1)
    node.run("vllm")
    assert node.take("vllm").gpus == (0, 1)
    assert len(place.read(node.state_dir, "vllm")["before"]["renders"]) == 8
    with pytest.raises(NoPlace, match="and 0 of 8 are free") as refused:
        node.find("b")
    assert "replace vllm first" in refused.value.remedy
    # The new one runs, and is not verified yet.
    node.containers = []
    node.run("vllm", [0, 1])
    with pytest.raises(NoPlace):
        node.find("b")
    node.take("vllm")  # a run that was taken up
    with pytest.raises(NoPlace):
        node.find("b")
    place.settle(node.state_dir, "vllm")
    assert node.find("b").gpus == (2,)


def test_a_server_that_moved_and_failed_goes_back(node):
    node.describe("a", gpus=[0])
    node.run("a", [0])
    node.take("a")
    node.described[0] = Asker("a", [3])
    assert node.take("a").gpus == (3,)
    node.describe("b", gpus="0-7")
    node.describe("c", gpus=1)
    with pytest.raises(NoPlace, match="GPU 0 is still used by a"):
        node.described[1] = Asker("b", [0])
        node.find("b")
    assert node.find("c").gpus == (1,)
    # It stays where it was, after all.
    node.described = [Asker("a", [0]), Asker("b", [3])]
    node.take("a")
    assert node.find("b").gpus == (3,)


def test_a_gpu_that_is_gone_is_replaced_by_another(tmp_path):
    node = Node(tmp_path, trees.one_missing)
    node.describe("a", gpus=2)
    (node.state_dir / "a").mkdir(parents=True)
    # It had GPU 4 and the one that is missing now.
    had = {
        "format": 1,
        "gpus": [4, 5],
        "renders": ["renderD160", "renderD168"],
        "cpus": None,
        "numa": [],
        "before": None,
    }
    (node.state_dir / "a/place.json").write_text(json.dumps(had))
    found = node.find("a")
    assert found.renders == ("renderD160", "renderD176")
    assert found.gpus == (4, 5)  # as the node counts them now


def test_memory_of_a_stranger_is_avoided_and_a_neighbours_is_not_strange(tmp_path):
    node = Node(tmp_path, trees.foreign_holder)
    node.describe("a", gpus=1)
    node.describe("b", gpus=4)
    assert node.find("b").gpus == (4, 5, 6, 7)
    neighbour = node.run("b", [4, 5, 6, 7])
    node.tree.process(99, ["vllm"], neighbour["Id"])
    node.tree.hold(4, 99, 100 * GIB)
    assert node.find("b").gpus == (4, 5, 6, 7)
    with pytest.raises(NoPlace, match=r"GPU 3 pid 4711 \(python3 train.py"):
        node.described[0] = Asker("a", 5)
        node.find("a")


def test_a_sick_gpu_is_given_to_nobody_who_could_have_another(node):
    node.tree.write(node.tree.device_dir(0) / "ras/umc_err_count", "ue: 2\nce: 4")
    node.describe("a", gpus=1)
    assert node.find("a").gpus == (1,)
    node.describe("b", gpus=7)
    with pytest.raises(NoPlace, match=r"GPU 0 2 uncorrectable errors, GPU 1-7 b"):
        node.described[0] = Asker("a", 2)
        node.find("a")
    # What a server has it keeps: a repair is another matter.
    node.described = [Asker("a", 1)]
    node.run("a", [0])
    assert node.find("a").gpus == (0,)


REFUSED = [
    (Asker("a", 1), "vllm_server_devices", "set together with vllm_server_devices"),
    (Asker("a", 1, rocm=False), "", "and the server computes on CPUs"),
    (Asker("a"), "", "vllm_server_gpus of a is not set, so it takes all GPUs of its node, and b is there, too"),
    (Asker("a", "x"), "", "expected a count"),
    (Asker("a", 1, "x"), "", "vllm_server_cpus: expected a count"),
    (Asker("a", 1, 17), "", "vllm_server_cpus of a asks for 17 CPUs, and 16 of 16 are free"),
    (Asker("a", [8]), "", "names GPU 8, which this node does not have"),
]


@pytest.mark.parametrize(("own", "by_hand", "why"), REFUSED)
def test_wishes_that_cannot_be(node, own, by_hand, why):
    node.described = [own, Asker("b", 1)]
    with pytest.raises(NoPlace) as refused:
        node.find("a", by_hand=by_hand)
    assert why in refused.value.why


def test_a_neighbours_wrong_wish_is_its_own_fault(node):
    node.described = [Asker("a", 1), Asker("b", "x")]
    assert node.find("a").gpus == (0,)


def test_a_server_that_chose_gpus_by_hand_has_what_its_container_has(node):
    node.described = [Asker("a"), Asker("b", 1)]
    node.run("a", [0])
    assert node.find("a", by_hand="vllm_server_devices") is None
    assert node.find("b").gpus == (1,)


def test_a_record_of_a_server_that_was_removed_gives_its_gpus_to_a_list(node):
    node.describe("a", gpus=2)
    assert node.take("a").gpus == (0, 1)
    node.described = [Asker("a", 1), Asker("b", [0])]
    assert (node.find("a").gpus, node.find("b").gpus) == ((1,), (0,))


def test_cpus_without_gpus(node):
    node.described = [Asker("a", None, 8, rocm=False), Asker("b", None, "0-3", rocm=False), Asker("c", rocm=False)]
    found = node.take("b")
    assert (found.gpus, found.cpus, found.cores) == (None, (0, 1, 2, 3), ((0,), (1,), (2,), (3,)))
    assert node.take("a").cpus == (4, 5, 6, 7, 12, 13, 14, 15)
    node.run("c", [])  # it may run anywhere, and has none for itself
    assert node.find("a").numa == (1,)


def take_one(folder, name, gates):
    """In a process of its own: place one of eight servers."""
    node = Node.__new__(Node)
    node.tree, node.state_dir, node.containers = trees.Tree(folder / "node"), folder / "state", []
    node.described = [Asker(f"s{at}", None, 2, rocm=False) for at in range(8)]
    gates.wait()
    node.take(name)


def test_eight_processes_at_once_never_overlap(node, tmp_path):
    gates = multiprocessing.get_context("fork").Barrier(8)
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=take_one, args=(tmp_path, f"s{at}", gates)) for at in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    taken = [place.read(node.state_dir, f"s{at}")["cpus"] for at in range(8)]
    assert sorted(taken) == sorted(f"{at},{at + 8}" for at in range(8))


def test_the_record_goes_with_the_wish_and_has_one_name(node):
    assert place.RECORD == state.PLACE
    node.describe("a", gpus=1)
    node.take("a")
    before = (node.state_dir / "a/place.json").stat().st_ino
    node.take("a")
    assert (node.state_dir / "a/place.json").stat().st_ino == before, "nothing new, and it was written again"
    place.write(node.state_dir, "a", None)
    assert place.read(node.state_dir, "a") is None
