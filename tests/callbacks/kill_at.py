# SPDX-License-Identifier: Apache-2.0
"""Callback of the tests: kills the run (SIGKILL, its workers are not told) right before or right after a task.

`VLLM_FLEET_KILL` is `before:NAME` or `after:NAME`, the name of a task without its role. After: as soon as the task has
ended on a host, well or not; one that is skipped has not ended. Ansible calls it between two tasks, so nothing of what
would follow has begun.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: kill_at
type: notification
short_description: Kills the run right before or right after a task
description:
  - Of the tests alone.
"""


class CallbackModule(CallbackBase):
    """Waits for one task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "kill_at"

    def __init__(self) -> None:
        """Read what to wait for."""
        super().__init__()
        self._when, _, self._name = os.environ.get("VLLM_FLEET_KILL", "").partition(":")

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Kill before it."""
        self._see("before", task)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Kill after it."""
        self._see("after", result._task)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Kill after it, also where it failed."""
        self._see("after", result._task)

    def _see(self, when: str, task: Any) -> None:
        if when == self._when and task.get_name().rpartition(" : ")[2] == self._name:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
