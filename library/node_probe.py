#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module node_survey: asks several modules of this project in one process."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_survey
short_description: Ask several modules at once what they would do
description:
  - Runs the sources of other modules, one after the other, each as its own process would, and gives their answers. One start of Python instead of many.
  - Used by the actions P(preflight_host#action) and P(vllm_server#action), which write O(questions); not meant for playbooks.
options:
  questions:
    description:
      - JSON, a list of C({module, source, args}). Each is asked in check mode.
      - A text, and secret as a whole, for the options of a module may be.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Asks in check mode by itself.
  diff_mode:
    support: none
author:
  - The vllm-fleet developers
"""

EXAMPLES = r"""
- name: Ask whether the engine is right
  node_survey:
    questions: "{{ [{'module': 'docker_engine', 'source': lookup('file', 'library/docker_engine.py'), 'args': {'state': 'probed'}}] | to_json }}"
"""

RETURN = r"""
answers:
  description: What each module answered, up to the first that has something to do.
  type: list
  elements: dict
  returned: always
"""

from ansible.module_utils import basic
from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import batch


def main() -> None:
    """Ask, tell."""
    spec = {"questions": {"type": "str", "required": True, "no_log": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    answers = batch.ask_all(module.params["questions"], basic)
    module.exit_json(changed=False, answers=answers)


def packed() -> None:
    """Name what the asked modules import: Ansible sends what it finds named in this file, and sees their sources as text."""
    # ruff: noqa: F401, PLC0415
    from ansible.module_utils.vllm_fleet.common import detached, finding, meter
    from ansible.module_utils.vllm_fleet.container import api, archive, dockerd, engine, image, spec
    from ansible.module_utils.vllm_fleet.host import gpu_memory, probe, rocm
    from ansible.module_utils.vllm_fleet.models import model_files, sizing, sizing_table
    from ansible.module_utils.vllm_fleet.preflight import judge
    from ansible.module_utils.vllm_fleet.replica import rank_lifecycle
    from ansible.module_utils.vllm_fleet.server import lifecycle, options, release_store, result, watch
    from ansible.module_utils.vllm_fleet.vllm import chat, chat_request, cli
    from ansible.module_utils.vllm_fleet.weights import fetch, hub, layout, snapshot


if __name__ == "__main__":
    main()
