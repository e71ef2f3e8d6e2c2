# SPDX-License-Identifier: Apache-2.0
"""Controller side of vllm_logs: with `follow`, short calls in a loop until the user interrupts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common.retry import RETRY_TIMEOUT, retry  # noqa: E402
from fleet_report import logs  # noqa: E402  found only with the line above

display = Display()

COLOURS = {"warning": "bright purple", "error": "red"}


class ActionModule(ActionBase):
    """One call, or calls without end."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Hand on what one call read; with `follow` show it, and what comes after it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = dict(self._task.args)
        host = str(variables.get("inventory_hostname", "?"))
        follows = boolean(args.get("follow", False), strict=False)
        servers, forks = list(variables.get("ansible_play_batch") or [host]), int(variables.get("ansible_forks") or 1)
        if follows and len(servers) > forks:
            result.update(
                failed=True,
                msg=f"{len(servers)} servers cannot be followed with {forks} forks: add --forks {len(servers)}, or "
                "name fewer servers with --limit.",
            )
            return result
        answer = self._call(args, variables)
        while follows and not answer.get("failed"):
            for line in logs.of_node(host, answer):
                display.display(line[0], color=COLOURS.get(line[1]))
            # Of a server that has said nothing yet everything is new.
            args["after"] = answer.get("newest") or args.get("after") or "1970-01-01T00:00:00Z"
            answer = self._call(args, variables)
        result.update(answer)
        return result

    def _call(self, args: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            answer: dict[str, Any] = self._execute_module(
                module_name="vllm_logs", module_args=args, task_vars=variables
            )
            return answer

        # A node that was never reached is down; one that is lost meanwhile comes back, perhaps.
        timeout = RETRY_TIMEOUT if args.get("after") else 0.0
        return retry(ask, AnsibleConnectionFailure, self._connection.reset, timeout=timeout)
