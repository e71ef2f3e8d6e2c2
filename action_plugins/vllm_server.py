# SPDX-License-Identifier: Apache-2.0
"""Controller side of vllm_server: short calls in a loop, with progress on the terminal.

A start of a large model takes up to an hour. No SSH session has to live that long: each call watches for at most half
a minute and returns where the start stands. A call that is lost costs nothing, the next one looks again.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet

# Found through the path that is set above.
from ansible.module_utils.vllm_fleet.common import probes
from ansible.module_utils.vllm_fleet.common.failure import Failure, FailureClass
from ansible.module_utils.vllm_fleet.common.units import duration
from ansible.module_utils.vllm_fleet.server import options
from plugin_utils import planned

display = Display()

#: The module's own default.
STATE_DIR = "/var/lib/vllm-fleet"

#: Seconds one call watches. Also the longest silence on the terminal.
SLICE = 30.0
#: Seconds for which a node may be out of reach in the middle of a watch before the task gives up.
PATIENCE = 300.0
#: Seconds between two attempts to reach it.
RETRY = 3.0


def lines(host: str, progress: dict[str, Any], *, quiet: bool) -> list[str]:
    """Write a slice's news; when there is none and it was ``quiet``, where the start stands and its last log line."""
    what = "restoring, " if progress.get("phase") == "restore" else ""
    out = []
    for news in progress["news"]:
        detail = f" {news['detail']}" if news["detail"] else ""
        out.append(f"[{host}] {what}{news['stage']}{detail} ({duration(news['at'])})")
    if not out and quiet:
        estimate = f", about {duration(progress['estimate'])} left" if progress.get("estimate") else ""
        last = f" | {progress['last_line'][:160]}" if progress.get("last_line") else ""
        out.append(f"[{host}] {what}{progress['describe']} ({duration(progress['elapsed'])}{estimate}){last}")
    return out


class ActionModule(ActionBase):
    """Loops the module of the same name until it has a verdict."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run, watch, and hand the module's whole last result on."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        host = str(variables.get("inventory_hostname", "localhost"))
        args = {"watch_slice": SLICE, **options.call(self._task.args, host)}
        verification = args.pop("verification", None)
        cached = boolean(args.pop("use_cached_result", None) or False)
        if re.match("~(/|$)", str(args.get("hf_cache") or "")):
            args["hf_cache"] = self._home() + str(args["hf_cache"])[1:]
        replica = args.get("replica") or {}
        several = replica.get("size", 1) > 1
        # For a table of the fleet every node answers for itself, also where a partner is out of reach.
        own = args.get("mode") == "status" or args.get("state", "started") not in ("started", "restored", "restarted")
        known = probes.planned(variables.get("ansible_facts"), "vllm_server", planned.digest(args)) if cached else None
        if known:
            answer = known
        elif several and not own:
            answer = self._with_partners(host, replica, args, variables)
        else:
            answer = self._alone(host, args, variables, verification)
        for key in ("progress", "log_lines", "pending", "token"):
            answer.pop(key, None)
        result.update(answer)
        if args.get("mode", "deploy") != "deploy":
            result["mode"] = args["mode"]
        if several:
            result["replica"] = {key: replica[key] for key in ("name", "head", "hosts", "rank")}
        return result

    def _home(self) -> str:
        """Ask for the home of the connecting user, whose cache it is also where the module runs as root."""
        with contextlib.suppress(AnsibleError):  # a node that cannot be reached: the module's own call says so
            told = self._low_level_execute_command('printf %s "$HOME"', sudoable=False, executable="/bin/sh")
            return str(told["stdout"]).strip() or "~"
        return "~"

    def _alone(
        self, host: str, args: dict[str, Any], variables: dict[str, Any], verification: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        token: dict[str, Any] | None = None
        while True:
            began = time.monotonic()
            call = {**args, **({"watch_token": token} if token else {})}
            answer = self._with_question(call, variables, verification) or self._call(
                host, "vllm_server", call, variables
            )
            self._show(host, answer, quiet=time.monotonic() - began > float(args["watch_slice"]) / 2)
            if not answer.get("pending"):
                return answer
            token = answer["token"]

    def _with_question(
        self, call: dict[str, Any], variables: dict[str, Any], verification: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """For a plan, send the server its verification request in the same process, where nothing would change.

        The task that verifies it takes the answer then. Returns None where the module alone is called.
        """
        host = str(call["reported_host"])
        if not verification or call.get("mode") != "plan":
            return None
        return probes.together(
            {"module": "vllm_server", "args": call},
            [{"module": "vllm_chat", "args": verification}],
            lambda module, options: self._call(host, module, options, variables),
        )

    def _with_partners(
        self, host: str, replica: dict[str, Any], args: dict[str, Any], variables: dict[str, Any]
    ) -> dict[str, Any]:
        """Bring this node of a server over several nodes through the run, together with the others."""
        from ansible.module_utils.vllm_fleet.replica.agreement import incomplete  # noqa: PLC0415
        from ansible.module_utils.vllm_fleet.replica.controller import ReplicaRun  # noqa: PLC0415

        batch, forks = variables.get("ansible_play_batch") or [host], int(variables.get("ansible_forks") or 1)
        names = None
        if len(batch) > forks:
            hostvars = variables["hostvars"]
            names = {
                h: str(hostvars[h]["vllm_server_replica"]) for h in batch if hostvars[h].get("vllm_server_replica")
            }
        refused = incomplete(replica, batch, variables.get("ansible_play_hosts") or [host], forks, names)
        if refused:
            text = f"{host}, container {args.get('name', 'vllm')}: {refused}. Nothing was touched."
            failure = Failure(FailureClass.BAD_ARGUMENT, refused, remedy="Run it for all of them")
            return {"failed": True, "actions": [], "msg": text, "failure": failure.as_result()}

        folder = f"{args.get('state_dir') or STATE_DIR}/{args.get('name', 'vllm')}"

        def wake(nonce: str) -> None:
            self._low_level_execute_command(f"touch {shlex.quote(f'{folder}/wake-{nonce}')}")

        def look(nonce: str) -> dict[str, Any] | None:
            # Nothing of it is needed: a node that cannot be reached for a moment is the watch's own business.
            with contextlib.suppress(AnsibleError, ValueError, TypeError, RecursionError):
                text = self._low_level_execute_command(f"cat {shlex.quote(f'{folder}/news-{nonce}')}")["stdout"]
                return dict(json.loads(text))
            return None

        return ReplicaRun(
            replica,
            host,
            # A folder of this run, which Ansible removes at its end.
            Path(C.DEFAULT_LOCAL_TMP) / "vllm-replicas",
            call=lambda module, options: self._call(host, module, options, variables),
            show=lambda answer, quiet: self._show(host, answer, quiet=quiet),
            say=display.display,
            wake=wake,
            look=look,
            check_mode=bool(self._task.check_mode) or args.get("mode", "deploy") != "deploy",
            options=args,
        ).run()

    def _call(self, host: str, module: str, call: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Call a module; in the middle of a watch be patient with a node that cannot be reached."""
        lost: float | None = None
        while True:
            try:
                answer: dict[str, Any] = self._execute_module(module_name=module, module_args=call, task_vars=variables)
            except AnsibleConnectionFailure as exc:
                answer = {"unreachable": True, "msg": str(exc)}
            if answer.get("unreachable") and call.get("mode") == "status":
                # A line in a table of the fleet, not the end of this node's run.
                return {"failed": True, "not_reached": True, "msg": str(answer.get("msg") or "no answer")}
            if answer.get("unreachable") and call.get("watch_token"):
                lost = time.monotonic() if lost is None else lost
                if time.monotonic() - lost > PATIENCE:
                    return answer
                display.display(f"[{host}] the node cannot be reached, the start goes on there; trying again")
                time.sleep(RETRY)  # nothing on this side could announce that a network is back
                self._connection.reset()
                continue
            if lost is not None:
                display.display(f"[{host}] the node is back after {duration(time.monotonic() - lost)}")
            return answer

    @staticmethod
    def _show(host: str, answer: dict[str, Any], *, quiet: bool) -> None:
        progress = answer.get("progress")
        if progress:
            for line in lines(host, progress, quiet=quiet):
                display.display(line)
        for line in answer.get("log_lines") or []:
            display.vv(line, host=host) if display.verbosity > 1 else display.v(f"[{host}] {line}")
