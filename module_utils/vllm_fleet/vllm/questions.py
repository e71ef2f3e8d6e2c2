# SPDX-License-Identifier: Apache-2.0
"""Questions whose answers are known, the small load of a measurement, and the figures of both. Pure.

A question is `name`, `pattern` (a regular expression, letters in any case) and `prompt` with `api` chat or completions;
of models that do not write, `query`, `documents` and `first`.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .chat_request import ChatRequest, ChatResult, Expectation
from .pooling import PATHS as POOLED

#: Tokens of an answer. A model that thinks names the answer early, so what it thinks is searched, too.
ANSWER_TOKENS = 64
#: How often a load is measured, for its noise.
RUNS = 3
#: Figures of a load: seconds to the first token, seconds between two tokens, tokens of all requests in a second.
FIGURES = ("ttft", "itl", "tokens_per_second")
#: Words of one token each, mostly, of which a prompt is made.
_WORDS = "the of and to in is that for it was on are as with his they at be this from have or by one had not but what"


def question_fault(question: Mapping[str, Any]) -> str:
    """Return what is wrong with a question, as a sentence; empty where it can be asked."""
    try:
        if not question.get("name"):
            return "a question needs a name."
        if not (question.get("pattern") or question.get("first")):
            return f"question {question['name']!r} needs a pattern, or the first of its documents."
        request(question, {"url": "http://127.0.0.1:8000"})
    except (TypeError, ValueError, KeyError, re.error) as error:
        return f"question {question.get('name', '')!r}: {error}"
    return ""


def request(question: Mapping[str, Any], server: Mapping[str, Any]) -> ChatRequest:
    """Return the request of a question to a server (`url`, `model`, `api_key`, `timeout`). Raises ValueError."""
    api = str(question.get("api") or "chat")
    own: dict[str, Any] = {"api": api, "name": str(question["name"])}
    if api in POOLED:
        own |= {"query": str(question["query"]), "documents": tuple(map(str, question.get("documents") or ()))}
        own["expect"] = Expectation(first=int(question.get("first") or 0))
    else:
        re.compile(str(question["pattern"]))
        own |= {"prompt": str(question["prompt"]), "max_tokens": ANSWER_TOKENS}
    return ChatRequest(**{**server, **own})


def right(question: Mapping[str, Any], result: ChatResult) -> bool:
    """Return whether an answer has what is known."""
    if result.error is not None:
        return False
    if result.api in POOLED:
        return result.ok
    said = f"{result.answer.content}\n{result.answer.reasoning}"
    return re.search(str(question["pattern"]), said, re.IGNORECASE | re.MULTILINE) is not None


def mark(result: ChatResult) -> str:
    """Return what stands for an answer's text in a record: equal texts have equal marks, whatever their white space."""
    said = " ".join(f"{result.answer.content} {result.answer.reasoning}".split())
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def load_request(load: Mapping[str, Any], number: str, server: Mapping[str, Any]) -> ChatRequest:
    """Return one request of a load. ``number`` differs for each, so that no prefix of a prompt is in a cache."""
    words = _WORDS.split()
    start = int(hashlib.sha256(number.encode()).hexdigest()[:8], 16)
    text = " ".join(words[(start + at * 7) % len(words)] for at in range(int(load["input_tokens"])))
    own = {"api": "completions", "prompt": f"{number} {text}", "max_tokens": int(load["output_tokens"])}
    return ChatRequest(**{**server, **own, "ignore_eos": True, "name": number})


def identity(asked: object) -> str:
    """Return a digest of what was asked; figures are compared only where it is the same."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]


def answers(questions: Sequence[Mapping[str, Any]], results: Sequence[ChatResult]) -> dict[str, Any]:
    """Return the figures of answers: how many were asked, are right, got none; and each, with its mark."""
    pairs = list(zip(questions, results, strict=True))
    return {
        "of": identity([dict(one) for one in questions]),
        "asked": len(pairs),
        "right": sum(right(*pair) for pair in pairs),
        "errors": sum(result.error is not None for _, result in pairs),
        "each": {str(one["name"]): [right(one, result), mark(result)] for one, result in pairs},
    }


def run(results: Sequence[ChatResult], seconds: float) -> dict[str, Any]:
    """Return the figures of one run of a load that took so many seconds; None for what no answer shows."""
    good = [one for one in results if one.error is None]
    firsts = [one.ttft for one in good if one.ttft is not None]
    steps = [1 / one.tokens_per_second for one in good if one.tokens_per_second and one.ttft is not None]
    tokens = sum(int(one.answer.usage.get("completion_tokens") or 0) for one in good)
    return {
        "ttft": round(statistics.median(firsts), 5) if firsts else None,
        "itl": round(statistics.median(steps), 6) if steps else None,
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 2) if tokens else None,
        "requests": len(results),
        "errors": len(results) - len(good),
    }
