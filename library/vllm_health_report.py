#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module vllm_health_report: the page of the action of that name, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_health_report
short_description: Show how all servers and gateways are, and fail when something is not well
version_added: "0.1.0"
description:
  - Judges what M(vllm_health) found on all hosts of the play, and shows it in one table. Runs once.
options:
  result:
    description: Variable with the registered result of M(vllm_health).
    type: str
    default: health_seen
  json:
    description: File on the controller that gets the table as JSON. It is written in check mode, too.
    type: str
    default: ""
  text:
    description: File on the controller that gets the table as it is shown.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Changes nothing on any node.
  diff_mode:
    support: none
    description: There is nothing to compare.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Show how the fleet is
  vllm_health_report:
    json: health.json
  run_once: true
"""

RETURN = r"""
well:
  description: Whether everything is well.
  returned: success
  type: bool
msg:
  description: What is not well, in one sentence.
  returned: when something is not
  type: str
"""
