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
from ..common.finding import Finding
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

#: Lists of which a single one needs no brackets.
_ONE = ("rollout_waves",)

#: Groups of an inventory that may be absent: nothing else says that one was meant.
GROUPS = ("gateway", "monitoring")
#: How much a name must resemble a known one to be taken for it where it begins with no role's prefix: 1 is the same.
ALIKE = 0.9


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
        role = next((role for prefix, role in prefixes.items() if name.startswith(prefix)), "")
        if role:
            near = _nearest(name, known)
            correct = f"correct it to {near}" if near else f"see roles/{role}/README.md"
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


def _nearest(name: str, known: Iterable[str], alike: float = 0.6) -> str:
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


def _expected(option: Mapping[str, Any]) -> str:
    if option.get("choices"):
        return "one of " + ", ".join(str(one) for one in option["choices"])
    kind = str(option.get("type", "str"))
    return f"{kind} of {option['elements']}" if option.get("elements") else kind


def _short(value: Any) -> str:
    text = secrets.scrub(" ".join(repr(value).split()), secrets.values_in(value))
    return text if len(text) <= 60 else text[:57] + "..."
