# SPDX-License-Identifier: Apache-2.0
"""The command line of a machine's process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import settings
from .resident import Resident

VERBS = {"run": "write the page again and again until SIGTERM", "once": "print the page once"}


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` says, without the program's name; return the exit code."""
    parser = argparse.ArgumentParser(prog="metrics", description="Writes what Prometheus asks of this machine.")
    parser.add_argument("--settings", default=settings.FILE, help="file of the settings")
    parser.add_argument("verb", choices=VERBS, help="; ".join(f"{verb}: {text}" for verb, text in VERBS.items()))
    given = parser.parse_args(argv)
    try:
        resident = Resident(settings.parse(Path(given.settings).read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        print(f"{given.settings}: {exc}", file=sys.stderr)
        return 1
    if given.verb == "run":
        return resident.run()
    print(resident.look().text(), end="")
    return 0
