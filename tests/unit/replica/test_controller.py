# SPDX-License-Identifier: Apache-2.0
"""How the processes for the nodes of one replica meet on the controller, and who may not come."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from ansible.module_utils.vllm_fleet.replica.controller import ReplicaRun
from ansible.module_utils.vllm_fleet.replica.rendezvous import Lost, Rendezvous

HOSTS = ["n1", "n2"]
REPLICA = {
    "name": "pair",
    "hosts": HOSTS,
    "head": "n1",
    "size": 2,
    "backend": "mp",
    "master_addr": "10.0.0.1",
    "master_port": 29500,
    "guard_port": 29501,
    "interface": "",
    "rdma_devices": [],
    "rdma_gid_index": None,
    "addresses": {"n1": "10.0.0.1", "n2": "10.0.0.2"},
}


def test_a_partner_whose_process_is_gone_is_not_waited_for(tmp_path):
    mine = Rendezvous(tmp_path, "pair", "n1", HOSTS)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Rendezvous(tmp_path, "pair", "n2", HOSTS).publish("pid", gone.pid)
    mine.publish("topic", 1)
    with pytest.raises(Lost, match="n2 dropped out of the run"):
        mine.gather("topic")


def test_a_partner_that_never_comes_is_waited_for_only_so_long(tmp_path):
    mine = Rendezvous(tmp_path, "pair", "n1", HOSTS)
    mine.publish("topic", 1)
    with pytest.raises(Lost, match="n2 has not come to this task"):
        mine.gather("topic", arrival=0.1)


def test_a_replica_may_meet_several_times_in_a_run(tmp_path):
    for number in range(2):
        one, two = (Rendezvous(tmp_path, "a/b", h, HOSTS) for h in HOSTS)
        assert one.folder == two.folder and one.folder.name.endswith(f"-{number}")
        one.publish("topic", number)
        two.publish("topic", number)
        assert two.gather("topic") == {"n1": number, "n2": number}
        one.leave("done")
        two.leave("done")
    assert oct(one.folder.stat().st_mode & 0o777) == "0o700"


class Node:
    """A node's answers to the steps, by their names; what it was asked is kept."""

    def __init__(self, host, folder, answers, check_mode=False, **options):
        self.host, self.answers, self.steps, self.said = host, answers, [], []
        self.shown = []
        options = {"name": "vllm", "watch_slice": 1, "model": "m", "args": {}, **options}
        self.run = ReplicaRun(
            REPLICA | {"address": REPLICA["addresses"][host]},
            host,
            folder,
            call=self.call,
            show=lambda answer, _: self.shown.extend((answer.get("progress") or {}).get("news") or []),
            say=self.said.append,
            wake=lambda _: None,
            look=lambda _: None,
            check_mode=check_mode,
            options=options,
        )

    def call(self, module, args):
        step = args["step"] if module == "vllm_replica_network" else args["replica_step"]["name"]
        self.steps.append(step)
        found = self.answers.get(step, {})
        return {"actions": [], **(found(args) if callable(found) else found)}


def together(*nodes):
    """Run them at once, as Ansible does in processes; give their answers."""
    found = {}

    def one(node):
        found[node.host] = node.run.run()

    threads = [threading.Thread(target=one, args=[n], daemon=True) for n in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "somebody waits for ever"
    return found


LISTEN = {"offered": [{"port": 1, "own": False}], "word": "w"}
CHANGE = {"actions": ["create", "start"]}
HELD = {"actions": ["create"], "pending": True, "token": {"t": 1}}
READY = {"actions": ["create", "start"], "changed": True}
WATCHING = {"pending": True, "token": {"t": 2}}


def node(host, folder, **answers):
    last = {"go": READY} if host == "n1" else {"go": WATCHING, "ready": READY}
    return Node(host, folder, {"check": CHANGE, "listen": LISTEN, "hold": HELD, **last, **answers})


def test_workers_are_ready_when_their_head_is(tmp_path):
    head, worker = node("n1", tmp_path), node("n2", tmp_path)
    found = together(head, worker)
    assert not any(a.get("failed") for a in found.values())
    assert head.steps == ["check", "listen", "connect", "hold", "go"]
    assert worker.steps[:4] == ["check", "listen", "connect", "hold"]
    assert worker.steps[-1] == "ready"


def test_the_head_listens_where_the_ranks_meet_and_each_partner_is_named_by_its_own_address(tmp_path):
    """Each offer says where it listens: that may be at `vllm_server_master_addr`, which is not the head's address."""
    heard = {}

    def hears(step, answer):
        return lambda args: heard.setdefault(step, args) and answer

    head = node("n1", tmp_path, listen=hears("listen", LISTEN))
    worker = node("n2", tmp_path, connect=hears("connect", {}))
    for one in (head, worker):
        one.run.replica = {**one.run.replica, "master_addr": "10.1.0.1"}
    together(head, worker)
    assert [heard["listen"][key] for key in ("address", "ports_address", "ports")] == [
        "10.0.0.1",
        "10.1.0.1",
        [29500, 29501],
    ]
    assert heard["connect"]["partners"] == [{"host": "n1", "address": "10.0.0.1", **LISTEN}]


def test_what_a_slice_has_to_tell_is_shown_while_it_goes_on_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ansible.module_utils.vllm_fleet.replica.live.LOOK", 0.01)
    news = [{"stage": stage} for stage in ("starting", "loading weights", "warming up")]
    early = []

    def goes(args):
        assert head.looked.wait(10)
        early.extend(head.shown)
        return {**READY, "progress": {"news": news}}

    head, worker = node("n1", tmp_path, go=goes), node("n2", tmp_path)
    head.looked = threading.Event()
    looks = [None, *({"news": news[:count]} for count in (1, 1, 2))]
    head.run.look = lambda _: looks.pop(0) if looks else head.looked.set()
    together(head, worker)
    assert (early, head.shown) == (news[:2], news)


@pytest.mark.parametrize("code", [1, None])
def test_a_rank_that_was_still_going_is_asked_whether_it_failed_first(tmp_path, code):
    """Its head lost it, ended and said so, before the rank itself had ended or its guard had said a word.

    Where the head ended, that word is to come and is waited for.
    """
    consequence = {"class": "collective_init", "cause": "no group", "exit_code": code}
    reason = {"class": "disk_full", "cause": "no space", "lost": True}
    going, over, woken = threading.Event(), threading.Event(), []

    def goes(args):
        going.set()
        woken.append(over.wait(10))  # a slice without an end of its own
        return WATCHING

    back = {"give_up": {"failed": True, "rolled_back": True}}

    def fails(args):
        assert going.wait(10)  # else the worker would hear of it before it has begun, and have no reason of its own
        return {**WATCHING, "failure": consequence, "msg": "n1 failed"}

    head = node("n1", tmp_path, go=fails, **back)
    ended = []

    def why(args):
        ended.append(args["replica_step"]["ended"])
        return {**WATCHING, "failure": reason, "msg": "n2 failed"}

    worker = node("n2", tmp_path, go=goes, why=why, **back)
    worker.run.wake = lambda _: over.set()
    asked = []
    head.answers["give_up"] = lambda args: asked.append(args["replica_step"]["failure"]) or back["give_up"]
    together(head, worker)
    assert woken == [True]  # by what its partner said, and at once
    assert asked == [{"class": "disk_full", "cause": "no space", "host": "n2"}]
    assert ended == [code is not None]
    assert "why" not in head.steps
    assert worker.said == ["[n2] failed, disk_full: no space; all nodes of pair go back"]
    assert head.said == []


def test_nodes_tell_each_other_when_they_last_got_on(tmp_path):
    """A worker that hears of its head's progress goes on; both hear of it between slices shorter than the patience."""
    heard, slices, over = [], [], threading.Event()

    def worker_goes(args):
        heard.append(args["replica_step"].get("idle"))
        slices.append(args["watch_slice"])
        if heard[-1] is not None:
            over.set()
        return {**WATCHING, "progress": {"idle": 500.0}}

    def head_goes(args):
        return READY if over.wait(0.05) else {**WATCHING, "progress": {"idle": 7.0}}

    head, worker = node("n1", tmp_path, go=head_goes), node("n2", tmp_path, go=worker_goes)
    worker.run.options = head.run.options = {**worker.run.options, "watch_slice": 30, "stall_timeout": 20}
    together(head, worker)
    assert set(slices) == {5.0}
    assert 7.0 <= heard[-1] < 20.0


def test_a_node_without_a_change_of_its_own_is_told_to_join(tmp_path):
    asked = []

    def check(args):
        asked.append(args["replica_step"].get("together"))
        return CHANGE if asked[-1] else {"actions": []}

    head, worker = node("n1", tmp_path, check=check), node("n2", tmp_path)
    assert not any(a.get("failed") for a in together(head, worker).values())
    assert asked == [None, "replace"]


def test_a_node_that_refuses_keeps_all_from_stopping(tmp_path):
    refusal = {"failed": True, "msg": "n2 lacks it", "failure": {"class": "image_missing"}}
    head, worker = node("n1", tmp_path), node("n2", tmp_path, check=refusal)
    found = together(head, worker)
    assert found["n2"]["msg"] == "n2 lacks it"
    assert "nothing was touched, because n2 cannot: n2 lacks it" in found["n1"]["msg"]
    assert found["n1"]["failure"]["class"] == "image_missing"
    assert head.steps == worker.steps == ["check"]


REPLACE = {"actions": ["create", "stop", "keep", "rename", "start"]}


def test_what_docker_refuses_on_one_node_keeps_all_from_stopping(tmp_path):
    refusal = {"failed": True, "msg": "n2: devices", "failure": {"class": "bad_argument"}}
    head = node("n1", tmp_path, check=REPLACE)
    worker = node("n2", tmp_path, check=REPLACE, **{"try": refusal})
    found = together(head, worker)
    assert found["n2"]["msg"] == "n2: devices"
    assert "nothing was touched, because n2 cannot: n2: devices" in found["n1"]["msg"]
    assert head.steps == ["check", "listen", "connect", "try"]
    assert "hold" not in worker.steps


def test_a_replacement_that_docker_takes_goes_on(tmp_path):
    head, worker = node("n1", tmp_path, check=REPLACE), node("n2", tmp_path, check=REPLACE)
    assert not any(a.get("failed") for a in together(head, worker).values())
    assert head.steps == ["check", "listen", "connect", "try", "hold", "go"]


def test_nodes_that_do_not_reach_each_other_stop_nothing(tmp_path):
    head = node("n1", tmp_path)
    worker = node("n2", tmp_path, connect={"failed": True, "msg": "no way", "failure": {"class": "collective_init"}})
    found = together(head, worker)
    assert found["n2"]["msg"] == "no way" and "no way" in found["n1"]["msg"]
    assert "hold" not in head.steps + worker.steps


def test_check_mode_asks_and_stops_there(tmp_path):
    nodes = [Node(h, tmp_path, {"check": CHANGE, "listen": LISTEN}, check_mode=True) for h in HOSTS]
    found = together(*nodes)
    assert all(a["actions"] == CHANGE["actions"] for a in found.values())
    assert all(n.steps == ["check", "listen", "connect"] for n in nodes)


def test_a_worker_that_fails_is_the_reason_on_all_nodes_and_all_go_back(tmp_path):
    told = []

    def give_up(args):
        told.append((args["replica_step"]["failure"]["class"], args["replica_step"]["because"]))
        return {"pending": True, "token": {"t": 3}}

    back = {"failed": True, "rolled_back": True, "msg": "The previous server is back and ready."}
    own = {**WATCHING, "failure": {"class": "gpu_memory_taken"}, "msg": "n2: taken"}
    head = node("n1", tmp_path, go=lambda args: back if args["watch_token"] == {"t": 3} else WATCHING, give_up=give_up)
    worker = node("n2", tmp_path, go=lambda args: WATCHING if args["watch_token"] == {"t": 3} else own, give_up=give_up)
    worker.answers["ready"] = back
    found = together(head, worker)
    assert [c for c, _ in told] == ["gpu_memory_taken", "gpu_memory_taken"]
    assert {b for _, b in told} == {"n2: taken", "n1, container vllm: the start of replica pair failed. n2: taken"}
    assert all(a["failed"] and a["rolled_back"] for a in found.values())
    assert worker.said == ["[n2] failed, gpu_memory_taken: ; all nodes of pair go back"]
    assert head.said == []


def test_a_rank_that_loses_another_waits_for_that_ones_reason(tmp_path):
    """The guard's alarm comes before the worker's diagnosis: what the head's server dies of is not looked into."""
    steps = []

    def head_goes(args):
        steps.append("go")
        alarmed = {**WATCHING, "progress": {"alarmed": True}}
        return {"failed": True, "rolled_back": True} if args["watch_token"] == {"t": 3} else alarmed

    def worker_goes(args):
        if args["watch_token"] == {"t": 3}:
            return WATCHING
        threading.Event().wait(0.3)  # the diagnosis takes its time
        return {**WATCHING, "failure": {"class": "disk_full"}, "msg": "n2: full"}

    back = {"give_up": {"pending": True, "token": {"t": 3}}, "ready": {"failed": True, "rolled_back": True}}
    head, worker = node("n1", tmp_path, go=head_goes, **back), node("n2", tmp_path, go=worker_goes, **back)
    found = together(head, worker)
    assert steps == ["go", "go"]  # one of the start, one of the way back
    assert found["n1"]["rolled_back"]


def test_a_partner_that_vanishes_in_the_middle_takes_the_others_back(tmp_path):
    """Its process is killed while all watch: what it watched is not known, so the rest goes back."""
    given_up = threading.Event()

    def give_up(args):
        given_up.set()
        return {"failed": True, "msg": args["replica_step"]["because"]}

    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    partner = Rendezvous(tmp_path, "pair", "n2", HOSTS)
    partner.publish("pid", other.pid)
    for topic, value in (
        ("same", None),
        ("checked", CHANGE),
        ("listening", CHANGE),
        ("offered", LISTEN),
        ("connected", CHANGE),
        ("held", True),
    ):
        partner.publish(topic, value)
    head = node("n1", tmp_path, give_up=give_up)
    partner.publish("same", head.run._same())

    def go(_args):
        other.kill()
        other.wait()
        return WATCHING

    head.answers["go"] = go
    found = together(head)
    assert given_up.is_set()
    assert "n2 dropped out of the run" in found["n1"]["msg"]
    assert os.getpid() != other.pid
