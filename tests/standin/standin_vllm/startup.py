# SPDX-License-Identifier: Apache-2.0
"""The start of a vLLM as its log shows it: stage by stage, over as many seconds as ordered, failing where ordered."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from standin_vllm import VERSION
from standin_vllm.behaviour import STAGES, Behaviour
from standin_vllm.cli import DEFAULTS
from standin_vllm.log import Log
from standin_vllm.ranks import LostRankError, Ranks

# Shares of the whole start; shards take most of it, as weights of a real size do.
SHARES = {
    "config": 8,
    "engine": 12,
    "load": 5,
    "shards": 45,
    "loaded": 0,
    "compile": 15,
    "kv_cache": 5,
    "graphs": 10,
    "api": 0,
}
BANNER = (
    "",
    "       █     █     █▄   ▄█",
    " ▄▄ ▄█ █     █     █ ▀▄▀ █  version {version}",
    "  █▄█▀ █     █     █     █  model   {model}",
    "   ▀▀  ▀▀▀▀▀ ▀▀▀▀▀ ▀     ▀",
    "",
)
WRAPPER = "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
BUSY_SLICE = 0.02  # seconds of work, then four times as many of rest: a fifth of one core


class StartupFailedError(Exception):
    """The start ended as ordered; `exit_code` is the process's."""

    def __init__(self, exit_code: int) -> None:
        """Remember the exit code."""
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class Startup:
    """One start. `announce` is what comes before the port is bound, `run` everything up to the listening server."""

    def __init__(self, options: argparse.Namespace, behaviour: Behaviour, log: Log) -> None:
        """Nothing happens yet."""
        self._options = options
        self._behaviour = behaviour
        self._log = log
        self._ranks = Ranks(options)
        self._stages = [s for s in STAGES if not (options.enforce_eager and s in ("compile", "graphs"))]
        self._whole = sum(SHARES[stage] for stage in self._stages)
        self.address = f"http://{options.host or '0.0.0.0'}:{options.port}"

    def announce(self) -> None:
        """The banner and the arguments."""
        options = self._options
        for line in BANNER:
            self._log.line("api", "api_utils.py:347", line.format(version=VERSION, model=options.model))
        shown = {
            name: value
            for name, value in sorted(vars(options).items())
            if value not in (None, False, DEFAULTS.get("--" + name.replace("_", "-")))
            and name not in ("subparser", "api_key", "hf_token")
        }
        self._log.line("api", "api_utils.py:286", f"non-default args: {shown}")

    def run(self) -> None:
        """Go through the stages; raises StartupFailedError where a failure is ordered."""
        for stage in self._stages:
            share = self._behaviour.start_seconds * SHARES[stage] / self._whole
            steps = getattr(self, f"_{stage}")(share)
            first = True
            for seconds in steps:
                if first:
                    first = False
                    self._interfere(stage)
                    if stage == "engine":
                        self._ranks.meet()
                self._collective()
                self._pass_time(seconds)

    def _collective(self) -> None:
        try:
            self._ranks.collective()
        except LostRankError as error:
            log, source = self._log, "multiproc_executor.py:953"
            log.line("worker", source, "WorkerProc failed to start.", "ERROR")
            log.line("worker", source, "Traceback (most recent call last):", "ERROR")
            log.line("worker", source, f"torch.distributed.DistNetworkError: {error}", "ERROR")
            log.traceback("../v1/engine/utils.py", 1431, "wait_for_engine_startup", f"RuntimeError: {WRAPPER}")
            raise StartupFailedError(1) from None

    def _interfere(self, stage: str) -> None:
        behaviour = self._behaviour
        if stage == behaviour.fail_at:
            self._fail()
        if stage == behaviour.stage_silent:
            self._pass_time(behaviour.silent_seconds or threading.TIMEOUT_MAX)

    def _pass_time(self, seconds: float) -> None:
        """Wait; with BUSY_CPU part of it in work, with GROW_FILE while a file gets longer."""
        behaviour = self._behaviour
        if not (behaviour.busy_cpu or behaviour.grow_file):
            time.sleep(min(seconds, 10**6))
            return
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if behaviour.busy_cpu:
                until = time.monotonic() + min(BUSY_SLICE, left)
                while time.monotonic() < until:
                    sum(range(500))
            if behaviour.grow_file:
                with Path(behaviour.grow_file).open("ab") as file:
                    file.write(os.urandom(65536))
            time.sleep(min(4 * BUSY_SLICE, left))

    def _fail(self) -> None:
        behaviour, log = self._behaviour, self._log
        if behaviour.fail_log:
            log.replay(Path(behaviour.fail_log).read_text(encoding="utf-8"))
        elif behaviour.fail_text:
            log.replay(behaviour.fail_text)
        else:
            log.line("engine", "core.py:1400", "EngineCore failed to start.", "ERROR")
            log.line("engine", "core.py:1400", "Traceback (most recent call last):", "ERROR")
            log.line("engine", "core.py:1400", f"RuntimeError: failure ordered at stage {behaviour.fail_at}", "ERROR")
            log.traceback("../v1/engine/utils.py", 1431, "wait_for_engine_startup", f"RuntimeError: {WRAPPER}")
        self._ranks.leave()
        time.sleep(behaviour.fail_linger)
        raise StartupFailedError(behaviour.fail_exit)

    # One method per stage: print, and yield the seconds to let pass before the next print.

    def _config(self, share: float) -> Iterator[float]:
        self._log.line("api", "model.py:733", "Resolved architecture: LlamaForCausalLM")
        self._log.line("api", "model.py:2152", f"Using max model len {max_model_len(self._options)}")
        yield share

    def _engine(self, share: float) -> Iterator[float]:
        model, revision = self._options.model, self._options.revision
        self._log.line(
            "engine",
            "core.py:133",
            f"Initializing a V1 LLM engine (v{VERSION}) with config: model='{model}', tokenizer='{model}', "
            f"revision={revision}, max_seq_len={max_model_len(self._options)}, "
            f"tensor_parallel_size={self._options.tensor_parallel_size}, "
            f"enforce_eager={bool(self._options.enforce_eager)}",
        )
        yield share

    def _load(self, share: float) -> Iterator[float]:
        self._log.line("worker", "gpu_model_runner.py:5070", f"Starting to load model {self._options.model}...")
        yield share

    def _shards(self, share: float) -> Iterator[float]:
        total = self._behaviour.shards
        start = time.monotonic()
        for number in range(total + 1):
            elapsed = int(time.monotonic() - start)
            left = _clock(elapsed * (total - number) // number) if number else "?"
            rate = f"{number / max(time.monotonic() - start, 0.01):5.2f}it/s" if number else "?it/s"
            self._log.err(
                f"Loading safetensors checkpoint shards: {100 * number // total:3d}% Completed | {number}/{total} "
                f"[{_clock(elapsed)}<{left}, {rate}]"
            )
            if number < total:
                yield share / total
        self._log.err("")
        self._log.line(
            "worker", "default_loader.py:501", f"Loading weights took {time.monotonic() - start:.2f} seconds"
        )

    def _loaded(self, share: float) -> Iterator[float]:
        self._log.line("worker", "gpu_model_runner.py:5150", "Model loading took 0.25 GiB memory and 0.210000 seconds")
        yield share

    def _compile(self, share: float) -> Iterator[float]:
        self._log.line("worker", "monitor.py:40", "Starting torch.compile")
        yield share / 2
        self._log.line("worker", "backends.py:1166", f"Dynamo bytecode transform time: {share / 2:.2f} s")
        yield share / 2
        self._log.line("worker", "monitor.py:53", f"torch.compile took {share:.2f} s in total")

    def _kv_cache(self, share: float) -> Iterator[float]:
        length = max_model_len(self._options)
        self._log.line("worker", "gpu_worker.py:759", "Available KV cache memory: 1.0 GiB")
        self._log.line(
            "engine",
            "kv_cache_utils.py:2327",
            f"GPU KV cache size: 46,592 tokens, Maximum concurrency for {length:,} tokens per request: "
            f"{46592 / length:.2f}x",
        )
        yield share

    def _graphs(self, share: float) -> Iterator[float]:
        bar = "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): {:3d}%|{}| {}/2 [00:00<00:00]"
        for number in range(2):
            self._log.bar(bar.format(50 * number, "█" * number, number))
            yield share / 2
        self._log.bar(bar.format(100, "██", 2), end="\n")
        self._log.line(
            "worker", "gpu_model_runner.py:6581", f"Graph capturing finished in {share:.0f} secs, took 0.02 GiB"
        )

    def _api(self, share: float) -> Iterator[float]:
        self._log.line("engine", "core.py:402", "init engine (profile, create kv cache, warmup model) took 0.69 s")
        if self._options.headless:
            return
        self._log.line("api", "entry.py:136", "Supported tasks: ['generate']")
        self._log.line("api", "entry.py:140", f"Starting vLLM server on {self.address}")
        yield share


def _clock(seconds: int) -> str:
    return f"{seconds // 60:02d}:{seconds % 60:02d}"


def max_model_len(options: argparse.Namespace) -> int:
    """--max-model-len in tokens; without it the made-up model's own 8192."""
    return options.max_model_len if options.max_model_len > 0 else 8192
