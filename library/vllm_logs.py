#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the last lines of a vLLM server's log."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_logs
short_description: Read the last lines of a vLLM server's log
version_added: "0.1.0"
description:
  - Reads the log that Docker keeps of the server's container, by time and by class of line. Changes nothing.
  - Secrets are taken out, those that the container has and those that show by their shape, and what a terminal would obey.
  - The action plugin of the same name shows new lines until it is interrupted, with O(follow).
options:
  name:
    description: Name of the server's container.
    type: str
    default: vllm
  lines:
    description: At most so many lines, the newest. No more than 10000.
    type: int
    default: 50
  since:
    description: How far back, such as V(30m), V(1h) or V(2d). Without it as far as there are O(lines).
    type: str
    default: ""
  level:
    description: Only lines of this class and of those above it. A traceback belongs to its error.
    type: str
    choices: [debug, info, warning, error]
    default: debug
  follow:
    description: Wait for new lines. Without the action plugin of the same name for at most O(wait) seconds.
    type: bool
    default: false
  after:
    description: RV(newest) of an earlier call, for O(follow).
    type: str
    default: ""
  wait:
    description: Seconds that a call with O(follow) and O(after) waits for new lines.
    type: float
    default: 20
attributes:
  check_mode:
    support: full
    description: Changes nothing anyway.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: Never changed.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: What went wrong within the last hour?
  become: true
  vllm_logs:
    since: 1h
    level: error
    lines: 1000
"""

RETURN = r"""
lines:
  description: The lines, oldest first, each a list of its time (UTC), its class and its text.
  type: list
  elements: list
  returned: success
left_out:
  description: Lines of the class and the time asked for that are not among RV(lines), because there are newer ones.
  type: int
  returned: success
newest:
  description: Time stamp of the newest line, whatever its class.
  type: str
  returned: success
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import names
from ansible.module_utils.vllm_fleet.container import api, inspected, log_lines
from ansible.module_utils.vllm_fleet.watchdog import history


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "vllm"},
            "lines": {"type": "int", "default": 50},
            "since": {"type": "str", "default": ""},
            "level": {"type": "str", "choices": ["debug", "info", "warning", "error"], "default": "debug"},
            "follow": {"type": "bool", "default": False},
            "after": {"type": "str", "default": ""},
            "wait": {"type": "float", "default": 20.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    name = params["name"]
    if wrong := names.wrong_container(name):
        module.fail_json(msg=f"{wrong}. Correct vllm_server_name.")
    if params["lines"] < 1:
        module.fail_json(msg=f"logs_lines is {params['lines']}; expected a number of lines from 1.")
    try:
        since = time.time() - history.seconds(params["since"]) if params["since"] else 0.0
        container = api.DockerApi().container(name)
        if container is None:
            module.fail_json(msg=f"there is no container {name} on the node; deploy.yml makes it")
        wanted = log_lines.Wanted(params["lines"], params["level"], params["after"], inspected.secrets_of(container))
        if params["follow"] and params["after"]:
            found = log_lines.follow(name, wanted, params["wait"])
        else:
            found = log_lines.read(name, wanted, since)
    except ValueError as exc:
        module.fail_json(msg=f"logs_since: {exc}")
    except (api.DockerUnavailable, api.DockerRefused) as exc:
        module.fail_json(msg=f"the log of container {name} cannot be read: {exc}")
    module.exit_json(changed=False, lines=list(found.lines), left_out=found.left_out, newest=found.newest)


if __name__ == "__main__":
    main()
