# SPDX-License-Identifier: Apache-2.0
"""A node whose GPUs are sick: what a repair finds there, the GPU reset, and what it writes down.

A mark beside the server's records is there from before the first step until the server is admitted. It survives a boot,
so that a run that was killed is taken up by the next one, and holds the GPUs that have to be there again.
"""

from __future__ import annotations

import calendar
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..common import durable, maintenance, names
from ..server import watched
from . import history
from .gpus import Gpus
from .journal import Journal, write_whole
from .places import Places

#: Options of the module gpu_repair.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "default": "vllm"},
    "state": {"type": "str", "choices": ["probed", "begun", "reset", "ended", "failed"], "default": "probed"},
    "why": {"type": "str", "default": ""},
    "state_dir": {"type": "path", "default": "/var/lib/vllm-fleet"},
    "sysfs_root": {"type": "path", "default": "/sys"},
    "kernel_log": {"type": "path", "default": "/dev/kmsg"},
    "reset_command": {"type": "list", "elements": "str", "default": []},
}
DAY = 86400
#: Seconds that a reset of all GPUs may take.
RESET_TIMEOUT = 600.0
#: Seconds for a look at the GPUs.
LOOK_TIMEOUT = 60.0
STUCK = f"{LOOK_TIMEOUT:.0f} s were not enough to read /sys: a GPU may be stuck"
UNFINISHED = "an earlier repair did not come to its end"
#: Kind of the event of each state that writes one.
KINDS = {"begun": "repair", "ended": "repaired", "failed": "repair_failed"}


def perform(params: Mapping[str, Any], *, check_mode: bool, root: Path = Path("/")) -> dict[str, Any]:
    """Do what the checked options of gpu_repair ask, and return the module's result. Raises OSError."""
    if wrong := names.wrong_container(params["name"]):
        return {"changed": False, "failed": True, "msg": f"{wrong}. Correct vllm_server_name; nothing was touched."}
    node = _Node(params, root)
    state = params["state"]
    if check_mode or state == "probed":
        return {"changed": state != "probed", **node.look()}
    if state == "reset":
        return {"changed": True, "failed_reset": node.reset(), **node.look()}
    if state == "begun":
        node.begin()
    journal = Journal(params["state_dir"], params["name"])
    journal.event(KINDS[state], params["why"])
    if state == "ended":
        node.mark.unlink(missing_ok=True)
    said = f"; {journal.trouble}" if journal.trouble else ""
    return {"changed": True, "msg": f"noted: {KINDS[state]}{said}"}


class _Node:
    """The node of one server."""

    def __init__(self, params: Mapping[str, Any], root: Path) -> None:
        self.name, self.root = params["name"], root
        self.folder = Path(params["state_dir"], params["name"])
        self.mark = self.folder / "repair.json"
        self.places = Places(self.name, run_dir=str(root / "run/vllm-fleet"))
        self.sysfs, self.log = Path(params["sysfs_root"]), Path(params["kernel_log"])
        self.command = list(params["reset_command"])

    def look(self) -> dict[str, Any]:
        """Return `reasons` to repair, `gpus` that the node should have, `tries` of a day, and what resets GPUs."""
        marked = self.marked()
        sick, gpus = self.sick({str(pci) for pci in (marked or {}).get("gpus") or ()})
        if not sick and marked is None:
            # The kernel's log may have lost what its watchdog has read.
            said = watched.look(self.name, self.root).get("quarantine")
            sick = [said] if said else []
        reset = self.resetting(len(gpus))
        return {
            "reasons": sick or ([UNFINISHED] if marked is not None else []),
            "sick": bool(sick),
            "gpus": sorted(gpus),
            "tries": self.tries(),
            "reset": " ".join(reset[0]) if reset else "",
            "maintenance": maintenance.look(str(self.folder.parent), self.name),
        }

    def marked(self) -> dict[str, Any] | None:
        """Return what the mark says, nothing of one that cannot be read; None where there is none."""
        try:
            return durable.read(self.mark)
        except durable.Unreadable:
            return {}

    def sick(self, wanted: set[str]) -> tuple[list[str], set[str]]:
        """Return what is wrong with the GPUs, as sentences, and the GPUs that the node should have.

        A read in a driver that is being reset may never end, and a process with such a thread neither: another process
        looks, holds nothing of this one's, and is left behind.
        """
        gpus = Gpus(self.places.gpus, self.sysfs, self.log)
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            _tell(theirs, gpus, wanted)
        os.close(theirs)
        text, end = b"", time.monotonic() + LOOK_TIMEOUT
        with os.fdopen(ours, "rb", buffering=0) as answer:
            while select.select([answer], [], [], max(0.0, end - time.monotonic()))[0]:
                piece = answer.read(65536)
                text += piece
                if not piece:
                    os.waitpid(child, 0)  # it ends with the last of its answer
                    return _told(text, wanted)
        os.kill(child, signal.SIGKILL)
        return [STUCK], gpus.known() | wanted

    def tries(self) -> int:
        """Return how many repairs were begun within a day; those of a clock that was set back count, too."""
        lines: list[str] = []
        for path in (self.folder / "events" / name for name in history.FILES):
            if path.is_file():
                lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
        begun = [event["at"] for event in history.events(lines, "")[0] if event["kind"] == KINDS["begun"]]
        since = time.time() - DAY
        return sum(calendar.timegm(time.strptime(at, "%Y-%m-%dT%H:%M:%SZ")) > since for at in begun)

    def begin(self) -> None:
        """Leave the mark."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self.mark, {"gpus": self.look()["gpus"]})

    def resetting(self, count: int) -> list[list[str]]:
        """Return the commands that reset all GPUs: those of one node are linked, and are reset together."""
        if self.command:
            return [self.command]
        # A tree of files is another machine's, and has no programs.
        program = _program("amd-smi") if str(self.sysfs) == "/sys" else ""
        if program:
            return [[program, "reset", "--gpureset", "--gpu", "all"]]
        program = _program("rocm-smi") if str(self.sysfs) == "/sys" else ""
        return [[program, "--gpureset", "-d", str(number)] for number in range(count)] if program else []

    def reset(self) -> str:
        """Reset all GPUs; return what was wrong with that, empty where nothing was."""
        for command in self.resetting(len(self.look()["gpus"])):
            try:
                program = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
                out, err = program.communicate(timeout=RESET_TIMEOUT)
            except OSError as exc:
                return f"{' '.join(command)}: {exc}"
            except subprocess.TimeoutExpired:
                program.kill()  # and not waited for: in a driver that hangs it never ends
                return f"{' '.join(command)} did not end within {RESET_TIMEOUT:.0f} s"
            if program.returncode:
                said = (err or out).strip().splitlines()
                return f"{' '.join(command)}: {said[-1] if said else f'exit code {program.returncode}'}"
        return ""


def _tell(to: int, gpus: Gpus, wanted: set[str]) -> NoReturn:
    """Look at the GPUs, write what was found, and end: in a process of its own, which keeps no one's output open."""
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.closerange(to + 1, os.sysconf("SC_OPEN_MAX"))
        os.closerange(3, to)
        try:
            found: dict[str, Any] = {
                "sick": [fault.says for fault in gpus.faults(wanted, keep=False) if fault.serious],
                "gpus": sorted(gpus.seen),
            }
        except OSError as exc:
            found = {"errno": exc.errno, "says": exc.strerror, "file": exc.filename}
        with os.fdopen(to, "wb") as answer:
            answer.write(json.dumps(found, default=str).encode())
    finally:
        os._exit(0)


def _told(text: bytes, wanted: set[str]) -> tuple[list[str], set[str]]:
    """Return what ``_tell`` has found. Raises OSError where it could not look."""
    found = json.loads(text or b'{"errno": 0, "says": "the look at the GPUs ended without an answer", "file": null}')
    if "errno" in found:
        raise OSError(found["errno"], found["says"], found["file"])
    return found["sick"], {*found["gpus"], *wanted}


def _program(name: str) -> str:
    """Return where a program of ROCm is; empty where it is not."""
    found = shutil.which(name)
    places = sorted(Path("/opt").glob(f"rocm*/bin/{name}"))
    return found or (str(places[-1]) if places else "")
