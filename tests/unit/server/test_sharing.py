# SPDX-License-Identifier: Apache-2.0
"""A server on a node that it shares: its place becomes options of its container, and comes out again in records."""

from __future__ import annotations

import json

import pytest
from docker.api import APIClient
from sysfs import trees

from ansible.module_utils.vllm_fleet.common.failure import FailureClass
from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container import compare, fields, spec
from ansible.module_utils.vllm_fleet.container.engine import Engine
from ansible.module_utils.vllm_fleet.server import gpu_gate, release, sharing
from ansible.module_utils.vllm_fleet.server.options import ServerOptions
from ansible.module_utils.vllm_fleet.server.run import RunContext, RunState

IMAGE = spec.Image("vllm:1", "sha256:" + "1" * 64)
REDACT = compare.fingerprint(b"k" * 32)
RENDERS = [f"renderD{number}" for number in range(128, 192, 8)]


class Docker(APIClient):
    """Docker's client without a Docker: it keeps what it would send."""

    def __init__(self):
        super().__init__(base_url="http://127.0.0.1:1", version="1.41")

    def create_container_from_config(self, config, name=None, platform=None):
        self.sent = config
        return {"Id": "c" * 64}


class Containers:
    """An engine that has these."""

    def __init__(self):
        self.found = []

    def managed(self):
        return self.found

    def container(self, name):
        return next((one for one in self.found if one["Name"] == f"/{name}"), None)


@pytest.fixture
def node(tmp_path):
    tree = trees.mi300x(tmp_path / "node")
    tree.neighbourhood()
    tree.cpus()
    return tree


@pytest.fixture
def run(node, tmp_path):
    """Let a run take its place; returns the run's context."""
    engine = Containers()

    def start(*, check=False, **more):
        given = {"model": "acme/tiny", "name": "vllm-a", "image": "vllm:1", "sysfs_root": str(node.sys), **more}
        options = ServerOptions.from_params({**given, "state_dir": str(tmp_path / "state")})
        context = RunContext(options, engine, "node1", check_mode=check)
        sharing.take(context)
        return context

    start.engine, start.state_dir = engine, tmp_path / "state"
    return start


def created(options):
    """What Docker would be asked to make, as it would be inspected."""
    engine = Engine.__new__(Engine)
    engine._sdk_client = Docker()
    made = spec.build(options, IMAGE, fields.NodeFacts(), shutdown_timeout=False)
    engine.create(made, IMAGE)
    sent = engine._sdk_client.sent
    host = {**sent["HostConfig"], "PortBindings": sent["HostConfig"].get("PortBindings") or {}}
    return made, {"Id": "c" * 64, "Image": IMAGE.id, "Name": "/vllm-a", "State": {}, "Config": sent, "HostConfig": host}


def test_a_container_with_two_gpus_and_what_is_read_of_it(run):
    context = run(gpus=2, cpus="0-3", args={"-tp": 2})
    options = context.options
    assert options.devices == ("/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD136")
    assert options.env == {"HIP_VISIBLE_DEVICES": "0,1"}
    assert (options.given_gpus, options.cpuset) == ((0, 1), "0-3")
    assert [one.index for one in gpu_gate.gpus(options)[0]] == [0, 1]
    made, container = created(options)
    assert container["HostConfig"]["CpusetCpus"] == "0-3"
    assert container["Config"]["Labels"]["io.vllm-fleet.gpus"] == "0,1"
    assert compare.differences(made, IMAGE, container, IMAGE, REDACT) == []
    described = compare.as_spec(container, IMAGE, REDACT)
    assert (described["gpus"], described["cpus"], described["devices"]) == ([0, 1], [0, 1, 2, 3], None)
    assert "HIP_VISIBLE_DEVICES" not in described["env"]
    # Another place is another container.
    other, _ = created(run(gpus=[0, 4], cpus=2, args={"-tp": 2}).options)
    names = [one.name for one in compare.differences(other, IMAGE, container, IMAGE, REDACT)]
    assert names == ["cpuset", "devices"]


def test_a_server_with_the_whole_node_is_what_it_was(run):
    options = run().options
    assert options == ServerOptions.from_params(
        {
            "model": "acme/tiny",
            "name": "vllm-a",
            "image": "vllm:1",
            "sysfs_root": options.sysfs_root,
            "state_dir": options.state_dir,
        }
    )
    _, container = created(options)
    assert container["HostConfig"].get("CpusetCpus") is None
    described = compare.as_spec(container, IMAGE, REDACT)
    assert not {"gpus", "cpus"} & described.keys()
    assert described["devices"] == ["/dev/dri", "/dev/kfd"]
    assert not run.state_dir.exists()


def test_check_mode_finds_the_same_and_writes_nothing(run):
    planned = run(check=True, gpus=1).state.place
    assert not run.state_dir.exists()
    done = run(gpus=1).state
    assert done.place == planned
    assert (run.state_dir / "vllm-a/place.json").is_file()
    assert run().state.place == {}
    assert not (run.state_dir / "vllm-a/place.json").exists()


def test_the_next_slice_of_a_run_has_the_same_place(run):
    context = run(gpus=2, cpus=2)
    token = json.loads(json.dumps(context.state.as_token()))
    later = RunContext(context.options, context.engine, "node1", state=RunState.from_token(token))
    later.options = ServerOptions.from_params({"model": "acme/tiny", "gpus": 2, "cpus": 2})
    sharing.again(later)
    assert (later.options.devices, later.options.cpuset) == (context.options.devices, context.options.cpuset)
    assert sharing.facts(later, None) == {"gpus": [0, 1], "cpus": "0,8", "numa": [0]}


REFUSED = [
    (
        {"gpus": 2, "args": {"-tp": 4}},
        FailureClass.NOT_ENOUGH_GPUS,
        "the arguments ask for 4 GPUs, and vllm_server_gpus gives 2",
        "set vllm_server_gpus to 4, or lower tensor-parallel-size or its like in vllm_server_args to 2",
    ),
    ({"gpus": 9}, FailureClass.NOT_ENOUGH_GPUS, "asks for 9 GPUs, and 8 of 8 are free", "ask for fewer"),
    ({"gpus": 1, "devices": []}, FailureClass.BAD_ARGUMENT, "set together with vllm_server_devices", "take one"),
    (
        {"gpus": 1, "env": {"ROCR_VISIBLE_DEVICES": "1"}},
        FailureClass.BAD_ARGUMENT,
        "set together with ROCR_VISIBLE_DEVICES in vllm_server_env",
        "take one of them away",
    ),
    (
        {"cpus": 2, "accelerator": "cpu", "env": {"VLLM_CPU_OMP_THREADS_BIND": "0-3"}},
        FailureClass.BAD_ARGUMENT,
        "set together with VLLM_CPU_OMP_THREADS_BIND",
        "to auto or nobind",
    ),
    (
        {"cpus": 2, "accelerator": "cpu", "args": {"-tp": 2}},
        FailureClass.BAD_ARGUMENT,
        "expected a core for each of 2 ranks, got 1",
        "raise vllm_server_cpus",
    ),
]


@pytest.mark.parametrize(("more", "kind", "why", "remedy"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(run, more, kind, why, remedy):
    with pytest.raises(Refused) as refused:
        run(**more)
    assert refused.value.failure_class is kind
    assert why in refused.value.cause
    assert remedy in refused.value.remedy
    assert not list(run.state_dir.glob("*/place.json"))


def test_a_damaged_record_is_named(run):
    run(gpus=1)
    path = run.state_dir / "vllm-a/place.json"
    path.write_text("{")
    with pytest.raises(Refused) as refused:
        run(gpus=1)
    assert f"{path} cannot be read (is damaged)" in refused.value.cause
    assert "move it away" in refused.value.remedy


def test_threads_of_a_server_without_gpus(run):
    given = run(cpus=8, accelerator="cpu").options
    assert given.env == {"VLLM_CPU_OMP_THREADS_BIND": "8,9,10"}
    assert given.devices is None
    _, container = created(given)
    described = compare.as_spec(container, IMAGE, REDACT)
    assert described["cpus"] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert "VLLM_CPU_OMP_THREADS_BIND" not in described["env"]
    kept = run(cpus=4, accelerator="cpu", env={"VLLM_CPU_OMP_THREADS_BIND": "nobind"}).options
    assert kept.env == {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert run(cpus=4, env={}).options.env == {}, "a server on GPUs has no such threads"


def test_gpus_that_are_not_used_are_noted(run):
    assert run(gpus=4, args={"-tp": 2}).state.notes == [
        "vllm_server_gpus gives 4 GPUs, and the arguments use 2 of them (tensor-parallel-size)"
    ]


def test_a_release_brings_its_place_back(run):
    _, container = created(run(gpus=[2, 3], cpus=[0]).options)
    described = compare.as_spec(container, IMAGE, REDACT)
    record = release.build(1, container, described, [], None, {}, "now")
    assert record["place"] == {"gpus": [2, 3], "cpus": "0"} == release.summary(record)["place"]
    variables = release.role_variables(record, "vllm:1", None)
    assert (variables["vllm_server_gpus"], variables["vllm_server_cpus"]) == ([2, 3], [0])
    assert variables["vllm_server_devices"] is None
    again = run(
        **{name.removeprefix("vllm_server_"): variables[name] for name in ("vllm_server_gpus", "vllm_server_cpus")}
    )
    assert (again.options.given_gpus, again.options.cpuset) == ((2, 3), "0")
    # One of the time before had the whole node.
    _, before = created(ServerOptions.from_params({"model": "acme/tiny", "image": "vllm:1"}))
    record = release.build(1, before, compare.as_spec(before, IMAGE, REDACT), [], None, {}, "now")
    variables = release.role_variables(record, "vllm:1", None)
    assert record["place"] is None
    assert (variables["vllm_server_gpus"], variables["vllm_server_cpus"]) == (None, None)


def test_a_previous_server_whose_part_is_taken_does_not_come_back(run):
    def container(name, *renders, cpus=""):
        devices = [{"PathOnHost": f"/dev/dri/{render}"} for render in renders]
        host = {"Devices": devices, "CpusetCpus": cpus}
        return {"Name": f"/{name}", "Id": name, "State": {"Running": True}, "HostConfig": host}

    context = run()
    run.engine.found = [container("vllm-b", "renderD136", cpus="0-3"), container("vllm-a.previous", "renderD128")]
    sharing.may_come_back(context, container("vllm-a.previous", "renderD128", cpus="4"))
    sharing.may_come_back(context, container("vllm-a.previous"))
    with pytest.raises(Refused, match="GPU renderD136 of the previous server is used by vllm-b now"):
        sharing.may_come_back(context, container("vllm-a.previous", "renderD128", "renderD136"))
    with pytest.raises(Refused, match="CPU 2, 3 of the previous server is used by vllm-b now"):
        sharing.may_come_back(context, container("vllm-a.previous", cpus="2-5"))
