# SPDX-License-Identifier: Apache-2.0
"""When a holder of the fleet's lock counts as dead."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "action_plugins" / "fleet_lock.py"
spec = importlib.util.spec_from_file_location("fleet_lock_action", SOURCE)
lock = sys.modules["fleet_lock_action"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)


def holder(pid, **more):
    return {"machine": lock.machine(), "pid": pid, "born": lock.born(pid), **more}


def test_a_run_of_this_machine_lives_however_long_it_was_silent():
    assert lock.dead(holder(os.getpid()), 10_000, 120) == ""


def test_a_run_of_this_machine_that_has_ended_is_dead_at_once():
    child = subprocess.Popen(["true"])
    told = holder(child.pid)
    child.wait()
    assert lock.dead(told, 0, 120) == "that run is dead"


def test_another_process_with_the_same_number_is_not_the_holder():
    assert lock.dead(holder(os.getpid(), born="1"), 0, 120) == "that run is dead"


@pytest.mark.parametrize(("age", "says"), [(0, ""), (119, ""), (121, "121 s"), (-121, "121 s")])
@pytest.mark.parametrize("told", [{"machine": "another", "pid": 1, "born": "1"}, {}, {"machine": lock.machine()}])
def test_a_run_of_another_machine_has_its_lease(told, age, says):
    why = lock.dead(told, age, 120)
    assert says in why
    assert bool(why) == bool(says)


def test_who_it_is_holds_no_command_line(monkeypatch):
    monkeypatch.setattr(lock.context, "CLIARGS", {"subset": "node1,node2", "extra_vars": ("api_key=secret",)})
    told = lock.describe(os.getpid())
    assert "secret" not in str(told)
    assert lock.say(told).endswith(f"from {Path.cwd()}, limited to node1,node2")
    assert lock.say({}) == "?@? (pid ?) since ?, from ?"


def run(path, verb, expected, mine):
    done = subprocess.run(
        ["/bin/sh", "-c", lock.SCRIPT, "lock", path, verb, expected, mine], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_file_is_taken_only_from_whom_it_was_seen_with(tmp_path):
    path = str(tmp_path / "folder" / "fleet.lock")
    assert run(path, "take", "", '{"a": "it\'s \\\\ \\"me\\""}').endswith('{"a": "it\'s \\\\ \\"me\\""}')
    mine = Path(path).read_text().strip()
    assert run(path, "take", "", "other").endswith(mine)
    assert run(path, "drop", "", "other").endswith(mine)
    assert run(path, "take", mine, "other").endswith(" other")
    assert run(path, "take", mine, "third").endswith(" other")
    os.utime(path, (1, 1))
    # Of years the age has become one of seconds.
    word, age, whose = run(path, "renew", "", "other").split()
    assert (word, whose) == ("lock", "other") and int(age) < 1000
    assert run(path, "drop", "", "other") == ""
    assert not Path(path).exists()


def test_a_line_that_was_cut_off_is_somebodys_and_no_obstacle_for_ever(tmp_path):
    path = tmp_path / "fleet.lock"
    whole = '{"machine": "another", "pid": 1, "born": "1"}'
    for length in range(1, len(whole) + 1):
        path.write_text(whole[:length])  # without its line feed, too
        assert run(str(path), "look", "", "").endswith(f" {whole[:length]}".rstrip())
        assert run(str(path), "take", "", "mine").endswith(f" {whole[:length]}".rstrip())  # not before its lease
    path.write_text("")
    assert run(str(path), "take", "", "mine").endswith(" mine")


def test_many_at_once_and_one_has_it(tmp_path):
    path = str(tmp_path / "fleet.lock")
    command = ["/bin/sh", "-c", lock.SCRIPT, "lock", path, "take", ""]
    crowd = [subprocess.Popen([*command, f"run{n}"], stdout=subprocess.PIPE, text=True) for n in range(20)]
    answers = [process.communicate(timeout=30)[0].split()[-1] for process in crowd]
    assert len(set(answers)) == 1


@pytest.mark.parametrize(
    ("answer", "holder"),
    [
        ('lock 3 {"user": "ann", "pid": 7}', {"user": "ann", "pid": 7}),
        ('lock -9 {"user": "a', {}),
        ("lock 3 " + "[" * 200_000, {}),
        ('lock 3 {"pid": 1' + "0" * 400 + ', "host": ["x"], "user": "b"}', {"user": "b"}),
        ('lock 3 "text"', {}),
    ],
)
def test_a_node_s_answer_is_read_for_what_it_can_be(answer, holder):
    age, found, line = lock.told(answer)
    assert (age, found) == (float(answer.split()[1]), holder)
    assert line == answer.split(" ", 2)[2]
    assert lock.say(found) and lock.dead(found, age, 120) in ("", "that run is dead")


@pytest.mark.parametrize("answer", ["lock", "lock x", "lock nan {}", "lock inf {}", "lock 1e99 {}", "lock  {}"])
def test_a_node_s_answer_of_another_form_is_none(answer):
    with pytest.raises(ValueError, match="expected the lock's age"):
        lock.told(answer)


def test_a_run_that_was_killed_since_it_took_the_lock_gives_it_back_at_once(monkeypatch):
    asked = []
    ended = subprocess.Popen(["true"])
    ended.wait()
    action = lock.ActionModule.__new__(lock.ActionModule)
    monkeypatch.setattr(action, "_ask", lambda *given: asked.append(given), raising=False)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("there is no run to watch"))
    action._guard(ended.pid, {"path": "/x/fleet.lock", "lease": 120.0}, "mine")
    assert asked == [("/x/fleet.lock", "drop", "", "mine")]
