"""Action plugin of modules that look before anything is done: takes what was asked of the node with other questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.plugins.action import normal

_SHARED = str(Path(__file__).resolve().parent.parent / "module_utils")
if _SHARED not in ansible.module_utils.__path__:  # what the nodes import by this name, imported here by the same
    ansible.module_utils.__path__.append(_SHARED)

from ansible.module_utils.vllm_fleet import questions  # noqa: E402


class ActionModule(normal.ActionModule):
    """Gives the answer that is there where the task allows it (`__answered`), and calls the module otherwise."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Answer."""
        variables = task_vars or {}
        known = None
        if self._templar.template(variables.get("__answered", False)):
            known = questions.answer_to(variables.get("ansible_facts"), self._task.action, self._task.args)
        answer: dict[str, Any] = known or super().run(tmp, variables)
        return answer
