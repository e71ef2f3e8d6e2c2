#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Sends a gateway's requests to a server again, once the gateway has checked it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_admit
short_description: Put a server behind a running gateway
version_added: "0.1.0"
description:
  - Ends the state DRAIN or MAINT of a server in every backend that has it, and waits until one of them has it UP.
  - A server without open requests is taken for down first. So the check before its restart does not count for it, and of several
    backends, each with a key and names of its own, the one that the server belongs to gets it.
options:
  socket:
    description:
      - HAProxy's runtime socket.
    type: path
    required: true
  server:
    description:
      - Name of the server.
    type: str
    required: true
  timeout:
    description:
      - Seconds to wait for the gateway's check. 0 does not wait.
    type: float
    default: 60
attributes:
  check_mode:
    support: none
    description: A server is admitted in its wave alone, which check mode leaves out.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: full
    description: Changed only where the server was not UP.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Send requests to the server again
  gateway_admit:
    socket: /run/haproxy/vllm-fleet.sock
    server: node1
  delegate_to: gateway1
"""

RETURN = r"""
backend:
  description: The backend that has the server UP. Empty where it was not waited for.
  returned: success
  type: str
msg:
  description: Why the server is not admitted.
  returned: on failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.gateway import haproxy


def main() -> None:
    """Change the states, wait for the check."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "required": True},
            "server": {"type": "str", "required": True},
            "timeout": {"type": "float", "default": 60.0},
        },
    )
    asked = module.params
    try:
        changed, backend = haproxy.admit(asked["socket"], asked["server"], asked["timeout"])
    except haproxy.SocketError as error:
        module.fail_json(msg=f"HAProxy {error}. See systemctl status haproxy there.")
    if backend is None:
        module.fail_json(msg=f"{asked['server']} is not UP after {asked['timeout']:g} s.")
    module.exit_json(changed=changed, backend=backend)


if __name__ == "__main__":
    main()
