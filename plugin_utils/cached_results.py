# SPDX-License-Identifier: Apache-2.0
"""Base of actions whose module may have been probed before: with `use_cached_result` they take what was found then."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common.probes import cached_result


class CachedResult(ActionBase):  # type: ignore[misc]
    """Comes before the class that calls the module."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of the node's probe, where it was for this very call and found nothing to do."""
        variables = task_vars or {}
        args = dict(self._task.args)
        wanted = boolean(args.pop("use_cached_result", False))
        self._task.args = args
        known = cached_result(variables.get("ansible_facts"), self._task.action, args) if wanted else None
        result: dict[str, Any] = known or super().run(tmp, variables)
        return result
