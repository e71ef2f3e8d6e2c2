# SPDX-License-Identifier: Apache-2.0
"""Waves, tables of cases: who is replaced when, what is refused, when a run stops."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.rollout import gate as gates
from ansible.module_utils.vllm_fleet.rollout import play_hosts, replicas, waves
from ansible.module_utils.vllm_fleet.vllm import host_variables

SAME = {"actions": [], "confirmed": True, "container": {"status": "running"}}
EDIT = {**SAME, "actions": ["create", "stop", "keep", "rename", "start"]}
NONE = {"actions": ["create", "start"], "confirmed": False, "container": None}
DEAD = {"actions": ["start"], "confirmed": True, "container": {"status": "exited"}}
OUT = {**SAME, "watchdog": {"state": "out", "why": "it was restarted 3 times"}}
HALF = {"actions": [], "confirmed": False, "container": {"status": "running"}}
WAVES = [1, "25%", "100%"]


def fleet(*answers, **more):
    """Hostvars of node1, node2, ... with what vllm_server answered on each."""
    return {
        f"node{n}": {"vllm_server_model": "m", "vllm_server_result": answer, **more}
        for n, answer in enumerate(answers, 1)
    }


def plan(hosts, play=None, alive=None, gateways=(), max_failures=0, check_mode=False, missing=(), **more):
    every = [host for host in hosts if host.startswith("node")]
    play = every if play is None else play
    scene = waves.Scene(hosts, every, play, play if alive is None else alive, list(gateways))
    limits = waves.Limits(
        more.get("waves", WAVES),
        max_failures,
        tuple(missing),
        order=more.get("order", "idle"),
        rates=more.get("rates", {}),
    )
    return waves.plan(scene, limits, check_mode=check_mode)


def seen(**states):
    """A gateway that was asked."""
    servers = [{"backend": "m", "name": name, "status": state} for name, state in states.items()]
    return {"gateway_result": {"running": True, "servers": servers}}


@pytest.mark.parametrize(
    ("hosts", "options", "waves"),
    [
        (fleet(EDIT, EDIT, EDIT, EDIT), {}, [["node1"], ["node2"], ["node3", "node4"]]),
        (fleet(NONE, NONE, NONE, NONE), {}, [["node1"], ["node2"], ["node3", "node4"]]),
        (fleet(SAME, EDIT, SAME, EDIT), {}, [["node2"], ["node4"]]),
        (fleet(SAME, SAME), {}, []),
        (fleet(EDIT), {}, [["node1"]]),
        # What does not serve comes first: nothing is lost with it.
        (fleet(EDIT, EDIT, DEAD, HALF), {}, [["node3"], ["node4"], ["node1", "node2"]]),
        # Nor with what gives no answer, as described as it is.
        (
            fleet(EDIT, EDIT, SAME, SAME)
            | {"node4": {**fleet(SAME)["node1"], "vllm_server_repair": {"because": "it hangs", "silent": True}}},
            {},
            [["node4"], ["node1"], ["node2"]],
        ),
        # One whose engine ends requests with errors may still serve others: first of those that serve, and one stays.
        (
            fleet(EDIT, SAME, SAME)
            | {"node3": {**fleet(SAME)["node1"], "vllm_server_repair": {"because": "errors", "silent": False}}},
            {"waves": ["100%"]},
            [["node3", "node1"]],
        ),
        # A watchdog keeps one out: it answers, and comes back by a restart alone.
        (fleet(SAME, OUT), {}, [["node2"]]),
        (fleet(SAME, {**OUT, "actions": ["start"]}), {}, [["node2"]]),
        # One stays, although the wave would take all.
        (fleet(EDIT, EDIT, EDIT), {"waves": ["100%"]}, [["node1", "node2"], ["node3"]]),
        (
            fleet(EDIT, EDIT, EDIT, EDIT, rollout_min_available=3),
            {"waves": [4]},
            [["node1"], ["node2"], ["node3"], ["node4"]],
        ),
        (fleet(EDIT, EDIT, EDIT, rollout_min_available=0), {"waves": ["100%"]}, [["node1", "node2", "node3"]]),
        # A first deployment has nothing to keep, whatever is asked for.
        (fleet(NONE, NONE, rollout_min_available=2), {"waves": ["100%"]}, [["node1", "node2"]]),
        # Ansible's own rule for `serial`: the last wave is repeated, a percentage is at least one.
        (fleet(*[EDIT] * 5), {"waves": ["10%", 2]}, [["node1"], ["node2", "node3"], ["node4", "node5"]]),
        (fleet(EDIT, EDIT), {"play": ["node2"]}, [["node2"]]),
    ],
)
def test_waves(hosts, options, waves):
    made = plan(hosts, **options)
    assert made["problems"] == []
    assert made["waves"] == waves
    assert made["hosts"] == [host for wave in waves for host in wave]
    assert made["serial"] == [len(wave) for wave in waves]


@pytest.mark.parametrize(
    ("answers", "admit"),
    [
        ((SAME, SAME), ["node1"]),
        ((SAME, EDIT), ["node1"]),
        # One that has not passed its soak is taken back by the first wave; where there is none, it serves again.
        (({**SAME, "trial": True, "trial_failed": True}, EDIT), []),
        (({**SAME, "trial": True, "trial_failed": True}, SAME), ["node1"]),
    ],
)
def test_who_is_admitted_that_an_earlier_run_left_drained(answers, admit):
    hosts = fleet(*answers, rollout_on_failure="rollback", rollout_soak="10m") | {"g": seen(node1="DRAIN", node2="UP")}
    made = plan(hosts, gateways=["g"])
    assert (made["problems"], made["admit"], made["leftovers"]) == ([], admit, admit)


def busy(**requests):
    """A gateway that was asked: sessions and queue of each server."""
    servers = [
        {"backend": "m", "name": name, "status": "UP", "sessions": sessions, "queue": queue}
        for name, (sessions, queue) in requests.items()
    ]
    return {"gateway_result": {"running": True, "servers": servers}}


@pytest.mark.parametrize(
    ("answers", "gateways", "order", "waves"),
    [
        # The fewest requests first, those that wait among them.
        (
            (EDIT, EDIT, EDIT),
            [{"node1": (3, 0), "node2": (1, 4), "node3": (2, 0)}],
            "idle",
            ["node3", "node1", "node2"],
        ),
        # Of two gateways that share a server's clients, both count.
        (
            (EDIT, EDIT),
            [{"node1": (1, 0), "node2": (2, 0)}, {"node1": (5, 0), "node2": (2, 0)}],
            "idle",
            ["node2", "node1"],
        ),
        ((EDIT, EDIT), [{"node1": (2, 0), "node2": (2, 0)}], "idle", ["node1", "node2"]),
        ((EDIT, EDIT), [{"node1": (9, 0), "node2": (0, 0)}], "inventory", ["node1", "node2"]),
        # What does not serve costs least of all.
        (
            (EDIT, EDIT, DEAD),
            [{"node1": (1, 0), "node2": (0, 0), "node3": (7, 0)}],
            "idle",
            ["node3", "node2", "node1"],
        ),
        # Without a gateway the server's own counts; one that does not say has none.
        (
            ({**EDIT, "serving": {"running": 2, "waiting": 1}}, {**EDIT, "serving": {"running": None}}, EDIT),
            [],
            "idle",
            ["node2", "node3", "node1"],
        ),
    ],
)
def test_the_idle_ones_are_replaced_first(answers, gateways, order, waves):
    hosts = fleet(*answers) | {f"gw{n}": busy(**requests) for n, requests in enumerate(gateways, 1)}
    made = plan(hosts, gateways=[name for name in hosts if name.startswith("gw")], waves=[1], order=order)
    assert made["hosts"] == waves


def test_a_reboot_a_driver_and_an_image_are_one_turn_of_a_node():
    # The driver's package is there (rocm_reboot_required says so), and the image (the server would be made anew).
    hosts = fleet(EDIT, EDIT)
    hosts["node2"] |= {
        "rocm_reboot_required": ["driver 6.14.14 is installed and 6.12.12 is loaded"],
        "rocm_allow_reboot": True,
    }
    made = plan(hosts)
    assert made["hosts"] == ["node1", "node2"]
    assert made["reboot"] == ["node2"]


def test_hosts_of_a_replica_stay_together():
    hosts = fleet(EDIT, EDIT, EDIT, SAME)
    hosts["node1"]["vllm_server_replica"] = hosts["node4"]["vllm_server_replica"] = "a"
    made = plan(hosts)
    assert made["waves"] == [["node1"], ["node2"], ["node3"]]
    assert made["hosts"] == ["node1", "node4", "node2", "node3"]
    assert made["serial"] == [2, 1, 1]
    (problem,) = plan(hosts, play=["node1"])["problems"]
    assert (
        problem == "node1 and node4 are one replica, and this run is limited to node1: name all of them with --limit."
    )


def pair(*answers):
    """node1 and node2 are one replica, the others are alone."""
    hosts = fleet(*answers)
    hosts["node1"]["vllm_server_replica"] = hosts["node2"]["vllm_server_replica"] = "big"
    return hosts


def test_a_replica_of_several_nodes_counts_once():
    made = plan(pair(EDIT, EDIT, EDIT))
    assert made["says"] == "To replace: 2 of 2 replicas, in 2 waves: big (node1+node2) | node3."
    # One replica serves besides it, which is what has to stay: as one of its two nodes it would not be enough.
    (problem,) = plan(pair(EDIT, DEAD, EDIT), play=["node3"])["problems"] or [""]
    assert problem == ""
    (problem,) = plan(pair(SAME, DEAD, EDIT))["problems"] or [""]
    assert problem == ""
    assert plan(pair(SAME, DEAD, EDIT))["waves"] == [["node1"], ["node3"]]
    # Both of its nodes failed their verification: one failure.
    assert plan(pair(SAME, SAME, SAME), alive=["node3"], max_failures=1)["problems"] == []
    (problem,) = plan(pair(SAME, SAME, SAME), alive=["node3"])["problems"]
    assert problem.startswith("big (node1+node2) runs what is described but did not pass")


def test_a_failed_replica_is_told_by_its_head_and_counts_once():
    hosts = pair(EDIT, EDIT, EDIT)
    made = plan(hosts)
    for name in ("node1", "node2"):
        hosts[name]["rollout_outcome"] = {"state": "failed", "serving": True, "msg": "It died."}
    gate = {"gateways": [], "fleet": ["node1", "node2", "node3"]}
    assert gates.closed(hosts, made, ["node3"], max_failures=1, **gate) == ""
    says = gates.closed(hosts, made, ["node3"], max_failures=0, **gate)
    assert says == "big (node1+node2) failed and rollout_max_failures is 0"
    told = [gates.verdict(hosts, made, name, max_failures=0) for name in ("node1", "node2")]
    assert told[0].startswith("node1: It died. Replaced before: none.")
    assert told[0].endswith("not touched: node3.")
    assert told[1] == "node2: it is part of replica big; the message of node1 has the reason."


def test_pools_keep_their_own():
    hosts = fleet(EDIT, EDIT, EDIT, EDIT)
    for name in ("node3", "node4"):
        hosts[name]["vllm_server_args"] = {"served_model_name": ["other", "o"]}
    assert plan(hosts, waves=["100%"])["waves"] == [["node1", "node3"], ["node2", "node4"]]


@pytest.mark.parametrize(
    ("hosts", "options", "says"),
    [
        (
            fleet(EDIT, EDIT, rollout_min_available=2),
            {},
            "rollout_min_available is 2, but 2 of 2 replicas of m serve (node1 and node2)",
        ),
        (fleet(EDIT, rollout_min_available=1), {}, "allow the gap with -e rollout_min_available=0"),
        (fleet(EDIT, DEAD), {"play": ["node1"]} | {"gateways": ["gw"]}, "1 of 2 replicas of m serve (node1)"),
        (fleet(SAME, {"failed": True, "msg": "no"}), {}, "node2 could not be asked or would refuse"),
        (fleet(SAME, {}), {}, "node2 could not be asked"),
        (fleet(SAME, SAME, EDIT), {"alive": ["node1", "node3"]}, "node2 runs what is described but did not pass"),
        (fleet(EDIT), {"waves": []}, "rollout_waves: expected waves that add up, found an empty list"),
        (fleet(EDIT), {"max_failures": "none"}, "rollout_max_failures is 'none'; expected a number"),
        (fleet(EDIT, rollout_min_available=-1), {}, "rollout_min_available is -1; expected a number"),
        # The rule is inventory_checks.waves, with its own table; the plan takes the same words.
        (fleet(SAME), {"waves": ["half"]}, "found 'half' in [half]; a wave is 1 or more servers, or 1% to 100%"),
        (fleet(EDIT), {"missing": ["/x/drain.yml"]}, "/x/drain.yml is no file on the controller"),
    ],
)
def test_what_is_refused(hosts, options, says):
    if "gateways" in options:
        hosts["gw"] = seen(node1="UP", node2="DOWN")
    made = plan(hosts, **options)
    assert len(made["problems"]) == 1
    assert says in made["problems"][0]
    assert made["hosts"] == []


# --- what gateways know one of for all servers of a pool


def edited(**differences):
    """A server that would be replaced for these fields, by what they are now."""
    found = [{"name": name.replace("__", "."), "current": value} for name, value in differences.items()]
    args = (
        {"served-model-name": differences["args__served_model_name"]}
        if "args__served_model_name" in differences
        else {}
    )
    for one in found:
        one["name"] = one["name"].replace("served_model_name", "served-model-name")
    return {**EDIT, "differences": found, "spec": {"model": differences.get("model", "m"), "args": args, "port": 8000}}


KEY = edited(env__VLLM_API_KEY="(secret, fingerprint 1)")
NAME = edited(model="old")


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        (
            fleet(KEY, KEY),
            "node1 and node2 would get another key, which gw would not know: this run does not change that gateway. Run "
            "deploy.yml with both: --limit node1,node2,gw;",
        ),
        (fleet(NAME, SAME), "node1 would get other served names, which gw would not know"),
        (fleet(edited(args__served_model_name=["old", "m"]), SAME), "node1 would get other served names"),
        # It looks at no key.
        (fleet(edited(env__VLLM_API_KEY=None), edited(env__VLLM_API_KEY=None)), ""),
        (fleet(edited(model="m"), SAME), ""),
    ],
)
def test_a_gateway_outside_of_the_run_knows_no_new_key_or_name(hosts, says):
    names = list(hosts)
    hosts["gw"] = seen(**dict.fromkeys(names, "UP"))
    problems = plan(hosts, gateways=["gw"])["problems"]
    assert (len(problems), says in "".join(problems)) == (bool(says), True), problems
    # One that takes part learns it, and keeps the old one beside it.
    hosts["gw"]["gateway_takes_part"] = True
    assert plan(hosts, gateways=["gw"])["problems"] == []
    assert not plan({name: hosts[name] for name in names})["problems"] or says, (
        "without a gateway it is its clients' affair"
    )


def test_a_gateway_that_could_not_drain_is_named_before_the_waves():
    hosts = fleet(EDIT, EDIT, NONE)
    known = {**hosts, "gw": seen(node1="UP", node2="UP")}
    (problem,) = plan(known, gateways=["gw"])["problems"]
    assert problem.startswith("gw does not know node3 by the model m, and this run does not change that gateway.")
    assert problem.endswith("--limit node3,gw.")
    assert plan({**hosts, "gw": seen() | {"gateway_takes_part": True}}, gateways=["gw"])["problems"] == []
    apart = [["node1"], ["node1"], ["gw"]]
    small = {"gw": {"gateway_result": {"running": True, "servers": [], "memory": 1 << 28}, "gateway_takes_part": True}}
    (problem,) = waves.gateway_problems(hosts | small, *apart)
    assert problem.startswith("gw has 268 MB of memory, and requests may take 536 MB: gateway_maxconn is 4096")
    gone = {
        "gw": {"gateway_result": {"unreachable": True, "msg": "Task failed: timed out."}, "gateway_takes_part": True}
    }
    (problem,) = waves.gateway_problems(hosts | gone, *apart)
    assert problem.startswith("gw cannot be asked (timed out), so")
    stopped = {"gw": {"gateway_result": {"running": False, "reason": "does not run: x"}}}
    (problem,) = waves.gateway_problems(hosts | stopped, *apart)
    assert problem.startswith("HAProxy on gw does not run: x, and this run does not change that gateway.")
    assert waves.gateway_problems(hosts | gone, ["node1"], [], ["gw"]) == []


def test_a_server_is_asked_where_it_serves_now():
    assert host_variables.own_url({"vllm_server_port": 8100, "vllm_server_bind": "::"}) == "http://127.0.0.1:8100"
    asked = {"vllm_server_port": 8100, "vllm_server_result": {"spec": {"port": 8000, "bind": "2001:db8::1"}}}
    assert host_variables.own_url(asked) == "http://[2001:db8::1]:8000"


# --- nodes whose driver waits for a boot

DRIVER = "the amdgpu module on disk (6.16.13) is not the one in memory (of the distribution)"


def awaiting(hosts, *names, allowed=True):
    """Some of the hosts, as the role rocm leaves them when only a reboot helps."""
    for name in names:
        hosts[name] |= {"rocm_reboot_required": [DRIVER], "rocm_allow_reboot": allowed}
    return hosts


@pytest.mark.parametrize("allowed", [True, "true", "yes"])
def test_a_node_that_waits_for_its_boot_has_a_wave_although_its_server_is_as_described(allowed):
    made = plan(awaiting(fleet(SAME, SAME, SAME, SAME), "node2", "node4", allowed=allowed))
    assert made["waves"] == [["node2"], ["node4"]]
    assert made["reboot"] == ["node2", "node4"]
    assert made["unchanged"] == ["node1", "node3"]
    assert made["says"] == (
        "To replace: 2 of 4 replicas, in 2 waves: node2 | node4. node1 and node3 match the inventory and answered "
        f"correctly. node2 and node4 will be drained and rebooted in that wave: {DRIVER}."
    )


def test_a_reboot_keeps_what_must_stay_and_goes_with_an_edit():
    made = plan(awaiting(fleet(SAME, SAME), "node1", "node2"), waves=["100%"])
    assert made["waves"] == [["node1"], ["node2"]]
    made = plan(awaiting(fleet(EDIT, SAME), "node1"))
    assert (made["waves"], made["reboot"]) == ([["node1"]], ["node1"])
    (problem,) = plan(awaiting(fleet(SAME, SAME, rollout_min_available=2), "node1"))["problems"]
    assert "so none of them can be replaced" in problem


def test_any_rank_takes_its_whole_replica_along():
    hosts = awaiting(fleet(SAME, SAME, SAME), "node3")
    hosts["node1"]["vllm_server_replica"] = hosts["node3"]["vllm_server_replica"] = "a"
    made = plan(hosts)
    assert (made["hosts"], made["serial"], made["reboot"]) == (["node1", "node3"], [2], ["node3"])


@pytest.mark.parametrize("allowed", [False, "no", None])
def test_without_leave_nothing_reboots_and_it_is_said(allowed):
    hosts = awaiting(fleet(SAME, EDIT, SAME), "node1", "node2", allowed=allowed)
    hosts["node3"] |= {"rocm_reboot_required": [], "rocm_allow_reboot": True}
    made = plan(hosts)
    assert (made["waves"], made["reboot"], made["problems"]) == ([["node2"]], [], [])
    assert made["says"].endswith(
        f"node1 and node2 wait for a reboot: {DRIVER}. With rocm_allow_reboot: true the next deployment drains, reboots and "
        "verifies node by node; otherwise reboot when nothing is served there."
    )
    assert plan(awaiting(fleet(SAME), "node1", allowed=allowed))["says"].startswith("Nothing to do: node1 matches")


def test_a_server_that_does_not_pass_its_verification_is_left_alone_where_failures_are_allowed():
    made = plan(fleet(SAME, EDIT, EDIT), alive=["node2", "node3"], max_failures=1, waves=["100%"])
    assert made["problems"] == []
    assert made["waves"] == [["node2"], ["node3"]]  # node1 does not count as one that stays


def test_check_mode_plans_and_replaces_nobody():
    made = plan(fleet(EDIT, EDIT), check_mode=True)
    assert made["waves"] == [["node1"], ["node2"]]
    assert made["hosts"] == []


def test_what_was_left_drained_is_admitted_and_what_an_administrator_took_out_is_not():
    hosts = fleet(SAME, SAME, SAME, EDIT)
    hosts["gw"] = seen(node1="DRAIN (agent)", node2="MAINT", node3="UP", node4="DRAIN")
    assert plan(hosts, gateways=["gw"])["admit"] == ["node1"]


def test_one_that_nobody_verified_serves_if_a_gateway_sends_it_requests():
    hosts = fleet(HALF, EDIT)
    assert plan(hosts)["waves"][0] == ["node1"]
    hosts["gw"] = seen(node1="UP 1/2", node2="UP")
    made = plan(hosts, gateways=["gw"], waves=["100%"])
    assert made["waves"] == [["node1"], ["node2"]]


@pytest.mark.parametrize("state", ["MAINT", "DOWN", "DOWN 1/2", "DRAIN", "MAINT (resolution)"])
def test_a_server_that_the_gateway_does_not_use_is_none_that_stays(state):
    hosts = fleet(EDIT, EDIT)
    hosts["gw"] = seen(node1=state, node2="UP")
    made = plan(hosts, gateways=["gw"], waves=["100%"])
    if state == "MAINT":  # it will not serve afterwards either
        assert "1 of 2 replicas of m serve (node2)" in made["problems"][0]
    else:  # nothing is lost with it, and then it serves
        assert (made["problems"], made["waves"]) == ([], [["node1"], ["node2"]])
    hosts = fleet(SAME, EDIT)
    hosts["gw"] = seen(node1=state, node2="UP")
    made = plan(hosts, gateways=["gw"])
    if state == "DRAIN":  # of a killed run: this one admits it first
        assert (made["problems"], made["admit"], made["waves"]) == ([], ["node1"], [["node2"]])
    else:
        assert "1 of 2 replicas of m serve (node2)" in made["problems"][0]


def test_gateways_of_which_one_uses_a_server_are_enough():
    hosts = fleet(SAME, EDIT)
    hosts |= {"gw1": seen(node1="MAINT", node2="UP"), "gw2": seen(node1="UP", node2="UP")}
    assert plan(hosts, gateways=["gw1", "gw2"])["waves"] == [["node2"]]


# --- check mode, where staging has only said what it would bring


def refused(failure_class, container="running", confirmed=True):
    """What vllm_server says where something is missing, its task not failed for it."""
    there = {"status": container} if container else None
    return {
        "actions": [],
        "failed": False,
        "failure": {"class": failure_class},
        "confirmed": confirmed,
        "container": there,
    }


GONE = {"vllm_image_result": {"present": False}}
TAGGED = {"vllm_image_tag": "v2", "vllm_image_result": {"present": True, "tags_moved": ["v2"], "image_ref": "i:v2"}}
ALSO = {"vllm_image_tag": "v2", "vllm_image_result": {"present": True, "tags_moved": ["old"], "image_ref": "i:v2"}}
PINNED = {**TAGGED, "vllm_image_result": {**TAGGED["vllm_image_result"], "image_ref": "i@sha256:1"}}
EMPTY = {"hf_cache_result": {"complete": False}}
BARE = {"docker_engine_result": {"running": False, "sdk": False}}


@pytest.mark.parametrize(
    ("answer", "found", "first"),
    [
        (refused("image_missing"), GONE, "the image"),
        # A tag that moves: compared was what has it today.
        (SAME, GONE, "the image"),
        (refused("image_missing"), TAGGED, "the image"),
        (SAME, TAGGED, "the image"),
        (SAME, ALSO, ""),
        (SAME, PINNED, ""),
        (refused("cache_miss_offline"), EMPTY, "the weights"),
        (refused("cache_incomplete"), EMPTY, "the weights"),
        (refused("unknown", None, False), BARE, "the engine"),
        # With --tags rollout nothing was staged, not even for show.
        (refused("image_missing"), {}, ""),
        # Neither of these will be mended by what is brought.
        (refused("bad_argument"), EMPTY | BARE, ""),
        (refused("bad_argument"), GONE, ""),
        ({"failed": True, "msg": "died"}, GONE, ""),
        (SAME, EMPTY, ""),
        (None, {}, ""),
    ],
)
def test_what_is_not_there_because_staging_only_pretended(answer, found, first):
    assert replicas.pending_artifact(answer, found) == first


def test_a_check_run_plans_what_it_cannot_compare_yet():
    hosts = fleet(refused("image_missing"), refused("image_missing"), SAME)
    for name in ("node1", "node2"):
        hosts[name] |= GONE
    made = plan(hosts, check_mode=True)
    assert (made["problems"], made["waves"]) == ([], [["node1"], ["node2"]])
    assert made["says"].endswith("node1 and node2 get the image first: what changes there is known then.")
    # For real, staging has brought it; what is missing now is missing.
    hosts["node1"]["vllm_server_result"] = refused("image_missing") | {"failed": True}
    assert "node1 could not be asked" in plan(hosts)["problems"][0]


# --- between the waves


def gate(hosts, batch, max_failures=0, gateways=()):
    every = [host for host in hosts if host.startswith("node")]
    made = plan(hosts, waves=[1], gateways=gateways)
    return gates.closed(hosts, made, batch, every, gateways=list(gateways), max_failures=max_failures)


def outcome(state, **more):
    return {"state": state, **more}


@pytest.mark.parametrize(
    ("first", "max_failures", "says"),
    [
        (None, 0, ""),
        (outcome("replaced", serving=True), 0, ""),
        (outcome("failed", serving=True), 0, "node1 failed and rollout_max_failures is 0"),
        (outcome("failed", serving=True), 1, ""),
        # Lost on the way: its connection was.
        (outcome("replacing"), 0, "node1 failed"),
        (outcome("draining"), 0, "node1 failed"),
    ],
)
def test_a_wave_begins_only_after_a_good_one(first, max_failures, says):
    hosts = fleet(EDIT, EDIT, EDIT)
    if first:
        hosts["node1"]["rollout_outcome"] = first
    assert gate(hosts, ["node2"], max_failures).startswith(says)
    assert bool(gate(hosts, ["node2"], max_failures)) == bool(says)


def test_a_wave_does_not_begin_when_failures_have_left_too_few():
    hosts = fleet(EDIT, EDIT, EDIT, rollout_min_available=2)
    hosts["node1"]["rollout_outcome"] = outcome("failed", serving=False)
    assert gate(hosts, ["node2"], 2) == "only 1 replica of m would stay (node3) and rollout_min_available is 2"


@pytest.mark.parametrize(
    ("states", "first", "stays"),
    [
        ({"node1": "UP", "node3": "UP"}, outcome("replaced", serving=True), "node1 and node3"),
        # Gone since the plan, each in its way; node1 is of the wave before.
        ({"node1": "UP", "node3": "DOWN"}, outcome("replaced", serving=True), "node1"),
        ({"node1": "UP", "node3": "DRAIN"}, outcome("replaced", serving=True), "node1"),
        ({"node1": "DOWN", "node3": "UP"}, outcome("replaced", serving=True), "node3"),
        ({"node1": "MAINT", "node3": "UP"}, outcome("replaced", serving=True), "node3"),
        ({}, outcome("replaced", serving=True), "node1 and node3"),
    ],
)
def test_before_a_wave_the_gateways_say_who_stays(states, first, stays):
    hosts = fleet(EDIT, EDIT, SAME, rollout_min_available=2)
    made = plan(hosts, waves=[1])
    hosts["node1"]["rollout_outcome"] = first
    hosts["gw"] = seen(node2="UP", **states) if states else {"gateway_result": {"unreachable": True}}
    every = ["node1", "node2", "node3"]
    says = gates.closed(hosts, made, ["node2"], every, gateways=["gw"], max_failures=0)
    few = gates.shortage(hosts, made, ["node2"], every, gateways=["gw"])
    assert says == few
    assert few == (
        "" if " and " in stays else f"only 1 replica of m would stay ({stays}) and rollout_min_available is 2"
    )


def test_a_wave_that_did_not_begin_is_a_failure_of_its_own_and_its_servers_go_on():
    hosts = fleet(EDIT, EDIT, EDIT, rollout_min_available=2)
    made = plan(hosts, waves=[1])
    hosts["localhost"] = {"rollout_plan": made}
    hosts["node1"]["rollout_outcome"] = outcome("replaced", serving=True)
    hosts["node2"]["rollout_outcome"] = outcome("failed", msg="It was not touched: only 1 would stay.")
    assert play_hosts.failed(hosts) == ["node2"]
    every = ["node1", "node2", "node3"]
    assert gates.closed(hosts, made, ["node3"], every, gateways=[], max_failures=0).startswith("node2 failed")
    assert gates.closed(hosts, made, ["node3"], every, gateways=[], max_failures=1) == ""


def test_the_verdict_says_how_far_it_came():
    hosts = fleet(EDIT, EDIT, EDIT, EDIT)
    made = plan(hosts, waves=[1])
    hosts["localhost"] = {"rollout_plan": made}
    assert play_hosts.failed(hosts) == play_hosts.NOBODY
    assert play_hosts.waves(hosts) == ["node1", "node2", "node3", "node4"]
    assert play_hosts.serial(hosts) == [1, 1, 1, 1]
    assert play_hosts.waves({}) == play_hosts.waves({"localhost": {}}) == play_hosts.NOBODY
    hosts["node1"]["rollout_outcome"] = outcome("replaced", serving=True)
    hosts["node2"]["rollout_outcome"] = outcome("failed", serving=True, msg="node2: It sang. ")
    assert play_hosts.failed(hosts) == ["node2"]
    assert gates.verdict(hosts, made, "node2", max_failures=0) == (
        "node2: It sang. Replaced before: node1. The run stopped there, as rollout_max_failures is 0; not touched: node3 and "
        "node4."
    )


@pytest.mark.parametrize(
    ("more", "restart"),
    [
        ({"vllm_server_result": OUT}, True),
        # By preflight's probe, of a server that no task of the plan visits.
        ({"ansible_facts": {"vllm_fleet_probe_results": [{"module": "vllm_server", "args": {}, "result": OUT}]}}, True),
        ({"vllm_server_result": {**OUT, "watchdog": {"state": "serving"}}}, None),
        # It is started anew anyhow, or was never good.
        ({"vllm_server_result": {**OUT, "actions": ["start"]}}, None),
        ({"vllm_server_result": {**OUT, "confirmed": False}}, None),
        ({"vllm_server_result": OUT, "vllm_server_replica": "big"}, None),
        ({"vllm_server_repair": {"restart": False, "because": "it does not listen"}}, False),
        ({}, None),
    ],
)
def test_a_server_that_its_watchdog_keeps_out_is_started_anew(more, restart):
    assert replicas.repair_of(more).get("restart") is restart
