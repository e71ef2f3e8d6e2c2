# SPDX-License-Identifier: Apache-2.0
"""Action plugin of hf_swarm: follows a peer in short calls, with one progress line per interval on the terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common.units import size, time_left

display = Display()

#: A node that does not answer for this many seconds is given up; the others go on.
PATIENCE = 120.0
#: Seconds between two attempts to reach it.
RETRY = 2.0
#: Seconds from the first line to the next; each following pause is half as long again, up to a minute.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0


def line(host: str, label: str, answer: dict[str, Any]) -> str:
    """Write one progress line of one node."""
    where = f"[{host}] {label}"
    if answer.get("checking"):
        return f"{where}: looking at what is there already"
    done, total = int(answer.get("done") or 0), int(answer.get("total") or 0)
    percent = 100 * done // total if total else 100
    if answer.get("finished"):
        return f"{where}: all {size(total)} there, {size(answer.get('received') or 0)} of it came now"
    moving = f"{size(answer.get('rate') or 0)}/s, {time_left(answer.get('eta'))}, {answer.get('peers')} peer(s)"
    return f"{where}: {percent} % of {size(total)}, {moving}"


class ActionModule(ActionBase):
    """Hands every state to the module; loops it for ``followed``."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module, until there is a verdict."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._variables = task_vars or {}
        self._host = str(self._variables.get("inventory_hostname", "?"))
        args = dict(self._task.args)
        if args.get("state") != "followed" or self._task.check_mode:
            self._note(self._host).unlink(missing_ok=True)
            answer = self._ask(args)
            # A node that is down must not take the play from the others: it is named when all is over.
            if answer.pop("unreachable", False):
                answer = {"ok": False, "reason": f"the node cannot be reached ({answer.get('msg')})"}
            if answer.get("ok") is False and args.get("state") != "stopped":
                reason = answer.get("reason")
                display.warning(f"[{self._host}] no swarm here: {reason}. The weights go by rsync over SSH instead.")
        else:
            try:
                answer = self._follow(args)
            finally:
                self._note(self._host).touch()
        result.update(answer)
        return result

    def _note(self, host: str) -> Path:
        """Return the file that says that a host's part is over: the workers of a run share its temporary folder."""
        return Path(C.DEFAULT_LOCAL_TMP) / f"hf_swarm-{self._task.args['name']}-{host}"

    def _follow(self, args: dict[str, Any]) -> dict[str, Any]:
        label = str(args.get("label") or "weights")
        followers = [self._note(str(host)) for host in args.get("followers") or []]
        patience = float(args.get("stall") or PATIENCE)
        pause, lost = FIRST_PAUSE, None
        while True:
            answer = self._ask({**args, "wait": pause})
            if answer.get("unreachable"):
                lost = lost or time.monotonic()
                if time.monotonic() - lost > patience:
                    reason = f"the node cannot be reached ({answer.get('msg')}); run again when it is back"
                    return {"ok": False, "finished": False, "reason": reason}
                time.sleep(RETRY)  # nothing on this side could announce that a node is back
                self._connection.reset()
                continue
            lost = None
            if answer.get("seed") and answer.get("ok"):
                # Back before the seed's lease runs out.
                if self._all_over(followers, min(pause, float(args.get("lease") or LONGEST_PAUSE) / 4)):
                    return answer
            elif answer.get("failed") or answer.get("finished") or not answer.get("ok"):
                if answer.get("finished"):
                    display.display(line(self._host, label, answer))
                return answer
            else:
                display.display(line(self._host, label, answer))
            pause = min(LONGEST_PAUSE, pause * 1.5)

    def _ask(self, args: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._execute_module(
                module_name="hf_swarm", module_args=args, task_vars=self._variables
            )
        except AnsibleConnectionFailure as exc:
            return {"unreachable": True, "msg": str(exc)}
        return answer

    @staticmethod
    def _all_over(notes: list[Path], seconds: float) -> bool:
        """Wait until all notes are there, at most so many seconds."""
        deadline = time.monotonic() + seconds
        while not all(note.exists() for note in notes):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True
