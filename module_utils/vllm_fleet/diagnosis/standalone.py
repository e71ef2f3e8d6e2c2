# SPDX-License-Identifier: Apache-2.0
"""A diagnosis of a log about which nothing else is known, for `scripts/diagnose`. Pure."""

from __future__ import annotations

import ast
import codecs
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from ..common.failure import Failure, FailureClass
from ..vllm.log import split
from ..vllm.prefix import unwrapped
from . import reading
from .case import Context, ExitFacts, Run
from .diagnose import diagnose

#: Bytes of a log's beginning and end that are read: more than MAX_LINES lines of a start have.
_HEAD, _TAIL, _CHUNK = 8 << 20, 24 << 20, 1 << 20
_DOCKER = re.compile(r"(?:\S*docker: )?Error response from daemon: (.+)")


@dataclass(frozen=True)
class Reading:
    """What a log says; ``failure`` is None where it shows none."""

    failure: Failure | None

    @property
    def known(self) -> bool:
        """Say whether the failure has a name."""
        return self.failure is not None and self.failure.class_ != FailureClass.UNKNOWN

    def as_result(self) -> dict[str, Any]:
        """Return the parts as plain JSON values; ``class`` is None where the log shows no failure."""
        return self.failure.as_result() if self.failure is not None else {"class": None}

    def as_text(self) -> str:
        """Return the parts for a person."""
        if self.failure is None:
            return (
                "The log shows no failure. If the server is gone all the same, give its --exit-code N; if it makes no "
                "progress, say --stalled."
            )
        found = self.failure
        lines = [f"class:    {found.class_}", f"why:      {found.cause}.", f"to do:    {found.remedy}."]
        return "\n".join([*lines, *(f"evidence: {line}" for line in found.evidence)])


def read(log: str, exit_code: int | None = None, *, stalled: bool = False) -> Reading:
    """Return what a log says. Without ``exit_code`` a log without an error is one of a server that runs.

    ``stalled``: the server runs, and its start makes no progress.
    """
    lines = unwrapped(split(_text(log)))
    if stalled:
        return Reading(diagnose("\n".join(lines), ExitFacts(verdict="stalled"), context_of(lines)))
    refused = next((found[1] for line in lines[-5:] if (found := _DOCKER.match(line))), "")
    if refused:  # what was copied is not the container's log, but the answer of `docker run`
        return Reading(diagnose("", ExitFacts(exit_code, error=refused, verdict="not_started"), context_of(lines)))
    said = [line for line in lines if line.strip()]
    if len(said) == 1:  # or what `docker inspect` has as State.Error
        answer = diagnose("", ExitFacts(exit_code, error=said[0], verdict="not_started"), Context())
        if answer.class_ != FailureClass.UNKNOWN:
            return Reading(answer)
    run = reading.last_run(lines)
    text = "\n".join(lines)
    if exit_code is None and (not run.errors or _of_requests(run)) and run.stop is None and not reading.gone(run):
        waits = diagnose(text, ExitFacts(verdict="ready_timeout"), context_of(lines))
        return Reading(waits if waits.class_ == FailureClass.NOT_ENOUGH_GPUS else None)
    return Reading(diagnose(text, ExitFacts(exit_code), context_of(lines)))


def _of_requests(run: Run) -> bool:
    """Say whether all errors are the API server's own, of a server that was ready: each ends a request at most."""
    return run.ready and not any(
        error.process not in ("", "APIServer")
        or (error.kind != "traceback" and not error.logged)
        or any(reading.WRAPPER.search("\n".join(texts)) for texts in error.exceptions)
        for error in run.errors
    )


def _text(log: str) -> str:
    """The log's text where it is Docker's own file of JSON, or colours were copied as text."""
    if log.startswith('{"log":'):
        log = "".join(_json_line(line) for line in log.splitlines())
    return re.sub(r"\^\[\[[\d;]*m", "", log) if "^[[" in log else log


def _json_line(line: str) -> str:
    try:
        return str(json.loads(line)["log"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{line}\n"


def text_of(stream: IO[bytes]) -> str:
    """Return the beginning and the end of a log as text; memory stays bounded, whatever its size.

    UTF-8, or UTF-16 with its mark, as some shells of other systems write it.
    """
    head = stream.read(_HEAD)
    tail, dropped = bytearray(), False
    while chunk := stream.read(_CHUNK):
        tail += chunk
        if len(tail) > 2 * _TAIL:
            del tail[:-_TAIL]
            dropped = True
    if len(tail) > _TAIL:
        dropped = True
        del tail[:-_TAIL]
    encoding = "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    if not dropped:
        return (head + tail).decode(encoding, errors="replace")
    if encoding == "utf-16":
        encoding = "utf-16-le" if head[:2] == codecs.BOM_UTF16_LE else "utf-16-be"
    begin, end = (part.decode(encoding, errors="replace") for part in (head, bytes(tail)))
    # Two half lines must not become one.
    return begin.removeprefix("\ufeff").rpartition("\n")[0] + "\n" + end.partition("\n")[2]


def context_of(lines: Sequence[str]) -> Context:
    """Return what the log itself says of the server: its model and its arguments."""
    for line in reversed(lines):
        found = re.search(r"non-default args: (\{.{0,20000}\})\s*$", line)
        if found is None:
            continue
        try:
            args = ast.literal_eval(found[1])
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # older releases print objects among the values
            continue
        plain = {str(name).replace("_", "-"): value for name, value in args.items()}
        model = str(plain.pop("model", "") or plain.get("model-tag", ""))
        plain.pop("model-tag", None)
        return Context(model=model, args=plain)
    return Context()
