# SPDX-License-Identifier: Apache-2.0
"""Holds a lock on a node for as long as this run lives; a run that has ended, however it ended, holds none.

The lock is a file on the node with one line of JSON that says whose it is. A small process on the controller, made by
the first task that takes it, renews the file and removes it when ansible-playbook is gone: at its end, after an error,
after SIGKILL. Where that process could not do it either (the controller lost its power), the next run sees that the
holder is dead (same machine) or has not renewed the file for a lease (another machine), and takes over.

Options: `path` of the file, `lease` in seconds, `takeover` (take it from any holder), `state`: with `kept` it only asks
whether this run still has it. On the node runs a shell, and no Python, so that it costs little.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import multiprocessing
import os
import re
import select
import shlex
import signal
import socket
import time
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

#: Arguments: file, verb (take, renew, drop; others look), the line that is expected there, the line of this run.
#: Prints the file's age and its line.
SCRIPT = """
set -eu
mkdir -p -m 0755 "$(dirname "$1")"
exec 9>>"$1.guard"
flock -w 20 9
held=
[ ! -s "$1" ] || read -r held <"$1" || : # a line that was cut off is somebody's, too
case $2 in
take) [ "$held" != "$3" ] || { printf '%s\\n' "$4" >"$1.new"; mv "$1.new" "$1"; held=$4; } ;;
renew) [ "$held" != "$4" ] || touch "$1" ;;
drop) [ "$held" != "$4" ] || { rm "$1"; held=; } ;;
esac
[ -z "$held" ] || printf 'lock %s %s\\n' "$(($(date +%s) - $(stat -c %Y "$1")))" "$held"
"""
#: Parts of a lease after which it is renewed.
RENEWALS = 4
#: Where a process cannot be waited for (not Linux), seconds between two looks at it.
LOOK = 1.0


def machine() -> str:
    """What distinguishes this machine, and its process ids, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def born(pid: int) -> str:
    """When a process began, in the kernel's words; empty when there is none or it is unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def alive(pid: int, birth: str) -> bool:
    """Whether this process of this machine still runs, and not another one with its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return born(pid) == birth


def describe(pid: int) -> dict[str, Any]:
    """Who the run is, for the file and for the one who finds it held. No command line: it may hold secrets."""
    name = getpass.getuser()
    return {
        "user": name,
        "host": socket.gethostname(),
        "pid": pid,
        "since": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "from": str(Path.cwd()),
        "limit": str(context.CLIARGS.get("subset") or ""),
        "machine": machine(),
        "born": born(pid),
    }


def say(holder: dict[str, Any]) -> str:
    """The holder in a sentence."""
    limit = f", limited to {holder['limit']}" if holder.get("limit") else ""
    return (
        f"{holder.get('user', '?')}@{holder.get('host', '?')} (pid {holder.get('pid', '?')}) since "
        f"{holder.get('since', '?')}, from {holder.get('from', '?')}{limit}"
    )


def dead(holder: dict[str, Any], age: float, lease: float) -> str:
    """Why a holder counts as dead; empty when it does not. `age` is seconds since it last renewed its lock."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if holder["machine"] == machine():
            return "" if alive(int(holder["pid"]), str(holder["born"])) else "that run is dead"
    # Also a file from the future, after the node's clock was set back: the living renew theirs by the clock there is.
    return f"it has not been heard of for {abs(age):.0f} s" if abs(age) > lease else ""


def told(answer: str) -> tuple[float, dict[str, Any], str]:
    """Age in seconds, the holder and its line of what a node printed. Raises ValueError: a node may say anything."""
    found = re.fullmatch(r"lock (-?\d{1,12}) (.*)", answer)
    if not found:
        raise ValueError(f"the node answered {answer[:100]!r}, expected the lock's age and its holder")
    try:
        holder = json.loads(found[2])
    except (ValueError, RecursionError):
        holder = {}  # a line that was cut off, for one
    parts = holder.items() if isinstance(holder, dict) else ()
    sound = {
        name: value for name, value in parts if isinstance(value, str) or (type(value) is int and 0 <= value < 2**31)
    }
    return float(found[1]), sound, found[2]


class ActionModule(ActionBase):
    """Takes the lock of the node that the task runs on."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("path", "lease", "takeover", "state"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take it, or say who has it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "path": {"type": "str", "required": True},
                "lease": {"type": "float", "default": 120},
                "takeover": {"type": "bool", "default": False},
                "state": {"type": "str", "choices": ["held", "kept"], "default": "held"},
            }
        )
        result.update(changed=False, held=False, why="")
        if self._task.check_mode:
            return result
        node = str(self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "?"))
        # ansible-playbook itself, whose workers run the tasks; of a worker that it left behind init is the parent.
        parent = multiprocessing.parent_process()
        run = parent.pid if parent is not None and parent.pid else os.getppid()
        mine = json.dumps(describe(run))
        if args["state"] == "kept":
            return self._kept(result, node, args["path"], run)
        try:
            age, holder, line = self._ask(args["path"], "take", "", mine)
            if self._is(holder, run):
                result["held"] = True
                if line == mine:
                    self._guard(run, args, mine)
                return result
            why = "you said so" if args["takeover"] else dead(holder, age, args["lease"])
            if why:
                display.display(f"[{node}] taking over the lock of {say(holder)}: {why}")
                _, holder, line = self._ask(args["path"], "take", line, mine)
        except AnsibleError as error:
            # Unreachable, or without root's rights there: the task that needs that node has the better message.
            display.warning(f"{node} cannot hold the fleet's lock, going on without it there: {error}")
            result["why"] = str(error)
            return result
        if line != mine:
            result.update(
                failed=True,
                holder=holder,
                msg=f"Another run holds this fleet: {say(holder)}, says {node}. Nothing was touched. Wait until it has "
                "ended; if you know that it is dead, run again with -e fleet_lock_takeover=true.",
            )
            return result
        self._guard(run, args, mine)
        result["held"] = True
        return result

    def _kept(self, result: dict[str, Any], node: str, path: str, run: int) -> dict[str, Any]:
        """Say whether this run still has the lock. It is not taken again: what was planned may be so no more."""
        try:
            _, holder, line = self._ask(path, "look", "", "")
        except AnsibleError as error:
            result["why"] = str(error)
            return result
        result["held"] = self._is(holder, run)
        if not result["held"]:
            result["why"] = "it is gone"
        if line and not result["held"]:
            result.update(
                failed=True,
                holder=holder,
                msg=f"This run has lost the fleet: {say(holder)} holds it now, says {node}. This one did not renew its "
                "lock in time: its controller slept, or had no connection. What it has done stays; run again when the "
                "other one has ended.",
            )
        return result

    @staticmethod
    def _is(holder: dict[str, Any], run: int) -> bool:
        return (holder.get("machine"), holder.get("pid"), holder.get("born")) == (machine(), run, born(run))

    def _ask(self, path: str, verb: str, expected: str, mine: str) -> tuple[float, dict[str, Any], str]:
        """Age in seconds, the holder, and the line as it stands; raises AnsibleError."""
        words = ["/bin/sh", "-c", SCRIPT, "lock", path, verb, expected, mine]
        answer = self._low_level_execute_command(shlex.join(words), sudoable=True)
        # What a login or sudo prints may stand before and after.
        lines = [text for text in answer["stdout"].splitlines() if text.startswith("lock ")]
        if answer["rc"] == 0 and not lines and verb != "take":
            return 0.0, {}, ""
        if answer["rc"] != 0 or not lines:
            said = " ".join((answer["stderr"] or answer["stdout"]).split())[-300:]
            raise AnsibleError(f"{path}: {said or 'no answer'} (code {answer['rc']})")
        try:
            return told(lines[0])
        except ValueError as error:
            raise AnsibleError(f"{path}: {error}") from None

    def _guard(self, run: int, args: dict[str, Any], mine: str) -> None:
        """Leave a process behind that renews the lock while the run lives and drops it afterwards."""
        try:
            handle = os.pidfd_open(run) if hasattr(os, "pidfd_open") else None
        except ProcessLookupError:  # the run was killed since the lock was taken
            with contextlib.suppress(AnsibleError):
                self._ask(args["path"], "drop", "", mine)
            return
        if os.fork():
            return
        # From here on nothing may raise into the worker's code, nor write to its queue.
        try:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            display.verbosity = 0
            keep = {handle, self._play_context.connection_lockfd}
            for descriptor in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
                if descriptor > 2 and descriptor not in keep:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            while not _gone(run, handle, args["lease"] / RENEWALS):
                with contextlib.suppress(Exception):  # a node out of reach now may be back for the next renewal
                    self._ask(args["path"], "renew", "", mine)
            self._ask(args["path"], "drop", "", mine)
        finally:
            os._exit(0)


def _gone(pid: int, handle: int | None, seconds: float) -> bool:
    """Wait for the end of a process; False when it has not ended in that time."""
    if handle is not None:
        return bool(select.select([handle], [], [], seconds)[0])
    end, birth = time.monotonic() + seconds, born(pid)
    while alive(pid, birth) and time.monotonic() < end:
        time.sleep(LOOK)
    return not alive(pid, birth)
