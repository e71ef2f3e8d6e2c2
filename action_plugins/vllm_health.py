# SPDX-License-Identifier: Apache-2.0
"""Controller side of vllm_health: one connection to a node, and what its server, watchdog or HAProxy say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.rollout import left_out
from ansible.module_utils.vllm_fleet.vllm import host_variables
from plugin_utils import health_probe
from plugin_utils.variables import Variables

SOCKETS = {"docker": "/var/run/docker.sock", "socket": "/run/haproxy/vllm-fleet.sock"}


class ActionModule(ActionBase):
    """Never fails: who is not reached has `not_reached` in its result."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask, and hand on what was said."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(argument_spec={"timeout": {"type": "float", "default": 5.0}})
        given = task_vars or {}
        known = Variables(self._templar, given)
        result.update(changed=False)
        asked = self._asked(known, given, args["timeout"])
        result["kind"], result["model"] = asked["kind"], asked.get("model", "")
        removed = host_variables.truth(known.get("gateway_absent"))
        if asked["kind"] == "gateway" and removed:
            return {**result, "removed": True}
        if asked["kind"] == "server" and host_variables.truth(known.get(left_out.PLANNED)):
            return {**result, "resting": f", says {left_out.PLANNED} of the inventory"}
        python = str(known.get("ansible_python_interpreter") or "python3")
        python = python if re.fullmatch(r"[\w./+-]+", python) and not python.startswith("auto") else "python3"
        program = f"{Path(health_probe.__file__).read_text('utf-8')}\nmain({json.dumps(asked)!r})\n"
        try:
            # The key goes over standard input: command lines of a node are seen by all of its users.
            told = self._low_level_execute_command(f"{python} -", sudoable=True, in_data=program.encode())
        except AnsibleConnectionFailure as error:
            result["not_reached"] = str(error)
            return result
        lines = [line for line in told["stdout"].splitlines() if line.startswith(health_probe.MARK)]
        try:
            found = json.loads(lines[-1].removeprefix(health_probe.MARK)) if lines else None
        except ValueError:
            found = None
        if isinstance(found, dict):
            result["found"] = found
        else:
            said = " ".join(str(told["stderr"] or told["stdout"]).split())[-300:]
            result["not_reached"] = said or f"no answer (code {told['rc']})"
        return result

    @staticmethod
    def _asked(known: Variables, given: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Return what the node or gateway is asked."""
        host, groups = str(given["inventory_hostname"]), given.get("groups") or {}
        if host not in groups.get("vllm", ()):
            return {"kind": "gateway", "timeout": timeout, **SOCKETS}
        hostvars = given["hostvars"]
        # Of a server over several nodes the head has the port.
        heads = host_variables.replica_head(hostvars, groups["vllm"], host) == host
        bind, port = known.get("vllm_server_bind") or host_variables.LOOPBACK, known.get("vllm_server_port")
        where = host_variables.LOOPBACK if bind in (*host_variables.WILDCARDS, "localhost") else str(bind)
        served = {name: known.get(name) for name in ("vllm_server_args", "vllm_server_model")}
        return {
            **{"kind": "server", "timeout": timeout, **SOCKETS},
            "name": host_variables.container_name({"vllm_server_name": known.get("vllm_server_name")}),
            "state_dir": str(known.get("vllm_server_state_dir") or "/var/lib/vllm-fleet"),
            "host": where,
            "port": int(port or host_variables.PORT) if heads else 0,
            "model": host_variables.served_names(served)[0],
            "key": str(known.get("vllm_server_api_key") or ""),
        }
