"""Action plugin of modules that look before anything is done: takes what was asked of the node with other questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.plugins.action import ActionBase

_SHARED = str(Path(__file__).resolve().parent.parent / "module_utils")
if _SHARED not in ansible.module_utils.__path__:  # what the nodes import by this name, imported here by the same
    ansible.module_utils.__path__.append(_SHARED)

from ansible.module_utils.vllm_fleet import questions  # noqa: E402


class ActionModule(ActionBase):
    """Gives the answer that is there where the task allows it, and calls the module of the task's name otherwise."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Answer."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        known = None
        if variables.get("__answered"):
            facts = (variables.get("ansible_facts") or {}).get(questions.FACT)
            known = questions.answer_to(facts, self._task.action, self._task.args)
        result.update(known or self._execute_module(task_vars=variables))
        return result
