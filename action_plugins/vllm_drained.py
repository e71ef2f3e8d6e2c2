# SPDX-License-Identifier: Apache-2.0
"""Controller side of vllm_drained: short calls in a loop, with what is left on the terminal."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

#: Seconds one call waits. Also the longest silence on the terminal.
SLICE = 30.0


class ActionModule(ActionBase):
    """Loops the module of the same name until nothing is left or the time is over."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Wait in slices and hand the module's last result on, with the time of all of them."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        host = args.get("server") or variables.get("inventory_hostname", "?")
        timeout = float(args.get("timeout") or 0) if "timeout" in args else 300.0
        waited = 0.0
        while True:
            args["timeout"] = max(0.0, min(SLICE, timeout - waited))
            answer = self._execute_module(module_name="vllm_drained", module_args=args, task_vars=variables)
            waited += float(answer.get("elapsed") or 0.0)
            over = any(answer.get(word, word == "drained") for word in ("drained", "stalled", "unknown", "failed"))
            if over or self._task.check_mode or waited >= timeout:
                break
            display.display(f"[{host}] draining: {answer['says']} ({waited:.0f} s of {timeout:.0f} s)")
            args |= {name: answer[name] for name in ("unchanged", "progress") if answer.get(name) is not None}
        if "elapsed" in answer:
            answer["elapsed"] = waited
        if "msg" in answer and not any(answer.get(word) for word in ("failed", "stalled", "unknown")):
            answer["msg"] = f"After {waited:.0f} s there are requests left: {answer['says']}."
        result.update(answer)
        return result
