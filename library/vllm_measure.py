#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the figures of a vLLM server that has no other clients."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_measure
short_description: Measure the answers and the speed of a vLLM server
version_added: "0.1.0"
description:
  - Asks the server of a container questions whose answers are known, then gives it a small load in three runs. Other clients would be in the
    figures, so the server should be drained.
  - Port, model and key are those that the container has; the key stays on the node.
  - Figures belong to the records of M(vllm_server). They are compared only where questions and load were the same.
options:
  name:
    description: Name of the container.
    type: str
    default: vllm
  of:
    description:
      - V(running) measures what runs, and returns beside that the figures of the newest record of another container.
      - V(before) is for a server that is about to be replaced. It is measured only if its record has no figures of these questions and this load,
        and they are written into the record.
    type: str
    choices: [running, before]
    default: running
  questions:
    description:
      - Each with C(name), C(api), and C(prompt) and C(pattern), or C(query), C(documents) and C(first).
    type: list
    elements: dict
    default: []
  load:
    description: The load; without it no speed is measured.
    type: dict
    suboptions:
      seconds:
        description: Seconds of all runs together.
        type: float
        default: 30
      concurrency:
        description: Requests at the same time.
        type: int
        default: 4
      input_tokens:
        description: Tokens of a prompt, about.
        type: int
        default: 128
      output_tokens:
        description: Tokens of an answer.
        type: int
        default: 64
  timeout:
    description: Most seconds for one request.
    type: float
    default: 120
  state_dir:
    description: Folder on the node where M(vllm_server) keeps its records.
    type: path
    default: /var/lib/vllm-fleet
  docker_host:
    description: URL of the Docker engine; by default C(DOCKER_HOST) or the local socket.
    type: str
attributes:
  check_mode:
    support: partial
    description: Measures, and writes no figures into a record.
  diff_mode:
    support: none
    description: There is nothing to compare.
  idempotent:
    support: partial
    description: With O(of=before) the second call measures nothing.
requirements:
  - Docker engine 20.10 or newer
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: How many of the questions does the server answer?
  vllm_measure:
    questions:
      - {name: capital, prompt: What is the capital of France?, pattern: Paris}
  register: measured

- name: Show the figures
  ansible.builtin.debug:
    msg: "{{ measured.figures.answers.right }} of {{ measured.figures.answers.asked }}"
"""

RETURN = r"""
figures:
  description:
    - C(answers) has C(asked), C(right), C(errors) and of C(each) question whether the answer was right, with a digest of its text.
    - C(load) has C(runs), each with the medians C(ttft) and C(itl) in seconds, C(tokens_per_second), C(requests) and C(errors).
    - Both have C(of), a digest of what was asked.
  returned: success
  type: dict
before:
  description: With O(of=running), the figures of the newest record of another container; empty where it has none.
  returned: success
  type: dict
release:
  description: The number of the record that has RV(before), or with O(of=before) RV(figures).
  returned: success
  type: int
measured:
  description: Whether the server was measured now.
  returned: success
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container.engine import Engine, EngineError, EngineUnavailable
from ansible.module_utils.vllm_fleet.server import measured
from ansible.module_utils.vllm_fleet.server.options import DEFAULT_STATE_DIR

LOAD = {
    "seconds": {"type": "float", "default": 30},
    "concurrency": {"type": "int", "default": 4},
    "input_tokens": {"type": "int", "default": 128},
    "output_tokens": {"type": "int", "default": 64},
}


def main() -> None:
    """Measure, and return the figures."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "vllm"},
            "of": {"type": "str", "choices": ["running", "before"], "default": "running"},
            "questions": {"type": "list", "elements": "dict", "default": []},
            "load": {"type": "dict", "options": LOAD},
            "timeout": {"type": "float", "default": 120},
            "state_dir": {"type": "path", "default": DEFAULT_STATE_DIR},
            "docker_host": {"type": "str"},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        result = measured.gather(
            Engine(given["docker_host"]),
            given["name"],
            given["state_dir"],
            before=given["of"] == "before",
            asked=given["questions"],
            load=given["load"] or {},
            timeout=given["timeout"],
            check_mode=module.check_mode,
        )
    except Refused as exc:
        module.fail_json(msg=f"{exc}.")
    except ValueError as exc:
        module.fail_json(msg=f"Nothing was measured: {exc}")
    except OSError as exc:
        module.fail_json(
            msg=f"The figures cannot be kept in the node's record ({exc}); see to its disk, then run again"
        )
    except (EngineUnavailable, EngineError) as exc:
        module.fail_json(msg=f"{exc}; start the engine (role docker_engine), or run as a user who may use it")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
