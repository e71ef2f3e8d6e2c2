# SPDX-License-Identifier: Apache-2.0
"""Action plugin of long_command: short calls to the node, one progress line per interval on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common.retry import RETRY_TIMEOUT, retry
from ansible.module_utils.vllm_fleet.common.units import duration

display = Display()


class ActionModule(ActionBase):
    """Follow a detached command until it ends."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Start or join the command, then show its newest line every ``interval`` seconds."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        host = task_vars.get("inventory_hostname", "?")
        args = {key: value for key, value in self._task.args.items() if key not in ("wait", "follow")}
        label = args.get("label") or "running " + " ".join(str(word) for word in (args.get("argv") or ["?"])[:2])
        args["wait"] = float(args.get("interval") or 15)
        answer = self._call(args, task_vars)
        joined = bool(answer.get("joined"))
        if joined and answer.get("running"):
            display.display(f"[{host}] {label}: joined the run that was going on")
        while answer.get("running") and not answer.get("failed"):
            line = str(answer.get("line") or "").strip()
            display.display(f"[{host}] {label}: {_clip(line) or 'running'} ({duration(answer['elapsed'])})")
            answer = self._call({**args, "follow": answer["run_id"]}, task_vars)
        answer["joined"] = joined
        result.update(answer)
        return result

    def _call(self, args: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = self._execute_module(
                module_name="long_command", module_args=args, task_vars=task_vars
            )
            return answer

        # Only a command that already runs is worth the patience; a node that was never reached is down.
        timeout = RETRY_TIMEOUT if "follow" in args else 0.0
        return retry(ask, AnsibleConnectionFailure, self._connection.reset, timeout=timeout)


def _clip(line: str, width: int = 110) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
