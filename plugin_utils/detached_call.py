# SPDX-License-Identifier: Apache-2.0
"""Base of the actions of hf_snapshot and hf_prewarm: follows what takes long in short calls, with progress.

The first line comes after five seconds, each following pause is half as long again, up to a minute.
"""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common.retry import RETRY_TIMEOUT, retry
from ansible.module_utils.vllm_fleet.common.units import part_of

display = Display()

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0


def takes_long(args: dict[str, Any]) -> bool:
    """Say whether the call may take long: looking at names and sizes does not, bringing in and hashing do."""
    return args.get("state", "present") == "present" or args.get("verify") == "full"


class DetachedCall(ActionBase):
    """Hands the call to the module of the task's name; loops it when it may take long."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module until it is done."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = {key: value for key, value in self._task.args.items() if key not in ("wait", "follow")}
        if not takes_long(args) or self._task.check_mode:
            result.update(self._call(args, task_vars))
            return result
        label = f"[{task_vars.get('inventory_hostname', '?')}] {args.get('repo_id')}"
        pause = FIRST_PAUSE
        answer = self._call({**args, "wait": pause}, task_vars)
        if answer.get("joined"):
            display.display(f"{label}: joined the run that was going on")
        last = ("", 0, 0.0)
        while answer.get("running"):
            step, done, total = str(answer["step"]), int(answer["done"]), int(answer["total"])
            rate = (done - last[1]) / max(0.1, answer["elapsed"] - last[2]) if step == last[0] or not last[0] else 0.0
            display.display(f"{label}: {step}" + (f" {part_of(done, total, rate)}" if total else ""))
            last = (step, done, answer["elapsed"])
            pause = min(LONGEST_PAUSE, pause * 1.5)
            answer = self._call({**args, "wait": pause, "follow": answer["run_id"]}, task_vars)
        result.update(answer)
        return result

    def _call(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = self._execute_module(
                module_name=self._task.action, module_args=args, task_vars=task_vars
            )
            return answer

        # Only work that already runs is worth the patience; a node that was never reached is down.
        timeout = RETRY_TIMEOUT if "follow" in args else 0.0
        return retry(ask, AnsibleConnectionFailure, self._connection.reset, timeout=timeout)
