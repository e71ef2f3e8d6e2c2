# SPDX-License-Identifier: Apache-2.0
"""`vllm bench serve`: its flags, and what it printed. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

COMMAND = ("vllm", "bench", "serve")

#: What a vLLM says that has no such command, or an image without vLLM.
_NO_BENCH = ("invalid choice", "not found")


def words(flags: Mapping[str, Any]) -> list[str]:
    """Return flags as words of a command line: true is a switch, false and null leave the flag out."""
    return [
        word
        for name, value in flags.items()
        if value is not None and value is not False
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def context(args: Mapping[str, Any]) -> int:
    """Return max-model-len of a server with these flags; 0 where it is no plain number (8k, auto), or not given."""
    given = str(args.get("max-model-len", ""))
    return int(given) if re.fullmatch("[0-9]+", given) else 0


def figures(output: str, flags: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a result file, with the ``command`` that measured them; ``flags`` are its words()."""
    return {**json.loads(output), "command": shlex.join([*COMMAND, *flags])}


def failure(run: Mapping[str, Any]) -> str:
    """Return why a benchmark failed; ``run`` is the result of the task that ran the command in the container."""
    errors = str(run.get("stderr") or "")
    remedy = (
        " The image's vLLM has no `vllm bench serve`; use a newer image."
        if any(one in errors for one in _NO_BENCH)
        else ""
    )
    return f"The benchmark failed: {errors or run.get('msg', 'no output')}{remedy}"
