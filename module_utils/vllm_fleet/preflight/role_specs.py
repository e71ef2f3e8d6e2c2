# SPDX-License-Identifier: Apache-2.0
"""A host's variables against the specifications of the roles (meta/argument_specs.yml), all at once.

Ansible does this too, in a task for each role on each host, and ends at the first that is wrong. The judge is its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ..common import secrets
from ..common.alike import edits, nearest
from ..common.finding import Finding
from . import flags
from .servers import OF_SERVERS

#: The roles of a deployment whose variables are the user's.
ROLES = (
    *("preflight", "fleet_lock", "docker_engine", "rocm", "vllm_image", "hf_cache", "vllm_server", "rollout"),
    "vllm_watchdog",
)

#: All roles of this project. Beside them may lie somebody else's.
OWN = (
    *(*ROLES, "apt_keyring", "benchmark", "burnin", "gateway", "maintenance", "monitoring"),
    *("repair", "restart", "rollback", "status", "teardown"),
)

#: Right names that stand in no specification: those that several roles or the inventory plugin read, and what roles
#: note down for later tasks.
ALSO_KNOWN = frozenset(
    {
        "hf_token",
        "vllm_fleet_sysfs_root",
        "vllm_node",
        "vllm_server_slo",
        "vllm_servers",
        "deploy_done",
        "fleet_lock_held",
        "deploy_stage",
        "deploy_steps",
        "docker_engine_become",
        "docker_engine_result",
        "gateway_closed",
        "gateway_forgets",
        "gateway_look",
        "gateway_ready",
        "gateway_keeps",
        "gateway_result",
        "gateway_status",
        "gateway_takes_part",
        "maintenance_ends",
        "maintenance_says",
        "hf_cache_commit",
        "hf_cache_folder",
        "hf_cache_pending",
        "hf_cache_prewarmed",
        "hf_cache_result",
        "monitoring_certificate_found",
        "monitoring_remove",
        "preflight_gpu_found",
        "preflight_result",
        "repair_after_result",
        "repair_plan",
        "repair_probe",
        "repair_reasons",
        "restart_asked",
        "repair_reset_result",
        "repair_stopped",
        "rocm_reboot_required",
        "rocm_booted_driver",
        "rocm_stop_result",
        "rollout_left_out",
        "rollout_figures",
        "rollout_outcome",
        "rollout_reached",
        "rollout_soaked",
        "rollout_undo",
        "rollout_undo_problem",
        "rollback_says",
        "teardown_says",
        "preflight_report_result",
        "rollout_plan",
        "vllm_image_id",
        "vllm_image_ref",
        "vllm_image_rocm",
        "vllm_image_result",
        "vllm_server_repair",
        "vllm_server_restore_result",
        "vllm_server_result",
        "vllm_watchdog_result",
    }
)

#: By which Ansible reaches a host: constants.py (MAGIC_VARIABLE_MAPPING) and the pages of the plugins ssh, sudo and sh
#: of ansible-core 2.19. With a letter too many each of them is passed over without a word.
_OF_CONNECTIONS = frozenset(
    f"ansible_{name}"
    for name in (
        *("host", "port", "user", "password", "connection", "timeout", "pipelining", "private_key_file"),
        *("private_key", "private_key_passphrase", "host_key_checking", "control_path", "control_path_dir"),
        *("become", "become_user", "become_method", "become_password", "become_pass", "become_exe", "become_flags"),
        *("python_interpreter", "shell_type", "shell_executable", "remote_tmp", "async_dir", "system_tmpdirs"),
        *("ssh_host", "ssh_port", "ssh_user", "ssh_pass", "ssh_password", "ssh_args", "ssh_common_args"),
        *("ssh_extra_args", "ssh_executable", "ssh_private_key_file", "ssh_private_key", "ssh_pipelining"),
        *(
            "ssh_timeout",
            "ssh_retries",
            "ssh_host_key_checking",
            "ssh_transfer_method",
            "ssh_use_tty",
            "ssh_private_key_passphrase",
        ),
        *("scp_extra_args", "sftp_extra_args", "scp_executable", "sftp_executable", "sftp_batch_mode"),
    )
)
#: Names and beginnings of others of Ansible's own, some of which are near to one of these.
_OF_ANSIBLE = frozenset(
    f"ansible_{name}"
    for name in (
        *("check_mode", "collection_name", "config_file", "dependent_role_names", "diff_mode", "facts", "forks"),
        *("inventory_sources", "limit", "play_batch", "play_hosts", "play_hosts_all", "play_name", "play_role_names"),
        *("playbook_python", "role_name", "role_names", "run_tags", "skip_tags", "verbosity", "version"),
        *("async_path", "connection_user", "module_compression", "rsync_path", "local"),
        "shell_allow_world_readable_temp",
    )
)
_OTHERS_OF_ANSIBLE = tuple(
    f"ansible_{name}_" for name in ("su", "sudo", "doas", "runas", "paramiko", "psrp", "winrm", "docker", "network")
)

#: Lists of which a single one needs no brackets.
_ONE = ("rollout_waves",)

#: Groups of an inventory that may be absent: nothing else says that one was meant.
GROUPS = ("gateway", "monitoring")
#: How much a name must resemble a known one to be taken for it where it begins with no role's prefix: 1 is the same.
ALIKE = 0.9
#: Slips with which a word of so many letters or more is still known.
_SLIPS, _LONG = 2, 7


def given(options: Mapping[str, Any], defaults: Mapping[str, Any], variables: Mapping[str, Any]) -> list[str]:
    """Return the options that are set to something else than the role's own default, untemplated as it is."""
    return [name for name in options if name in variables and variables[name] != defaults.get(name, options)]


def judge(options: Mapping[str, Any], values: Mapping[str, Any], *, words: bool = False) -> list[Finding]:
    """Return the findings on ``values``, variables by name, against ``options``, the specification's entries.

    ``words``: the role reads a list or a dictionary out of a text. Others take only what is one.
    """
    found = []
    for name, value in values.items():
        option = {key: entry for key, entry in options[name].items() if key not in ("description", "default")}
        odd = name not in _ONE and (
            _lacks(options[name]) if value is None else not words and _odd(options[name], value)
        )
        # In another form than the specified one its secrets cannot be told by their names.
        formless = option.get("type") == "dict" and not isinstance(value, Mapping)
        # Ansible looks for the options inside also where there is no inside.
        checked = {key: entry for key, entry in option.items() if key != "options" or not formless}
        result = ArgumentSpecValidator({name: {**checked, "required": False}}).validate({name: value})
        if result.error_messages or odd:
            got = "(not shown)" if option.get("no_log") else secrets.kind(value) if formless else _short(value)
            got = "nothing" if value is None else got
            # Only the sentence names what is wrong inside a dictionary.
            inside = option.get("options") and not option.get("no_log")
            why = ""
            if inside and not formless and result.error_messages:
                said = " ".join(str(result.error_messages[0]).split())
                why = f": {secrets.scrub_words(said, secrets.values_in(value))[:200]}"
            remedy = "give one, or take the variable out" if value is None else f"correct the variable{why}"
            found.append(Finding("refused", name, _expected(option), got, remedy))
    return found


def _lacks(option: Mapping[str, Any]) -> bool:
    """Return whether no value is none for an option: its role has one of its own, which an empty line takes away."""
    return option.get("default") not in (None, "")


def _odd(option: Mapping[str, Any], value: Any) -> bool:
    """Return whether a value is of another kind that Ansible makes fit (`A=1` a dictionary) and a role does not."""
    kind = str(option.get("type", "str"))
    if kind == "dict":
        return not isinstance(value, Mapping)
    if kind == "list":
        return not isinstance(value, (list, tuple))
    if kind in ("int", "float"):
        return isinstance(value, bool)
    return kind in ("str", "path") and isinstance(value, (Mapping, list, tuple))


def misspelt(names: Iterable[str], known: Collection[str], where: str = "") -> list[Finding]:
    """Judge names of variables that somebody has set: one with a role's prefix that no role knows is refused.

    ``known`` are the options of all roles and :data:`ALSO_KNOWN`. A name without such a prefix is somebody else's,
    unless it is a letter from a known one (``vllm_sever_port``). ``where`` names the hosts that have the variables,
    where they are not the node itself.
    """
    prefixes = {f"{role}_": role for role in OWN}
    got = f"none of this name{', set for ' + where if where else ''}"
    found, given = [], set(names)
    for name in sorted(given - set(known)):
        if name.startswith("an") and (near := _of_a_connection(name)):
            remedy = f"correct it to {near}; if it is your own, rename it or add it to preflight_accept"
            found.append(Finding("refused", name, "a variable of Ansible's connections", got, remedy))
            continue
        role = next((role for prefix, role in prefixes.items() if name.startswith(prefix)), "")
        if role:
            correct = _meant(name, role, known)
            remedy = f"{correct}; if it is your own, rename it or add it to preflight_accept"
            found.append(Finding("refused", name, f"a variable of the role {role}", got, remedy))
        elif near := _slip(name, known) or _without_a_word(name, known, given):
            remedy = f"correct it to {near}; if it is your own, rename it or add it to preflight_accept"
            found.append(Finding("refused", name, "a variable of a role", got, remedy))
    return found


def misnamed(groups: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Judge names of groups that have hosts: one a letter from a group of this project that has none is refused.

    A fleet whose gateways are unknown would have its servers replaced without a drain.
    """
    found = []
    for name in sorted(one for one, hosts in groups.items() if hosts and one not in GROUPS):
        near = _nearest(name, [one for one in GROUPS if not groups.get(one)], ALIKE)
        if near:
            remedy = f"rename it to {near}; another group of a name so near would be taken for it by people, too"
            found.append(Finding("refused", f"group {name}", f"group {near}", f"{len(groups[name])} in {name}", remedy))
    return found


def misplaced(names: Iterable[str], options: Collection[str], gateways: Collection[Collection[str]]) -> list[Finding]:
    """Judge variables of gateways that a node has and no gateway: they change nothing, and a key or a limit seems set.

    ``names`` are the node's, ``options`` those of the role gateway, ``gateways`` the names that each gateway has.
    """
    return [
        Finding(
            "refused",
            name,
            "a value for group gateway",
            "set for group vllm alone, where it changes nothing",
            "move it to group_vars/gateway/main.yml, or to group_vars/all/main.yml; the same goes for its vault",
        )
        for name in sorted(set(names).intersection(options).difference(OF_SERVERS).difference(*gateways))
    ]


def _meant(name: str, role: str, known: Collection[str]) -> str:
    """Say what to write for a name that no role knows: a known one, a flag of vLLM, or where the known ones stand."""
    if flag := flags.written_as_variable(name):
        return f"it is a flag of vLLM: write vllm_server_args: {{{flag}: ...}}"
    near = nearest(name, known, common=role.split("_"))
    return f"correct it to {near}" if near else f"see roles/{role}/README.md"


def _nearest(name: str, known: Iterable[str], alike: float) -> str:
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=alike)), "")


def _without_a_word(name: str, known: Collection[str], names: Collection[str]) -> str:
    """Name the known variable of which ``name`` lacks a word of the prefix (``vllm_port``), and which nobody has set.

    Whoever has set that one, too, may feed it from a variable of their own.
    """
    if not name.startswith("vllm_"):
        return ""
    meant = {name.replace("vllm_", f"vllm_{part}_", 1) for part in ("server", "image")}.intersection(known)
    return "" if meant.intersection(names) else min(meant, default="")


def _slip(name: str, known: Iterable[str]) -> str:
    """Name the known variable that is meant; "" where ``name`` adds something to a known name, as owners of both do."""
    near = _nearest(name, [one for one in known if one[:2] == name[:2]], ALIKE)
    return "" if near in name else near


def _of_a_connection(name: str) -> str:
    """Name the variable of Ansible's connections that is meant; "" where it is one, or is a slip of none of them."""
    if name in _OF_CONNECTIONS or name in _OF_ANSIBLE or name.startswith(_OTHERS_OF_ANSIBLE):
        return ""
    far = {one: edits(name, one) for one in sorted(_OF_CONNECTIONS) if abs(len(one) - len(name)) <= _SLIPS}
    near = min(far, key=far.__getitem__, default="")
    # Of a short word little is left beside two slips.
    most = 1 if len(near.removeprefix("ansible_")) < _LONG else _SLIPS
    return near if near and far[near] <= most else ""


def _expected(option: Mapping[str, Any]) -> str:
    if option.get("choices"):
        return "one of " + ", ".join(str(one) for one in option["choices"])
    kind = str(option.get("type", "str"))
    return f"{kind} of {option['elements']}" if option.get("elements") else kind


def _short(value: Any) -> str:
    text = secrets.scrub(" ".join(repr(value).split()), secrets.values_in(value))
    return text if len(text) <= 60 else text[:57] + "..."
