#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Which keys a gateway lets in: its map of keys, in HAProxy and in its file."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_keys
short_description: Change the keys of a running gateway
version_added: "0.1.0"
description:
  - Replaces the map of keys in the running HAProxy and in its file. HAProxy is not reloaded, and no stream ends.
options:
  path:
    description:
      - The map's file.
    type: path
    required: true
  content:
    description:
      - The text of the file, one line for each key's SHA-256, sorted.
      - Not shown in any output.
    type: str
    required: true
  socket:
    description:
      - HAProxy's runtime socket. Without it the file alone is written, for a reload that follows.
    type: path
attributes:
  check_mode:
    support: full
    description: Says what would be changed.
  diff_mode:
    support: full
    description: Names, limits and models of the keys that change. Neither a key nor its hash.
  idempotent:
    support: full
    description: Changed only where HAProxy or the file had something else.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Let two clients in
  gateway_keys:
    socket: /run/haproxy/vllm-fleet.sock
    path: /etc/haproxy/vllm-fleet-keys.map
    content: "{{ hostvars | gateway_key_map(pools, gateway_keys) }}"
"""

RETURN = r"""
msg:
  description: Why HAProxy did not do it.
  returned: on failure
  type: str
"""

import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import durable
from ansible.module_utils.vllm_fleet.gateway import haproxy, keys


def write(path: Path, text: str, keep: bool) -> None:
    """Replace the file whole, readable by root alone; ``keep`` its time, where HAProxy has the content already."""
    was = path.stat() if path.exists() else None
    durable.write(path, text.encode())
    if was and keep:
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def main() -> None:
    """HAProxy first: where the run is killed between the two, the next one finds the file differing and mends it."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True, "no_log": True},
            "socket": {"type": "path"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    path, text, socket = Path(asked["path"]), asked["content"], asked["socket"]
    try:
        filed = path.read_text(encoding="utf-8") if path.exists() else None
        known = haproxy.map_text(socket, str(path)) if socket else None
        live = filed or "" if known is None else known
        differs = filed != text or live != text
        if not module.check_mode:
            if socket:
                haproxy.replace_map(socket, str(path), text)
            if filed != text:
                write(path, text, keep=known is not None)
    except haproxy.SocketError as error:
        module.fail_json(msg=f"HAProxy {error}. See systemctl status haproxy there.")
    except OSError as error:
        module.fail_json(msg=f"{path} cannot be changed: {error.strerror or error}.")
    said = "".join(f"{line}\n" for line in keys.changes(live, text))
    module.exit_json(changed=differs, diff={"before": "", "after": said, "after_header": "keys of the gateway"})


if __name__ == "__main__":
    main()
