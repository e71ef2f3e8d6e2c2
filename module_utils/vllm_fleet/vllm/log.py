# SPDX-License-Identifier: Apache-2.0
"""A vLLM server's output as text: lines, and the errors in them. Pure.

Shapes are vLLM 0.32.0's (logger.py, logging_utils/formatter.py), with those of older releases beside them. vLLM's own
logger writes to stdout; tqdm, uvicorn, warnings and the API server's traceback go to stderr. Read each stream through
a :class:`LogReader` of its own, for a half line of one must not meet a half line of the other.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..common.terminal import plain
from .prefix import Line, parse

__all__ = ["Error", "Line", "LogReader", "errors", "parse", "split"]

#: Characters after which a line without an end is given out in pieces: memory stays bounded whatever comes in.
MAX_LINE = 65536

#: Lines of a whole log that are read: more than any start prints, and little enough to be read within a second.
MAX_LINES = 100_000

#: Lines of an exception's message that are kept.
MAX_MESSAGE_LINES = 40

#: Characters of a line that are searched for a word of retries.
_READ = 600

#: Frames of an exception that are kept, the innermost ones.
MAX_FRAMES = 40

# Patterns are compiled when they are first needed, by the re module's cache: most runs of a module need none of them.
_ENDS = r"[\r\n]"
#: A bar that has no line end, and the line of a process that follows it.
_GLUED = r"((?:it/s|s/it)\])(?=\([A-Za-z][\w.-]* |ERROR |Traceback )"


def split(text: str) -> list[str]:
    """Lines of a whole log, split at carriage returns too (progress bars), without empty ones.

    Of a log of more than :data:`MAX_LINES` lines the beginning and the end are kept.
    """
    if "\x1b" in text or "\x00" in text:
        text = plain(text)
    if "/s](" in text or "/it](" in text or "]ERROR" in text:
        text = re.sub(_GLUED, r"\1\n", text)
    lines = text.replace("\r", "\n").split("\n")
    if len(lines) > MAX_LINES:
        lines = lines[: MAX_LINES // 4] + lines[-3 * MAX_LINES // 4 :]
    if max(map(len, lines)) > MAX_LINE:
        lines = [piece for line in lines for piece in _pieces(line)]
    return [line for line in lines if line and not line.isspace()]


class LogReader:
    """Bytes of one stream in, whole lines out, however the bytes are cut.

    Splits at ``\\r`` and ``\\n``, decodes UTF-8 with replacement, drops colours and empty lines, and keeps what has no
    end yet until it has, or until :meth:`close`.
    """

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""

    def feed(self, data: bytes) -> list[str]:
        """Take bytes, return the lines that they complete."""
        parts = re.split(_ENDS, self._kept + self._decoder.decode(data))
        self._kept = parts.pop()
        lines = [piece for part in parts for piece in _pieces(part)]
        while len(self._kept) > MAX_LINE:
            lines.append(self._kept[:MAX_LINE])
            self._kept = self._kept[MAX_LINE:]
        return _cleaned(lines)

    def close(self) -> list[str]:
        """Return what was kept: the stream has ended."""
        last = self._kept + self._decoder.decode(b"", final=True)
        self._kept = ""
        return _cleaned(_pieces(last))


def _pieces(line: str) -> list[str]:
    if len(line) <= MAX_LINE:
        return [line]
    return [line[at : at + MAX_LINE] for at in range(0, len(line), MAX_LINE)]


def _cleaned(lines: Iterable[str]) -> list[str]:
    return [line for line in map(plain, lines) if line and not line.isspace()]


# Errors ----------------------------------------------------------------------------------------------------------

_TRACEBACK = "Traceback (most recent call last)"
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?::|$)"
#: An exception without its traceback: the log was cut, or only this line was kept.
_BARE = r"[\w.]*(?:Error|Exception): "
#: What ends an exception's message on stderr: the next thing that another process writes there.
_FOREIGN = (
    r"INFO:|WARNING:|ERROR:|DEBUG:|\[?[IWEF]\d{4} |usage: |\S+\.py:\d+: \w*Warning|\s*warnings\.warn\(|Process \S+:$"
    r"|\S+:\d+:\d+ \[\d+\] NCCL |Memory access fault|HW Exception|:0:rocdevice|\[AITER\] |!!!!!!! "
)
#: A progress bar, drawn between the lines of something else.
_BAR = r"[^:|]{3,60}:\s+\d+%"
#: What says that something is broken in a line that no logger and no traceback made: libraries, the shell, argparse.
_FATAL = (
    ": error: ",
    "Unable to open /dev/kfd",
    "ROCk module is NOT loaded",
    "Memory access fault by GPU",
    "HSA_STATUS_ERROR",
    "NCCL WARN",
    "Bus error",
    "SIGBUS",
    "Fatal Python error",
    "Segmentation fault",
    "Illegal instruction",
    "Segfault encountered",
    "HW Exception by GPU",
    "[AITER] ",
    "rocBLAS error",
    "MIOpen Error",
    "hipBLASLt error",
    "LLVM ERROR",
    "libnuma: Warning: unparseable",
    "pthread_create failed",
    "terminate called",
    "what(): ",
    "No space left on device",
    "Cannot allocate memory",
    "command not found",
    "cannot execute",
    "exec format error",
    "sh: ",
)


#: Heads of tracebacks that their process lives on after: Python prints them where no code can catch the exception, and
#: of threads and tasks that are not the main one.
_SWALLOWED = (
    "Exception ignored in",
    "--- Logging error ---",
    "Exception in thread ",
    "Task exception was never retrieved",
    "Future exception was never retrieved",
)
#: A warning of another logger, with the traceback of what it warns about after it.
_WARNED = r"(?i)(?:\S+ \S+ )?\[?(?:WARNING|WARN|W\d{4})\b.*(?:fail|cannot|could not|unable|ignor|skip|fall)"
#: An attempt that failed and is made again: the last one has a traceback of its own.
_RETRY = r"(?i)\bretry(?:ing)?\b.*\d|will retry|trying again"
#: C++ log lines of PyTorch, `[W508 11:47:03.157 file.cpp:1] text`, of levels below error.
_MILD = r"\[?[WI]\d{3,4} \d\d:\d\d:"


@dataclass
class Error:
    """One thing that went wrong: a traceback with its chain of exceptions, an ERROR line, or a fatal raw line.

    ``index`` is the number of its first line, ``kind`` is ``traceback`` or ``line``; ``exceptions`` holds for each
    exception its lines as text, ``raw`` the same lines as they stand in the log, ``frames`` the innermost frame, and
    ``stacks`` all of its frames. The last exception is the one that left the traceback. ``logged``: a logger wrote it,
    which means stdout, and ``source`` is the place in its code.
    """

    index: int
    process: str
    kind: str
    exceptions: list[list[str]] = field(default_factory=list)
    raw: list[list[str]] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    logged: bool = False
    pid: str = ""
    source: str = ""
    stacks: list[list[str]] = field(default_factory=list)


class _Open:
    """An error that may still grow, of one process: first ``frames``, then its ``message``, perhaps a ``chain``."""

    def __init__(self, error: Error, state: str, source: str) -> None:
        self.error = error
        self.state = state
        self.source = source
        self.stack: list[str] = []

    def takes(self, level: str, source: str, text: str, line: str) -> bool:
        """Add a line if it belongs to this error."""
        if level and source != self.source:
            return False
        if not level and re.match(_BAR, text):
            return True
        if text.lstrip(" |+").startswith(_CHAIN):
            self.state = "chain"
        elif self.state == "chain":
            return not text.strip() or text.startswith("future: ")
        elif self.state == "frames":
            self._frame(text, line)
        elif self.state == "message" and (level or not (self.source or re.match(_FOREIGN, text))):
            if len(self.error.raw[-1]) < MAX_MESSAGE_LINES:
                self.error.exceptions[-1].append(text)
                self.error.raw[-1].append(line)
        else:
            return False
        return True

    def _frame(self, text: str, line: str) -> None:
        if text.lstrip().startswith('File "'):
            self.stack.append(text.strip())
        elif not text[:1].isspace() and re.match(_EXCEPTION, text) and not re.match(_FOREIGN, text):
            self.error.exceptions.append([text])
            self.error.raw.append([line])
            self.error.frames.append(self.stack[-1] if self.stack else "")
            self.error.stacks.append(self.stack[-MAX_FRAMES:])
            self.stack = []
            self.state = "message"


def _warned(lines: Sequence[str], index: int, process: str, pid: str) -> bool:
    """Say whether the line before, of the same process and stream, is another logger's warning."""
    for line in reversed(lines[max(0, index - 50) : index]):
        head = parse(line)
        if (head.process, head.pid, head.level) == (process, pid, ""):
            return re.match(_WARNED, head.text) is not None
    return False


def _single(index: int, line: str, fatal: Sequence[str]) -> Error | None:
    """Return the error of a line that belongs to none before it, or None."""
    process, pid, level, source, text = parse(line)
    raw = not level and re.match(_BARE, text) is None
    if raw and (not any(word in text for word in fatal) or re.match(_MILD, text)):
        return None
    if re.search(_RETRY, text[:_READ]):
        return None
    return Error(index, process, "line", [[text]], [[line]], [""], bool(level), pid, source, [[]])


def errors(lines: Sequence[str], start: int = 0) -> list[Error]:
    """Errors of a log in order of their first line, from line ``start`` on. Warnings are none.

    Lines of several processes may be mixed, and so may a process's two streams, since their collector reads each
    by itself: what belongs together is put together by the prefix, and by whether a logger wrote it.
    """
    found: list[Error] = []
    opened: dict[tuple[str, str, bool], _Open] = {}
    whole = "\n".join(lines)
    fatal = tuple(word for word in _FATAL if word in whole)
    for index in range(start, len(lines)):
        line = lines[index]
        # Nearly all lines of a log are none of these, and to see that costs a tenth of parsing them.
        telling = "Error" in line or "ERROR" in line or "Traceback" in line or "CRITICAL" in line or "Exception" in line
        if not (telling or opened or (fatal and any(word in line for word in fatal))):
            continue
        process, pid, level, source, text = parse(line)
        key = (process, pid, bool(level))
        current = opened.get(key)
        if level and level not in ("ERROR", "CRITICAL"):
            if current is not None and current.state == "message":
                del opened[key]
            continue
        if text.startswith(_SWALLOWED):
            opened[key] = _Open(Error(index, process, "swallowed"), "chain", source)
            continue
        if text.lstrip(" |+").startswith(_TRACEBACK):
            if current is None or current.state != "chain":
                error = Error(index, process, "traceback", logged=bool(level), pid=pid, source=source)
                current = opened[key] = _Open(error, "frames", source)
                if level or not _warned(lines, index, process, pid):
                    found.append(current.error)
            current.state = "frames"
            continue
        if current is not None:
            if current.takes(level, source, text, line):
                continue
            del opened[key]
        single = _single(index, line, fatal)
        if single is not None:
            found.append(single)
            if level or re.match(_BARE, text):
                opened[key] = _Open(single, "message", source)
    return [error for error in found if error.exceptions]
