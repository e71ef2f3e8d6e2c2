#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: since when a new release serves on a node, and what has happened to it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_soak
short_description: Ask a node how its new release has done so far
version_added: "0.1.0"
description:
  - Reads the note that the release's rollout has not come to its end, the state of the container, and the events of its watchdog since then.
  - Adds to that note what a run must not forget that is killed. That is a rollout's own memory, and no change.
options:
  name:
    description: Name of the container.
    type: str
    default: vllm
  state_dir:
    description: Folder on the node where M(vllm_server) and its watchdog keep what they have to remember.
    type: path
    default: /var/lib/vllm-fleet
  note:
    description: What is added to the note before it is read. Without a release on trial nothing is.
    type: dict
    suboptions:
      begins:
        description: Whether the release's time begins now, because it is admitted only now.
        type: bool
        default: false
      first:
        description: What the first look found, against which later ones are held.
        type: dict
      wrong:
        description: Why the release did not pass, in words.
        type: str
  docker_host:
    description: URL of the Docker engine; by default C(DOCKER_HOST) or the local socket.
    type: str
attributes:
  check_mode:
    support: full
    description: Nothing is noted in check mode.
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
- name: Since when does the new release serve?
  vllm_soak:
  register: soaked

- name: Remember that it did not pass
  vllm_soak:
    note:
      wrong: 9 of its 31 answers at the gateways were errors
"""

RETURN = r"""
age:
  description: Seconds since the release was verified, by the node's clock; null where no rollout of it goes on.
  returned: success
  type: float
running:
  description: Whether the container runs.
  returned: success
  type: bool
started:
  description: When Docker started it last.
  returned: success
  type: str
events:
  description: The watchdog's events since then, see M(vllm_watchdog_info).
  returned: success
  type: list
  elements: dict
before:
  description: Number of the release that ran before it; null where it is not noted.
  returned: success
  type: int
first:
  description: What the first look found, as it was noted; null without one.
  returned: success
  type: dict
wrong:
  description: Why an earlier look said that the release does not pass, as it was noted; null where none did.
  returned: success
  type: str
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import names
from ansible.module_utils.vllm_fleet.container.engine import Engine, EngineError, EngineUnavailable
from ansible.module_utils.vllm_fleet.container.inspected import ident, running
from ansible.module_utils.vllm_fleet.server.options import DEFAULT_STATE_DIR
from ansible.module_utils.vllm_fleet.server.state import NodeState
from ansible.module_utils.vllm_fleet.watchdog import history


def main() -> None:
    """Look, and return what there is."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "vllm"},
            "state_dir": {"type": "path", "default": DEFAULT_STATE_DIR},
            "docker_host": {"type": "str"},
            "note": {
                "type": "dict",
                "options": {
                    "begins": {"type": "bool", "default": False},
                    "first": {"type": "dict"},
                    "wrong": {"type": "str"},
                },
            },
        },
        supports_check_mode=True,
    )
    name = module.params["name"]
    if wrong := names.wrong_container(name):
        module.fail_json(msg=f"{wrong}. Correct vllm_server_name.")
    node = NodeState(module.params["state_dir"], name)
    try:
        container = Engine(module.params["docker_host"]).container(name)
    except (EngineUnavailable, EngineError) as exc:
        module.fail_json(msg=f"{exc}; start the engine (role docker_engine), or run as a user who may use it")
    given = module.params["note"]
    if container and given and not module.check_mode:
        found = {name: given[name] for name in ("first", "wrong") if given[name]}
        try:
            node.note_soak(ident(container), found, since=time.time() if given["begins"] else None)
        except OSError as exc:
            module.fail_json(msg=f"{node.folder}: {exc.strerror or exc}; see to that folder on the node")
    noted = node.trial_note(ident(container)) if container else {}
    since = node.trial_since(ident(container)) if container else None
    events = []
    if since is not None:
        after = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
        lines: list[str] = []
        for path in (node.folder / "events" / file for file in history.FILES):
            try:
                lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:
                continue  # a node without a watchdog has none
        events, _ = history.events(lines, after)
    module.exit_json(
        changed=False,
        age=max(0.0, time.time() - since) if since is not None else None,
        running=running(container),
        started=container["State"].get("StartedAt") if container else None,
        events=events,
        before=noted.get("before"),
        first=noted.get("first"),
        wrong=noted.get("wrong"),
    )


if __name__ == "__main__":
    main()
