#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module vllm_health: the page of the action of that name, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_health
short_description: Ask a server, its watchdog or a gateway in one short call how it is
version_added: "0.1.0"
description:
  - Of a host of group C(vllm), Docker is asked for the container, the server for one token, and the watchdog's state is read. Of another host, HAProxy is
    asked for its servers. Which server that is, the variables of the role C(vllm_server) say.
  - Changes nothing, copies no module to the node, and never fails. Judged by M(vllm_health_report).
options:
  timeout:
    description: Seconds that a server may take to answer.
    type: float
    default: 5.0
attributes:
  check_mode:
    support: full
    description: Changes nothing anyway.
  diff_mode:
    support: none
    description: There is nothing to compare.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Ask how it is
  vllm_health:
  register: health_seen
"""

RETURN = r"""
found:
  description: What was found.
  returned: when the node answered
  type: dict
kind:
  description: V(server) or V(gateway).
  returned: always
  type: str
model:
  description: First name by which the server's model is asked, which the servers of a model share; empty of a gateway.
  returned: always
  type: str
not_reached:
  description: Why the node could not be asked.
  returned: when it did not answer
  type: str
resting:
  description: That the inventory has the server in maintenance (C(rollout_maintenance)), and nobody was asked.
  returned: when that is so
  type: str
removed:
  description: That the gateway is to be removed (C(gateway_absent)), and was not asked.
  returned: when that is so
  type: bool
"""
