"""Controller side of vllm_server: short calls in a loop, with progress on the terminal.

A start of a large model takes up to an hour. No SSH session has to live that long: each call watches for at most half
a minute and returns where the start stands. A call that is lost costs nothing, the next one looks again.
"""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

#: Seconds one call watches. Also the longest silence on the terminal.
SLICE = 30.0
#: Seconds for which a node may be out of reach in the middle of a watch before the task gives up.
PATIENCE = 300.0
#: Seconds between two attempts to reach it.
RETRY = 3.0


def clock(seconds: float | None) -> str:
    """Write a duration as a person reads it: 8 s, 1 m 05 s, 1 h 02 m."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"


def lines(host: str, progress: dict[str, Any], *, quiet: bool) -> list[str]:
    """Write a slice's news; when there is none and it was ``quiet``, where the start stands and its last log line."""
    what = "restoring, " if progress.get("phase") == "restore" else ""
    out = []
    for news in progress["news"]:
        detail = f" {news['detail']}" if news["detail"] else ""
        out.append(f"[{host}] {what}{news['stage']}{detail} ({clock(news['at'])})")
    if not out and quiet:
        estimate = f", about {clock(progress['estimate'])} left" if progress.get("estimate") else ""
        last = f" | {progress['last_line'][:160]}" if progress.get("last_line") else ""
        out.append(f"[{host}] {what}{progress['describe']} ({clock(progress['elapsed'])}{estimate}){last}")
    return out


class ActionModule(ActionBase):
    """Loops the module of the same name until it has a verdict."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run, watch, and hand the module's whole last result on."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        host = str(variables.get("inventory_hostname", "localhost"))
        args = {"reported_host": host, "watch_slice": SLICE, **self._task.args}
        slice_seconds = float(args["watch_slice"])
        token: dict[str, Any] | None = None
        lost: float | None = None
        while True:
            began = time.monotonic()
            try:
                call = {**args, **({"watch_token": token} if token else {})}
                answer = self._execute_module(module_name="vllm_server", module_args=call, task_vars=variables)
            except AnsibleConnectionFailure as exc:
                answer = {"unreachable": True, "msg": str(exc)}
            if answer.get("unreachable") and variables.get("__vllm_server_looked"):
                # A line in a table of the fleet, not the end of this node's run.
                return {"failed": True, "not_reached": True, "msg": str(answer.get("msg") or "no answer")}
            if answer.get("unreachable") and token is not None:
                lost = time.monotonic() if lost is None else lost
                if time.monotonic() - lost > PATIENCE:
                    result.update(answer)
                    return result
                display.display(f"[{host}] the node cannot be reached, the start goes on there; trying again")
                time.sleep(RETRY)  # nothing on this side could announce that a network is back
                self._connection.reset()
                continue
            if lost is not None:
                display.display(f"[{host}] the node is back after {clock(time.monotonic() - lost)}")
                lost = None
            self._show(host, answer, quiet=time.monotonic() - began > slice_seconds / 2)
            if not answer.get("pending"):
                break
            token = answer["token"]
        for key in ("progress", "log_lines", "pending", "token"):
            answer.pop(key, None)
        result.update(answer)
        return result

    @staticmethod
    def _show(host: str, answer: dict[str, Any], *, quiet: bool) -> None:
        progress = answer.get("progress")
        if progress:
            for line in lines(host, progress, quiet=quiet):
                display.display(line)
        for line in answer.get("log_lines") or []:
            display.vv(line, host=host) if display.verbosity > 1 else display.v(f"[{host}] {line}")
