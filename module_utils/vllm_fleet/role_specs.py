"""A host's variables against the specifications of the roles (meta/argument_specs.yml), all at once.

Ansible does this too, in a task for each role on each host, and ends at the first that is wrong. The judge is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator  # type: ignore[import-untyped]  # Ansible has no types

from ansible.module_utils.vllm_fleet.findings import Finding

#: The roles of a deployment whose variables are the user's.
ROLES = ("preflight", "fleet_lock", "docker_engine", "rocm", "vllm_image", "hf_cache", "vllm_server", "rollout")


def given(options: Mapping[str, Any], defaults: Mapping[str, Any], variables: Mapping[str, Any]) -> list[str]:
    """Name the options that somebody has set to something else than the role's own default, untemplated as it is."""
    return [name for name in options if name in variables and variables[name] != defaults.get(name, options)]


def judge(options: Mapping[str, Any], values: Mapping[str, Any]) -> list[Finding]:
    """Judge ``values``, variables by name, against ``options``, the specification's entries by the same names."""
    found = []
    for name, value in values.items():
        option = {key: entry for key, entry in options[name].items() if key not in ("description", "default")}
        told = ArgumentSpecValidator({name: {**option, "required": False}}).validate({name: value})
        if told.error_messages:
            got = "(not shown)" if option.get("no_log") else _short(value)
            # What is wrong inside a dictionary, the sentence alone tells.
            inside = option.get("options") and not option.get("no_log")
            why = f": {' '.join(str(told.error_messages[0]).split())[:200]}" if inside else ""
            found.append(Finding("refused", name, _expected(option), got, f"correct the variable{why}"))
    return found


def _expected(option: Mapping[str, Any]) -> str:
    if option.get("choices"):
        return "one of " + ", ".join(str(one) for one in option["choices"])
    kind = str(option.get("type", "str"))
    return f"{kind} of {option['elements']}" if option.get("elements") else kind


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
