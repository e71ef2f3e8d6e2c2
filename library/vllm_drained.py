#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Wait until a vLLM server has no requests left."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_drained
short_description: Wait until a vLLM server has no requests left
version_added: "0.1.0"
description:
  - Asks a vLLM server for its running and waiting requests, or a gateway for the sessions it has open to a server, until
    there are none. It does not drain the server. Do that at the gateway first.
  - Returns at once if there are no requests, if there is no server, or if the number is not known (RV(unknown)).
  - With the action plugin of the same name one line per host and 30 seconds shows how many are left.
options:
  url:
    description:
      - Root of the vLLM server, whose C(/metrics) is asked. Either this or O(socket).
    type: str
  socket:
    description:
      - HAProxy's runtime socket. The task then runs on the gateway.
    type: path
  backend:
    description:
      - With O(socket), the backend.
    type: str
  server:
    description:
      - With O(socket), the server in that backend.
    type: str
  timeout:
    description:
      - Most seconds to wait. V(0) looks once.
      - RV(msg) names the requests that are left then. This is no failure; the caller decides.
    type: float
    default: 300
  stall:
    description:
      - Seconds without a step of the engine after which its counts are ignored. vLLM does not reset them if all its requests were aborted at once
        (U(https://github.com/vllm-project/vllm/issues/22545)).
      - Only with O(url).
    type: float
    default: 30
  unchanged:
    description:
      - Seconds without a step that an earlier call saw, RV(unchanged). For the action plugin.
    type: float
    default: 0
  progress:
    description:
      - What an earlier call saw of the engine's steps, RV(progress). For the action plugin.
    type: float
attributes:
  check_mode:
    support: full
    description: Looks once and does not wait, for nothing has been drained.
  diff_mode:
    support: none
    description: There is nothing to compare, the module never reports a change.
  idempotent:
    support: full
    description: Never changed.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Let the server finish what it has
  vllm_drained:
    url: http://127.0.0.1:8000
    timeout: 300

- name: Wait for the gateway's sessions with it
  vllm_drained:
    socket: /run/haproxy/vllm-fleet.sock
    backend: deepseek-ai_DeepSeek-V3.1
    server: "{{ inventory_hostname }}"
  delegate_to: gateway1
"""

RETURN = r"""
drained:
  description: Whether nothing is left.
  returned: always
  type: bool
gone:
  description: Whether the server does not answer, or the gateway has no such server.
  returned: always
  type: bool
unknown:
  description: Whether the server answers without vLLM's counts, so that it is unknown whether it is idle.
  returned: always
  type: bool
stalled:
  description: Whether the wait ended because the requests that are counted do not move.
  returned: always
  type: bool
requests:
  description: Requests, or sessions, that are left.
  returned: always
  type: int
says:
  description: The same in the words of the server or gateway.
  returned: always
  type: str
  sample: 3 running, 1 waiting
elapsed:
  description: Seconds waited.
  returned: always
  type: float
unchanged:
  description: Seconds since the engine was last seen doing a step.
  returned: always
  type: float
progress:
  description: A number that grows with every step of the engine; none of a gateway.
  returned: always
  type: float
msg:
  description: What is left, when something is left.
  returned: when not drained
  type: str
  sample: "After 300 s there are requests left: 3 running, 1 waiting."
"""

import functools

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.gateway import drain
from ansible.module_utils.vllm_fleet.gateway.haproxy import SocketError


def main() -> None:
    """Wait, report."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str"},
            "socket": {"type": "path"},
            "backend": {"type": "str"},
            "server": {"type": "str"},
            "timeout": {"type": "float", "default": 300},
            "stall": {"type": "float", "default": 30},
            "unchanged": {"type": "float", "default": 0},
            "progress": {"type": "float"},
        },
        mutually_exclusive=[("url", "socket")],
        required_one_of=[("url", "socket")],
        required_by={"socket": ("backend", "server")},
        supports_check_mode=True,
    )
    options = module.params
    if options["url"]:
        look = functools.partial(drain.look_at_server, options["url"])
    else:
        look = functools.partial(drain.look_at_gateway, options["socket"], options["backend"], options["server"])
    try:
        outcome = drain.wait(
            look,
            0 if module.check_mode else options["timeout"],
            options["stall"],
            unchanged=options["unchanged"],
            progress=options["progress"],
        )
    except SocketError as error:
        module.fail_json(msg=f"HAProxy {error}.")
    result = drain.result(outcome)
    if outcome.look.unknown:
        result["msg"] = f"Nobody can tell whether the server is idle: {outcome.look.says}."
    elif outcome.stalled:
        result["msg"] = (
            f"The server counts {outcome.look.says}, but its engine has not made a step for {outcome.unchanged:.0f} s: "
            "it hangs, or these are left over from requests that were aborted."
        )
    elif not outcome.drained:
        result["msg"] = f"After {outcome.elapsed:.0f} s there are requests left: {outcome.look.says}."
    module.exit_json(**result)


if __name__ == "__main__":
    main()
