# SPDX-License-Identifier: Apache-2.0
"""What ends a run before any node is asked: the command line, the inventory, the controller's own Ansible."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import play
import pytest

spec = importlib.util.spec_from_file_location("start", play.ROOT / "callback_plugins/vllm_fleet_start.py")
assert spec and spec.loader
start = importlib.util.module_from_spec(spec)
spec.loader.exec_module(start)

LOCAL = str(play.ROOT / "inventory/local")


def run(*words: str, here: Path = play.ROOT, **environ: str) -> tuple[int, str]:
    done = subprocess.run(
        [play.PLAYBOOK, *words],
        cwd=here,
        env={**play.environment(), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("deploy.yml", "-i", "inventory/loca"),
            "The inventory inventory/loca does not exist; the nearest is inventory/local.",
        ),
        (
            ("playbooks/status.yml", "-i", "/no/such"),
            "The inventory /no/such does not exist; give the path of a file or a folder that does.",
        ),
        (("playbooks/status.yml", "--tags", "verfy"), "No task has the tag verfy (--tags); the nearest is verify."),
        (
            ("playbooks/status.yml", "--skip-tags", "stage,xyz"),
            "No task has the tag xyz (--skip-tags); there are preflight, prepare, stage, rollout, verify, watchdog.",
        ),
        (("deploy.yml", "--skip-tags", "preflight"), "Preflight cannot be left out (--skip-tags), because a run rests"),
        (
            ("playbooks/status.yml", "--tags", "servers"),
            "No task has the tag servers (--tags); there are preflight, prepare, stage",
        ),
        (
            ("playbooks/status.yml", "--limit", "localhost,localhots"),
            "The inventory has no host and no group localhots (--limit); the nearest is localhost.",
        ),
        (
            ("playbooks/status.yml", "-e", "status_watch=abc"),
            "Status_watch wants whole seconds above 0, as in -e status_watch=5; got 'abc'.",
        ),
        (("playbooks/status.yml", "-i", "localhost,"), "The inventory has no host in group vllm; put"),
    ],
)
def test_a_command_line_that_cannot_become_what_was_meant_is_refused(words: tuple[str, ...], sentence: str) -> None:
    code, said = run(*words)
    assert code == 1, said
    assert f"[ERROR]: {sentence}" in said
    assert "Nothing was touched." in said
    assert "TASK" not in said and "RECAP" not in said


@pytest.mark.parametrize("seconds", ["0", "-1", "abc", "", "2.5", "1s", 0, -1, 2.5, True, None, [5], "9999999"])
def test_seconds_of_a_live_table_that_are_none_are_refused(seconds: object) -> None:
    assert "status_watch wants whole seconds above 0" in start.watch_fault({}, seconds)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ask_vault_pass": True}, "--ask-vault-pass"),
        ({"become_ask_pass": True}, "--ask-become-pass"),
        ({"ask_pass": True}, "--ask-pass"),
        ({"vault_ids": ("a@file", "b@prompt")}, "--vault-id b@prompt"),
    ],
)
def test_a_live_table_cannot_ask_for_a_password_each_time(options: dict[str, object], word: str) -> None:
    assert start.watch_fault(options, 5).startswith(f"{word} would ask at every look of status_watch; name a file")


def test_a_live_table_gets_what_the_command_line_said() -> None:
    options = {
        "inventory": ("/a/one", "h1,"),
        "subset": "node1",
        "extra_vars": ("status_watch=5", "@b.yml"),
        "forks": 20,
    }
    options |= {"vault_ids": (), "vault_password_files": ("/p",), "remote_user": None, "ssh_extra_args": "-o X=y"}
    assert start.watch_fault(options, "5") == ""
    assert start.watch_command(options, "5") == [
        str(play.ROOT / "scripts/health"), "--watch", "5", "--inventory=/a/one", "--inventory=h1,", "--limit=node1",
        "--extra-vars=status_watch=5", "--extra-vars=@b.yml", "--vault-password-file=/p", "--ssh-extra-args=-o X=y",
    ]  # fmt: skip


def test_an_inventory_of_broken_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("vllm:\n  hosts:\n    n1: {a: [}\n")
    code, said = run("playbooks/status.yml", "-i", str(tmp_path))
    assert code == 4, said
    assert f"[ERROR]: The inventory cannot be read: {tmp_path}/hosts.yml:3:11: YAML parsing failed: " in said
    assert "Nothing was touched." in said and "no host in group" not in said


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"hosts.yml": "vllm:\n  hosts:\n    node1: {}\n    node2:\n    ansible_host: 192.0.2.1\n"},
            "Ansible leaves out a part of this inventory: hosts.yml:5: ansible_host stands beside node2 among the hosts",
        ),
        (
            {"hosts.yml": "vllm:\n  hosts:\n    node1: {}\n  node2: {}\n  var: {a: 1}\n"},
            "Ansible leaves out parts of this inventory:\n  hosts.yml:4: node2 stands in group vllm beside its hosts",
        ),
        (
            {
                "hosts.yml": "vllm: {hosts: {node1: {}}}\n",
                "group_vars/vllm.yml": "vllm_server_port: 1\nvllm_server_port: 2\n",
            },
            "group_vars/vllm.yml:2: vllm_server_port stands twice, in lines 1 and 2: leave one, or rename the other.",
        ),
        (
            {"hosts.yml": "vllm: {hosts: {node1: {}}}\n", "more.yml": "- node2\n"},
            "The inventory is read only in part: Ansible could not read {folder}/more.yml as a list of hosts",
        ),
    ],
)
def test_an_inventory_that_ansible_reads_in_part_is_refused(
    files: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    code, said = run(str(play.ROOT / "playbooks/preflight.yml"), "-i", str(tmp_path), here=tmp_path)
    assert code == 4, said
    assert sentence.format(folder=tmp_path) in said and "Nothing was touched." in said
    assert "TASK" not in said and "RECAP" not in said


@pytest.mark.parametrize("version", ["2.16.19", "2.18.19"])
def test_an_older_ansible_is_refused_where_it_would_lose_the_output(version: str, tmp_path: Path) -> None:
    """By its version alone; what is older also wraps the sentence otherwise."""
    (tmp_path / "sitecustomize.py").write_text(f"import ansible.release\nansible.release.__version__ = '{version}'\n")
    code, said = run("playbooks/status.yml", "-i", LOCAL, PYTHONPATH=str(tmp_path))
    assert code == 1, said
    assert f"Ansible-core {version} is too old: 2.19 or newer is needed; run `make deploy`" in said
    assert "TASK" not in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "$ANSIBLE_VAULT;1.1;AES256\n6162\n",
            "values that ansible-vault has encrypted. It needs their password, and none was given: add --ask-vault-pass",
        ),
        ("a: b\n c: [\n", "The inventory cannot be read: {folder}/group_vars/all/own.yml:2:3: YAML parsing failed"),
    ],
)
def test_a_file_of_variables_that_cannot_be_read_is_named_and_what_to_type(
    content: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "group_vars/all").mkdir(parents=True)
    (tmp_path / "group_vars/all/own.yml").write_text(content)
    (tmp_path / "hosts.yml").write_text("vllm: {hosts: {node1: {ansible_connection: local}}}\n")
    code, said = run("deploy.yml", "-i", str(tmp_path), COLUMNS="2000")
    assert code != 0, said
    last = said.partition("FLEET ***")[2]
    assert sentence.format(folder=tmp_path) in last and "Nothing was touched." in last, said
    assert "Callback dispatch" not in said


def test_an_ansible_without_the_collections_is_refused(tmp_path: Path) -> None:
    nowhere = {"ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false", "ANSIBLE_COLLECTIONS_PATH": str(tmp_path)}
    code, said = run("playbooks/status.yml", "-i", LOCAL, **nowhere)
    assert code == 1, said
    assert (
        "This Ansible lacks ansible.posix, community.docker, community.general; install what is missing (ansi" in said
    )


def test_a_playbook_of_somebody_else_has_its_own_tags_and_inventory(tmp_path: Path) -> None:
    """Molecule's own create.yml makes the inventory that its command line names."""
    (tmp_path / "play.yml").write_text("[{name: Play, hosts: vllm, tasks: []}]")
    assert run(str(tmp_path / "play.yml"), "-i", str(tmp_path / "later.yml"), "--tags", "mine")[0] == 0


def test_make_says_the_same(tmp_path: Path) -> None:
    environ = {**play.environment(), "PATH": f"{Path(play.PLAYBOOK).parent}:{os.environ['PATH']}"}
    command = ["make", "-o", ".venv/controller", "deploy", "INVENTORY=inventory/loca"]
    done = subprocess.run(command, cwd=play.ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "The inventory inventory/loca does not exist; the nearest is inventory/local." in done.stderr


def test_all_tags_of_the_playbooks_are_known() -> None:
    """The callback's list is the one that a misspelt tag is held against."""
    text = (play.ROOT / "callback_plugins/vllm_fleet_start.py").read_text()
    known = set(re.findall(r'"(\w+)"', text.partition("\nTAGS = ")[2].partition("\n")[0]))
    used: set[str] = set()
    for file in [*play.ROOT.glob("playbooks/*.yml"), *play.ROOT.glob("roles/*/tasks/*.yml")]:
        for listed in re.findall(r"^ *tags: \[([\w, ]+)\]$", file.read_text(), re.MULTILINE):
            used |= {tag.strip() for tag in listed.split(",")}
    assert used - {"always", "never"} <= known
    assert {"prepare", "stage", "rollout", "verify"} <= used


def fleet(*words: str, here: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in play.environment().items() if name != "ANSIBLE_CONFIG"}
    return subprocess.run(
        [str(here / "vllm-fleet"), *words],
        cwd=here,
        env={**outside, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_one_command_runs_every_playbook_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "vllm-fleet").symlink_to(play.ROOT / "bin/vllm-fleet")
    (tmp_path / "hosts.yml").write_text("{vllm: {hosts: {node9: {}}}}")
    listed = fleet(here=tmp_path)
    assert listed.returncode == 0
    named = set(re.findall(r"^  (\S+) +\S", listed.stdout, re.MULTILINE))
    assert named == {path.stem for path in (play.ROOT / "playbooks").glob("*.yml")} - {"rollout"}
    done = fleet("status", "-i", "hosts.yml", "--list-hosts", here=tmp_path)
    assert done.returncode == 0 and "node9" in done.stdout, done.stdout + done.stderr
    nowhere = fleet("status", here=tmp_path)
    assert nowhere.returncode == 2 and "Which fleet? Add -i INVENTORY" in nowhere.stderr
    wrong = fleet("stauts", "-i", "hosts.yml", here=tmp_path)
    assert wrong.returncode == 2
    assert "vllm-fleet has no command stauts; it has" in wrong.stderr


def test_without_the_projects_settings_a_playbook_is_found_and_says_what_to_set(tmp_path: Path) -> None:
    environ = {name: value for name, value in play.environment().items() if name != "ANSIBLE_CONFIG"}
    said = ""
    for playbook, *words in (
        ("deploy.yml", "-i", LOCAL, "--syntax-check"),
        ("playbooks/status.yml", "-i", "localhost,"),
    ):
        command = [play.PLAYBOOK, str(play.ROOT / playbook), *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        said = " ".join((done.stdout + done.stderr).split())
        assert "was not found" not in said
    assert f"Set ANSIBLE_CONFIG={play.ROOT}/ansible.cfg, or use {play.ROOT}/bin/vllm-fleet." in said


def test_a_list_of_a_deployments_parts_names_groups_and_all_tags(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("{vllm: {hosts: {node9: {}}}, gateway: {hosts: {gateway1: {}}}}")
    code, said = run("deploy.yml", "-i", str(tmp_path / "hosts.yml"), "--list-tags")
    assert code == 0, said
    assert "all:!all" not in said
    assert "(vllm): Replace the servers, wave by wave" in said and "(gateway1): Configure the gateways" in said
    assert {"preflight", "prepare", "stage", "rollout", "verify", "watchdog"} <= set(re.findall(r"\w+", said))


COMPLETE = """
set -u; PATH="$1:$PATH"; source <(vllm-fleet completion); shift
COMP_WORDS=(vllm-fleet "$@"); COMP_CWORD=$#; _vllm_fleet; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("st",), {"status"}),
        (("rol",), {"rollback"}),  # rollout.yml is a part of others
        (("deploy", "--ch"), {"--check"}),
        (("deploy", "-i", ""), {"inventory/local", "inventory/mine"}),
        (("deploy", "-i", "inventory/m"), {"inventory/mine"}),
        (("deploy", "--tags", "prepare,st"), {"prepare,stage"}),
        (("logs", "-e", "@va"), set()),
    ],
)
def test_words_are_completed(words: tuple[str, ...], found: set[str], tmp_path: Path) -> None:
    for name in ("local", "mine"):
        (tmp_path / "inventory" / name).mkdir(parents=True)
    command = ["bash", "-c", COMPLETE, "bash", str(play.ROOT / "bin"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True)
    assert set(done.stdout.split()) >= found, done.stderr
    assert (set(done.stdout.split()) == found) or words[-1] == "st"


def test_completion_knows_the_tags() -> None:
    text = (play.ROOT / "bin/completion.bash").read_text()
    callback = (play.ROOT / "callback_plugins/vllm_fleet_start.py").read_text()
    tags = re.findall(r'"(\w+)"', callback.partition("\nTAGS = ")[2].partition("\n")[0])
    assert f"-W '{' '.join(tags)}'" in text
