# SPDX-License-Identifier: Apache-2.0
"""What a run looks like on the terminal, from ansible-playbook itself on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
TRUE = {"ansible.builtin.command": "true", "changed_when": False}


#: The colours that Ansible has for what is shown here (lib/ansible/config/base.yml).
OWN = ("0;30", "0;31", "0;32", "0;33", "0;34", "0;35", "0;36", "1;30", "1;31", "1;35", "1;34", "31", "32", "33", "36")


def shown(
    folder: Path,
    *tasks: dict,
    words: tuple[str, ...] = (),
    hosts: str = "a,b,c,d,e",
    colours: bool = False,
    **play: object,
) -> str:
    """The terminal of a play with these tasks, without its recap."""
    whole = {"name": "Play", "hosts": "all", "connection": "local", "gather_facts": False, "tasks": list(tasks), **play}
    empty = {"name": "For nobody", "hosts": "all:!all", "tasks": [{"name": "Never", **TRUE}]}
    (folder / "play.yml").write_text(yaml.safe_dump([whole, empty]))
    command = [PLAYBOOK, "-i", f"{hosts},", "-e", f"ansible_python_interpreter={sys.executable}", *words]
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "COLUMNS": "80"}
    environ |= {} if colours else {"ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [*command, str(folder / "play.yml")], env=environ, capture_output=True, text=True, check=False
    )
    return done.stdout.partition("\nPLAY RECAP")[0].strip()


def banner(text: str) -> str:
    return f"{text} {'*' * (79 - len(text))}"


def test_what_is_fine_is_a_line_and_what_prepares_it_is_none(tmp_path):
    note = {"name": "Note", "ansible.builtin.set_fact": {"x": 1}}
    look, skipped = {"name": "Look", **TRUE}, {"name": "Look elsewhere", **TRUE, "when": False}
    assert shown(tmp_path, note, look, skipped) == f"{banner('PLAY [Play]')}\nok: Look [5 hosts]"
    assert shown(tmp_path, note, look, hosts="b,a").endswith("\nok: Look [a, b]")
    assert "TASK [Note]" in shown(tmp_path, note, look, words=("-v",))


def test_a_play_with_nothing_to_do_is_not_named_and_a_batch_names_its_hosts(tmp_path):
    assert shown(tmp_path, {"name": "Look", **TRUE, "when": False}) == ""
    said = shown(tmp_path, {"name": "Look", **TRUE}, hosts="a,b,c", serial=[1, 2])
    assert said.splitlines() == [
        banner("PLAY [Play: a]"), "ok: Look [a]", "", banner("PLAY [Play: b, c]"), "ok: Look [b, c]",
    ]  # fmt: skip


def test_a_change_is_seen_beside_what_is_fine(tmp_path):
    task = {"name": "Write", **TRUE, "changed_when": "inventory_hostname == 'a'"}
    lines = shown(tmp_path, task, hosts="a,b").splitlines()
    assert lines[2:] == [banner("TASK [Write]"), "changed: [a]", "ok: [b]"]


def test_a_long_task_has_its_banner_above_its_progress_and_none_when_it_is_skipped(tmp_path):
    def count(**more: object) -> dict:
        command = {"argv": ["sh", "-c", "echo one; sleep 2"], "label": "counting", "interval": 1}
        return {"name": "Count", "long_command": {**command, "job": "x", "jobs_dir": str(tmp_path / "jobs")}, **more}

    assert shown(tmp_path, count(when=False), hosts="a") == ""
    lines = shown(tmp_path, count(), hosts="a").splitlines()
    assert (lines[2], lines[3][:18], lines[-1]) == (banner("TASK [Count]"), "[a] counting: one ", "changed: [a]")


@pytest.mark.parametrize("task", [{"ansible.builtin.fail": {"msg": "One.\nTwo."}}, {"ansible.builtin.assert": {"that": False, "fail_msg": "One.\nTwo."}}])  # fmt: skip
def test_a_failure_that_says_itself_what_is_to_be_read_is_that(tmp_path, task):
    lines = shown(tmp_path, {"name": "Insist", **task}, hosts="a").splitlines()
    assert lines[2:] == [banner("TASK [Insist]"), "fatal: [a]: FAILED!", "    One.", "    Two."]


def test_a_failure_of_something_else_is_told_whole(tmp_path):
    said = shown(tmp_path, {"name": "Try", "ansible.builtin.command": "sh -c 'echo why >&2; exit 3'"}, hosts="a")
    assert "fatal: [a]: FAILED! =>" in said and "rc: 3" in said and "why" in said


def test_a_verification_that_failed_is_its_sentence(tmp_path):
    refused = {"url": "http://127.0.0.1:1", "prompt": "x", "model": "m"}
    said = shown(tmp_path, {"name": "Ask", "vllm_chat": refused}, hosts="a")
    assert "fatal: [a]: FAILED!\n    " in said and "results:" not in said and "Origin:" not in said


def test_messages_are_text_and_long_ones_of_many_hosts_are_cut(tmp_path):
    said = shown(tmp_path, {"name": "Say", "ansible.builtin.debug": {"msg": "One.\nTwo.\nThree."}})
    assert said.count("    Three.") == 4
    assert said.count("    One. (-v shows 2 more)") == 1


def test_what_hosts_have_in_common_differs_once(tmp_path):
    copy = {"content": "{{ 'c' if inventory_hostname == 'c' else 'x' }}\n", "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}"}  # fmt: skip
    said = shown(tmp_path, {"name": "Write", "ansible.builtin.lineinfile": {"path": str(tmp_path / "same"), "line": "new", "create": True}, "throttle": 1}, hosts="a,b", words=("--check", "--diff"))  # fmt: skip
    assert said.count("+new") == 1 and said.count("changed: [") == 2
    said = shown(tmp_path, {"name": "Write", "ansible.builtin.copy": copy}, hosts="b,c", words=("--check", "--diff"))
    assert "+x" in said and "+c" in said


#: Clears the screen, names the window, writes the clipboard, hides, writes over the line, turns the letters round.
OBEYED = "\x1b[2J\x1b]0;title\x07\x1b]52;c;Y2Fu\x07\x1b[8mhidden\x1b[0m over\rwritten \u202ednuor\u202c \x9b31m\x07"


def test_what_a_model_says_is_not_obeyed(tmp_path):
    import hostile

    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    answer = {"model": "m", "usage": usage, "choices": [{"message": {"content": OBEYED}, "finish_reason": "stop"}]}
    ask = {"prompt": "x", "model": "m", "stream": False, "expect": {"pattern": "Paris"}}
    with hostile.server(lambda _: hostile.answer(json.dumps(answer).encode())) as port:
        chat = {"name": "Ask", "vllm_chat": {**ask, "url": f"http://127.0.0.1:{port}"}, "ignore_errors": True}
        for words in ((), ("-v",)):
            said = shown(tmp_path, chat, hosts="a", words=words)
            assert "hidden" in said  # quoted in the sentence, as it is in the result
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said)


def test_what_a_node_says_is_not_obeyed_and_colours_are_ansibles_own(tmp_path, monkeypatch):
    """Its words as a message, as a failure and as a difference, on a terminal with colours."""
    monkeypatch.setitem(os.environ, "ANSIBLE_FORCE_COLOR", "1")
    said = {"said": OBEYED, "place": str(tmp_path / "file")}
    tasks = [
        {"name": "Say", "ansible.builtin.debug": {"msg": "{{ said }}"}},
        {"name": "Write", "ansible.builtin.copy": {"content": "{{ said }}\n", "dest": "{{ place }}"}, "check_mode": True},
        {"name": "Insist", "ansible.builtin.fail": {"msg": "{{ said }}"}},
    ]  # fmt: skip
    out = shown(tmp_path, *tasks, hosts="a", words=("--diff",), colours=True, vars=said)
    assert out.count("hidden over") == 3
    assert "\x1b[0;32m" in out or "\x1b[32m" in out
    assert set(re.findall(r"\x1b[^m]*m|\x1b", out)) <= {"\x1b[0m", *(f"\x1b[{code}m" for code in OWN)}
    assert not re.search(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e]", out)


def test_a_secret_that_shows_by_its_shape_is_hidden_whoever_says_it(tmp_path):
    task = {"name": "Say", "ansible.builtin.command": "echo http://user:canary@host", "changed_when": False}
    said = shown(
        tmp_path, task, hosts="a", words=("-vvvv",), environment={"HTTPS_PROXY": "http://user:canary2@proxy:1"}
    )
    assert "canary" not in said
    assert "http://user:***@proxy:1" in said


def test_a_node_out_of_reach_is_its_cause_and_what_to_type(tmp_path):
    ping = {"name": "Ping", "ansible.builtin.ping": {}}
    told = shown(tmp_path, ping, hosts="nodexyz.invalid,", connection="ssh")
    assert told.endswith(
        "fatal: [nodexyz.invalid]: UNREACHABLE!\n"
        "    the name nodexyz.invalid is not known to the controller's DNS; correct it, or give the node's address as "
        "ansible_host"
    )
    assert "Origin:" not in told and "unreachable: true" not in told
