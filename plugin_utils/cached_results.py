# SPDX-License-Identifier: Apache-2.0
"""Action plugin of modules that look before anything is done: takes what was asked of the node with other questions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import normal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import batch


class ActionModule(normal.ActionModule):
    """Gives the answer that is there where the task allows it (`__answered`), and calls the module otherwise."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Answer."""
        variables = task_vars or {}
        known = None
        if self._templar.template(variables.get("__answered", False)):
            known = batch.answer_to(variables.get("ansible_facts"), self._task.action, self._task.args)
        answer: dict[str, Any] = known or super().run(tmp, variables)
        return answer
