# SPDX-License-Identifier: Apache-2.0
"""How flags spread a model, and which GPUs a server sees: vLLM's create_engine_config, ROCm's page on GPU isolation."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.models import placement
from ansible.module_utils.vllm_fleet.vllm import cli

RENDERS = [f"renderD{number}" for number in range(128, 192, 8)]
DP16 = {"data-parallel-size": 16}


@pytest.mark.parametrize(
    ("args", "local", "weights"),
    [
        ({}, 1, 1),
        ({"-tp": 4, "-pp": 2}, 8, 8),
        ({"-tp": 8, "-pp": 2, "nnodes": 2}, 8, 16),
        ({"-tp": 2, "-dp": 4}, 8, 2),
        ({"-dp": 8, "-ep": True}, 8, 8),
        # Data parallel over two nodes: the other node's server, or its headless part, has the other half.
        ({**DP16, "-dpl": 8, "-dpa": "10.0.0.1", "-ep": True}, 8, 16),
        ({**DP16, "data_parallel_size_local": 4, "-tp": 2, "headless": True, "-dpr": 4}, 8, 2),
        ({**DP16, "-dpl": 8, "-dph": True}, 8, 1),
        ({**DP16, "-dpl": 0}, 0, 1),  # a node with the API alone
        # An outer balancer: one server for each rank.
        ({**DP16, "-dpn": 3, "-tp": 2}, 2, 2),
        ({**DP16, "-dpe": True}, 1, 1),
        ({**DP16, "-dpb": "ray"}, 1, 1),
        ({**DP16, "nnodes": 2}, 8, 1),
        ({"-tp": 4, "-pcp": 2}, 8, 4),
    ],
)
def test_gpus_of_a_node_and_of_a_copy_of_the_weights(args, local, weights):
    found = placement.ranks(cli.normalise_args(args))
    assert (found.local, found.weights) == (local, weights)


@pytest.mark.parametrize(("args", "name"), [({"-tp": 0}, "tensor"), ({"-dpl": "x"}, "local"), ({"-dp": -1}, "data")])
def test_a_size_that_is_none_is_named(args, name):
    with pytest.raises(ValueError, match=rf"{name}.* expected a whole number"):
        placement.ranks(cli.normalise_args(args))


@pytest.mark.parametrize(
    ("env", "devices", "seen"),
    [
        ({}, None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"HIP_VISIBLE_DEVICES": "6, 4"}, None, [6, 4]),
        ({"HIP_VISIBLE_DEVICES": 0}, None, [0]),
        ({"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "5"}, None, [5]),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, None, [4, 5, 6, 7]),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6,7"}, None, [4, 5, 6, 7]),
        # HIP counts what ROCr has left.
        ({"ROCR_VISIBLE_DEVICES": "4,5,6,7", "HIP_VISIBLE_DEVICES": "2,3"}, None, [6, 7]),
        # What stands behind an index that is none is discarded.
        ({"HIP_VISIBLE_DEVICES": "1,9,2"}, None, [1]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, None, []),
        ({}, ["/dev/kfd", "/dev/dri/renderD160", "/dev/dri/renderD168", "/dev/dri/card5"], [4, 5]),
        ({"HIP_VISIBLE_DEVICES": "1"}, ["/dev/kfd", "/dev/dri/renderD160", "/dev/dri/renderD168"], [5]),
        ({}, ["/dev/kfd", "/dev/dri/renderD160:/dev/dri/renderD128:rw"], [4]),
        ({}, ["/dev/dri:/dev/dri:rwm"], [0, 1, 2, 3, 4, 5, 6, 7]),
        ({}, ["/dev/dri", "/dev/kfd", "/dev/infiniband"], [0, 1, 2, 3, 4, 5, 6, 7]),
        ({}, ["/dev/null"], [0, 1, 2, 3, 4, 5, 6, 7]),  # says nothing of GPUs
    ],
)
def test_the_gpus_that_a_server_sees(env, devices, seen):
    assert placement.visible(RENDERS, env, devices) == (seen, True)


@pytest.mark.parametrize(
    ("env", "devices", "at_most"),
    [
        ({"ROCR_VISIBLE_DEVICES": "0,GPU-4b2c1a9f8d3e6f7a"}, None, 2),
        ({}, ["/dev/dri/by-path/pci-0000:05:00.0-render"], 8),
    ],
)
def test_a_name_that_only_the_driver_knows_leaves_it_open(env, devices, at_most):
    places, certain = placement.visible(RENDERS, env, devices)
    assert (len(places), certain) == (at_most, False)


@pytest.mark.parametrize(
    ("cores", "ranks", "binding"),
    [
        ([(0,)], 1, "0"),
        # One core is left to the scheduler, as vLLM leaves one.
        ([(0,), (1,)], 1, "0"),
        ([(0, 8), (1, 9), (2, 10)], 1, "8,9"),
        ([(0, 8), (1, 9), (2, 10), (3, 11), (4, 12)], 2, "8,9|10,11"),
        ([(0,), (1,)], 2, "0|1"),
        ([(0,), (1,), (2,), (3,)], 2, "0,1|2"),
    ],
)
def test_threads_are_bound_to_cores_of_their_own(cores, ranks, binding):
    assert placement.omp_binding(cores, ranks) == binding


def test_a_rank_without_a_core_is_refused():
    with pytest.raises(ValueError, match="expected a core for each of 2 ranks, got 1"):
        placement.omp_binding([(0, 1)], 2)
