#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module preflight_report: the page of the action of that name, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_report
short_description: Show what preflight_host found on all nodes and end the run for those that it refuses
description:
  - Shows the findings of all nodes in one table. Then a refused node fails with one sentence for each refusal, and a node that could not be looked at
    counts as unreachable.
  - Nodes that are one machine are refused unless each has a container and a port of its own.
options:
  result:
    description: Variable with C(findings) in it, such as the registered result of a task with M(preflight_host).
    type: str
    default: preflight_result
  show_all:
    description: Whether to show findings of level V(ok) too. Otherwise there is no table if all findings are V(ok).
    type: bool
    default: false
  server:
    description: Whether options that the server could not be started with are a refusal. They are known where the node was asked for the server, too.
    type: bool
    default: false
  json:
    description: File on the controller that gets the findings by node. It is written in check mode, too.
    type: str
    default: ""
  accept:
    description: What is a warning instead of a refusal among the findings about several nodes, as for M(preflight_host).
    type: list
    elements: str
    default: []
  ending:
    description: Sentence at the end of a node's refusals.
    type: str
    default: Nothing was touched.
  refuse:
    description: Whether the task fails on a node that is refused. With V(false) it only shows the findings and returns RV(refusals); once is enough then.
    type: bool
    default: true
  refusals:
    description: What such a task returned. Nothing is judged or shown again, the node fails if it is among them.
    type: dict
attributes:
  action:
    support: full
    description: Runs on the controller.
  check_mode:
    support: full
    description: This action does not change anything.
  diff_mode:
    support: none
    description: This action does not change anything.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Look
  preflight_host:
  register: preflight_result

- name: Show, and refuse what cannot work
  preflight_report:
    show_all: true
"""

RETURN = r"""
refusals:
  description: The nodes that are refused, each with its C(msg), and in C(unseen) whether it could not be looked at.
  returned: success
  type: dict
findings:
  description: How many findings of each level there are, and in C(hosts) how many hosts were judged.
  returned: where the task judged
  type: dict
not_checked:
  description: Names of the findings that could not be judged on some node, such as C(vLLM flags) of an image that is not there.
  returned: where the task judged
  type: list
  elements: str
sentences:
  description: The refusals of this node one by one.
  returned: when there are any
  type: list
  elements: str
address:
  description: Its C(ansible_host), which may stand in them; empty without one.
  returned: when there are any
  type: str
ending:
  description: The O(ending).
  returned: when there are any
  type: str
further:
  description: How to go on without the nodes that could not be looked at; empty where others say it.
  returned: when there are any
  type: str
msg:
  description: The refusals of this node, in one text.
  returned: when there are any
  type: str
"""
