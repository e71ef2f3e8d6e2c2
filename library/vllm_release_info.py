#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the recorded releases of a vLLM server, and what a rollback would bring back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_release_info
short_description: Read the recorded releases of a vLLM server
version_added: "0.1.0"
description:
  - Reads the records that M(vllm_server) keeps on the node, and asks Docker what runs and which images are there.
  - Returns the release that a rollback goes to, and the variables of the role C(vllm_server) for it.
  - Changes nothing.
options:
  name:
    description: Name of the container.
    type: str
    default: vllm
  to:
    description:
      - Number of the release to go back to. By default the newest one that came before the running one and differs
        from it; after a rollback the one before that.
    type: int
  state_dir:
    description: Folder on the node where M(vllm_server) keeps its records.
    type: path
    default: /var/lib/vllm-fleet
  docker_host:
    description: URL of the Docker engine; by default C(DOCKER_HOST) or the local socket.
    type: str
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
requirements:
  - Docker engine 20.10 or newer
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Which releases does the node know?
  vllm_release_info:
  register: known

- name: Show them
  ansible.builtin.debug:
    msg: "{{ known.releases | map(attribute='release') | join(', ') }}; a rollback goes to {{ known.target.release }}"
"""

RETURN = r"""
releases:
  description: The records in short, oldest first; see RV(vllm_server#module:release).
  returned: always
  type: list
  elements: dict
contents:
  description:
    - Digests of the releases' contents by release number, without values that may differ between nodes (secrets, groups, devices, paths). Nodes with
      the same digest have the same release.
  returned: always
  type: dict
current:
  description: The running server's record in short; null when it has none.
  returned: always
  type: dict
container:
  description: The container that has the name, with C(id), C(image_id) and C(status); null when there is none.
  returned: always
  type: dict
spec:
  description: What it is made of, see RV(vllm_server#module:spec).
  returned: always
  type: dict
url:
  description: Where its server listens inside the container.
  returned: when there is a container
  type: str
  sample: http://127.0.0.1:8000
target:
  description: The release that a rollback goes to, in short; null when there is none.
  returned: always
  type: dict
maintenance:
  description: Since when and why the server is in maintenance, see RV(vllm_server#module:maintenance).
  returned: always
  type: str
servers:
  description: Containers of all servers on the node, see RV(vllm_server#module:servers).
  returned: always
  type: dict
in_doubt:
  description: Numbers of records that cannot be read and may be the release that O(to) left out means.
  returned: always
  type: list
  elements: int
image:
  description: The target's image.
  returned: when there is a target
  type: dict
  contains:
    reference: {type: str, description: What it was called.}
    id: {type: str, description: Its id.}
    use: {type: str, description: "How to name it today; its id, where the name is another image's by now."}
    present: {type: bool, description: Whether the node still has it.}
variables:
  description: Variables of the role C(vllm_server) that make the target again; without secrets.
  returned: when there is a target
  type: dict
secret_env:
  description: Names in the target's environment whose values the inventory of today must have.
  returned: when there is a target
  type: list
  elements: str
engine_caches:
  description: Folders with compile caches that the recorded releases used, and the files beside them that say what for.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container.engine import Engine, EngineError, EngineUnavailable
from ansible.module_utils.vllm_fleet.server import release_info
from ansible.module_utils.vllm_fleet.server.options import DEFAULT_STATE_DIR


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "vllm"},
            "to": {"type": "int"},
            "state_dir": {"type": "path", "default": DEFAULT_STATE_DIR},
            "docker_host": {"type": "str"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        result = release_info.gather(Engine(params["docker_host"]), params["name"], params["state_dir"], params["to"])
    except Refused as exc:
        module.fail_json(msg=f"{exc}.")
    except (EngineUnavailable, EngineError) as exc:
        module.fail_json(msg=f"{exc}; start the engine (role docker_engine), or run as a user who may use it")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
