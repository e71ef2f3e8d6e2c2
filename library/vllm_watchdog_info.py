#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what the watchdog of a vLLM server has seen and done."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_watchdog_info
short_description: Read the events of a server's watchdog
version_added: "0.1.0"
description:
  - Reads the events that the watchdog of M(vllm_watchdog) keeps on the node. Changes nothing.
options:
  name:
    description: Name of the server's container.
    type: str
    default: vllm
  state_dir:
    description: Folder on the node where M(vllm_server) and its watchdog keep what they have to remember.
    type: path
    default: /var/lib/vllm-fleet
  since:
    description: How far back, such as V(30m), V(1h) or V(2d).
    type: str
    default: 24h
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
- name: What happened within the last hour?
  become: true
  vllm_watchdog_info:
    since: 1h
"""

RETURN = r"""
events:
  description: The events, oldest first.
  type: list
  elements: dict
  returned: always
  contains:
    at: {type: str, description: When (UTC).}
    server: {type: str, description: Name of the container.}
    kind: {type: str, description: "What, such as C(hung), C(restarted), C(limit), C(back)."}
    why: {type: str, description: "Why, as one sentence."}
    evidence: {type: str, description: "Folder on the node, where there is evidence."}
    class: {type: str, description: "Failure class, where a restart failed."}
    seconds: {type: float, description: "How long it took, or the server was out."}
unreadable:
  description: Lines that are no events.
  type: int
  returned: always
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import names
from ansible.module_utils.vllm_fleet.watchdog import history


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "vllm"},
            "state_dir": {"type": "path", "default": "/var/lib/vllm-fleet"},
            "since": {"type": "str", "default": "24h"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if wrong := names.wrong_container(params["name"]):
        module.fail_json(msg=f"{wrong}. Correct vllm_server_name.")
    folder = Path(params["state_dir"], params["name"], "events")
    lines: list[str] = []
    try:
        after = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - history.seconds(params["since"])))
        for path in (folder / name for name in history.FILES):
            if path.is_file():
                lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    except ValueError as exc:
        module.fail_json(msg=f"since: {exc}")
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or folder} cannot be read ({exc.strerror}): run as root (become: true)")
    found, unreadable = history.events(lines, after)
    module.exit_json(changed=False, events=found, unreadable=unreadable)


if __name__ == "__main__":
    main()
