# SPDX-License-Identifier: Apache-2.0
"""What the watchdog asks a server over HTTP: its page of metrics, one token, whether somebody paused it."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import dataclass
from typing import Any

from ..common.received import parsed
from ..vllm import metrics, pooling, readiness
from ..vllm.chat_request import PATHS
from ..vllm.endpoint import Endpoint
from ..vllm.metrics import EngineLoad

#: Chooses one of several engines; vLLM since 0.11.1 (entrypoints/generate/base/serving.py).
RANK = "X-data-parallel-rank"


def engines(endpoint: Endpoint, timeout: float) -> dict[str, EngineLoad] | None:
    """Return what /metrics says of each engine; None where it does not answer within ``timeout`` seconds."""
    try:
        return metrics.engines(readiness.page(endpoint, "/metrics", timeout))
    except OSError:
        return None
    except ValueError:
        return {}  # something answers, without metrics


def paused(endpoint: Endpoint, timeout: float) -> bool:
    """Whether somebody paused the generation, as trainers do (/pause of the development mode, vLLM since 0.13)."""
    try:
        return bool(parsed(readiness.page(endpoint, "/is_paused", timeout)).get("is_paused"))
    except (OSError, ValueError, AttributeError):
        return False


#: The least that an engine can be asked, by API: one token, one vector, one score.
LEAST: dict[str, dict[str, Any]] = {
    "completions": {"prompt": "1", "max_tokens": 1, "temperature": 0},
    "embeddings": pooling.body("embeddings", "1", ()),
    "rerank": pooling.body("rerank", "1", ("1",)),
}


@dataclass(frozen=True)
class Question:
    """Who is asked for the least, and how: ``model`` by the name that it serves under, ``api`` one of LEAST."""

    endpoint: Endpoint
    model: str
    api: str = "completions"


def token(question: Question, rank: str | None, timeout: float) -> str:
    """Ask for the least: ``token``, ``refused`` where the server answers without asking an engine, or ``none``."""
    endpoint, model = question.endpoint, question.model
    body = dict(LEAST[question.api])
    if model:
        body["model"] = model
    headers = {"Content-Type": "application/json"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    if rank:
        headers[RANK] = rank
    connection = readiness.connection(endpoint, timeout)
    try:
        connection.request("POST", PATHS[question.api], json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read(1 << 16)
    except (OSError, http.client.HTTPException, ValueError):  # ValueError: a key that no header can have
        return "none"
    finally:
        connection.close()
    return "token" if answer.status == http.client.OK else "refused"


class Asking:
    """Requests for one token, one at a time for each engine, each in a thread, for an answer may take very long."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._answers: list[tuple[str, str]] = []
        self._round = 0

    def ask(self, question: Question, label: str, *, several: bool, timeout: float) -> None:
        """Ask the engine ``label``, unless it still is being asked."""
        with self._lock:
            if label in self._open:
                return
            self._open.add(label)
            number = self._round
        rank = label if several else None

        def work() -> None:
            found = token(question, rank, timeout)
            with self._lock:
                if number == self._round:
                    self._open.discard(label)
                    self._answers.append((label, found))

        threading.Thread(target=work, daemon=True).start()

    def forget(self) -> None:
        """Drop what is on its way: it was asked of another start."""
        with self._lock:
            self._round += 1
            self._open, self._answers = set(), []

    def answers(self) -> list[tuple[str, str]]:
        """Return what came since the last call: engine, and ``token``, ``refused`` or ``none``."""
        with self._lock:
            found, self._answers = self._answers, []
        return found
