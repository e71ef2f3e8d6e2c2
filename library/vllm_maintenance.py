#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the note on a node that a server is stopped for maintenance."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_maintenance
short_description: Note on a node that its server is in maintenance, so that later runs leave it out
version_added: "0.1.0"
description:
  - Writes or removes a file beside the records of M(vllm_server). It outlives a boot, and every run from any controller sees it.
  - The server itself is not touched. Used by the role C(maintenance), which drains and stops it.
options:
  name:
    description: Name of the server's container.
    type: str
    default: vllm
  state:
    description:
      - V(present) has the note. One that is there stays as it is.
      - V(absent) has none.
    type: str
    choices: [present, absent]
    default: present
  by:
    description: Who stops the server, for those who meet the note.
    type: str
    default: ""
  why:
    description: Why, likewise.
    type: str
    default: ""
  state_dir:
    description: Folder on the node where M(vllm_server) keeps its records.
    type: path
    default: /var/lib/vllm-fleet
attributes:
  check_mode:
    support: full
    description: Predicts the change exactly.
  diff_mode:
    support: full
    description: Shows the note.
  idempotent:
    support: full
    description: A second call changes nothing.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Ensure later runs leave the server out
  vllm_maintenance:
    by: ada
    why: new DIMM
"""

RETURN = r"""
says:
  description: What the note says now, as the end of a sentence. Empty without a note.
  type: str
  returned: success
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import maintenance, names


def main() -> None:
    """Write or remove the note."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "vllm"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "by": {"type": "str", "default": ""},
            "why": {"type": "str", "default": ""},
            "state_dir": {"type": "path", "default": "/var/lib/vllm-fleet"},
        },
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params
    if wrong := names.wrong_container(given["name"]):
        module.fail_json(msg=f"{wrong}. Correct vllm_server_name; nothing was touched.")
    place = (given["state_dir"], given["name"])
    before = maintenance.look(*place)
    try:
        if given["state"] == "present":
            since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            note = {"since": since, "by": given["by"], "why": given["why"]}
            changed = maintenance.begin(*place, note, check_mode=module.check_mode)
            says = maintenance.words(note) if changed else before
        else:
            changed, says = maintenance.end(*place, check_mode=module.check_mode), ""
    except OSError as error:
        module.fail_json(
            msg=f"the note {maintenance.path(*place)} cannot be written or removed ({error.strerror or error}); "
            "see to that folder, then run again"
        )
    diff = {"before": f"in maintenance{before}\n" if before else "", "after": f"in maintenance{says}\n" if says else ""}
    module.exit_json(changed=changed, says=says, diff=diff if changed else {"before": "", "after": ""})


if __name__ == "__main__":
    main()
