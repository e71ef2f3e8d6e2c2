# SPDX-License-Identifier: Apache-2.0
"""Measures a server that has no other clients: asks it the questions, and gives it a small load for some seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import questions
from .chat import chat
from .chat_request import ChatResult

#: Questions at the same time.
AT_ONCE = 4


def ask(asked: Sequence[Mapping[str, Any]], server: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of the answers to all questions. Raises ValueError for a question that cannot be asked."""
    requests = [questions.request(one, server) for one in asked]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return questions.answers(asked, list(pool.map(chat, requests)))


def under_load(load: Mapping[str, Any], server: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of each of questions.RUNS runs of a load, which share its seconds.

    A run ends when the requests that it has begun have ended. Each client sends one at least.
    """
    # Two measurements of one server must not find each other's prompts in its cache.
    once = os.urandom(4).hex()
    runs = []
    for number in range(questions.RUNS):
        begun = time.monotonic()
        until = begun + float(load["seconds"]) / questions.RUNS

        def client(name: str, until: float = until) -> list[ChatResult]:
            done: list[ChatResult] = []
            while not done or time.monotonic() < until:
                done.append(chat(questions.load_request(load, f"{once}-{name}-{len(done)}", server)))
                if done[-1].error is not None:
                    break  # the figures say so; a server that refuses would be asked without an end
            return done

        clients = int(load["concurrency"])
        with ThreadPoolExecutor(clients) as pool:
            results = [one for own in pool.map(client, [f"{number}-{at}" for at in range(clients)]) for one in own]
        runs.append(questions.run(results, time.monotonic() - begun))
    return {"of": questions.identity(dict(load)), "runs": runs}
