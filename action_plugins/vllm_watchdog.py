# SPDX-License-Identifier: Apache-2.0
"""Controller side of vllm_watchdog: checks the settings, and sends the program to a node that has another one."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.watchdog import settings, unit
from plugin_utils import watchdog_program

display = Display()


class ActionModule(ActionBase):
    """Calls the module of the same name, a second time with the program where the node lacks it."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Install the watchdog, or remove it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        host, args = str(variables.get("inventory_hostname", "localhost")), dict(self._task.args)
        if args.get("state", "present") == "present":
            args["program"] = watchdog_program.digest()
            try:
                settings.parse(unit.text(args.get("settings") or {}))
            except ValueError as exc:
                return {**result, "failed": True, "msg": f"The watchdog of {host}: {exc}. Nothing was touched."}
        answer = self._execute_module(module_name="vllm_watchdog", module_args=args, task_vars=variables)
        if answer.get("needs_program") and not answer.get("failed") and not self._task.check_mode:
            answer = self._with_program(args, variables)
        if answer.get("systemd") is False and answer.get("msg"):
            display.display(f"[{host}] {answer['msg']}")
        result.update(answer)
        return result

    def _with_program(self, args: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        folder = self._connection._shell.join_path(self._make_tmp_path(), "watchdog.pyz")
        with tempfile.NamedTemporaryFile(dir=C.DEFAULT_LOCAL_TMP) as file:
            file.write(watchdog_program.data())
            file.flush()
            self._transfer_file(file.name, folder)
        try:
            answer: dict[str, Any] = self._execute_module(
                module_name="vllm_watchdog", module_args={**args, "source": folder}, task_vars=variables
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return answer
