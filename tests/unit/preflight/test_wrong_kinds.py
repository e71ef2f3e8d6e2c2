# SPDX-License-Identifier: Apache-2.0
"""A variable of another kind than its role's specification asks for is a finding that names it, and no error of Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play import Play
from ansible.plugins.loader import filter_loader, lookup_loader
from ansible.template import Templar
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from action_plugins import preflight_host
from ansible.module_utils.vllm_fleet.preflight import role_specs
from ansible.module_utils.vllm_fleet.preflight.options import SPEC

ROOT = Path(__file__).resolve().parents[3]

#: Of each kind what is none. Ansible takes some of them: it makes a dictionary of FOO=1, and a list of a text.
WRONG = {
    "dict": ("FOO=1", ["A=1"], 5, None),
    "list": ("a,b", {"a": 1}, None),
    "int": ("eight thousand", [1], True, None),
    "float": ("eight thousand", [1], True, None),
    "bool": ("perhaps", None),
    "str": (None,),
    "path": (None,),
}
#: A single wave needs no brackets, and rollout/waves.py says what is none.
FINE = [("rollout_waves", "a,b"), ("rollout_waves", 5), ("rollout_waves", None)]
PYTHON = (
    "object has no",
    "invalid literal",
    "Error",
    "not iterable",
    "NoneType",
    "Task failed",
    "_Ansible",
    "object is",
)


SPECIFIED: dict[str, dict[str, Any]] = {}
DEFAULTS: dict[str, Any] = {}
for _role in role_specs.ROLES:
    _page = yaml.safe_load((ROOT / "roles" / _role / "meta/argument_specs.yml").read_text())
    SPECIFIED |= _page["argument_specs"]["main"]["options"]
    DEFAULTS |= yaml.safe_load((ROOT / "roles" / _role / "defaults/main.yml").read_text())

OF_KIND = {kind: [name for name, one in SPECIFIED.items() if one.get("type", "str") == kind] for kind in WRONG}


def cases(kind: str) -> Iterator[tuple[str, Any]]:
    for name in OF_KIND.get(kind, ()):
        for wrong in WRONG[kind]:
            # An empty value is none where the role has none of its own.
            if (name, wrong) not in FINE and not (wrong is None and DEFAULTS.get(name) in (None, "")):
                yield name, wrong


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An inventory of two servers with watchdogs and a gateway, and what the roles define."""
    folder = tmp_path_factory.mktemp("kinds")
    described = {
        "vllm": {
            "hosts": {"node1": {}, "node2": {}},
            "vars": {"vllm_server_model": "acme/tiny", "vllm_image_tag": "v1", "vllm_watchdog_enabled": True},
        },
        "gateway": {"hosts": {"gw1": {"gateway_takes_part": True, "gateway_bind": "127.0.0.1"}}},
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump(described))
    filter_loader.add_directory(str(ROOT / "filter_plugins"))
    lookup_loader.add_directory(str(ROOT / "lookup_plugins"))
    loader = DataLoader()
    of_roles: dict[str, Any] = {}
    for role in role_specs.ROLES:
        for kind in ("defaults", "vars"):
            file = ROOT / "roles" / role / kind / "main.yml"
            of_roles |= (loader.load_from_file(str(file), trusted_as_template=True) or {}) if file.is_file() else {}
    inventory = InventoryManager(loader=loader, sources=[str(folder / "hosts.yml")])
    return SimpleNamespace(loader=loader, inventory=inventory, of_roles=of_roles)


def looked(ground: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, **given: Any) -> dict[str, Any]:
    """Return the result of preflight_host for the first node, whose shell and module answer at once."""
    inventory = ground.inventory
    for host in ("node1", "node2"):
        inventory.get_host(host).vars = given
    manager = VariableManager(loader=ground.loader, inventory=inventory)
    hostvars = HostVars(inventory=inventory, variable_manager=manager, loader=ground.loader)
    play = Play.load({"hosts": "vllm", "gather_facts": False}, variable_manager=manager, loader=ground.loader)
    own = manager.get_vars(play=play, host=inventory.get_host("node1"))
    variables = {**ground.of_roles, **own, "ansible_play_hosts_all": ["node1", "node2"]}
    variables |= {"role_path": str(ROOT / "roles/preflight"), "hostvars": hostvars}
    told = "uid=0\nuser=root\nhome=/root\npython=3.11.2\npci=0x74a1\n"

    def module(self: Any, module_name: str, module_args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        asked = module_args.get("first", module_args)
        checked = ArgumentSpecValidator(**SPEC).validate(asked.get("args", asked))
        return {"failed": True, "msg": checked.error_messages[0]} if checked.error_messages else {"findings": []}

    monkeypatch.setattr(preflight_host.ActionModule, "_execute_module", module)
    monkeypatch.setattr(
        preflight_host.ActionModule, "_low_level_execute_command", lambda *_, **__: {"stdout": told, "stderr": ""}
    )
    connection = SimpleNamespace(become=None, set_become_plugin=lambda _: None, get_option={}.__getitem__)
    connection._shell = SimpleNamespace(tmpdir=None)
    task = SimpleNamespace(args={"of_role": True}, async_val=0, action="preflight_host", check_mode=False, diff=False)
    action = preflight_host.ActionModule(task, connection, None, ground.loader, Templar(ground.loader, variables), None)
    return action.run(task_vars=variables)


#: Variables that are wrong in one look: some three hundred looks of one each took half a minute.
AT_ONCE = 12


@pytest.mark.parametrize("kind", ["right", *WRONG])
def test_a_value_of_another_kind_is_one_finding_that_names_the_variable(ground, monkeypatch, kind):
    """Of each wrong value one finding, whatever else is wrong: variables with the same kind of wrong value look together."""
    if kind == "right":
        assert looked(ground, monkeypatch)["refusals"] == []
    turns: dict[str, list[tuple[str, Any]]] = {}
    for name, wrong in cases(kind):
        turns.setdefault(repr(wrong), []).append((name, wrong))
    for turn in turns.values():
        for begin in range(0, len(turn), AT_ONCE):
            given = dict(turn[begin : begin + AT_ONCE])
            said = looked(ground, monkeypatch, **given)["refusals"]
            assert sorted(one.partition(": expected ")[0] for one in said) == sorted(given), said
            assert not any(word in one for word in PYTHON for one in said), said


@pytest.mark.parametrize(
    ("name", "wrong", "expected", "got"),
    [
        ("vllm_server_port", "eight thousand", "1 to 65535", "eight thousand"),
        ("vllm_server_args", "--max-model-len 512", "a mapping of flags", "a text of 19 characters (not shown)"),
        ("vllm_server_args", ["--max-model-len", 512], "a mapping of flags", "a list of 2 (not shown)"),
        ("vllm_server_env", "FOO=1", "dict", "a text of 5 characters (not shown)"),
        ("vllm_server_env", 5, "dict", "a number"),
        ("vllm_server_name", ["a"], "str", "['a']"),
        ("vllm_server_groups", "video", "list of str", "'video'"),
        ("vllm_server_stop_timeout", True, "int", "True"),
        ("preflight_gpus", None, "int", "nothing"),
    ],
)
def test_the_finding_says_what_was_expected_and_what_was_found(ground, monkeypatch, name, wrong, expected, got):
    [one] = looked(ground, monkeypatch, **{name: wrong})["refusals"]
    assert one.startswith(f"{name}: expected {expected}, found {got}; ")
