# SPDX-License-Identifier: Apache-2.0
"""One server over two nodes, with the stand-in: real SSH, real engines, ranks that meet over TCP. See docs/multi-node.md."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet
from load import Load
from node_image import docker
from replica_fleet import ROOT, Replica

pytestmark = pytest.mark.engine
NODES = ("node1", "node2")
START = {"STANDIN_START_SECONDS": "0.5"}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """Two nodes for one server; a third and a gateway, for the tests of waves at the end."""
    import docker as sdk
    import standin

    client = sdk.from_env()
    image = f"vllm-standin-replica-{os.getpid()}:1"
    client.images.get(standin.build_image(client)).tag(*image.split(":"))
    fleet = Fleet(f"replica-{os.getpid()}", lambda _: None)
    try:
        fleet.up(tmp_path_factory.mktemp("replica-fleet"), ["bookworm", "trixie", "bookworm"], gateways=["bookworm"])
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


#: On a network of its own, to which the interface of the collectives does not lead.
MEETS = "10.77.0.1"


@pytest.fixture(scope="module")
def meeting(replica: Replica) -> Iterator[dict[str, str]]:
    """Another address of the head, at which the ranks meet with these variables."""
    replica.sh("node1", f"ip addr add {MEETS}/32 dev lo")
    replica.sh("node2", f"ip route add {MEETS} via {replica.addresses['node1']}")
    return {"vllm_server_master_addr": MEETS}


def test_first_again_and_an_edit_of_one_node_alone(replica: Replica, meeting: dict[str, str]) -> None:
    seen = replica.play("--check", **meeting).ok()
    assert seen.changed() == {"node1": 1, "node2": 1}
    assert replica.containers() == {"node1": {}, "node2": {}}

    first = replica.play(**meeting).ok()
    assert first.changed() == {"node1": 1, "node2": 1}
    assert "[node1] ready" in first.output
    assert "capital: The capital of France is Paris." in first.output
    assert replica.ask() == "The capital of France is Paris."
    assert f"at {MEETS}:29501" in replica.sh("node1", "docker logs vllm 2>&1")
    head, worker = (replica.inspect(node) for node in NODES)
    assert head["HostConfig"]["NetworkMode"] == worker["HostConfig"]["NetworkMode"] == "host"
    assert "--headless" not in head["Config"]["Cmd"]
    assert "--headless" in worker["Config"]["Cmd"]
    for data, node in ((head, "node1"), (worker, "node2")):
        assert {f"VLLM_HOST_IP={replica.addresses[node]}", "GLOO_SOCKET_IFNAME=eth0"} <= set(data["Config"]["Env"])
    # The worker listens on no port of its own.
    assert ":8000 " not in replica.sh("node2", "ss -tln")

    before = replica.containers()
    again = replica.play(**meeting).ok()
    assert again.changed() == {"node1": 0, "node2": 0}
    assert replica.containers() == before

    edit = {"node2": {"vllm_server_env": env(EXTRA="1")}}
    seen = replica.play("--check", "--diff", hosts=edit, **meeting).ok()
    lines = re.findall(r"^[+-] +(\S.*)$", seen.output, re.MULTILINE)
    assert {"EXTRA: '1'", "replica: replaced with its partners"} <= set(lines), seen.output
    assert replica.containers() == before
    done = replica.play(hosts=edit, **meeting).ok()
    assert done.changed() == seen.changed() == {"node1": 1, "node2": 1}
    now = replica.containers()
    for node in NODES:
        assert now[node]["vllm.previous"].split()[0] == before[node]["vllm"].split()[0]


def test_the_ranks_meet_where_the_inventory_says(replica: Replica, meeting: dict[str, str]) -> None:
    """At another address they have met above; without it at the head's own. The other tests expect this server."""
    replica.play().ok()
    log = replica.sh("node1", "docker logs vllm 2>&1")
    assert f"at {replica.addresses['node1']}:29501" in log and MEETS not in log
    assert replica.ask() == "The capital of France is Paris."
    replica.sh("node1", f"ip addr del {MEETS}/32 dev lo")
    replica.sh("node2", f"ip route del {MEETS}")


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


def test_a_container_that_docker_refuses_on_one_worker_stops_nothing(good: Replica) -> None:
    """The head stops first, so it must know before what Docker says on the other nodes."""
    before = good.containers()
    done = good.play(hosts={"node2": {"vllm_server_security_opts": ["nonsense=1"]}})
    assert done.rc != 0
    assert "node2, container vllm: security_opts: Docker does not take it" in done.words()
    assert "node1, container vllm: nothing was touched, because node2 cannot" in done.words()
    assert good.containers() == before


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


def test_a_worker_that_fails_is_the_reason_although_its_head_ends_first(good: Replica) -> None:
    """A rank that failed clears up for seconds; meanwhile its head loses it and ends, and that ends the rank itself."""
    before = good.containers()
    text = "ERROR: No space left on device: '/root/.cache/x'"
    ordered = {"STANDIN_FAIL_AT": "shards", "STANDIN_FAIL_TEXT": text, "STANDIN_FAIL_LINGER": "600"}
    slow = env(STANDIN_START_SECONDS="2")
    done = good.play(hosts={"node2": {"vllm_server_env": {**slow, **ordered}}}, vllm_server_env=slow)
    words = done.words()
    assert done.rc != 0
    assert words.count("[node2] failed, disk_full: ") == 1, done.output
    assert "[node1] failed" not in words
    assert (
        "node1, container vllm: the start of replica pair failed. Container vllm on node2 failed with disk_full"
        in words
    )
    now = good.containers()
    assert {n: c["vllm"] for n, c in now.items()} == {n: c["vllm"] for n, c in before.items()}
    assert good.ask() == "The capital of France is Paris."


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
    good.write(vllm_server_env=slow)
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
    good.play(vllm_server_env=slow).ok()
    assert good.ask() == "The capital of France is Paris."
    assert all("EDIT=1" in good.inspect(node)["Config"]["Env"] for node in NODES)


# -- one of two replicas behind a gateway, as deploy.yml sees them -----------------------------------------------------

DEPLOY = str(ROOT / "deploy.yml")
LABEL = "pair (node1+node2)"


@pytest.fixture(scope="module")
def waves(replica: Replica) -> Replica:
    """The pair and node3 serve the same model behind the gateway, deployed and recorded."""
    image, _, tag = replica.variables["vllm_server_image"].partition(":")
    common = {
        "vllm_image_name": image,
        "vllm_image_tag": tag,
        "vllm_image_source": "archive",
        "vllm_server_bind": "0.0.0.0",
        "vllm_server_allow_unauthenticated": True,
        "vllm_server_env": env(STANDIN_TOKEN_DELAY="0.02"),
        "gateway_drain_timeout": 20,
        # Whoever is asked less goes first otherwise.
        "rollout_order": "inventory",
    }
    replica.variables |= common
    single = {**replica.variables, "vllm_server_replica": "", "vllm_server_args": {}}
    replica.others = {"node3": single}
    run = replica.play("--tags", "rollout", play=DEPLOY).ok()
    assert "2 of 2 replicas, in 2 waves: " in run.words()
    assert replica.gateway() == {"node1": "UP", "node3": "UP"}
    return replica


def everything(replica: Replica) -> dict[str, str]:
    ids = {node: state["vllm"] for node, state in replica.containers().items()}
    return {**ids, "node3": replica.sh("node3", "docker inspect -f '{{.Id}}' vllm")}


def clients(replica: Replica) -> Load:
    return Load(f"http://{replica.fleet.node('gateway1').address}:8080", model="acme/tiny", concurrency=4)


def hook(folder: Path, *tasks: dict) -> list[str]:
    """Words for tasks at draining and admitting, which note who in `calls`; ``tasks`` follow at draining."""
    line = f"echo '{{{{ inventory_hostname }}}} {{{{ rollout_outcome.state }}}}' >>{folder}/calls"
    note = {"name": "Note", "ansible.builtin.shell": line, "delegate_to": "localhost", "become": False}
    (folder / "admit.yml").write_text(json.dumps([note]))
    (folder / "drain.yml").write_text(json.dumps([note, *tasks]))
    return ["-e", f"rollout_drain_tasks={folder}/drain.yml", "-e", f"rollout_admit_tasks={folder}/admit.yml"]


def test_a_replica_is_one_of_a_wave_and_no_request_is_lost(waves: Replica, tmp_path: Path) -> None:
    """An edit of one of its nodes and of the other replica; the table of the fleet and the report have it as one."""
    edit = {node: {"vllm_server_env": env(STANDIN_TOKEN_DELAY="0.02", EDIT="1")} for node in ("node2", "node3")}
    before = everything(waves)
    with clients(waves) as load:
        load.wait_for(8)
        run = waves.play("--tags", "rollout", *hook(tmp_path), hosts=edit, play=DEPLOY).ok()
        load.wait_for(8)
    assert load.report.clean, str(load.report)
    assert load.report.servers.keys() == {"node1", "node3"}
    assert f"2 of 2 replicas, in 2 waves: {LABEL} | node3." in run.words()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["node1 draining", "node1 admitting", "node3 draining", "node3 admitting"]
    assert "2 servers on 3 nodes in " in run.output
    assert re.search(rf"^{re.escape(LABEL)}  +replaced ", run.output, re.MULTILINE), run.output
    after = everything(waves)
    assert not set(after.values()) & set(before.values())
    assert waves.gateway() == {"node1": "UP", "node3": "UP"}

    assert (
        waves.play(hosts=edit, play=str(ROOT / "playbooks/verify.yml"))
        .ok()
        .words()
        .count("completions / capital, continued:")
        == 2
    )

    # The edit was one node's; the other goes back with it, to what it had, and both count as one.
    back = waves.play("--limit", "pair", hosts=edit, play=str(ROOT / "playbooks/rollback.yml")).ok()
    assert f"1 of 1 replica, in 1 wave: {LABEL}." in back.words()
    assert everything(waves)["node3"] == after["node3"]
    for node in NODES:
        made = waves.inspect(node)
        assert "EDIT=1" not in made["Config"]["Env"]
        old = json.loads(waves.sh(node, "docker inspect vllm.previous"))[0]
        assert made["Config"]["Entrypoint"] == old["Config"]["Entrypoint"]
        assert made["Config"]["Cmd"] == old["Config"]["Cmd"]
    assert waves.gateway() == {"node1": "UP", "node3": "UP"}
    # What the rollback made is what the inventory without the edit of the pair describes: nothing would be replaced.
    left = {"node3": edit["node3"]}
    table = waves.play("-e", "status_fail_on_drift=true", hosts=left, play=str(ROOT / "playbooks/status.yml")).ok()
    rows = [line.split() for line in table.output.splitlines() if re.match(r" *\"?(pair|node\d) ", line.strip('" '))]
    assert [row[-1].strip('",') for row in rows[:2]] == ["none", "none"], table.output


def test_a_worker_that_cannot_start_brings_its_replica_back_and_ends_the_run(waves: Replica) -> None:
    before = everything(waves)
    text = "ERROR: No space left on device: '/root/.cache/x'"
    edit = env(STANDIN_TOKEN_DELAY="0.02", EDIT="2")
    bad = {"node2": {"vllm_server_env": {**edit, "STANDIN_FAIL_AT": "shards", "STANDIN_FAIL_TEXT": text}}}
    hosts = {**bad, "node3": {"vllm_server_env": edit}}
    with clients(waves) as load:
        load.wait_for(8)
        run = waves.play("--tags", "rollout", hosts=hosts, play=DEPLOY, vllm_server_env=edit)
        load.wait_for(8)
    assert load.report.clean, str(load.report)
    words = run.words()
    assert run.rc != 0
    why = "the start of replica pair failed. Container vllm on node2 failed with disk_full"
    assert f"node1, container vllm: {why}" in words
    assert words.count("[node2] failed, disk_full: ") == 1
    assert words.count("The previous server is back and ready.") >= 2
    assert "did not become ready" not in words
    assert "Replaced before: none. The run stopped there, as rollout_max_failures is 0; not touched: node3." in words
    assert "node2: it is part of replica pair; the message of node1 has the reason." in words
    assert re.search(rf"^{re.escape(LABEL)}: disk_full: ", run.output, re.MULTILINE), run.output
    failed = dict(re.findall(r"^(\S+) +: ok=.*failed=(\d+)", run.output, re.MULTILINE))
    assert failed == {"gateway1": "0", "node1": "1", "node2": "1", "node3": "0"}
    assert everything(waves) == before
    waves.wait("both replicas are up", lambda: waves.gateway() == {"node1": "UP", "node3": "UP"}, 30)
    assert waves.ask() == "The capital of France is Paris."


def test_a_replica_whose_head_cannot_be_drained_is_left_alone(waves: Replica, tmp_path: Path) -> None:
    before = everything(waves)
    refuse = {"name": "Refuse", "ansible.builtin.fail": {"msg": "The balancer says no."}}
    refuse["when"] = "inventory_hostname == 'node1'"
    words = ["--limit", "pair", *hook(tmp_path, refuse)]
    run = waves.play("--tags", "rollout", *words, play=DEPLOY, vllm_server_env=env(EDIT="3"))
    assert run.rc != 0
    assert "node1: The balancer says no." in run.words()
    assert "node2: it is part of replica pair; the message of node1 has the reason." in run.words()
    assert everything(waves) == before
    assert waves.gateway() == {"node1": "UP", "node3": "UP"}


def test_preflight_tells_of_the_network_with_everything_else(waves: Replica) -> None:
    wrong = {"node2": {"vllm_server_interface": "eth9", "vllm_server_port": 0}}
    before = everything(waves)
    run = waves.play(hosts=wrong, play=str(ROOT / "playbooks/preflight.yml"))
    assert run.rc != 0
    words = run.words()
    assert "network of replica pair: expected" in words
    assert "there is no network interface eth9 on this node" in words
    assert "vllm_server_port: expected 1 to 65535" in words
    good = waves.play(play=str(ROOT / "playbooks/preflight.yml")).ok()
    assert re.search(r"node1 +ok +network of replica pair .*reaches node2", good.output), good.output
    assert re.search(r"node2 +ok +network of replica pair .*reaches node1", good.output), good.output
    assert everything(waves) == before
