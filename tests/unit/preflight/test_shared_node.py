# SPDX-License-Identifier: Apache-2.0
"""Preflight of a server that shares its node: its own GPUs are judged, and its place is found as a run would."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from sysfs import trees

from ansible.module_utils.vllm_fleet.container.api import DockerUnavailable
from ansible.module_utils.vllm_fleet.host import gpu
from ansible.module_utils.vllm_fleet.host.facts import Host
from ansible.module_utils.vllm_fleet.preflight import judge, node
from ansible.module_utils.vllm_fleet.preflight.options import SPEC, PreflightOptions

GB = 10**9
NEIGHBOURS = [{"name": "vllm-a", "gpus": 2}, {"name": "vllm-b", "gpus": 4}, {"name": "vllm-c", "accelerator": "cpu"}]
SIZING = {"args": {"tensor-parallel-size": 2}, "env": {}, "devices": None}


class Docker:
    """An engine that has these containers, or none that answers."""

    def __init__(self, *containers, answers=True):
        self.containers, self.answers = list(containers), answers

    def containers_with_label(self, label):
        assert label == "io.vllm-fleet.managed=true"
        if not self.answers:
            raise DockerUnavailable("none")
        return self.containers


def container(name, *indices):
    devices = [{"PathOnHost": f"/dev/dri/renderD{128 + 8 * index}"} for index in indices]
    labels = {"io.vllm-fleet.server": name}
    return {"Id": name * 8, "Name": f"/{name}", "Config": {"Labels": labels}, "HostConfig": {"Devices": devices}}


def facts(tree):
    return gpu.read(tree.sys, tree.proc, tree.modules, docker_root=tree.docker).as_dict()


def options(tree, tmp_path, **given):
    """As the module parses them."""
    asked = {
        "name": "vllm-a",
        "neighbours": NEIGHBOURS,
        "wanted_gpus": 2,
        "state_dir": str(tmp_path / "state"),
        "sysfs_root": str(tree.sys),
        "sizing": SIZING,
        **given,
    }
    return PreflightOptions.from_params(ArgumentSpecValidator(**SPEC).validate(asked).validated_parameters)


def test_sizing_and_memory_look_at_the_servers_own_gpus(tmp_path):
    tree = trees.mi300x(tmp_path / "node")
    asked, info = options(tree, tmp_path), facts(tree)
    shared = node.look_for_place(asked, info, Docker(container("vllm-b", 0, 1, 2, 3)))
    assert shared.place.gpus == (4, 5)
    assert shared.sizing["devices"] == ["/dev/kfd", "/dev/dri/renderD160", "/dev/dri/renderD168"]
    assert shared.neighbours == {"vllm-b" * 8}
    assert not shared.findings
    assert not (tmp_path / "state").exists()


def test_a_node_without_an_engine_or_without_its_driver_is_no_fault(tmp_path):
    tree = trees.mi300x(tmp_path / "node")
    assert node.look_for_place(options(tree, tmp_path), facts(tree), Docker(answers=False)).place.gpus == (4, 5)
    bare = trees.no_driver(tmp_path / "bare")
    shared = node.look_for_place(options(bare, tmp_path), facts(bare), Docker(answers=False))
    assert (shared.place, shared.findings, shared.sizing) == (None, (), options(bare, tmp_path).sizing)
    whole = options(tree, tmp_path, neighbours=[], wanted_gpus=None)
    assert node.look_for_place(whole, facts(tree), Docker()) == node.Shared(whole.sizing)


@pytest.mark.parametrize(
    ("given", "got", "remedy"),
    [
        (
            {"wanted_gpus": 5},
            "asks for 5 GPUs, and 4 of 8 are free. GPUs of this node: GPU 0-3 vllm-b, GPU 4-7 free",
            "fewer",
        ),
        (
            {"wanted_gpus": None},
            "is not set, so it takes all GPUs of its node, and vllm-b is there, too",
            "a count or a list",
        ),
        ({"sizing": {**SIZING, "devices": ["/dev/kfd"]}}, "set together with vllm_server_devices", "take one"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tmp_path, given, got, remedy):
    tree = trees.mi300x(tmp_path / "node")
    (finding,) = node.look_for_place(
        options(tree, tmp_path, **given), facts(tree), Docker(container("vllm-b", *range(4)))
    ).findings
    assert (finding.level, finding.what) == ("refused", "place on the node")
    assert got in finding.got and remedy in finding.remedy


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    tree = trees.mi300x(tmp_path / "node")
    path = tmp_path / "state/vllm-b/place.json"
    path.parent.mkdir(parents=True)
    path.write_text("")
    (finding,) = node.look_for_place(options(tree, tmp_path), facts(tree), Docker()).findings
    assert finding.level == "refused" and f"{path} cannot be read (is damaged)" in finding.got


def judged(info, **expected):
    for one in info["gpus"]:
        one.setdefault("ecc", {"uncorrectable": 0})
        one.setdefault("bad_pages", {"retired": 0, "pending": 0, "unreservable": 0})
    info["driver"]["allowed"] = True
    found = judge.judge(info, Host(clock_synchronised=True), judge.Expected(own_container="vllm-a", **expected))
    return {one.what: one for one in found}


def test_a_gpu_that_it_will_not_use_refuses_nothing(tmp_path):
    info = facts(trees.mi300x(tmp_path))
    info["gpus"][6]["ecc"] = {"uncorrectable": 3}
    info["gpus"][7]["name"] = "AMD Instinct MI325X"
    assert judged(info)["ECC errors"].level == judged(info)["GPU kind"].level == "refused"
    found = judged(info, given=[0, 1], used=[0, 1])
    assert {what: one.sentence for what, one in found.items() if one.level == "refused"} == {}
    assert found["GPU count"].got == "GPU 0, 1 of 8"
    assert judged(info, given=[5, 6])["ECC errors"].level == "refused"


def test_a_missing_gpu_of_the_node_is_worth_a_word(tmp_path):
    found = judged(facts(trees.one_missing(tmp_path)), given=[0, 1])
    assert found["GPU count"].level == "warning"
    assert "without 0000:a6:00.0" in found["GPU count"].got


def test_a_neighbour_is_no_stranger(tmp_path):
    tree = trees.mi300x(tmp_path)
    tree.process(77, ["vllm"], "f" * 64, "vllm-b")
    tree.hold(2, 77, 100 * GB)
    info = facts(tree)
    assert judged(info)["foreign use"].level == "refused"
    assert judged(info, neighbours=frozenset({"f" * 64}))["foreign use"].level == "ok"
    # Memory that it does not get is another matter.
    own = judged(info, neighbours=frozenset({"f" * 64}), given=[2], used=[2], utilization=0.9)
    assert own["GPU memory"].level == "refused"


def test_too_many_ranks_name_the_variable(tmp_path):
    from ansible.module_utils.vllm_fleet.common.finding import Finding
    from ansible.module_utils.vllm_fleet.host.place import Place

    few = Finding("refused", "GPUs for the model", "4", "2 x MI300X", "lower tensor-parallel-size in vllm_server_args")
    said = node._with_wish(few, Place((0, 1)))
    assert said.remedy == "set vllm_server_gpus to 4, or lower tensor-parallel-size in vllm_server_args to 2"
    assert node._with_wish(few, None) == few
    assert asdict(said)["level"] == "refused"


def test_a_server_in_maintenance_is_not_looked_at_unless_that_ends(tmp_path):
    tree = trees.mi300x(tmp_path / "node")
    where = tmp_path / "state/vllm-a/maintenance.json"
    where.parent.mkdir(parents=True)
    where.write_text('{"since": "monday"}')
    found = node.result(options(tree, tmp_path))
    assert (found["maintenance"], found["findings"], "node" in found) == (" since monday", [], False)
    assert "maintenance" not in node.result(
        options(tree, tmp_path, leaves_out=False, docker_socket=str(tmp_path / "no"))
    )
