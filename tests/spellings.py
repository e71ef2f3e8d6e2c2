# SPDX-License-Identifier: Apache-2.0
"""Equivalent spellings of each option: a server of one spelling is as wanted in each of the others.

Unit tests combine them at random; tests with an engine create containers of them, where `filled` has put in a folder.
Two groups of an option are two wishes. What a node may refuse (a capability, a device) is of every Linux.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

PROFILE = '{"defaultAction": "SCMP_ACT_ALLOW"}'

SPELLINGS: dict[str, list[list[Any]]] = {
    "args": [
        [
            {"max-model-len": 512, "hf-overrides": {"b": 1, "a": [1, 2]}, "gpu-memory-utilization": 0.9},
            {"max_model_len": "512", "hf_overrides": '{"a": [1, 2], "b": 1}', "gpu_memory_utilization": "0.90"},
            {
                "--max-model-len": 512,
                "hf-overrides": {"a": [1, 2], "b": 1},
                "gpu-memory-utilization": ".9",
                "seed": None,
            },
        ],
        [
            {"served-model-name": ["a"], "enforce-eager": True, "-tp": 2},
            {"served_model_name": "a", "--enforce_eager": True, "tensor-parallel-size": "2"},
        ],
        [{}, {"seed": None}],
    ],
    "env": [
        [{"A": 1, "B": True, "C": ""}, {"C": "", "B": 1, "A": "1"}],
        [{"A": False, "B": 0.5, "E": "x=y"}, {"E": "x=y", "B": "0.5", "A": 0}],
        [{}, {"D": None}],
    ],
    "labels": [[{"team": "a", "tier": 1}, {"tier": "1", "team": "a"}], [{}]],
    "port": [[8123, "8123"], [8124]],
    "bind": [
        ["127.0.0.1", "localhost"],
        ["::1", "0:0:0:0:0:0:0:1", "[::1]", "::0001"],
        ["fd00::a", "FD00:0:0::A", "fd00:0000::000a"],
        ["0.0.0.0", ""],
    ],
    "network_mode": [["bridge", "default", "", None]],
    "devices": [
        [[], None],
        [
            ["/dev/null", "/dev/full"],
            ["/dev/full:/dev/full:mrw", "/dev/null:rwm"],
            ["/dev//null", "/dev/full/", "/dev/null:/dev/null"],
        ],
        [["/dev/full:r", "/dev/zero:/dev/x:rw"], ["/dev/zero:/dev/x:wr", "/dev/full:/dev/full:r"]],
    ],
    "groups": [[[44, "0"], ["0", "044", 44]], [["daemon"], [1], ["01", "daemon"]], [[], None]],
    "ipc_mode": [["host"], ["private", "shareable", "", None], ["none"]],
    "shm_size": [["1g", "1073741824", "1024m", "1 GiB", "1G", "1.0gb", 1 << 30], ["64m", "65536K"]],
    "capabilities": [
        [["SYS_PTRACE", "NET_RAW"], ["cap_net_raw", "sys_ptrace"], ["CAP_SYS_PTRACE", "Net_Raw", "SYS_PTRACE"]],
        [["ALL"], ["all", "NET_RAW"], ["CAP_ALL"]],
        [[], None],
    ],
    "security_opts": [
        [
            ["seccomp=unconfined", "no-new-privileges"],
            ["no-new-privileges:true", "seccomp:unconfined"],
            ["no-new-privileges=True", "seccomp=unconfined", "seccomp:unconfined"],
        ],
        [[f"seccomp={PROFILE}"]],
        [[], ["no-new-privileges:false"], None],
        [["label=disable", "seccomp=unconfined"], ["seccomp=unconfined", "label:disable"]],
    ],
    "ulimits": [
        [["nofile=1024", "core=0"], ["core=0:0", "nofile=1024:1024"], ["NOFILE=1024:1024", "core=0", "nofile=1024"]],
        [["memlock=-1"], ["memlock=unlimited"], ["memlock=-1:unlimited"]],
        [[], None],
    ],
    "volumes": [
        [
            ["/tmp:/data:ro", "/var:/more"],
            ["/var/:/more/:rw", "/tmp:/data:ro,rprivate"],
            ["//tmp/.:/data//:ro", "/var/../var:/more:cached", "/tmp:/data:ro"],
        ],
        [["/tmp:/data:ro,z"], ["/tmp:/data:z,ro"]],
        [["/tmp:/data:rslave"], ["/tmp:/data:rw,rslave"], ["/tmp/:/data:rslave,rw"]],
        [["vllm-fleet-spelling:/data"], ["vllm-fleet-spelling:/data/:rw"]],
        [[]],
    ],
    "hf_cache": [["{folder}", "{folder}/", "{folder}//", "/.{folder}"], [None, ""]],
    "restart_policy": [["no", False], ["on-failure", "on-failure:0"], ["on-failure:3"], ["unless-stopped"]],
    "stop_timeout": [[60, "60"], [10], [0]],
    "entrypoint": [[None, [], ["vllm", "serve"]], [["python3", "/usr/local/bin/vllm", "serve"]]],
    "engine_cache": [["/cache/image-one"]],
}

Options = dict[str, Any]


def filled(value: Any, folder: str) -> Any:
    """Put a folder into a spelling."""
    return value.replace("{folder}", folder) if isinstance(value, str) else value


def rounds(folder: str) -> Iterator[list[Options]]:
    """Each wish of each option at least once, in as few containers as possible: lists of equivalent options."""
    for number in range(max(map(len, SPELLINGS.values()))):
        groups = {name: wishes[number % len(wishes)] for name, wishes in SPELLINGS.items()}
        length = max(map(len, groups.values()))
        yield [
            {name: filled(group[spelt % len(group)], folder) for name, group in groups.items()}
            for spelt in range(length)
        ]


def wish(dice: random.Random) -> dict[str, list[Any]]:
    """One group of spellings for each option."""
    return {name: dice.choice(wishes) for name, wishes in SPELLINGS.items()}


def spelt(wanted: Mapping[str, list[Any]], dice: random.Random, folder: str = "/c") -> Options:
    """One way to write a wish, the options in any order."""
    names = dice.sample(list(wanted), len(wanted))
    return {name: filled(dice.choice(wanted[name]), folder) for name in names}


def mixed(folder: str, count: int) -> Iterator[list[Options]]:
    """So many wishes at random, each written in two ways at random."""
    for number in range(count):
        dice = random.Random(number)  # noqa: S311  nothing secret
        wanted = wish(dice)
        yield [spelt(wanted, dice, folder) for _ in range(2)]
