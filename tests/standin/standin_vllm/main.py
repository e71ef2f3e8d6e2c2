# SPDX-License-Identifier: Apache-2.0
"""From the command line to a served and, in the end, stopped server."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from standin_vllm import cli
from standin_vllm.behaviour import Behaviour
from standin_vllm.log import Log
from standin_vllm.server import Server
from standin_vllm.startup import Startup, StartupFailedError

# What a Python program that dies of KeyboardInterrupt leaves behind.
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Run `vllm ARGUMENTS`; returns the exit code."""
    try:
        behaviour = Behaviour.from_environ()
    except ValueError as error:
        print(f"vllm stand-in: {error}", file=sys.stderr)
        return 2
    options = cli.parse(arguments)
    if options is None:
        return 0

    log = Log(options.tensor_parallel_size, headless=options.headless)
    stop = threading.Event()
    ready = threading.Event()

    def on_term(_number: int, _frame: FrameType | None) -> None:
        if behaviour.ignore_term:
            return
        if not ready.is_set():
            # vLLM 0.32.0 entrypoints/launchers/api_server/entry.py: a signal during the start is an interruption.
            raise KeyboardInterrupt("terminated")
        stop.set()

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, on_term)

    try:
        startup = Startup(options, behaviour, log)
        startup.announce()
        server = None if options.headless else Server(options, behaviour, log)
        startup.run()
        if server is not None:
            server.start(startup.address)
        ready.set()
    except StartupFailedError as failure:
        return failure.exit_code
    except OSError as error:
        # The port: bound before the load, listened on after it; either can find it taken.
        log.traceback("launchers/launcher.py", 348, "create_server_socket", f"OSError: {error}")
        return 1
    except KeyboardInterrupt:
        log.traceback("launchers/api_server/entry.py", 172, "_interrupt_init", "KeyboardInterrupt: terminated")
        return EXIT_INTERRUPTED

    if not stop.wait(behaviour.die_after or None):
        log.engine_death()
        sys.stdout.flush()
        # Like a killed process: nothing is drained, nobody is told.
        os._exit(behaviour.die_exit)
    log.shutdown_begins(options.shutdown_timeout)
    if server is not None:
        server.shut_down(options.shutdown_timeout)
    log.shutdown_ends()
    return 0
