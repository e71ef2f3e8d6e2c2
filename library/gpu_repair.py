#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what a repair of a node's GPUs finds there, does and notes."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_repair
short_description: Find out whether a node's GPUs need a repair, reset them, and note the repair
version_added: "0.1.0"
description:
  - Part of the role C(repair), which drains and stops the server first and verifies it afterwards.
  - Reads the driver's counters and the kernel's log as the watchdog of M(vllm_watchdog) does, and what that one says. A node needs no watchdog.
  - With V(begun) a file beside the server's records names the GPUs that have to be there again. It survives a boot and is there until V(ended).
options:
  name:
    description: Name of the server's container.
    type: str
    default: vllm
  state:
    description:
      - V(probed) looks, and changes nothing.
      - V(reset) resets all GPUs of the node at once, because they are linked, and looks again. Nothing may use them.
      - V(begun), V(ended) and V(failed) write an event, C(repair), C(repaired) or C(repair_failed).
    type: str
    choices: [probed, begun, reset, ended, failed]
    default: probed
  why:
    description: What the event says.
    type: str
    default: ""
  state_dir:
    description: Folder on the node where M(vllm_server) and its watchdog keep what they have to remember.
    type: path
    default: /var/lib/vllm-fleet
  sysfs_root:
    description: Directory that stands for C(/sys). With another one no program of ROCm is called.
    type: path
    default: /sys
  kernel_log:
    description: File that stands for the kernel's log.
    type: path
    default: /dev/kmsg
  reset_command:
    description: Command that resets the GPUs, instead of C(amd-smi) or C(rocm-smi).
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Looks, and neither resets nor writes.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: none
    description: Each event and each reset is one more.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Does the node need a repair?
  become: true
  gpu_repair:
  register: found
"""

RETURN = r"""
reasons:
  description: Why the node needs a repair, each a sentence without its end; empty where it needs none.
  type: list
  elements: str
  returned: for V(probed) and V(reset)
sick:
  description: Whether a GPU is sick. Without it the reason is a repair that did not come to its end.
  type: bool
  returned: for V(probed) and V(reset)
maintenance:
  description: Since when and why the server is in maintenance, see RV(vllm_server#module:maintenance).
  type: str
  returned: for V(probed) and V(reset)
gpus:
  description: PCI addresses of the GPUs that the node should have.
  type: list
  elements: str
  returned: for V(probed) and V(reset)
tries:
  description: Repairs of the last 24 hours.
  type: int
  returned: for V(probed) and V(reset)
reset:
  description: Command that would reset the GPUs, empty where there is none.
  type: str
  returned: for V(probed) and V(reset)
failed_reset:
  description: What was wrong with the reset, empty where nothing was.
  type: str
  returned: for V(reset)
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.watchdog.repair import ARGUMENTS, perform


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = perform(module.params, check_mode=module.check_mode)
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or 'the node'}: {exc.strerror or exc}: run as root (become: true)")
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
