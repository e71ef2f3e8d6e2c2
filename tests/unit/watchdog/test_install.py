# SPDX-License-Identifier: Apache-2.0
"""A watchdog on its node: what differs, what is done for it and in which order, and that a killed run is made good."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import threading

import pytest

from ansible.module_utils.vllm_fleet.server import watched
from ansible.module_utils.vllm_fleet.watchdog import history, install, places, unit
from ansible.module_utils.vllm_fleet.watchdog.agent import Agent

PROGRAM = b"the program"
DIGEST = hashlib.sha256(PROGRAM).hexdigest()
SETTINGS = {"name": "vllm", "silence": 120, "action": "restart"}
MINE = "vllm-fleet-watchdog@vllm.service"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Systemd:
    """Plays systemctl on a folder, and the program's own check of its settings."""

    def __init__(self, root):
        self.root, self.active, self.calls = root, set(), []
        self.refuses, self.dies, self.shows = "", "", ""

    def __call__(self, words, **_):
        name, *rest = words
        self.calls.append(" ".join(rest if name == "systemctl" else ["check"]))
        if self.dies and self.calls[-1].startswith(self.dies):
            raise KeyboardInterrupt
        if name != "systemctl":
            code = 1 if self.refuses else 0
            return subprocess.CompletedProcess(words, code, "", self.refuses)
        verb, units = rest[0], [word for word in rest[1:] if not word.startswith("-")]
        out = ""
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        if verb == "show":
            out = self.shows or f"ActiveState={'active' if units[0] in self.active else 'inactive'}\n"
        elif verb == "list-units":
            out = "".join(f"{one} loaded active running x\n" for one in sorted(self.active))
        elif verb == "start":
            self.active |= set(units)
        elif verb == "stop":
            self.active -= set(units)
        elif verb == "enable":
            wants.mkdir(parents=True, exist_ok=True)
            if not (wants / units[0]).is_symlink():
                (wants / units[0]).symlink_to("../" + unit.TEMPLATE)
        elif verb == "disable":
            (wants / units[0]).unlink(missing_ok=True)
            self.active -= set(units)
        return subprocess.CompletedProcess(words, 0, out, "")


@pytest.fixture
def node(tmp_path):
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "sent").write_bytes(PROGRAM)
    return install.Node("vllm", str(tmp_path), Systemd(tmp_path))


def ask(node, state="present", *, source=True, check=False, program=DIGEST, **settings):
    params = {"name": node.name, "state": state}
    if state == "present":
        params |= {
            "settings": {**SETTINGS, **settings},
            "program": program,
            "source": str(node.at("/sent")) if source else None,
        }
    return install.perform(params, check_mode=check, node=node)


def names(result):
    return [one["name"] for one in result["differences"]]


ALL = ["program", "unit", "settings", "enabled", "state"]


def test_installed_once_and_then_as_described(node):
    predicted = ask(node, source=False, check=True)
    assert (predicted["changed"], names(predicted), node.run.calls) == (True, ALL, [])
    asked = ask(node, source=False)
    assert asked["needs_program"] and not node.program.exists()
    done = ask(node)
    assert names(done) == ALL and done["changed"] and not done["needs_program"]
    assert node.settings.stat().st_mode & 0o777 == 0o600
    assert node.program.read_bytes() == PROGRAM and node.template.read_text() == unit.UNIT
    assert node.run.active == {MINE}
    node.run.calls.clear()
    again = ask(node, source=False)
    assert (again["changed"], again["diff"], node.run.calls) == (
        False,
        {},
        [f"show --property=ActiveState,SubState,NRestarts {MINE}"],
    )


def test_changed_settings_restart_nothing(node):
    ask(node)
    node.run.calls.clear()
    done = ask(node, silence=60)
    assert names(done) == ["settings.silence"]
    assert done["diff"] == {"before": "settings.silence: 120\n", "after": "settings.silence: 60\n"}
    assert not [call for call in node.run.calls if call.startswith(("stop", "restart"))]


@pytest.mark.parametrize(("restarts", "fails"), [(1, False), (3, True), (40, True)])
def test_a_watchdog_that_ends_again_and_again_is_a_failure_and_no_change(node, restarts, fails):
    ask(node)
    node.run.shows = f"ActiveState=activating\nSubState=auto-restart\nNRestarts={restarts}\n"
    for check in (True, False):
        done = ask(node, check=check)
        assert (done["changed"], done.get("failed", False)) == (False, fails)
    if fails:
        assert done["msg"].endswith(f"journalctl -u {MINE}")
    # What would mend it is brought, and its removal is one.
    assert names(ask(node, silence=60)) == ["settings.silence"]
    assert "state" in names(ask(node, "absent", check=True))


def test_a_watchdog_that_says_down_says_up_before_it_is_taken_away(node, monkeypatch):
    """Its gateways keep the last word of one that is gone."""
    monkeypatch.setattr(install, "HEARD", 0.1)
    agent = Agent()
    agent.line, port = b"down #quarantine\n", free_port()
    agent.listen(("127.0.0.1", port))
    ask(node, agent={"address": "0.0.0.0", "port": port})
    over = threading.Event()

    def reload():
        while not over.wait(0.05):
            if node.settings.exists() and json.loads(node.settings.read_text())["action"] == "observe":
                agent.line = b"up\n"

    threading.Thread(target=reload, daemon=True).start()
    assert ask(node, "absent")["changed"]
    over.set()
    agent.close()
    assert agent.line == b"up\n" and not node.settings.exists()


def test_settings_that_the_program_refuses_are_not_put_in_place(node):
    ask(node)
    node.run.refuses = "x.json: silence should be a number of at least 1, found 0"
    done = ask(node, silence=0)
    assert done["failed"] and "found 0" in done["msg"]
    assert node.settings.read_text() == unit.text(SETTINGS)
    assert not list(node.settings.parent.glob("*.new"))


def test_another_program_comes_while_all_watchdogs_of_the_node_are_stopped(node):
    ask(node)
    other = "vllm-fleet-watchdog@other.service"
    node.run.active.add(other)
    node.run.calls.clear()
    node.at("/sent").write_bytes(b"newer")
    done = ask(node, program=hashlib.sha256(b"newer").hexdigest())
    assert names(done) == ["program"]
    verbs = [call.partition(" ")[0] for call in node.run.calls]
    assert verbs == ["show", "list-units", "stop", "daemon-reload", "enable", "start"]
    assert node.run.active == {MINE, other}


@pytest.mark.parametrize("where", ["stop", "daemon-reload", "enable", "start"])
def test_a_run_that_is_killed_is_made_good_by_the_next(node, where):
    ask(node)
    node.at("/sent").write_bytes(b"newer")
    newer = hashlib.sha256(b"newer").hexdigest()
    node.run.dies = where
    with pytest.raises(KeyboardInterrupt):
        ask(node, program=newer, silence=60)
    node.run.dies = ""
    assert ask(node, program=newer, silence=60)["changed"]
    assert not ask(node, program=newer, silence=60)["changed"]
    assert node.run.active == {MINE}


def test_removed_without_a_trace_with_the_last_server_of_the_node(node):
    ask(node)
    second = install.Node("other", node.root, node.run)
    ask(second)
    run = node.at("/run/vllm-fleet/vllm")
    run.mkdir(parents=True)
    (run / "watchdog.json").write_text("{}")
    assert names(ask(node, "absent", check=True)) == ["settings", "enabled", "state"]
    ask(node, "absent")
    assert not run.exists() and node.program.exists() and not node.wanted.is_symlink()
    assert not ask(second, source=False)["changed"]
    ask(second, "absent")
    for path in (node.program.parent, node.template, node.settings.parent.parent):
        assert not path.exists(), path
    node.run.calls.clear()
    assert (ask(node, "absent")["changed"], node.run.calls) == (False, [])


def test_a_node_without_systemd_is_told_and_left_alone(tmp_path):
    node = install.Node("vllm", str(tmp_path), Systemd(tmp_path))
    done = ask(node)
    assert (done["changed"], done["systemd"], done["msg"]) == (False, False, install.NO_SYSTEMD)
    assert "msg" not in ask(node, "absent")
    assert node.run.calls == []


def test_settings_of_any_other_form_are_replaced(node):
    ask(node)
    node.settings.write_text("{half")
    assert names(ask(node)) == ["settings"]
    node.settings.write_text(unit.text(SETTINGS).replace(" ", ""))
    assert names(ask(node, check=True)) == ["settings"]


# -- what is seen of it


def test_the_state_is_looked_for_where_the_watchdog_writes_it(tmp_path):
    assert watched.STATE.format(name="x") == str(places.Places("x").state).lstrip("/")
    assert watched.look("vllm", tmp_path) == {"state": "no systemd"}
    (tmp_path / watched.BOOTED).mkdir(parents=True)
    assert watched.look("vllm", tmp_path) == {"state": "none"}
    state = tmp_path / watched.STATE.format(name="vllm")
    state.parent.mkdir(parents=True)
    state.write_text('{"state": "hung", "since": 1.0, "why": "w", "restarts": [1, 2], "last_event": {"kind": "hung"}}')
    assert watched.look("vllm", tmp_path)["state"] == "stopped"
    (tmp_path / watched.CGROUPS[0] / watched.UNIT.format(name="vllm")).mkdir(parents=True)
    found = watched.look("vllm", tmp_path)
    assert (found["state"], found["why"], found["restarts"], found["seconds"] > 1e9) == ("hung", "w", 2, True)
    assert found["last_event"] == {"at": "", "kind": "hung", "why": ""}
    assert found["quarantine"] == ""
    state.write_text('{"state": "serving", "quarantine": "GPU 3 is gone"}')
    assert watched.look("vllm", tmp_path)["quarantine"] == "GPU 3 is gone"


GOOD = '{"at": "2026-11-29T12:31:05Z", "server": "vllm", "kind": "hung", "why": "w", "seconds": 3, "more": 1}'


def test_events_are_those_that_can_be_read():
    lines = [GOOD, "", "{half", '{"at": "yesterday"}', "[]", GOOD.replace("12:31", "11:31"), GOOD.replace('"w"', "7")]
    found, unreadable = history.events(lines, "2026-11-29T12:00:00Z")
    assert found == [{"at": "2026-11-29T12:31:05Z", "server": "vllm", "kind": "hung", "why": "w", "seconds": 3.0}]
    assert unreadable == 4


@pytest.mark.parametrize(("text", "wanted"), [("90", 90), ("30m", 1800), ("1.5h", 5400), ("2 d", 172800)])
def test_how_far_back(text, wanted):
    assert history.seconds(text) == wanted
    with pytest.raises(ValueError, match="is no time such as"):
        history.seconds(f"{text} ago")
