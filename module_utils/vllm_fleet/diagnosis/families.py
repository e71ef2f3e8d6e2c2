# SPDX-License-Identifier: Apache-2.0
"""What a traceback is by its kind, where no row of the table knows its message. Pure.

The kind is the exception's type, the innermost library among its frames, the functions on the way there, and its
words. The table of kinds is in kinds.py; the first sign that fits an exception names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..common.failure import FailureClass
from ..vllm.log import Error
from . import explain_kernels
from .case import Case, Context, Run
from .kinds import IMPORTED, KINDS, LIBRARIES, Kind, Sign
from .phrases import Words

_FRAME = re.compile(r'File "(?P<path>[^"]+)", line \d+(?:, in (?P<function>\S+))?')
#: The compiler's own exception before the one that it met.
_COMPILER = re.compile(r"\A[\w.]*(?:InductorError|BackendCompilerFailed|LoweringException): (?=[\w.]+: )")
#: Frames before the exception in which a function may be a sign.
_NEAR = 8


@dataclass(frozen=True)
class Thrown:
    """What is known of an exception: type without its module, library, the nearest functions inwards, words."""

    type: str
    library: str
    functions: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Found:
    """A class by its kind. ``words`` explains it, ``frames`` prove it; ``weight`` is a row's rank."""

    class_: FailureClass
    words: Callable[[], Words]
    weight: float
    frames: list[str] = field(default_factory=list)


def thrown(stack: Sequence[str], text: str) -> Thrown:
    """Return what is known of an exception with these frames, the innermost last, and this text."""
    frames = [match for frame in stack if (match := _FRAME.search(frame))]
    functions = [match["function"] or "" for match in frames]
    if len(functions) > 1 and functions[-1] == "<module>":
        functions[-1] = IMPORTED
    # An exception may carry another's name: `torch._inductor.exc.InductorError: ImportError: ...`.
    lines = text.split("\n")
    first = lines[1] if lines[0].rstrip().endswith("raised:") and len(lines) > 1 else lines[0]
    head = re.match(r"(?:[\w.]*?)(?P<type>\w+)(?::|$)", _COMPILER.sub("", first))
    library = next((name for match in reversed(frames) if (name := _library(match["path"]))), "")
    return Thrown(head["type"] if head else "", library, tuple(functions[-_NEAR:]), text)


def _library(path: str) -> str:
    return next((name for name, pattern in LIBRARIES if re.search(pattern, path)), "")


def kind_of(exception: Thrown) -> Kind | None:
    """Return the kind of an exception, or None."""
    return next((kind for kind in KINDS if any(_fits(sign, exception) for sign in kind.signs)), None)


def _fits(sign: Sign, exception: Thrown) -> bool:
    return (
        (not sign.library or exception.library in sign.library.split())
        and (not sign.type or re.fullmatch(sign.type, exception.type) is not None)
        and (not sign.function or any(re.fullmatch(sign.function, name) for name in exception.functions))
        and (not sign.words or re.search(sign.words, exception.text) is not None)
    )


def of(error: Error, number: int, text: str, run: Run, context: Context) -> Found | None:
    """Return the class of an exception by its kind, or None."""
    kind = kind_of(thrown(error.stacks[number] if error.stacks else (), text))
    match = re.match("", text)  # no group: the words are read by Case.said
    if kind is None or match is None:
        return None
    case = Case(match, text, run, context, error, number)
    frame = [error.frames[number]] if error.frames[number] else []
    if not run.ready:
        return Found(kind.class_, lambda: kind.explain(case), kind.weight, frame)
    if kind.class_ != FailureClass.KERNEL_UNSUPPORTED:
        return None
    return Found(FailureClass.ENGINE_DIED, lambda: explain_kernels.died(case), kind.weight, frame)
