# SPDX-License-Identifier: Apache-2.0
"""Two servers of one node with CPUs of their own, on the real engine: never the same, whoever comes first."""

from __future__ import annotations

import json
import os

import pytest
from vllm_server_tools import Server, facts, names, outcome

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two CPUs are to be shared"),
]
ALLOWED = sorted(os.sched_getaffinity(0))
PREVIOUS = ".previous"


@pytest.fixture
def pair(engine, docker_client, standin_image, tmp_path):
    """Two servers of one node that ask for one CPU each."""
    made = [Server(engine, docker_client, standin_image, tmp_path) for _ in range(2)]
    wish(*made, cpus=(1, 1))
    yield made
    for one in made:
        one.close()


def wish(*servers, cpus):
    """Let the inventory ask for these."""
    neighbours = [
        {"name": one.name, "cpus": asked, "accelerator": "cpu"} for one, asked in zip(servers, cpus, strict=True)
    ]
    for one, asked in zip(servers, cpus, strict=True):
        one.fixed = {"cpus": asked, "neighbours": neighbours}


def cpu(server, suffix=""):
    """The one CPU that a container has."""
    return int(server.inspect(suffix)["HostConfig"]["CpusetCpus"])


def record(server):
    return json.loads((server.state_dir / server.name / "place.json").read_text())


def test_both_at_once_in_two_processes(pair):
    planned = [one.check() for one in pair]
    assert not pair[0].state_dir.exists() or not list(pair[0].state_dir.glob("*/place.json"))
    results = [outcome(process)[1] for process in [one.spawn() for one in pair]]
    assert not any(result.get("failed") for result in results), [result.get("msg") for result in results]
    assert [cpu(one) for one in pair] == ALLOWED[:2]
    for one, plan, done in zip(pair, planned, results, strict=True):
        assert facts(plan) == facts(done)
        assert plan["place"] == done["place"] == {"gpus": None, "cpus": str(cpu(one)), "numa": done["place"]["numa"]}
        assert done["spec"]["cpus"] == [cpu(one)]
        inside = one.client.containers.get(one.id()).exec_run("grep Cpus_allowed_list /proc/self/status").output
        assert inside.decode().split()[1] == str(cpu(one))
    # Nothing to do, and nothing written, whatever the order is now.
    before = record(pair[1])
    wish(*reversed(pair), cpus=(1, 1))
    assert [one.run()["changed"] for one in reversed(pair)] == [False, False]
    assert record(pair[1]) == before
    # One more than there are CPUs, of which none is touched.
    more = {"cpus": len(ALLOWED), "neighbours": pair[0].fixed["neighbours"]}
    refused = pair[0].run(**more)
    assert refused["failed"] and (refused["changed"], refused["actions"]) == (False, [])
    assert f"CPU {ALLOWED[1]} {pair[1].name}" in refused["msg"]


def test_a_server_moves_fails_and_goes_back(pair):
    first, other = pair
    wish(first, cpus=([ALLOWED[0]],))
    first.ready()
    wish(first, cpus=([ALLOWED[1]],))
    failed = first.run(env={"STANDIN_FAIL_AT": "config"})
    assert failed["failed"] and failed["rolled_back"]
    assert names(failed)[:1] == ["cpuset"]
    assert (cpu(first), first.served()["data"][0]["id"]) == (ALLOWED[0], "acme/tiny")
    # Both are its own as long as it is not decided.
    wish(first, other, cpus=([ALLOWED[1]], [ALLOWED[0]]))
    assert f"CPU {ALLOWED[0]} is still used by {first.name}" in other.check()["msg"]
    first.ready()
    assert (cpu(first), cpu(first, PREVIOUS)) == (ALLOWED[1], ALLOWED[0])
    assert other.run()["failed"], "its old container may have to come back"
    first.ready(state="confirmed")
    assert record(first)["before"] is None
    assert other.ready()["place"]["cpus"] == str(ALLOWED[0])
    # The one before it may not come back any more, for its CPU is another's.
    msg = first.run(state="restored")["msg"]
    assert f"CPU {ALLOWED[0]} of the previous server is used by {other.name} now" in msg
    # Without CPUs of its own it may run on all.
    wish(first, other, cpus=(None, [ALLOWED[0]]))
    first.ready()
    assert first.inspect()["HostConfig"]["CpusetCpus"] == ""
    assert not (first.state_dir / first.name / "place.json").exists()


def test_a_container_that_nobody_describes_keeps_its_cpu(pair):
    first, other = pair
    first.ready()
    wish(other, cpus=([cpu(first)],))
    msg = other.run()["msg"]
    assert f"CPU {cpu(first)} is used by {first.name}, which no host of the inventory describes" in msg
    path = first.state_dir / first.name / "place.json"
    path.write_text("{")
    assert f"{path} cannot be read (is damaged)" in other.run()["msg"]
    first.ready(state="absent")
    assert other.ready()["place"]["cpus"] == str(ALLOWED[0])
