# SPDX-License-Identifier: Apache-2.0
"""Action plugin push_files: ansible.posix.synchronize, with how far it is on the terminal.

That module runs rsync to its end before it says anything. So it is given a program that puts the output where it can be
read meanwhile. How rsync reaches the node stays its affair; who it is there is Ansible's: the module would run sudo
itself, which cannot ask for a password without a terminal.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common.units import size
from plugin_utils import become_pipe

display = Display()

#: Seconds from the first line to the next; each following pause is half as long again, up to a minute.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0

#: rsync 3.1 and newer can tell the progress of all files together; what has changed, the module reads from the output.
#: ``pipe`` goes before the remote shell that the module has chosen.
WRAPPER = r"""#!/bin/sh
pipe={pipe}
for word do
  shift
  case $word in
    --rsh=*) [ -z "$pipe" ] || word="--rsh=$pipe ${word#--rsh=}" ;;
  esac
  set -- "$@" "$word"
done
if {program} --info=help >/dev/null 2>&1; then
  set -- --info=progress2 --no-inc-recursive --outbuf=N "$@"
fi
{program} "$@" >"$0.said"
code=$?
tr '\r' '\n' <"$0.said" | sed -n 's/.*\(<<CHANGED>>\)/\1/p'
exit $code
"""
PROGRESS = re.compile(r"([\d,.]+)\s+(\d+)%\s+([\d.]+)(\w+/s)\s+([\d:]+)")


def moving(said: str) -> str:
    """Write the newest progress in rsync's output as a person reads it; empty when there is none yet."""
    found = PROGRESS.findall(said)
    if not found:
        return ""
    count, percent, rate, unit, left = found[-1]
    return f"{percent} %, {size(int(re.sub('[,.]', '', count)))}, {rate} {unit}, {left} left"


def _give(place: Path, secret: str) -> None:
    """Give the password to the one who opens the pipe."""
    with contextlib.suppress(OSError), place.open("wb", buffering=0) as pipe:
        pipe.write(secret.encode(errors="surrogateescape"))


class ActionModule(ActionBase):
    """Runs synchronize and shows meanwhile what rsync says."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send the files."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = dict(self._task.args)
        rsync = str(task_vars.get("ansible_rsync_path") or "rsync")
        if shutil.which(rsync) is None:
            msg = f"The controller has no {rsync}, which sends the files: `sudo apt-get install rsync`, then run again."
            result.update(failed=True, msg=msg)
            return result
        label = f"[{task_vars.get('inventory_hostname', '?')}] {args.pop('label', 'sending files')}"
        task = self._task.copy()
        task.args = args
        with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as folder, self._far_end(Path(folder), args) as pipe:
            wrapper = Path(folder) / "rsync"
            program = shlex.quote(rsync)
            text = WRAPPER.replace("{pipe}", shlex.quote(shlex.join(pipe))).replace("{program}", program)
            wrapper.write_text(text, encoding="utf-8")
            wrapper.chmod(0o700)
            action = self._shared_loader_obj.action_loader.get(
                "ansible.posix.synchronize",
                task=task,
                connection=self._connection,
                play_context=self._play_context,
                loader=self._loader,
                templar=self._templar,
                shared_loader_obj=self._shared_loader_obj,
            )
            over = threading.Event()
            teller = threading.Thread(target=self._tell, args=(label, Path(folder) / "rsync.said", over))
            teller.start()
            try:
                result.update(action.run(task_vars={**task_vars, "ansible_rsync_path": str(wrapper)}))
            finally:
                over.set()
                teller.join()
        return result

    @contextlib.contextmanager
    def _far_end(self, folder: Path, args: dict[str, Any]) -> Iterator[list[str]]:
        """Have the far end run through become: gives the words that go before ssh, none where nothing is to become."""
        become = self._connection.become
        if self._connection.transport == "ssh":
            # The module's own default is to take any host key, though Ansible has just asked for the right one.
            args.setdefault("verify_host", boolean(self._connection.get_option("host_key_checking")))
        if self._connection.transport != "ssh" or become is None:
            yield []
            return
        program = str(args.get("rsync_path") or "rsync")
        if self.get_become_option("become_user") == self._get_remote_user():
            args["rsync_path"] = program
            yield []
            return
        command = become.build_become_command(become_pipe.FAR_END, self._connection._shell)
        args["rsync_path"] = become_pipe.MARK
        secret = folder / "secret"
        settings = {
            "command": command,
            "program": program,
            "success": become.success,
            "prompt": become.prompt if isinstance(become.prompt, str) else "",
            "method": become.name,
            "secret": str(secret),
        }
        (folder / "become.json").write_text(json.dumps(settings), encoding="utf-8")
        os.mkfifo(secret, 0o600)  # the password is never a file, nor in an environment or a command line
        given = become.get_option("become_pass")
        giver = threading.Thread(target=_give, args=(secret, str(given or "")), daemon=True)
        giver.start()
        try:
            yield [sys.executable, "-I", become_pipe.__file__, str(folder / "become.json")]
        finally:
            with contextlib.suppress(OSError):  # it waits for a reader where no password was asked for
                os.close(os.open(secret, os.O_RDONLY | os.O_NONBLOCK))
            giver.join(5)

    @staticmethod
    def _tell(label: str, said: Path, over: threading.Event) -> None:
        pause = FIRST_PAUSE
        while not over.wait(pause):
            line = moving(said.read_text(encoding="utf-8", errors="replace")) if said.exists() else ""
            display.display(f"{label}: {line or 'beginning'}")
            pause = min(LONGEST_PAUSE, pause * 1.5)
