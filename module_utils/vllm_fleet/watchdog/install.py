# SPDX-License-Identifier: Apache-2.0
"""Puts a server's watchdog on its node, or takes it away: files, and what systemd does with the unit."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import durable, names
from . import counts, places, unit

#: Options of the module vllm_watchdog.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "default": "vllm"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "settings": {"type": "dict"},
    "program": {"type": "str"},
    "source": {"type": "path"},
}
SPEC: dict[str, Any] = {"argument_spec": ARGUMENTS, "required_if": [("state", "present", ["settings", "program"])]}

UNITS, WANTS = "/etc/systemd/system", "multi-user.target.wants"
#: There where systemd is the node's first process (sd_booted(3)).
BOOTED = "/run/systemd/system"
#: Seconds for one call of systemctl; a stop waits for a watchdog that is asked to end.
PATIENCE = 120.0
#: Seconds in which a watchdog has taken other settings, and in which every gateway has asked it.
TELL, HEARD = 20.0, 2.5
NO_SYSTEMD = "there is no systemd on the node, so the server has no watchdog between two runs"


class Broken(Exception):
    """Something could not be done. One sentence: what, and what systemd or the program said."""


@dataclass(frozen=True)
class Node:
    """Where things are; everything below ``root``, which is another folder in a test."""

    name: str
    root: str = "/"
    run: Any = field(default=subprocess.run, compare=False)

    def at(self, path: str) -> Path:
        """Return a path of the node."""
        return Path(self.root, path.lstrip("/"))

    @property
    def settings(self) -> Path:
        """The server's settings."""
        return self.at(str(places.Places(self.name).settings))

    @property
    def program(self) -> Path:
        """The program, which all servers of the node share."""
        return self.at(unit.PROGRAM)

    @property
    def template(self) -> Path:
        """The unit, which they share, too."""
        return self.at(f"{UNITS}/{unit.TEMPLATE}")

    @property
    def wanted(self) -> Path:
        """The link that has systemd start the server's unit at boot."""
        return self.at(f"{UNITS}/{WANTS}/{unit.instance(self.name)}")

    def systemctl(self, *words: str) -> str:
        """Run systemctl, return what it printed. Raises Broken."""
        return self.call("systemctl", *words)

    def call(self, *words: str) -> str:
        """Run a program, return what it printed. Raises Broken."""
        done = self.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise Broken(f"{' '.join(words)}: {said[-1] if said else f'exit code {done.returncode}'}")
        return str(done.stdout)

    def look(self) -> unit.Found:
        """Return what the node has. systemd is asked only where there is a unit. Raises Broken, OSError."""
        template, enabled = _text(self.template), self.wanted.is_symlink()
        state = "inactive"
        if template is not None or enabled:
            properties = ("ActiveState", "SubState", "NRestarts")
            state = unit.state(self.systemctl("show", f"--property={','.join(properties)}", unit.instance(self.name)))
        others = [path for path in self.settings.parent.glob("*.json") if path != self.settings]
        return unit.Found(_digest(self.program), _text(self.settings), template, enabled, state, bool(others))


def perform(params: Mapping[str, Any], *, check_mode: bool, node: Node | None = None) -> dict[str, Any]:
    """Do on this node what the checked options of vllm_watchdog ask, and return the module's result."""
    if wrong := names.wrong_container(params["name"]):
        return {"failed": True, "msg": f"{wrong}. Correct vllm_server_name; nothing was touched."}
    node = node or Node(params["name"])
    present = params["state"] == "present"
    if not node.at(BOOTED).is_dir():
        told = {"msg": NO_SYSTEMD} if present else {}
        return {"changed": False, "differences": [], "diff": {}, "systemd": False, **told}
    result: dict[str, Any] = {"systemd": True}
    try:
        found = node.look()
        program, settings = params.get("program") or "", params.get("settings") or {}
        differences = unit.missing(found, program, settings) if present else unit.left(found)
        lacks = present and found.program != program
        shown = [one.as_dict() for one in differences]
        result |= {"changed": bool(shown), "differences": shown, "diff": _diff(shown), "needs_program": lacks}
        if present and found.state == "ends" and not differences:
            raise Broken(
                f"it ends again and again, although all of it is as described: journalctl -u {unit.instance(node.name)}"
            )
        if check_mode or not differences or (lacks and not params.get("source")):
            return result
        with _alone(node):
            if present:
                _install(node, {one.name for one in differences}, settings, Path(params["source"] or ""))
            else:
                _remove(node, node.look())  # another server may have got its watchdog meanwhile
    except (Broken, OSError, subprocess.TimeoutExpired) as exc:
        return {**result, "failed": True, "msg": f"the watchdog of {node.name}: {exc}"}
    return {**result, "needs_program": False}


def _install(node: Node, names: set[str], settings: Mapping[str, Any], source: Path) -> None:
    if {"program", "unit"} & names:
        # A run that is killed between here and the start leaves units that do not run, which the next run sees.
        running = _running(node)
        if running:
            node.systemctl("stop", *running)
        if "program" in names:
            _write(node.program, source.read_bytes(), 0o644)
        if "unit" in names:
            _write(node.template, unit.UNIT.encode(), 0o644)
    else:
        running = []
    if any(name.startswith("settings") for name in names):
        _put_settings(node, settings)
    node.systemctl("daemon-reload")
    mine = unit.instance(node.name)
    node.systemctl("enable", mine)
    node.systemctl("start", *dict.fromkeys([mine, *running]))


def _put_settings(node: Node, settings: Mapping[str, Any]) -> None:
    """Have the program itself check the settings before it gets them. Raises Broken."""
    new = node.settings.with_suffix(".new")
    _write(new, unit.text(settings).encode(), 0o600)
    try:
        node.call(unit.PYTHON, "-I", str(node.program), "check", str(new))
        new.replace(node.settings)
    finally:
        new.unlink(missing_ok=True)


def _remove(node: Node, found: unit.Found) -> None:
    mine = unit.instance(node.name)
    _tell_gateways(node, found)
    if found.unit is not None or found.enabled:
        node.systemctl("disable", "--now", mine)
        with contextlib.suppress(Broken):
            node.systemctl("reset-failed", mine)  # of one that never failed there is nothing to forget
    node.settings.unlink(missing_ok=True)
    shutil.rmtree(node.at(str(places.Places(node.name).run)), ignore_errors=True)
    node.at(f"{counts.FOLDER}/{counts.file_name(node.name)}").unlink(missing_ok=True)
    if found.others:
        return
    for path in (node.template, node.program):
        path.unlink(missing_ok=True)
    for folder in (node.settings.parent, node.settings.parent.parent, node.program.parent):
        with contextlib.suppress(OSError):  # there is more in it
            folder.rmdir()
    node.systemctl("daemon-reload")


def _tell_gateways(node: Node, found: unit.Found) -> None:
    """Have a watchdog that says `down` say `up` first: a gateway keeps the last word of one that is gone."""
    if found.state != "active" or found.settings is None:
        return
    try:
        given = json.loads(found.settings)
        agent = given.get("agent")
        address = (str(agent["address"]), int(agent["port"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return
    address = ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0]), address[1])  # noqa: S104
    if not _says(address).startswith(b"down"):
        return
    _write(node.settings, unit.text({**given, "action": "observe"}).encode(), 0o600)
    deadline = time.monotonic() + TELL
    while _says(address).startswith(b"down") and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(HEARD)


def _says(address: tuple[str, int]) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=2) as connection:
        return connection.recv(100)
    return b""


def _running(node: Node) -> list[str]:
    """Return the units of all servers that run: they share the program."""
    pattern = unit.instance("*")
    words = ("list-units", "--plain", "--no-legend", "--full", "--state=active,activating", pattern)
    return [line.split()[0] for line in node.systemctl(*words).splitlines() if line.strip()]


@contextlib.contextmanager
def _alone(node: Node) -> Iterator[None]:
    """Keep out another host of the inventory that is this machine, too."""
    folder = node.at("/run/vllm-fleet")
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _diff(differences: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what --diff shows; a whole text as such."""

    def side(key: str) -> str:
        lines = []
        for one in differences:
            value = one[key]
            whole = isinstance(value, str) and "\n" in value
            lines.append(f"{one['name']}:\n{value.rstrip()}" if whole else f"{one['name']}: {value}")
        return "".join(f"{line}\n" for line in lines)

    return {"before": side("current"), "after": side("desired")} if differences else {}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes, mode: int) -> None:
    durable.make_folders(path.parent)
    durable.write(path, data, mode)
