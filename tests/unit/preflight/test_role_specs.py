# SPDX-License-Identifier: Apache-2.0
"""Variables against the roles' specifications: what somebody has set, all of it at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible.module_utils.vllm_fleet.preflight import role_specs

ROLES = Path(__file__).resolve().parents[3] / "roles"
OPTIONS = {
    "r_port": {"type": "int", "default": 1, "description": "x"},
    "r_mode": {"type": "str", "choices": ["a", "b"], "required": True},
    "r_list": {"type": "list", "elements": "int"},
    "r_key": {"type": "int", "no_log": True},
    "r_deep": {"type": "dict", "options": {"n": {"type": "int"}}},
}


def test_only_what_differs_from_the_roles_own_default_is_looked_at():
    defaults = {"r_port": 1, "r_mode": "{{ other }}"}
    assert role_specs.given(OPTIONS, defaults, {"r_port": 1, "r_mode": "{{ other }}", "foreign": 3}) == []
    assert role_specs.given(OPTIONS, defaults, {"r_port": 2, "r_mode": "a", "r_list": []}) == [
        "r_port",
        "r_mode",
        "r_list",
    ]


@pytest.mark.parametrize(
    ("name", "value", "expected", "got", "remedy"),
    [
        ("r_port", "many", "int", "'many'", "correct the variable"),
        ("r_mode", "c", "one of a, b", "'c'", "correct the variable"),
        ("r_list", ["x"], "list of int", "['x']", "correct the variable"),
        ("r_port", "x" * 90, "int", "'" + "x" * 56 + "...", "correct the variable"),
        ("r_key", "s3cret", "int", "(not shown)", "correct the variable"),
    ],
)
def test_what_is_wrong_is_a_refusal_in_a_line(name, value, expected, got, remedy):
    [one] = role_specs.judge(OPTIONS, {name: value})
    assert (one.level, one.what, one.expected, one.got, one.remedy) == ("refused", name, expected, got, remedy)


def test_inside_a_dictionary_the_place_is_told():
    [one] = role_specs.judge(OPTIONS, {"r_deep": {"n": "x"}})
    assert one.remedy.startswith("correct the variable: ") and "r_deep" in one.remedy and "'n'" in one.remedy


def test_a_text_stands_for_a_list_where_the_role_reads_it():
    """The role gateway reads them, because the command line gives texts."""
    assert role_specs.judge(OPTIONS, {"r_list": "1,2", "r_deep": "n=1"}, words=True) == []
    assert len(role_specs.judge(OPTIONS, {"r_list": "1,2", "r_deep": "n=1"})) == 2


def test_right_values_are_no_findings():
    assert role_specs.judge(OPTIONS, {"r_port": "8", "r_mode": "a", "r_list": [1], "r_deep": {"n": 1}}) == []


@pytest.mark.parametrize("role", role_specs.ROLES)
def test_the_roles_defaults_pass_their_own_specification(role):
    """Where they are no templates."""
    options = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    defaults = yaml.safe_load((ROLES / role / "defaults/main.yml").read_text()) or {}
    values = {n: v for n, v in defaults.items() if n in options and v is not None and "{{" not in str(v)}
    assert len(values) > 2
    assert role_specs.judge(options, values) == []


KNOWN = {
    name
    for role in role_specs.OWN
    for entry in yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"].values()
    for name in entry.get("options") or {}
} | role_specs.ALSO_KNOWN


@pytest.mark.parametrize(
    ("name", "level", "near"),
    [
        ("vllm_server_modell", "refused", "vllm_server_model"),
        ("hf_cache_pth", "refused", "hf_cache_path"),
        ("rollout_wave", "refused", "rollout_waves"),
        ("rollout_min_availble", "refused", "rollout_min_available"),
        ("gateway_prt", "refused", "gateway_port"),
        ("rocm_zzzzzzzzzzzzzzzzz", "refused", "roles/rocm/README.md"),
        ("vllm_sever_port", "refused", "vllm_server_port"),
        ("vllm_servres", "refused", "vllm_servers"),
        ("vllm_server", "refused", "vllm_servers"),
        ("vllm_port", "refused", "vllm_server_port"),
        ("vllm_tag", "refused", "vllm_image_tag"),
        ("hf_tokn", "refused", "hf_token"),
        # A word of a name counts more than letters that happen to be alike.
        ("vllm_server_environment", "refused", "vllm_server_env"),
        ("vllm_server_enable_watchdog", "refused", "vllm_watchdog_enabled"),
        ("vllm_server_num_gpus", "refused", "vllm_server_gpus"),
        ("vllm_server_shmsize", "refused", "vllm_server_shm_size"),
        ("vllm_server_image_tag", "refused", "vllm_image_tag"),
    ],
)
def test_a_name_that_no_role_knows_is_told_with_the_nearest(name, level, near):
    [one] = role_specs.misspelt([name, "vllm_server_model"], KNOWN)
    assert (one.level, one.what) == (level, name)
    assert near in one.remedy.split(";")[0].replace(",", "").split()


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("vllm_server_tensor_parallel_size", "tensor-parallel-size"),
        ("vllm_server_max_model_length", "max-model-len"),
        ("vllm_server_quantization", "quantization"),
    ],
)
def test_a_flag_of_vllm_written_as_a_variable_is_told_where_it_belongs(name, flag):
    [one] = role_specs.misspelt([name], KNOWN)
    assert one.remedy.startswith(f"it is a flag of vLLM: write vllm_server_args: {{{flag}: ...}}; ")


@pytest.mark.parametrize(
    "name",
    [
        *("vllm_server_port", "hf_token", "vllm_fleet_sysfs_root", "hf_cache_home", "docker_engine_become"),
        *("vault_vllm_server_api_key", "my_vllm_server_port", "hf_tokens", "hf_home", "vllm", "gateways"),
        *("ansible_host", "nginx_port", "docker_users", "__vllm_server_own", "vllm_servers", "vllm_node", "plan_gpu"),
    ],
)
def test_known_names_and_those_of_others_pass(name):
    assert role_specs.misspelt([name], KNOWN) == []


def test_a_short_name_that_feeds_the_variable_of_a_role_is_its_owners():
    assert role_specs.misspelt(["vllm_port", "vllm_server_port"], KNOWN) == []


def test_hosts_that_are_not_the_node_are_named():
    [one] = role_specs.misspelt(["gateway_prt"], KNOWN, where="lb1, lb2")
    assert one.got == "none of this name, set for lb1, lb2"


def test_what_a_gateway_reads_is_refused_where_no_gateway_has_it():
    options = yaml.safe_load((ROLES / "gateway/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    assert set(role_specs.OF_SERVERS) < set(options)
    names = {"gateway_keys", "gateway_bind", "gateway_drain_timeout", "vllm_server_model", "gateway_result"}
    found = role_specs.misplaced(names, options, [{"gateway_bind"}, set()])
    assert [(one.level, one.what) for one in found] == [("refused", "gateway_keys")]
    assert "group_vars/gateway/main.yml" in found[0].remedy


def test_the_roles_are_all_there_are_and_so_are_the_facts_that_they_note_down():
    assert set(role_specs.OWN) == {page.parents[1].name for page in ROLES.glob("*/meta/argument_specs.yml")}
    noted = set()
    for file in ROLES.glob("*/tasks/*.yml"):
        text = file.read_text()
        noted |= set(re.findall(r"^ *register: (\w+)$", text, re.MULTILINE))
        for indent, names in re.findall(r"^( *)ansible\.builtin\.set_fact:\n((?:\1  .*\n)+)", text, re.MULTILINE):
            noted |= set(re.findall(rf"^{indent}  (\w+):", names, re.MULTILINE))
    public = {name for name in noted if not name.startswith("__")}
    assert len(public) > 5
    assert public <= KNOWN


def test_a_group_that_is_a_letter_from_one_of_the_project_is_refused_where_that_one_is_empty():
    groups = {"all": ["node1", "gw1"], "vllm": ["node1"], "gateways": ["gw1"], "rack": ["node1"], "ungrouped": []}
    (found,) = role_specs.misnamed(groups)
    assert found.sentence.startswith(
        "group gateways: expected group gateway, found 1 in gateways; rename it to gateway"
    )
    assert role_specs.misnamed({**groups, "gateway": ["gw1"]}) == []
    assert role_specs.misnamed({**groups, "gateways": []}) == []


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ansible_hots", "ansible_host"),
        ("ansible_hosts", "ansible_host"),
        ("ansible_usr", "ansible_user"),
        ("ansible_prot", "ansible_port"),
        ("anisble_host", "ansible_host"),
        ("ansible_conection", "ansible_connection"),
        ("ansible_become_pasword", "ansible_become_password"),
        ("ansible_ssh_privat_key_fiel", "ansible_ssh_private_key_file"),
        ("ansible_python_interpretor", "ansible_python_interpreter"),
    ],
)
def test_a_slip_of_one_of_ansibles_own_variables_of_connections_is_told(name, near):
    [one] = role_specs.misspelt([name], KNOWN)
    assert (one.level, one.what) == ("refused", name) and one.remedy.startswith(f"correct it to {near};")


@pytest.mark.parametrize(
    "name",
    [
        *("ansible_user", "ansible_become", "ansible_ssh_pass", "ansible_hostname", "ansible_user_id", "ansible_os"),
        *("ansible_lsb", "ansible_eth0", "ansible_su_user", "ansible_winrm_port", "ansible_network_os"),
        *("ansible_facts", "ansible_forks", "ansible_ruby_interpreter", "ansible_ssh_key_file", "answer_host"),
    ],
)
def test_ansibles_other_variables_and_facts_pass(name):
    assert role_specs.misspelt([name], KNOWN) == []
