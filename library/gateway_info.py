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
  vip:
    description:
      - The address that gateways share (C(address)), and files of keepalived by path, with the SHA-256 that each should
        have (C(files)).
    type: dict
    options:
      address:
        description:
          - An IPv4 address, with or without its prefix.
        type: str
        default: ""
      files:
        description:
          - As O(files). An empty sum is a file that should not be there.
        type: dict
        default: {}
  certificate:
    description:
      - The PEM file of which HAProxy is asked until when it is valid.
    type: path
  doors:
    description:
      - Ports to be asked without a key and with one.
    type: list
    elements: dict
    options:
      host:
        description:
          - The gateway's own address.
        type: str
        required: true
      port:
        description:
          - Where clients ask.
        type: int
        required: true
      key:
        description:
          - What must open it. An empty key is a port that is open to all.
          - Not shown in any output.
        type: str
        default: ""
  tls:
    description:
      - Whether O(doors) speak TLS.
    type: bool
    default: false
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
memory:
  description: Bytes of the machine's memory.
  returned: always
  type: int
version:
  description: HAProxy's version.
  returned: when running
  type: str
  sample: 2.6.12-1+deb12u3
stale:
  description: Whether a file of O(files) is newer than the process that should have read it.
  returned: when running
  type: bool
configuration:
  description: The version of the configuration that HAProxy runs with. Gateways that have the same do the same.
  returned: when running
  type: str
  sample: 5b0f24a1c9
certificate:
  description: Of the certificate that HAProxy uses, C(ends) and C(days_left). Empty where it uses none of that file.
  returned: when O(certificate) is given and HAProxy is running
  type: dict
doors:
  description: What is wrong with O(doors). Empty when all is right.
  returned: when O(doors) is given
  type: list
  elements: str
  sample: ["8080 gives 200 without a key"]
vip:
  description:
    - IPv4 C(addresses) by interface, whether one is the shared one (C(holds)), whether keepalived is C(installed) and C(running),
      which of its files are C(there) and C(differing), and a C(foreign) configuration of keepalived.
  returned: when O(vip) is given
  type: dict
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
    - Also since the last reload, C(answered) requests, C(errors) of them (5xx, a broken answer, no connection), and C(response), the
      milliseconds to the first byte of the last 1024 answers, on average.
  returned: when running
  type: list
  elements: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.gateway import certificate, door, haproxy, vip_state


def in_use(socket: str, path: str) -> dict[str, Any]:
    """What HAProxy says of its certificate."""
    try:
        ends = certificate.live(socket, path).get("ends")
    except haproxy.SocketError:
        return {}
    return {"ends": ends, "days_left": certificate.days_left(ends)} if ends else {}


def main() -> None:
    """Ask, compare, report."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "required": True},
            "program": {"type": "path", "default": "/usr/sbin/haproxy"},
            "files": {"type": "dict", "default": {}, "no_log": True},
            "maps": {"type": "list", "elements": "path", "default": []},
            "vip": {
                "type": "dict",
                "options": {"address": {"type": "str", "default": ""}, "files": {"type": "dict", "default": {}}},
            },
            "certificate": {"type": "path"},
            "doors": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "key": {"type": "str", "default": "", "no_log": True},
                },
            },
            "tls": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    options = module.params
    found = haproxy.survey(options["socket"], options["program"], options["files"], module.sha256, options["maps"])
    if options["vip"]:
        found["vip"] = vip_state.look(options["vip"]["address"], options["vip"]["files"], module.sha256)
    if options["doors"] is not None:
        found["doors"] = door.look(options["doors"], options["tls"])
    if options["certificate"] and found["running"]:
        found["certificate"] = in_use(options["socket"], options["certificate"])
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
