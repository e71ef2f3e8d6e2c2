#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the watchdog of a vLLM server as a systemd unit."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_watchdog
short_description: Have a watchdog beside a vLLM server, or none
version_added: "0.1.0"
description:
  - Installs the watchdog's program, its systemd unit and the settings of one server, and starts it. The server is never touched.
  - The program belongs to all servers of a node. It is replaced while their watchdogs are stopped, and they are started again.
  - A change of settings alone restarts nothing. The program itself checks them before they are put in place.
  - The action plugin of the same name makes the program on the controller, and sends it where a node has another one.
  - On a node without systemd it does nothing, and says so.
options:
  name:
    description: Name of the server's container.
    type: str
    default: vllm
  state:
    description:
      - V(present) has the watchdog installed, enabled and running.
      - V(absent) removes it. The program and the unit go with the last server of the node. Events stay.
    type: str
    choices: [present, absent]
    default: present
  settings:
    description: What the watchdog is to do, see roles/vllm_watchdog. There is no key in it. Required for O(state=present).
    type: dict
  program:
    description: SHA-256 of the program, 64 hexadecimal digits. The action plugin gives it. Required for O(state=present).
    type: str
  source:
    description: The program on the node, where it was sent to. The action plugin gives it.
    type: path
attributes:
  check_mode:
    support: full
    description: Predicts the differences exactly.
  diff_mode:
    support: full
    description: Shows only what differs.
  idempotent:
    support: full
    description: Changed only where something differed.
requirements:
  - systemd
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Take the watchdog away
  vllm_watchdog:
    name: vllm
    state: absent
"""

RETURN = r"""
differences:
  description: What was not as wanted.
  type: list
  elements: dict
  returned: always
  contains:
    name: {type: str, description: "C(program), C(unit), C(settings.silence) and the like, C(enabled), C(state)."}
    current: {type: raw, description: What the node had.}
    desired: {type: raw, description: What it should have.}
systemd:
  description: Whether the node has systemd. Without it there is no watchdog.
  type: bool
  returned: always
needs_program:
  description: Whether nothing was done because the node has another program, and O(source) was not given.
  type: bool
  returned: when the node has systemd
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.watchdog.install import SPEC, perform


def main() -> None:
    """Run the module."""
    module = AnsibleModule(**SPEC, supports_check_mode=True)
    result = perform(module.params, check_mode=module.check_mode)
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
