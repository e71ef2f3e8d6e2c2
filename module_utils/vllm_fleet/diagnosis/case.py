# SPDX-License-Identifier: Apache-2.0
"""The input of an explanation: how a start ended, what is known of its server, what its log says. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..vllm.log import Error
from ..vllm.startup import Progress

#: vLLM 0.32.0 config/cache.py.
DEFAULT_UTILIZATION = 0.92


class Holder(NamedTuple):
    """A process that holds GPU memory; ``size`` in bytes, None where the kernel does not say."""

    pid: int
    command: str | None
    container: str | None
    size: int | None


class Gpu(NamedTuple):
    """Memory of one GPU in bytes, and who holds it."""

    number: int
    total: int
    free: int
    holders: Sequence[Holder] = ()


@dataclass(frozen=True)
class ExitFacts:
    """How the start ended.

    ``error`` is Docker's own text where it could not start the container; ``verdict`` one of ``exited`` ``restarting``
    ``not_started`` ``stalled`` ``ready_timeout`` ``wrong_model_served`` ``locked``; ``seconds`` since the start;
    ``detail`` what the watcher has to add, as part of a sentence.
    """

    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    verdict: str = "exited"
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class Context:
    """What is known about the server and its node.

    ``args`` are the flags of ``vllm serve`` as the user gave them; ``gpus`` is None where they were not read; values in
    ``secrets`` never come out.
    """

    host: str = ""
    container: str = "vllm"
    image: str = ""
    model: str = ""
    port: int | None = None
    args: Mapping[str, object] = field(default_factory=dict)
    utilization: float | None = None
    gpus: Sequence[Gpu] | None = None
    log_file: str = ""
    #: The node's folder of the engine's compile caches, where the container has one.
    engine_cache: str = ""
    secrets: Sequence[str] = field(default=(), repr=False)

    def arg(self, name: str) -> object:
        """Return the value of a flag (``max-model-len``), or None; the user may have written it with underscores."""
        return next((v for k, v in self.args.items() if k.lstrip("-").replace("_", "-") == name), None)

    def size(self, name: str) -> int:
        """Return a flag that counts something (``tensor-parallel-size``), 1 where it is not set."""
        value = str(self.arg(name) or "")
        return int(value) if value.isdigit() else 1

    @property
    def share(self) -> float:
        """The share of a GPU's memory that vLLM is to take."""
        try:
            return float(str(self.utilization or self.arg("gpu-memory-utilization") or DEFAULT_UTILIZATION))
        except ValueError:
            return DEFAULT_UTILIZATION

    @property
    def model_name(self) -> str:
        """The model as the user named it, for use in a sentence."""
        return self.model or "the model"

    @property
    def image_name(self) -> str:
        """The image as the user named it, for use in a sentence."""
        return f"the image {self.image}" if self.image else "the image"

    @property
    def world(self) -> int:
        """GPUs that the server's replica uses over all its nodes, without data parallelism."""
        return self.size("tensor-parallel-size") * self.size("pipeline-parallel-size")


@dataclass(frozen=True)
class Run:
    """One start of the engine within a log.

    ``errors`` are those that count; if the server was ready, only the later ones. ``stop`` is the number of
    the line where the server got the signal to stop.
    """

    lines: Sequence[str]
    errors: Sequence[Error]
    ready: bool
    stop: int | None
    #: The log has errors that the start went on after.
    survived: bool = False

    def progress(self) -> Progress:
        """Return how far this start got. Of a very long log only the beginning and the end are read."""
        progress = Progress()
        lines = self.lines if len(self.lines) <= 20_000 else [*self.lines[:5_000], *self.lines[-15_000:]]
        for line in lines:
            progress.feed_line(line, 0.0)
        return progress


class Case(NamedTuple):
    """A pattern that matched, the text of the error (its exception ``number``), and what else explains it."""

    match: re.Match[str]
    text: str
    run: Run
    context: Context
    error: Error | None = None
    number: int = 0

    @property
    def stack(self) -> list[str]:
        """The frames of the exception, the innermost last."""
        return self.error.stacks[self.number] if self.error is not None and self.error.stacks else []

    def said(self) -> str:
        """Return the words of the error, or its type and the function that raised it where it has none."""
        lines = self.text.split("\n")
        # PyTorch's wrappers give the reason in the line after theirs.
        first = lines[1] if lines[0].rstrip().endswith("raised:") and len(lines) > 1 else lines[0]
        what = self.get("what") or re.sub(r"^[\w.]+: (?=\S)", "", first)
        if re.fullmatch(r"[\w.]*(?:Error|Exception)", what.strip()) and self.stack:
            return f"{what.strip()} in {self.stack[-1].rpartition(' in ')[2]}"
        return what

    def get(self, name: str) -> str:
        """Return a named group, or an empty string if the pattern has no such group or the group did not match."""
        return self.match.groupdict().get(name) or ""
