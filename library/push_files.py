#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module push_files: the page of the action of that name, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: push_files
short_description: Send files from the controller by rsync, with progress on the terminal
description:
  - Runs M(ansible.posix.synchronize) and shows its progress as percent, bytes, rate and time left. The first line comes after five seconds, later
    lines at growing intervals.
  - All other options are those of M(ansible.posix.synchronize).
  - Over SSH, rsync's remote end runs through Ansible's become. M(ansible.posix.synchronize) would call sudo itself, and sudo cannot ask for a
    password there.
  - Host keys are checked as Ansible does, unless C(verify_host) is set.
  - Where the controller's rsync is older than 3.1, it is sent without progress.
options:
  label:
    description: What is sent, as it should read in progress lines.
    type: str
    default: sending files
attributes:
  action:
    support: full
    description: Runs on the controller.
  check_mode:
    support: full
    description: Check mode only returns what would be sent.
  diff_mode:
    support: full
    description: Names the files.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Send an archive
  push_files:
    src: /media/vllm-v0.31.0.tar
    dest: /var/cache/vllm-fleet/
    label: sending vllm-v0.31.0.tar
"""

RETURN = r"""
stdout_lines:
  description: What was sent.
  type: list
  elements: str
  returned: always
"""
