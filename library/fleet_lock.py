#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module fleet_lock: the page of the action of that name, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_lock
short_description: Hold a lock on a node for as long as this run lives
description:
  - The lock is a file on the node with one line of JSON that names its holder. A process on the controller renews it, and removes it when
    C(ansible-playbook) has ended, also after an error or SIGKILL.
  - A lock is taken over when its holder is dead (same controller), or has not renewed it for O(lease) seconds (another controller).
  - The task fails if another run holds the lock. A node that cannot be reached gives a warning. The role fails if no node holds the lock.
options:
  path:
    description: The lock's file on the node, as an absolute path.
    type: str
    required: true
  lease:
    description: Seconds after which a lock of another controller counts as left behind. It is renewed four times in that time.
    type: float
    default: 120
  state:
    description:
      - With V(held) the lock is taken. With V(kept) it is only asked whether this run still has it. The task then fails if another run has it;
        RV(held) is false if the lock is gone, or the node cannot be asked.
    type: str
    choices: [held, kept]
    default: held
  takeover:
    description: Whether to take the lock from any holder. Only for a holder that you know to be dead.
    type: bool
    default: false
attributes:
  action:
    support: full
    description: Runs on the controller; the node needs a shell and C(flock), and no Python.
  check_mode:
    support: full
    description: Does not take the lock.
  diff_mode:
    support: none
    description: A lock is no change.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Hold the fleet for this run
  become: true
  fleet_lock:
    path: /run/vllm-fleet/lock
"""

RETURN = r"""
held:
  description: Whether this run holds the lock on this node.
  type: bool
  returned: always
why:
  description: Why this node does not hold it; empty when it does.
  type: str
  returned: always
holder:
  description: The other run that holds it (user, host, pid, since, from, limit).
  type: dict
  returned: when another run holds it
"""
