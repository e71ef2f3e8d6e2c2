#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module node_probe: what several modules of this project would find, in one process."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_probe
short_description: Get the results of several modules at once, without changing anything
description:
  - Runs the read-only part of several modules one after the other in one Python process. It stops at the first module that has something to do.
  - Used by the actions P(preflight_host#action) and P(vllm_server#action), which write O(requests); not meant for playbooks.
options:
  requests:
    description:
      - JSON, a list of C({module, args}).
      - A text. All of it is secret, because options of a module may be secret.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Nothing changes with it or without it.
  diff_mode:
    support: none
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Check whether the engine is right
  node_probe:
    requests: "{{ [{'module': 'docker_engine', 'args': {'state': 'probed'}}] | to_json }}"
"""

RETURN = r"""
probed:
  description: The result of each module, up to the first that has something to do. A module that crashed has C(failed).
  type: list
  elements: dict
  returned: always
"""

import json
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.common.validation import check_type_dict

from ansible.module_utils.vllm_fleet.common.probes import Probe, run_all

# ruff: noqa: PLC0415  each probe imports its packages by itself: a preflight needs no server, a plan no weights


def _preflight_host() -> Probe:
    from ansible.module_utils.vllm_fleet.preflight import node
    from ansible.module_utils.vllm_fleet.preflight.options import SPEC, PreflightOptions

    return Probe(SPEC, lambda params: node.result(PreflightOptions.from_params(params)))


def _docker_engine() -> Probe:
    from ansible.module_utils.vllm_fleet.container import dockerd

    return Probe(dockerd.SPEC, lambda params: dockerd.probe(dockerd.Settings.from_params(params)), ("probed",))


def _vllm_image() -> Probe:
    from ansible.module_utils.vllm_fleet.container import find_image
    from ansible.module_utils.vllm_fleet.container.api import DockerApi

    return Probe(
        find_image.SPEC,
        lambda params: find_image.probe(
            DockerApi(params["socket"]), *find_image.parse(params), resolve=params["resolve"]
        ),
        ("found",),
    )


def _hf_snapshot() -> Probe:
    from ansible.module_utils.vllm_fleet.common.meter import Meter
    from ansible.module_utils.vllm_fleet.weights import snapshot_call

    return Probe(
        snapshot_call.SPEC,
        lambda params: snapshot_call.probe(snapshot_call.parse(params, Meter(), dry=True), params["also"] or ()),
        ("verified",),
    )


def _vllm_server() -> Probe:
    from ansible.module_utils.vllm_fleet.server import lifecycle, options

    def secrets(params: Mapping[str, Any]) -> set[str]:
        return options.secrets(params, check_type_dict)

    def run(params: dict[str, Any]) -> dict[str, Any]:
        if params["replica_step"]:
            raise ValueError("a rank of a replica is probed by vllm_server alone")
        return lifecycle.perform(params, check_mode=True, secrets=secrets(params))

    return Probe(options.SPEC, run, secrets=secrets)


def _vllm_chat() -> Probe:
    from ansible.module_utils.vllm_fleet.vllm import chat, chat_options

    return Probe(
        chat_options.SPEC,
        lambda params: chat.probe(chat_options.build_requests(params), many=bool(params["requests"])),
        secrets=chat_options.secrets,
    )


def _vllm_watchdog() -> Probe:
    from ansible.module_utils.vllm_fleet.watchdog import install

    return Probe(install.SPEC, lambda params: install.perform(params, check_mode=True))


#: What can be probed, by the name of the module whose result it is.
PROBES: dict[str, Callable[[], Probe]] = {
    "preflight_host": _preflight_host,
    "docker_engine": _docker_engine,
    "vllm_image": _vllm_image,
    "hf_snapshot": _hf_snapshot,
    "vllm_server": _vllm_server,
    "vllm_chat": _vllm_chat,
    "vllm_watchdog": _vllm_watchdog,
}


def run(module: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of one module in check mode, without its secrets; whatever it raises is a failed result."""
    hidden: set[str] = set()
    try:
        probe = PROBES[module]()
        hidden |= {*_secrets(probe.spec["argument_spec"], args), *probe.secrets(args)}
        checked = ArgumentSpecValidator(**probe.spec).validate(dict(args))
        params = checked.validated_parameters
        if checked.error_messages:
            result = {"failed": True, "msg": "; ".join(checked.error_messages)}
        elif probe.states and params["state"] not in probe.states:
            result = {"failed": True, "msg": f"{module}: state {params['state']} is no probe"}
        else:
            result = probe.run(params)
    except (Exception, SystemExit) as exc:  # noqa: BLE001  whatever it is, the module's own task finds it, too
        text = f"{module}: {type(exc).__name__}: {exc}"
        result = {"failed": True, "msg": text, "exception": traceback.format_exc()}
    shown: dict[str, Any] = remove_values(result, hidden)
    return shown


def _secrets(spec: Mapping[str, Any], given: Any) -> set[str]:
    """Return the texts of ``given`` that options with no_log have; ``given`` is not checked yet."""
    found = set()
    for one in given if isinstance(given, list) else [given]:
        for name, value in one.items() if isinstance(one, Mapping) else ():
            option = spec.get(name) or {}
            if option.get("no_log") and isinstance(value, str) and value:
                found.add(value)
            found |= _secrets(option.get("options") or {}, value) if option.get("options") else set()
    return found


def main() -> None:
    """Probe for one request after the other."""
    spec = {"requests": {"type": "str", "required": True, "no_log": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    module.exit_json(changed=False, probed=run_all(json.loads(module.params["requests"]), run))


if __name__ == "__main__":
    main()
