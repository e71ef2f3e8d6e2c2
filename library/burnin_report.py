#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module burnin_report: what a burn-in program printed, against AMD's figures. Read-only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: burnin_report
short_description: Judge the output of a burn-in program
description:
  - Reads the log of a program that has ended and compares it with what AMD's acceptance documents ask for.
  - A bad result does not fail the task. It is in RV(finding).
options:
  tool:
    description: What was run - V(gst) and V(iet) of the ROCm Validation Suite, C(TransferBench a2a), or V(all_reduce_perf) of rccl-tests.
    type: str
    choices: [gst, iet, transfer_bench, all_reduce_perf]
    required: true
  log:
    description: File with its output. Without it the program counts as not installed.
    type: path
  rc:
    description: Its exit code.
    type: int
    default: 0
  gpu_name:
    description: Product name of the GPUs, for the figure that applies.
    type: str
    default: ""
  gpus:
    description: Number of GPUs that have to be in the result.
    type: int
    default: 8
  min_busbw:
    description: Least in-place bus bandwidth of C(all_reduce_perf) in GB/s. V(0) takes AMD's figure for O(gpu_name).
    type: float
    default: 0
  min_a2a:
    description: Least average bandwidth of C(TransferBench a2a) in GB/s. V(0) takes AMD's figure for O(gpu_name).
    type: float
    default: 0
attributes:
  check_mode:
    support: full
    description: This module does not change anything.
  diff_mode:
    support: none
    description: This module does not change anything.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Judge a run of all_reduce_perf
  burnin_report:
    tool: all_reduce_perf
    log: /var/tmp/all_reduce_perf.log
    gpu_name: AMD Instinct MI300X
"""

RETURN = r"""
finding:
  description: C(level) (V(ok), V(unknown), V(warning), V(refused)), C(what), C(expected), C(got), C(remedy).
  returned: always
  type: dict
sentence:
  description: The finding as one sentence.
  returned: always
  type: str
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.preflight import burnin


def main() -> None:
    """Read, judge, answer."""
    module = AnsibleModule(
        argument_spec={
            "tool": {"type": "str", "choices": ["gst", "iet", "transfer_bench", "all_reduce_perf"], "required": True},
            "log": {"type": "path"},
            "rc": {"type": "int", "default": 0},
            "gpu_name": {"type": "str", "default": ""},
            "gpus": {"type": "int", "default": 8},
            "min_busbw": {"type": "float", "default": 0},
            "min_a2a": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    options = module.params
    if options["log"] is None:
        finding = burnin.not_installed(options["tool"])
    else:
        try:
            output = Path(options["log"]).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            module.fail_json(msg=f"the log of {options['tool']} cannot be read: {error}. Run the burn-in again.")
        finding = burnin.judge(
            options["tool"],
            output,
            options["rc"],
            options["gpu_name"],
            options["gpus"],
            min_busbw=options["min_busbw"],
            min_a2a=options["min_a2a"],
        )
    module.exit_json(changed=False, finding=asdict(finding), sentence=finding.sentence)


if __name__ == "__main__":
    main()
