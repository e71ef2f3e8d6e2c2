# SPDX-License-Identifier: Apache-2.0
"""Shows how all servers and gateways are as one table, writes it as JSON, and fails when something is not well."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import secrets, terminal  # noqa: E402
from ansible.module_utils.vllm_fleet.vllm import host_variables  # noqa: E402
from fleet_report import health  # noqa: E402  found only with the lines above

display = Display()


class ActionModule(ActionBase):
    """Needs no connection: all of it was seen by vllm_health."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Judge all hosts of the play."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "result": {"type": "str", "default": "health_seen"},
                "json": {"type": "str", "default": ""},
                "text": {"type": "str", "default": ""},
            }
        )
        given = task_vars or {}
        hostvars = given["hostvars"]
        serving = [str(host) for host in given["groups"].get("vllm", ())]
        asked = [str(host) for host in given["ansible_play_hosts_all"]]
        seen = {host: hostvars.raw_get(host).get(args["result"]) for host in asked}
        seen = {host: one or {"not_reached": "it was not asked"} for host, one in seen.items()}
        servers = {host: hostvars[host] for host in seen if host in serving}
        watched = {host: host_variables.acts_after(one) for host, one in servers.items() if host_variables.watched(one)}
        # With --limit: what the others serve, so that nothing is said of models of which only a part was asked.
        partly = {host_variables.served_names(hostvars[host])[0] for host in serving if host not in seen}
        found = health.rows(seen, watched=watched, partly=partly)
        lines = [secrets.scrub_words(terminal.shown(line)) for line in health.lines(found)]
        display.display("\n".join(lines))
        if args["json"]:
            text = json.dumps(secrets.unmistakable(health.as_json(found)), indent=2)
            Path(args["json"]).expanduser().write_text(text + "\n", encoding="utf-8")
        if args["text"]:
            Path(args["text"]).expanduser().write_text("\n".join(lines) + "\n", encoding="utf-8")
        result.update(changed=False, well=health.well(found))
        if not result["well"]:
            bad = [row["name"] for row in found if row["wrong"]]
            result.update(failed=True, msg=f"Not well: {', '.join(bad)} (see the table).")
        return result
