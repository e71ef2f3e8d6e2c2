#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Where a gateway finds a server: its port, in HAProxy and in its file."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_server
short_description: Change the port of a server in a running gateway
version_added: "0.1.0"
description:
  - Sets a new port, and optionally a new address, of one server in the running HAProxy and in its configuration file. So the change survives a reload
    or a boot of the gateway. No stream ends.
options:
  socket:
    description:
      - HAProxy's runtime socket.
    type: path
    required: true
  config:
    description:
      - File with the line of the server.
    type: path
    required: true
  backend:
    description:
      - Backend of the server.
    type: str
    required: true
  server:
    description:
      - Its name there.
    type: str
    required: true
  port:
    description:
      - Port at which it serves now.
    type: int
    required: true
  address:
    description:
      - Its address, as numbers. Without it the address stays as it is.
    type: str
attributes:
  check_mode:
    support: none
    description: A server moves in its wave alone, which check mode leaves out.
  diff_mode:
    support: none
    description: The port is said in the name of the task's item.
  idempotent:
    support: full
    description: Changed only where HAProxy or the file had another port or address.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Let the gateway find the server at its new port
  gateway_server:
    socket: /run/haproxy/vllm-fleet.sock
    config: /etc/haproxy/vllm-fleet.cfg
    backend: deepseek-ai_DeepSeek-V3.1
    server: node1
    port: 8100
  delegate_to: gateway1
"""

RETURN = r"""
msg:
  description: Why HAProxy did not do it.
  returned: on failure
  type: str
"""

import fcntl
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import durable
from ansible.module_utils.vllm_fleet.gateway import haproxy


def move_in_file(path: Path, where: tuple[str, str, int, str | None]) -> bool:
    """Give a server its place in the file; whether that was a change.

    One at a time: the servers of a wave move at the same moment, and one would write what the other has just replaced.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # for as long as a file is rewritten; given back with the descriptor
        text = path.read_text(encoding="utf-8")
        moved = haproxy.located(text, *where)
        if moved != text:
            rewrite(path, moved)
        return moved != text
    finally:
        os.close(folder)


def rewrite(path: Path, text: str) -> None:
    """Replace the file whole, with owner, rights and time of the old one."""
    was = path.stat()
    durable.write(path, text.encode(), was.st_mode & 0o7777, (was.st_uid, was.st_gid))
    # A file that is newer than its process is taken for one that HAProxy has not read; this it knows already.
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def main() -> None:
    """HAProxy first: where the run is killed between the two, the next one finds the file differing and mends it."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "required": True},
            "config": {"type": "path", "required": True},
            "backend": {"type": "str", "required": True},
            "server": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "address": {"type": "str"},
        },
    )
    asked = module.params
    where = (asked["backend"], asked["server"], asked["port"], asked["address"])
    path = Path(asked["config"])
    try:
        changed = haproxy.locate(asked["socket"], *where)
        moved = move_in_file(path, where)
    except haproxy.SocketError as error:
        module.fail_json(msg=f"HAProxy {error}. See systemctl status haproxy there.")
    except OSError as error:
        module.fail_json(
            msg=f"{path} cannot be changed: {error.strerror or error}. Run the role gateway there (deploy.yml does)."
        )
    module.exit_json(changed=changed or moved)


if __name__ == "__main__":
    main()
