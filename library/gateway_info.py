#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What a gateway is doing: HAProxy, its files, the servers behind it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_info
short_description: Ask a gateway about itself and the servers behind it
version_added: "0.1.0"
description:
  - Asks HAProxy's runtime socket for its servers, and compares files with what they should hold.
  - This module does not modify state.
options:
  socket:
    description:
      - HAProxy's runtime socket.
    type: path
    required: true
  program:
    description:
      - HAProxy's program, to check whether it is installed.
    type: path
    default: /usr/sbin/haproxy
  files:
    description:
      - Files by path, and the SHA-256 that each should have, as 64 hexadecimal digits.
      - Not shown in any output, as the sums may be made from secrets.
    type: dict
    default: {}
  maps:
    description:
      - Those of O(files) that are maps. They also count as differing where the running HAProxy has something else.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
    description: Nothing is changed in either mode.
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
- name: Ask the gateway for its servers
  gateway_info:
    socket: /run/haproxy/vllm-fleet.sock
  register: gateway
"""

RETURN = r"""
installed:
  description: Whether the program is there.
  returned: always
  type: bool
running:
  description: Whether HAProxy answers on the socket.
  returned: always
  type: bool
reason:
  description: Why it does not answer.
  returned: when not running
  type: str
  sample: "does not run: no process listens on /run/haproxy/vllm-fleet.sock"
version:
  description: HAProxy's version.
  returned: when running
  type: str
  sample: 2.6.12-1+deb12u3
stale:
  description: Whether a file of O(files) is newer than the process that should have read it.
  returned: when running
  type: bool
differing:
  description: Paths of O(files) that are missing or hold something else.
  returned: always
  type: list
  elements: str
servers:
  description:
    - The servers, each with C(backend), C(name), C(address) (with its port), C(status) (C(UP), C(DOWN), C(DRAIN), C(MAINT), with more words after
      it), C(sessions), C(queue), C(requests) since the last reload, C(check) (the last health check) and C(seconds)
      since the status changed.
  returned: when running
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.gateway import haproxy


def main() -> None:
    """Ask, compare, report."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "required": True},
            "program": {"type": "path", "default": "/usr/sbin/haproxy"},
            "files": {"type": "dict", "default": {}, "no_log": True},
            "maps": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    options = module.params
    module.exit_json(
        changed=False,
        **haproxy.survey(options["socket"], options["program"], options["files"], module.sha256, options["maps"]),
    )


if __name__ == "__main__":
    main()
