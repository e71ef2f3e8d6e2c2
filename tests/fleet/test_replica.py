"""One server over two nodes, with the stand-in: real SSH, real engines, ranks that meet over TCP. See docs/multi-node.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
from fleet import Fleet
from node_image import docker
from replica_fleet import Replica

pytestmark = pytest.mark.engine
NODES = ("node1", "node2")
START = {"STANDIN_START_SECONDS": "0.5"}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Two nodes with a good server over both."""
    import docker as sdk
    import standin

    client = sdk.from_env()
    image = f"vllm-standin-replica-{os.getpid()}:1"
    client.images.get(standin.build_image(client)).tag(*image.split(":"))
    fleet = Fleet(f"replica-{os.getpid()}", lambda _: None)
    try:
        fleet.up(tmp_path_factory.mktemp("replica-fleet"), ["bookworm", "trixie"])
        fleet.load([image])
        made = Replica(
            fleet,
            tmp_path_factory.mktemp("replica"),
            vllm_server_image=image,
            vllm_server_model="acme/tiny",
            vllm_server_args={"tensor-parallel-size": 2},
            vllm_server_env=START,
        )
        yield made
    finally:
        fleet.down()
        docker("image", "rm", "--force", image)
        client.close()


@pytest.fixture
def good(replica: Replica) -> Replica:
    """The same, deployed and answering."""
    if not (replica.containers()["node1"] and replica.healthy()):
        replica.play().ok()
    return replica


def env(**more: str) -> dict[str, str]:
    return {**START, **more}


def test_first_again_and_an_edit_of_one_node_alone(replica: Replica) -> None:
    seen = replica.play("--check").ok()
    assert seen.changed() == {"node1": 1, "node2": 1}
    assert replica.containers() == {"node1": {}, "node2": {}}

    first = replica.play().ok()
    assert first.changed() == {"node1": 1, "node2": 1}
    assert "[node1] ready" in first.output
    assert "capital: The capital of France is Paris." in first.output
    assert replica.ask() == "The capital of France is Paris."
    head, worker = (replica.inspect(node) for node in NODES)
    assert head["HostConfig"]["NetworkMode"] == worker["HostConfig"]["NetworkMode"] == "host"
    assert "--headless" not in head["Config"]["Cmd"]
    assert "--headless" in worker["Config"]["Cmd"]
    for data, node in ((head, "node1"), (worker, "node2")):
        assert {f"VLLM_HOST_IP={replica.addresses[node]}", "GLOO_SOCKET_IFNAME=eth0"} <= set(data["Config"]["Env"])
    # The worker listens on no port of its own.
    assert ":8000 " not in replica.sh("node2", "ss -tln")

    before = replica.containers()
    again = replica.play().ok()
    assert again.changed() == {"node1": 0, "node2": 0}
    assert replica.containers() == before

    edit = {"node2": {"vllm_server_env": env(EXTRA="1")}}
    seen = replica.play("--check", "--diff", hosts=edit).ok()
    lines = re.findall(r"^[+-] +(\S.*)$", seen.output, re.MULTILINE)
    assert {"EXTRA: '1'", "replica: replaced with its partners"} <= set(lines), seen.output
    assert replica.containers() == before
    done = replica.play(hosts=edit).ok()
    assert done.changed() == seen.changed() == {"node1": 1, "node2": 1}
    now = replica.containers()
    for node in NODES:
        assert now[node]["vllm.previous"].split()[0] == before[node]["vllm"].split()[0]
    assert replica.play(hosts=edit).ok().changed() == {"node1": 0, "node2": 0}
    # Back to what the other tests expect.
    replica.play().ok()


@pytest.mark.parametrize(
    ("words", "changes", "hosts", "says"),
    [
        (
            ["--limit", "node2"],
            {},
            {},
            "node1 is not in this play or failed earlier in it; --limit must name all hosts",
        ),
        (["--forks", "1"], {}, {}, "run with --forks 2"),
        ([], {}, {"node2": {"vllm_server_model": "acme/other"}}, "node1 has 'acme/tiny', but node2 has 'acme/other'"),
        ([], {}, {"node2": {"vllm_server_args": {"tensor-parallel-size": 4}}}, "node1 has 2, but node2 has 4"),
        ([], {"vllm_server_args": {"tensor-parallel-size": 3}}, {}, "expected a multiple of 2"),
        ([], {"vllm_server_args": {"tensor-parallel-size": 2, "nnodes": 2}}, {}, "follows from the inventory"),
        (
            [],
            {"vllm_server_env": env(A="1")},
            {"node2": {"vllm_server_interface": "eth9"}},
            "no network interface eth9",
        ),
        ([], {"vllm_server_env": env(A="1")}, {"node1": {"vllm_server_node_address": "10.9.9.9"}}, "does not have"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_touched(
    good: Replica, words: list[str], changes: dict, hosts: dict, says: str
) -> None:
    before = good.containers()
    done = good.play(*words, hosts=hosts, **changes)
    assert done.rc != 0
    assert says in done.words()
    assert good.containers() == before


def test_an_image_that_one_worker_lacks_stops_nothing(good: Replica) -> None:
    image, _, _ = good.variables["vllm_server_image"].partition(":")
    good.sh("node1", f"docker tag {image}:1 {image}:2")
    before = good.containers()
    done = good.play(vllm_server_image=f"{image}:2")
    assert done.rc != 0
    assert f"node2, container vllm: the image {image}:2 is not on this node (image_missing)" in done.words()
    assert "node1, container vllm: nothing was touched, because node2 cannot" in done.words()
    assert good.containers() == before
    assert good.ask() == "The capital of France is Paris."


def test_nodes_that_do_not_reach_each_other_are_found_before_anything_stops(good: Replica) -> None:
    before = good.containers()
    rule = f"INPUT -p tcp --dport 29500 -s {good.addresses['node2']} -j REJECT"
    good.sh("node1", f"iptables -I {rule}")
    try:
        done = good.play(vllm_server_env=env(A="1"))
    finally:
        good.sh("node1", f"iptables -D {rule}")
    assert done.rc != 0
    assert f"cannot reach node1 at {good.addresses['node1']}:29500 through eth0: Connection refused" in done.words()
    assert good.containers() == before


def test_a_worker_that_dies_at_the_start_says_why_and_all_go_back(good: Replica) -> None:
    before = good.containers()
    text = "ERROR: No space left on device: '/root/.cache/x'"
    worker = {"node2": {"vllm_server_env": env(STANDIN_FAIL_AT="shards", STANDIN_FAIL_TEXT=text)}}
    done = good.play(hosts=worker, vllm_server_env={"STANDIN_START_SECONDS": "3"})
    assert done.rc != 0
    words = done.words()
    assert (
        "node1, container vllm: the start of replica pair failed. Container vllm on node2 failed with disk_full"
        in words
    )
    assert words.count("The previous server is back and ready.") >= 2
    assert "did not become ready" not in words
    now = good.containers()
    assert {n: c["vllm"] for n, c in now.items()} == {n: c["vllm"] for n, c in before.items()}
    assert good.ask() == "The capital of France is Paris."
    assert good.play().ok().changed() == {"node1": 0, "node2": 0}


def test_a_server_that_answers_wrongly_is_taken_away_from_all_nodes(good: Replica) -> None:
    before = good.containers()
    done = good.play(vllm_server_env=env(STANDIN_NONSENSE="1"))
    assert done.rc != 0
    assert "expected a match of /Paris/" in done.words()
    now = good.containers()
    assert {n: c["vllm"] for n, c in now.items()} == {n: c["vllm"] for n, c in before.items()}
    assert good.ask() == "The capital of France is Paris."


def test_a_worker_that_dies_while_serving_brings_the_whole_server_back(good: Replica) -> None:
    counts = {node: good.inspect(node)["RestartCount"] for node in NODES}
    good.sh("node2", "kill -9 $(pgrep -P $(docker inspect -f '{{.State.Pid}}' vllm))")
    good.wait(
        "all ranks restarted and the head healthy",
        lambda: all(good.inspect(n)["RestartCount"] > counts[n] for n in NODES) and good.healthy(),
        60,
    )
    assert good.ask() == "The capital of France is Paris."
    assert "rank 1 has ended; ending, so that all ranks start again together" in good.sh(
        "node1", "docker logs vllm 2>&1"
    )
    assert good.play().ok().changed() == {"node1": 0, "node2": 0}


def test_a_worker_that_was_stopped_is_started_again_with_its_head(good: Replica) -> None:
    before = good.containers()
    good.sh("node2", "docker stop vllm")
    done = good.play().ok()
    assert done.changed() == {"node1": 1, "node2": 1}
    assert good.containers() == before
    assert good.ask() == "The capital of France is Paris."


def test_a_run_that_is_killed_is_taken_up_by_the_next(good: Replica) -> None:
    """Killed while the new ranks load: nothing is lost, and the next run ends where this one was to end."""
    slow = {"STANDIN_START_SECONDS": "8", "EDIT": "1"}
    good.play("--syntax-check", vllm_server_env=slow).ok()  # writes the variables
    command = ["ansible-playbook", "-i", f"{good.fleet.directory}/inventory.yml", "-i", f"{good.folder}/more.yml"]
    run = subprocess.Popen(
        [*command, f"{good.folder}/play.yml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    for line in run.stdout:
        if "configuring" in line:
            break
    workers = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=False).stdout.split()
    for pid in (run.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert good.play(vllm_server_env=slow).ok().rc == 0
    assert good.ask() == "The capital of France is Paris."
    assert all("EDIT=1" in good.inspect(node)["Config"]["Env"] for node in NODES)
    assert good.play(vllm_server_env=slow).ok().changed() == {"node1": 0, "node2": 0}
