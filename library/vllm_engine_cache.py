#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what an engine compiled, as a list of files, and as files that came from another node."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_engine_cache
short_description: List the compile cache of a server, or take over that of another node
version_added: "0.1.0"
description:
  - What torch.compile, Triton, Inductor and vLLM itself keep in the folder that M(vllm_server) mounts into its container. Files that were copied
    from another node become part of it when their SHA-256 is that of the other node's list.
  - No container is touched. Used by the role C(rollout), which finds a node whose server was made for the same key.
options:
  state:
    description:
      - V(listed) returns the files that would travel, with their hashes.
      - V(lacking) says how many of O(files) the folder does not have, and fails where they would not fit on its disk.
      - V(placed) moves them from O(arrived) into O(folder), and notes that the folder has been filled for O(key). A file that is there stays.
    type: str
    choices: [listed, lacking, placed]
    required: true
  folder:
    description: The server's compile cache on this node, RV(vllm_server#module:engine_cache.folder).
    type: path
    required: true
  files:
    description: For V(lacking) and V(placed), RV(files) of the other node.
    type: dict
  arrived:
    description: For V(placed), the folder into which they were copied, on the same disk.
    type: path
  key:
    description: For V(placed), what they were compiled for, RV(vllm_server#module:engine_cache.key).
    type: str
    no_log: false
attributes:
  check_mode:
    support: full
    description: Nothing is moved.
  diff_mode:
    support: none
    description: Compiled files have no text.
  idempotent:
    support: full
    description: A second call moves nothing.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: List what the canary has compiled
  vllm_engine_cache:
    state: listed
    folder: /var/lib/vllm-fleet/engine-cache/0a1b2c3d4e5f-Qwen--Qwen3-32B
  register: canary
"""

RETURN = r"""
files:
  description: Size and SHA-256 of each file, by its path in the folder.
  type: dict
  returned: with O(state=listed)
count:
  description: Number of files that were listed, are lacking, or were moved.
  type: int
  returned: success
bytes:
  description: Their bytes; of what was moved V(0).
  type: int
  returned: success
wrong:
  description: Files that did not arrive as they are on the other node. They were left behind.
  type: int
  returned: with O(state=placed)
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.server import engine_cache


def main() -> None:
    """List, compare or take over."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["listed", "lacking", "placed"], "required": True},
            "folder": {"type": "path", "required": True},
            "files": {"type": "dict"},
            "arrived": {"type": "path"},
            "key": {"type": "str", "no_log": False},
        },
        required_if=[("state", "lacking", ["files"]), ("state", "placed", ["files", "arrived", "key"])],
        supports_check_mode=True,
    )
    given: dict[str, Any] = module.params
    folder = Path(given["folder"])
    try:
        if given["state"] == "listed":
            files = engine_cache.listed(folder)
            total = sum(one["size"] for one in files.values())
            module.exit_json(changed=False, files=files, count=len(files), bytes=total)
        files = engine_cache.checked(given["files"])
        if given["state"] == "lacking":
            found = engine_cache.lacking(folder, files)
            module.exit_json(changed=False, count=found["files"], bytes=found["bytes"])
        if module.check_mode:
            found = engine_cache.lacking(folder, files)
            module.exit_json(changed=bool(found["files"]), count=found["files"], bytes=found["bytes"], wrong=0)
        done = engine_cache.place(folder, Path(given["arrived"]), files, given["key"])
        module.exit_json(changed=bool(done["placed"]), count=done["placed"], bytes=0, wrong=done["wrong"])
    except (engine_cache.CacheError, OSError) as error:
        module.fail_json(msg=f"The compile cache {folder}: {error}.")


if __name__ == "__main__":
    main()
