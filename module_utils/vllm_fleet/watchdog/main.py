# SPDX-License-Identifier: Apache-2.0
"""The watchdog's command line. What only one verb needs is imported by that verb: the resident one has to be small."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import places, settings, words

VERBS = {
    "run": "watch server NAME until SIGTERM",
    "restart": "restart server NAME, whose watchdog has found it hung; called by `run`",
    "evidence": "keep as evidence what server NAME does now; called by `run`",
    "state": "print what the watchdog of server NAME thinks of it",
}
USAGE = "Finds a server that hangs, and restarts it within limits (docs/watchdog.md)."


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` says, without the program's name; return the exit code."""
    parser = argparse.ArgumentParser(prog="watchdog", description=USAGE)
    parser.add_argument("--settings-dir", default=places.SETTINGS, help="folder of the settings' files")
    parser.add_argument("--run-dir", default=places.RUN, help="folder of the present state")
    parser.add_argument("--sysfs", default="/sys", help="folder that stands for /sys")
    parser.add_argument("--kernel-log", default="/dev/kmsg", help="file that stands for the kernel's log")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in VERBS.items():
        verbs.add_parser(verb, help=text).add_argument("name", metavar="NAME")
    verbs.add_parser("check", help="check a file of settings").add_argument("file", metavar="FILE")
    given = parser.parse_args(argv)
    if given.verb == "check":
        return _check(Path(given.file))
    where = places.Places(given.name, given.settings_dir, given.run_dir, given.sysfs, given.kernel_log)
    if given.verb == "state":
        return _state(where)
    try:
        return _run(where) if given.verb == "run" else _second_half(where, given.verb)
    except (OSError, ValueError) as exc:
        print(f"{where.name}: {exc}", file=sys.stderr)
        return 1


def _run(where: places.Places) -> int:
    from .resident import Resident  # noqa: PLC0415

    program = [sys.executable, "-I", sys.argv[0]]
    return Resident(where, program).run()


def _second_half(where: places.Places, verb: str) -> int:
    from . import restart  # noqa: PLC0415

    return restart.main(where, verb)


def _check(file: Path) -> int:
    try:
        found = settings.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        print(f"{file}: {exc}", file=sys.stderr)
        return 1
    # What restarts a server needs it, and to learn that in the night is too late.
    if found.action == "restart" and importlib.util.find_spec("docker") is None:
        print(f"{file}: a restart needs Docker's SDK for {sys.executable} (python3-docker)", file=sys.stderr)
        return 1
    print(f"{file}: right, for server {found.name}")
    return 0


def _state(where: places.Places) -> int:
    try:
        found = json.loads(where.state.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        print(f"no state of {where.name}: {exc}", file=sys.stderr)
        return 1
    print(words.shown(where.name, found))
    return 0
