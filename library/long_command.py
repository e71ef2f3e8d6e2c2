#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a command that runs for minutes, detached on the node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: long_command
short_description: Run a command for minutes, with progress on the terminal
description:
  - Starts a command detached on the node and follows it. While it runs, one line per host and O(interval) shows how
    far it is. The action plugin of the same name asks in short calls, so no connection stays open for the whole time.
  - When the controller dies or the connection drops, the command goes on. The next run with the same O(job) joins it
    instead of starting a second one.
  - Without the action plugin (as in C(ansible -m)) it returns after O(wait) seconds.
options:
  argv:
    description: The command as a list; no shell.
    type: list
    elements: str
    required: true
  label:
    description: What the command does, as it should read in progress lines and errors.
    type: str
  job:
    description:
      - Name of the job on the node. Two runs with the same name never run side by side.
      - By default made from the command.
    type: str
  identity:
    description:
      - What identifies the command, if O(argv) has words that differ in every run, such as the path of a key.
      - A run with the same O(job) and identity is joined, one with another identity is refused while it goes on.
      - By default O(argv).
    type: list
    elements: str
  chdir:
    description: Folder to run in.
    type: path
  environment:
    description: Environment variables to add.
    type: dict
    default: {}
  creates:
    description: A path; when it exists, nothing is run.
    type: path
  min_free:
    description: Bytes that have to be free under a path before the command is started, by path.
    type: dict
    default: {}
  min_free_variable:
    description: Variable that the figures of O(min_free) come from, for the message when there is too little.
    type: str
    default: ""
  log:
    description: File for the output of the command. By default C(log) in the job's folder.
    type: path
  jobs_dir:
    description: Folder of the jobs.
    type: path
    default: ~/.cache/vllm-fleet/jobs
  progress:
    description:
      - Regular expression for progress lines. If it has a group C(progress), only that group is shown.
      - By default the last line of the output is shown.
    type: str
  interval:
    description: Seconds between two progress lines.
    type: float
    default: 15
  timeout:
    description: Seconds after which the command is ended and the task fails; 0 for none.
    type: float
    default: 0
  difference:
    description: What the command changes, as C(before) and C(after), for C(--diff).
    type: dict
  wait:
    description: Seconds that one call waits for the end. Set by the action plugin.
    type: float
    default: 15
  follow:
    description: Run to follow, as returned in RV(run_id). Set by the action plugin.
    type: str
attributes:
  check_mode:
    support: full
    description: Nothing is started; RV(changed) is false when O(creates) exists, else true.
  diff_mode:
    support: partial
    description: Shows O(difference).
author: The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Build an image, however long that takes
  long_command:
    argv: [docker, build, --tag, "example:1.0", .]
    chdir: /srv/example
    label: building image example:1.0
    job: build-example
    min_free: {/var/lib/docker: 6442450944}
"""

RETURN = r"""
rc:
  description: Exit code of the command.
  type: int
  returned: when the command has ended by itself
running:
  description: Whether the command still runs.
  type: bool
  returned: always
joined:
  description: Whether this call found the command running already.
  type: bool
  returned: always
run_id:
  description: Identity of the run, for O(follow).
  type: str
  returned: when something was run
elapsed:
  description: Seconds since the command was started.
  type: float
  returned: always
line:
  description: The newest progress line.
  type: str
  returned: always
tail:
  description: Last 20 lines of the output (both streams).
  type: list
  elements: str
  returned: always
log_file:
  description: The whole output, on the node.
  type: str
  returned: always
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common.job import (
    Job,
    JobError,
    State,
    fingerprint,
    free_bytes,
    progress_line,
    short_of_space,
)
from ansible.module_utils.vllm_fleet.common.units import duration


def main() -> None:
    """Start, join or follow; then wait a little and say how things stand."""
    module = AnsibleModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str", "required": True},
            "label": {"type": "str"},
            "job": {"type": "str"},
            "identity": {"type": "list", "elements": "str"},
            "chdir": {"type": "path"},
            "environment": {"type": "dict", "default": {}},
            "creates": {"type": "path"},
            "min_free": {"type": "dict", "default": {}},
            "min_free_variable": {"type": "str", "default": ""},
            "log": {"type": "path"},
            "jobs_dir": {"type": "path", "default": "~/.cache/vllm-fleet/jobs"},
            "progress": {"type": "str"},
            "interval": {"type": "float", "default": 15},
            "timeout": {"type": "float", "default": 0},
            "difference": {"type": "dict"},
            "wait": {"type": "float", "default": 15},
            "follow": {"type": "str"},
        },
        supports_check_mode=True,
    )
    p = module.params
    if not p["argv"]:
        module.fail_json(msg="argv is empty: give the command as a list of at least one word")
    result: dict[str, Any] = {"changed": False, "running": False, "joined": False, "elapsed": 0.0}
    result |= {"line": "", "tail": [], "log_file": ""}
    if p["difference"]:
        result["diff"] = p["difference"]
    if not p["follow"]:
        if p["creates"] and Path(p["creates"]).exists():
            module.exit_json(**result)
        if module.check_mode:
            module.exit_json(**{**result, "changed": True})
    try:
        _run(module, result)
    except JobError as exc:
        module.fail_json(**{**result, "msg": str(exc)})


def _run(module: AnsibleModule, result: dict[str, Any]) -> None:
    p = module.params
    label = p["label"] or Path(p["argv"][0]).name
    environment = {str(k): str(v) for k, v in p["environment"].items()}
    same = p["identity"] or p["argv"]
    name = p["job"] or f"{Path(p['argv'][0]).name}-{fingerprint(same, p['chdir'], environment)}"
    job = Job(Path(p["jobs_dir"]) / name, Path(p["log"]) if p["log"] else None)
    if p["follow"]:
        run_id = p["follow"]
    else:
        wanted = {str(path): int(need) for path, need in p["min_free"].items()}
        problem = short_of_space(wanted, {path: free_bytes(path) for path in wanted}, label, p["min_free_variable"])
        if problem:
            raise JobError(problem)
        run_id, result["joined"] = job.begin(p["argv"], p["chdir"], environment, same)
    state = job.wait(run_id, p["wait"])
    over_time = 0 < p["timeout"] < state.elapsed and state.running
    if over_time:
        job.stop(run_id)
        state = job.state(run_id)
    result |= {
        "changed": True,
        "run_id": run_id,
        "running": state.running,
        "elapsed": round(state.elapsed, 1),
        "line": progress_line(state.tail, p["progress"]),
        "tail": state.tail,
        "log_file": str(job.log),
    }
    if state.rc is not None:  # Ansible takes an rc that is not 0 for a failure, a null one too
        result["rc"] = state.rc
    problem = _failure(label, state, p["timeout"] if over_time else None)
    if problem:
        module.fail_json(**{**result, "msg": f"{problem}; last lines in `tail`, all of it in {job.log}"})
    module.exit_json(**result)


def _failure(label: str, state: State, over_time: float | None) -> str | None:
    if over_time is not None:
        return f"{label}: not done after {duration(over_time)}, stopped"
    if state.running or state.rc == 0:
        return None
    if state.rc is None:
        return f"{label}: killed from outside after {duration(state.elapsed)}; run again to start over"
    return f"{label}: failed with exit code {state.rc} after {duration(state.elapsed)}"


if __name__ == "__main__":
    main()
