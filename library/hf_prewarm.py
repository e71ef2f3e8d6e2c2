#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the weights of a snapshot in the page cache, before a server wants them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hf_prewarm
short_description: Read the weights of a snapshot into the page cache while the old server still serves
description:
  - Reads the safetensors files of one snapshot at a bounded rate and with the lowest priority for processor and disk.
  - Does nothing on network mounts without a local cache, on file systems in memory, and if memory would run low. RV(skipped_because) has the reason.
    Pages in the page cache are not read again.
options:
  repo_id:
    description: The model as the Hub names it.
    type: str
    required: true
  revision:
    description: Commit, branch or tag, as the server gets it.
    type: str
    default: main
  cache:
    description: The folder that HF_HOME names.
    type: path
    required: true
  rate:
    description: Bytes per second that are read at most.
    type: int
    default: 2000000000
  reserve:
    description: Bytes of memory that must stay available.
    type: int
    default: 17179869184
  wait:
    description:
      - Seconds that one call waits for the end; the reading goes on without the connection. Set by the action plugin.
      - Without it, the call takes as long as the reading does.
    type: float
  follow:
    description: Run to follow, as returned in RV(run_id). Set by the action plugin.
    type: str
attributes:
  check_mode:
    support: full
    description: Nothing is read; RV(resident_before) is returned.
  diff_mode:
    support: none
author: The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Have the weights in memory before the server is replaced
  hf_prewarm:
    repo_id: deepseek-ai/DeepSeek-V3.1
    revision: "{{ vllm_server_revision }}"
    cache: /mnt/nvme/huggingface
"""

RETURN = r"""
bytes:
  description: Size of the weights.
  type: int
  returned: always
resident_before:
  description: Bytes of them that were in the page cache.
  type: int
  returned: always
resident_after:
  description: Bytes of them that are in the page cache now.
  type: int
  returned: always
read:
  description: Bytes read.
  type: int
  returned: always
skipped_because:
  description: Why it was not done, or not to the end; empty otherwise.
  type: str
  returned: always
run_id:
  description: Identity of the run, for O(follow).
  type: str
  returned: while it runs
step:
  description: What is being done. RV(done) and RV(total) are its progress.
  type: str
  returned: while it runs
done:
  description: Bytes read by now.
  type: int
  returned: while it runs
total:
  description: Bytes to read.
  type: int
  returned: while it runs
elapsed:
  description: Seconds it took.
  type: float
  returned: always
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import detached
from ansible.module_utils.vllm_fleet.common.meter import Meter
from ansible.module_utils.vllm_fleet.weights import layout, prewarm, snapshot


def weight_files(options: dict[str, Any]) -> list[Path]:
    """Return the weights of the snapshot that the options name; none where there is no such snapshot."""
    repository = layout.Repository(Path(options["cache"]), options["repo_id"])
    commit, _fault = snapshot.resolve(repository, options["revision"])
    return sorted(path for path in repository.snapshot(str(commit)).rglob("*.safetensors") if path.is_file())


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        {
            "repo_id": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "cache": {"type": "path", "required": True},
            "rate": {"type": "int", "default": 2000000000},
            "reserve": {"type": "int", "default": 17179869184},
            "wait": {"type": "float"},
            "follow": {"type": "str"},
        },
        supports_check_mode=True,
    )
    options = module.params
    try:
        layout.check_repo_id(options["repo_id"])
        layout.check_revision(options["revision"])
    except layout.SnapshotError as error:
        module.fail_json(msg=str(error))
    if options["rate"] <= 0:
        module.fail_json(msg=f"rate is {options['rate']} bytes a second; give more than 0.")
    if module.check_mode:
        options = {**options, "wait": None}
    result = detached.perform("hf_prewarm", options, lambda meter: work(options, meter, dry=module.check_mode))
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


def work(options: dict[str, Any], meter: Meter, *, dry: bool) -> dict[str, Any]:
    """Read the weights in, or with `dry` only measure how much of them is there; return the module's result."""
    found, began = prewarm.Result(), time.monotonic()
    try:
        files = weight_files(options)
        if dry:
            found.resident_before = found.resident_after = sum(prewarm.resident(path) for path in files)
            found.skipped = "check mode"
        else:
            found = prewarm.warm(files, options["rate"], options["reserve"], meter)
        if not files:
            found.skipped = f"there are no safetensors files of {options['repo_id']} in {options['cache']}"
    except OSError as error:  # a server starts without it too, only slower
        found.skipped = f"the weights could not be read ({error})"
    result = dataclasses.asdict(found)
    result["skipped_because"] = result.pop("skipped")  # Ansible takes a result with `skipped` for a skipped task
    return {"changed": False, "elapsed": round(time.monotonic() - began, 2), **result}


if __name__ == "__main__":
    main()
