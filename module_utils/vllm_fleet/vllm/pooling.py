# SPDX-License-Identifier: Apache-2.0
"""Requests to models that do not write: embeddings and rerankers. What is sent, what came, what is to be said. Pure.

Both get a query and documents. An embedding model gives a vector for each text, and the nearest document is the one of
the largest cosine; a reranker gives each document a score. A server that computes wrongly, in a type that the machine
does not handle for example, gives vectors too, of the right length: so they must be finite and not all alike, and the
right document must come first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

PATHS = {"embeddings": "/v1/embeddings", "rerank": "/v1/rerank"}
#: Further apart than by rounding: vectors of one server for the same text twice agree better.
APART = 1e-6
#: Documents named in a message.
SHOWN = 3
WRONG = (
    "The server runs but computes wrongly: compare dtype, runner, pooler and the revision of the weights with the "
    "model's card."
)


class Unreadable(ValueError):
    """What came is no answer of this API; the text completes "got ..."."""


def fault(api: str, query: str, documents: Sequence[str], first: int) -> str:
    """Return what is wrong with a request, as a sentence; empty where it can be sent."""
    if not query:
        return f"api {api} needs a query."
    if api == "rerank" and not documents:
        return "api rerank needs documents."
    if first > len(documents) or first < 0:
        return f"expect.first is {first}; expected one of the {len(documents)} documents, counted from 1."
    return ""


def body(api: str, query: str, documents: Sequence[str]) -> dict[str, Any]:
    """Return the request as JSON, without the model's name."""
    if api == "rerank":
        return {"query": query, "documents": list(documents)}
    return {"input": [query, *documents], "encoding_format": "float"}


def scores(api: str, documents: Sequence[str], data: Mapping[str, Any]) -> tuple[list[float], str, str]:
    """Return a score for each document, what came in words, and what is wrong with it (empty: nothing).

    Raises Unreadable for what is no answer of this API.
    """
    try:
        return _ranked(len(documents), data) if api == "rerank" else _vectors(len(documents) + 1, data)
    except (TypeError, OverflowError):  # an index that is a list, a number that no float holds
        raise Unreadable(f"JSON with values of another kind: {_short(data)}") from None


def _ranked(count: int, data: Mapping[str, Any]) -> tuple[list[float], str, str]:
    results = data.get("results")
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise Unreadable(f"JSON without results: {_short(data)}")
    found = {one.get("index"): one.get("relevance_score") for one in results}
    numbers = [found.get(index) for index in range(count)]
    whole = [float(value) for value in numbers if isinstance(value, (int, float)) and _number(value)]
    if len(found) != count or len(whole) != count:
        return [], f"{len(results)} results", f"{_short(results)} for {count} documents"
    same = count > 1 and max(whole) - min(whole) < APART
    return whole, f"{count} documents scored", f"the same score for all {count} documents" if same else ""


def _vectors(count: int, data: Mapping[str, Any]) -> tuple[list[float], str, str]:
    entries = data.get("data")
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise Unreadable(f"JSON without data: {_short(data)}")
    by_index = {one.get("index"): one.get("embedding") for one in entries}
    vectors = [by_index.get(index) for index in range(count)]
    told = f"{len(entries)} vectors"
    if len(entries) != count or not all(isinstance(one, list) and one for one in vectors):
        return [], told, f"{told} for {count} texts"
    lists = [one for one in vectors if isinstance(one, list)]
    sizes = sorted({len(one) for one in lists})
    told = f"{count} vectors of {' and '.join(map(str, sizes))} numbers"
    if len(sizes) > 1:
        return [], told, told
    if not all(_number(value) for one in lists for value in one):
        return [], told, "numbers that are not finite"
    lengths = [math.sqrt(math.fsum(value * value for value in one)) for one in lists]
    if not all(lengths):
        return [], told, "a vector of zeros"
    query, *others = [[value / length for value in one] for one, length in zip(lists, lengths, strict=True)]
    cosines = [math.fsum(a * b for a, b in zip(query, one, strict=True)) for one in others]
    same = bool(cosines) and min(cosines) > 1 - APART
    return cosines, told, "the same vector for different texts" if same else ""


def order(found: Sequence[float]) -> list[int]:
    """Return the documents by their scores, the best first, counted from 1."""
    return sorted(range(1, len(found) + 1), key=lambda number: -found[number - 1])


def words(found: Sequence[float]) -> str:
    """Return the best documents with their scores, as `2 (0.83), 1 (0.12)`."""
    best = order(found)
    rest = ", ..." if len(best) > SHOWN else ""
    return ", ".join(f"{number} ({found[number - 1]:.3f})" for number in best[:SHOWN]) + rest


def usage_fault(usage: Mapping[str, Any]) -> str:
    """Return what is wrong with the counts: prompt_tokens are all that there is; empty where they add up."""
    prompt, total = usage.get("prompt_tokens"), usage.get("total_tokens")
    if not isinstance(prompt, int) or not isinstance(total, int):
        return _short(usage) if usage else "no usage"
    return "" if prompt >= 1 and total == prompt else f"{prompt} of {total}"


def plain(api: str) -> dict[str, Any]:
    """Return the fields of the shortest request of the same kind, for a second look."""
    return {"query": "Hi", "documents": ("Hi",) if api == "rerank" else ()}


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:160]}..."
