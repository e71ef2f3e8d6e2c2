"""Action plugin push_files: ansible.posix.synchronize, with how far it is on the terminal.

That module runs rsync to its end before it says anything. So it is given a program that puts the output where it can be
read meanwhile; how rsync reaches the node stays its affair.
"""

from __future__ import annotations

import re
import shlex
import tempfile
import threading
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

_SHARED = str(Path(__file__).resolve().parent.parent / "module_utils")
if _SHARED not in ansible.module_utils.__path__:  # what the nodes import by this name, imported here by the same
    ansible.module_utils.__path__.append(_SHARED)

from ansible.module_utils.vllm_fleet.amounts import size  # noqa: E402

display = Display()

#: Seconds from the first line to the next; each following pause is half as long again, up to a minute.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 60.0

#: rsync 3.1 and newer can tell the progress of all files together; what has changed, the module reads from the output.
WRAPPER = r"""#!/bin/sh
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


class ActionModule(ActionBase):
    """Runs synchronize and shows meanwhile what rsync says."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send the files."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = dict(self._task.args)
        label = f"[{task_vars.get('inventory_hostname', '?')}] {args.pop('label', 'sending files')}"
        task = self._task.copy()
        task.args = args
        with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as folder:
            wrapper = Path(folder) / "rsync"
            program = shlex.quote(str(task_vars.get("ansible_rsync_path") or "rsync"))
            wrapper.write_text(WRAPPER.replace("{program}", program), encoding="utf-8")
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

    @staticmethod
    def _tell(label: str, said: Path, over: threading.Event) -> None:
        pause = FIRST_PAUSE
        while not over.wait(pause):
            line = moving(said.read_text(encoding="utf-8", errors="replace")) if said.exists() else ""
            display.display(f"{label}: {line or 'beginning'}")
            pause = min(LONGEST_PAUSE, pause * 1.5)
