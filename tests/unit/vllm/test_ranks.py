# SPDX-License-Identifier: Apache-2.0
"""Who is which rank of a server over several nodes, and what each rank is started with: from an inventory's values."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.vllm import cli, ranks

NODES = {
    "a1": {"vllm_server_replica": "a", "ansible_host": "10.0.0.11"},
    "b1": {"ansible_host": "10.0.0.21"},
    "a2": {"vllm_server_replica": "a", "ansible_host": "192.0.2.12", "vllm_server_node_address": "10.0.0.12"},
}


def of(host, variables=NODES, **named):
    return ranks.describe(host, list(variables), variables, **named)


def test_hosts_of_one_name_are_one_server_and_the_first_is_its_head():
    head, worker, alone = of("a1"), of("a2"), of("b1")
    assert (head["rank"], worker["rank"]) == (0, 1)
    assert head["hosts"] == worker["hosts"] == ["a1", "a2"]
    assert worker["head"] == "a1" and worker["size"] == 2
    assert (worker["address"], worker["master_addr"], worker["master_port"]) == ("10.0.0.12", "10.0.0.11", 29500)
    assert (alone["size"], alone["rank"], alone["head"]) == (1, 0, "b1")


def test_every_rank_gets_its_place_on_the_command_line():
    wanted = {"tensor_parallel_size": 16, "distributed-executor-backend": "mp"}
    head, worker = (ranks.args(wanted, of(h)) for h in ("a1", "a2"))
    assert cli.build("m", cli.normalise_args(head), entrypoint=[], extra={}) == [
        *("m", "--distributed-executor-backend", "mp", "--master-addr", "10.0.0.11", "--master-port", "29500"),
        *("--nnodes", "2", "--node-rank", "0", "--tensor-parallel-size", "16"),
    ]
    assert worker == {**head, "node-rank": 1, "headless": True}
    assert ranks.args(wanted, of("b1")) == wanted


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"tensor-parallel-size": 3}, "parallel is 3: expected a multiple of 2"),
        ({}, "parallel is 1: expected a multiple of 2"),
        ({"-tp": 8, "nnodes": 2}, "nnodes of replica a follows from the inventory"),
        ({"tensor-parallel-size": 2, "headless": True}, "headless of replica a follows"),
        ({"tensor-parallel-size": 2, "distributed-executor-backend": "ray"}, "distributed-executor-backend of replica"),
        ({"tensor-parallel-size": "two"}, "expected a number, got 'two'"),
    ],
)
def test_what_cannot_be_spread_is_refused(args, says):
    with pytest.raises(ranks.ReplicaError, match=says):
        ranks.args(args, of("a1"))


@pytest.mark.parametrize(
    "args", [{"-tp": 8, "-pp": 2}, {"tensor-parallel-size": 2}, {"tensor-parallel-size": 1, "data-parallel-size": 2}]
)
def test_what_divides_is_taken(args):
    assert ranks.args(args, of("a1"))["nnodes"] == 2


@pytest.mark.parametrize(
    ("change", "named", "says"),
    [
        ({"a2": {"vllm_server_replica": "a", "ansible_host": "gpu2.example"}}, {}, "a2: ansible_host: expected an IP"),
        ({"a2": {"vllm_server_replica": "a"}}, {}, "vllm_server_node_address"),
        ({"a2": {"vllm_server_replica": "a", "ansible_host": "10.0.0.11"}}, {}, "the same address"),
        ({}, {"backend": "mpi"}, "expected mp or ray, got 'mpi'"),
        ({}, {"master_addr": "head"}, "vllm_server_master_addr: expected an IP"),
        ({}, {"master_port": 65535}, "expected 1 to 65534"),
    ],
)
def test_an_inventory_that_describes_no_replica_is_refused(change, named, says):
    with pytest.raises(ranks.ReplicaError, match=says):
        of("a1", NODES | change, **named)


def test_environment_devices_and_rights_follow_from_the_node():
    rdma = {"vllm_server_interface": "ens1", "vllm_server_rdma_devices": ["mlx5_0", "mlx5_1"]}
    found = of("a1", NODES | {"a1": NODES["a1"] | rdma | {"vllm_server_rdma_gid_index": 3}})
    assert ranks.environment(found) == {
        "VLLM_HOST_IP": "10.0.0.11",
        "NCCL_SOCKET_IFNAME": "=ens1",
        "GLOO_SOCKET_IFNAME": "ens1",
        "NCCL_IB_HCA": "=mlx5_0,mlx5_1",
        "NCCL_IB_GID_INDEX": "3",
    }
    assert ranks.devices(found, None, ("/dev/dri", "/dev/kfd")) == ["/dev/dri", "/dev/infiniband", "/dev/kfd"]
    assert ranks.capabilities(found, None, ("SYS_PTRACE",)) == ["IPC_LOCK", "SYS_PTRACE"]
    plain = of("a2", NODES)
    assert ranks.environment(plain) == {"VLLM_HOST_IP": "10.0.0.12"}
    assert ranks.devices(plain, None, ("/dev/kfd",)) is None
    assert ranks.environment(of("b1")) == {}


def test_a_guard_runs_before_the_server_and_the_server_is_still_found_behind_it():
    words = ranks.entrypoint(of("a2"), [], "0123")
    assert words == [
        *("python3", "/opt/vllm-fleet/replica_guard.py", "--rank", "1", "--size", "2", "--head", "10.0.0.11"),
        *("--port", "29501", "--id", "0123", "--", "vllm", "serve"),
    ]
    assert cli.split_entrypoint([*words, "m", "--headless"]) == (words, ["m", "--headless"])
    assert ranks.behind_guard(words) == ["vllm", "serve"]
    assert ranks.behind_guard(None) is None
    assert ranks.behind_guard(["my", "serve"]) == ["my", "serve"]


def test_ray_head_and_workers():
    head, worker = (of(h, backend="ray") for h in ("a1", "a2"))
    assert (head["master_port"], head["guard_port"]) == (6379, 6380)
    assert ranks.args({"tensor-parallel-size": 16}, head) == {
        "tensor-parallel-size": 16,
        "distributed-executor-backend": "ray",
    }
    start = ranks.entrypoint(head, [], "x")
    assert start[start.index("--exec") + 1] == (
        "ray start --head --port=6379 --node-ip-address=10.0.0.11 --include-dashboard=false --disable-usage-stats"
        ' && export RAY_ADDRESS=10.0.0.11:6379 && exec vllm serve "$@"'
    )
    join = ranks.entrypoint(worker, [], "x")
    assert join[join.index("--exec") + 1] == (
        "until ray health-check --address=10.0.0.11:6379 >/dev/null 2>&1; do sleep 1; done; "
        "exec ray start --address=10.0.0.11:6379 --node-ip-address=10.0.0.12 --disable-usage-stats --block"
    )
    # The model and the flags are still read out of such a container.
    assert cli.split_entrypoint([*start, "m", "--max-model-len", "9"]) == (start, ["m", "--max-model-len", "9"])
    assert ranks.behind_guard(start) is None


def test_ranks_of_two_releases_do_not_meet():
    one = of("a1")
    same = ranks.identity(one, {"a": 1}, "image:1", "m")
    assert same == ranks.identity(of("a2"), {"a": 1}, "image:1", "m")
    assert len({same, ranks.identity(one, {"a": 2}, "image:1", "m"), ranks.identity(one, {"a": 1}, "i:2", "m")}) == 3


def test_the_same_release_is_the_same_however_its_flags_are_written():
    one = of("a1")
    user = ranks.identity(one, {"tensor_parallel_size": 2, "x": None}, "i", "m")
    recorded = {"tensor-parallel-size": "2", "shutdown-timeout": "50"}
    assert user == ranks.identity(one, recorded, "i", "m")


@pytest.mark.parametrize("host", ["a1", "a2"])
@pytest.mark.parametrize("backend", ["mp", "ray"])
def test_a_recorded_rank_is_asked_for_again_by_what_its_user_had_given(host, backend):
    found = of(host, backend=backend)
    given = {"tensor-parallel-size": "16", "max-model-len": "9"}
    spec = {
        "args": ranks.args(given, found),
        "env": {"A": "1", **ranks.environment(found)},
        "entrypoint": ranks.entrypoint(found, ["vllm", "serve"] if backend == "mp" else [], "0123"),
        "volumes": ["/data:/data:ro", *ranks.volumes(found, "/var/lib/vllm-fleet")],
        "model": "m",
    }
    assert ranks.without_place(spec) == {
        "args": given,
        "env": {"A": "1"},
        "entrypoint": ["vllm", "serve"] if backend == "mp" else [],
        "volumes": ["/data:/data:ro"],
        "model": "m",
        "distributed_backend": backend,
    }
    assert ranks.without_id(spec["entrypoint"]) == ranks.without_id(ranks.entrypoint(found, [], "other"))
    alone = {"args": {"nnodes": "2"}, "entrypoint": ["vllm", "serve"]}
    assert ranks.without_place(alone) == alone


@pytest.mark.parametrize(
    ("actions", "all_do"),
    [
        ({"a1": [], "a2": []}, ""),
        ({"a1": ["update"], "a2": []}, ""),
        ({"a1": [], "a2": ["start"]}, "restart"),
        ({"a1": ["create", "stop", "keep", "rename", "start"], "a2": []}, "replace"),
        ({"a1": ["start"], "a2": ["create", "start"]}, "replace"),
    ],
)
def test_what_one_node_must_do_all_do(actions, all_do):
    assert ranks.together(actions) == all_do
