#!/usr/bin/python
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

from ansible.module_utils.vllm_fleet import questions


def main() -> None:
    """Ask, tell."""
    spec = {"questions": {"type": "str", "required": True, "no_log": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    answers = questions.ask_all(module.params["questions"], basic)
    module.exit_json(changed=False, answers=answers)


def packed() -> None:
    """Name what the asked modules import: Ansible sends what it finds named in this file, and sees their sources as text."""
    # ruff: noqa: F401, PLC0415
    from ansible.module_utils.vllm_fleet import (
        chat,
        chat_request,
        command,
        detached,
        docker_api,
        dockerd,
        engine,
        fetch,
        findings,
        host_probe,
        hub,
        image,
        lifecycle,
        memory,
        meter,
        model_files,
        replica_lifecycle,
        result,
        rocm_probe,
        sizing,
        sizing_table,
        snapshot,
        spec,
        state,
        watch,
    )


if __name__ == "__main__":
    main()
