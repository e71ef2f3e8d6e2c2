# SPDX-License-Identifier: Apache-2.0
"""Options of the module vllm_chat as requests, and answers as its result. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import picture
from .chat_request import FINISH_REASONS, PATHS, ChatRequest, ChatResult, Expectation, opening
from .pooling import PATHS as POOLED

EXPECT: dict[str, Any] = {
    "type": "dict",
    "options": {
        "pattern": {"type": "str", "default": ""},
        "min_chars": {"type": "int", "default": 1},
        "finish_reason": {"type": "list", "elements": "str", "default": list(FINISH_REASONS)},
        "headers": {"type": "dict", "default": {}},
        "first": {"type": "int", "default": 0},
    },
}
# What one request can say; a default of the task holds for all of `requests`.
REQUEST_SPEC: dict[str, dict[str, Any]] = {
    "url": {"type": "str"},
    "model": {"type": "str"},
    "api": {"type": "str", "choices": list(PATHS)},
    "messages": {"type": "list", "elements": "dict"},
    "prompt": {"type": "str"},
    "image": {"type": "str", "choices": ["", *picture.COLOURS]},
    "query": {"type": "str"},
    "documents": {"type": "list", "elements": "str"},
    "max_tokens": {"type": "int"},
    "temperature": {"type": "float"},
    "stream": {"type": "bool"},
    "api_key": {"type": "str", "no_log": True},
    "timeout": {"type": "float"},
    "expect": EXPECT,
    "max_ttft": {"type": "float"},
    "min_tokens_per_second": {"type": "float"},
    "endpoints": {"type": "list", "elements": "str"},
    "listed": {"type": "list", "elements": "str"},
    "headers": {"type": "dict"},
}
DEFAULTS: dict[str, Any] = {
    "url": "http://127.0.0.1:8000",
    "model": "",
    "api": "chat",
    "image": "",
    "query": "",
    "documents": [],
    "max_tokens": 128,
    "temperature": 0.0,
    "stream": True,
    "api_key": "",
    "timeout": 120.0,
    "endpoints": [],
    "listed": [],
    "headers": {},
}
ASKED_FOR = ("messages", "prompt", "query")
#: What is asked beside the first request alone.
ONCE = ("endpoints", "listed")


def argument_spec() -> dict[str, Any]:
    """The options: those of a request with their defaults, and `requests` with the same ones without."""
    spec = {
        name: {**option, "default": DEFAULTS[name]} if name in DEFAULTS else option
        for name, option in REQUEST_SPEC.items()
    }
    spec["requests"] = {"type": "list", "elements": "dict", "options": {"name": {"type": "str"}, **REQUEST_SPEC}}
    spec["use_cached_result"] = {"type": "bool", "default": False}
    return spec


def texts(values: dict[str, Any]) -> dict[str, str]:
    """Names and values as they go over the wire; YAML makes numbers of some."""
    return {str(name): str(value) for name, value in values.items()}


def build_request(options: dict[str, Any]) -> ChatRequest:
    """A ChatRequest of options as Ansible gives them, None for what is not set; raises ValueError."""
    given = {name: value for name, value in options.items() if value is not None}
    expect = given.pop("expect", {})
    if expect:
        given["expect"] = Expectation(
            expect["pattern"],
            expect["min_chars"],
            tuple(expect["finish_reason"]) or FINISH_REASONS,
            texts(expect["headers"]),
            expect["first"],
        )
    given["documents"] = tuple(given.get("documents", ()))
    given["endpoints"] = tuple(given.get("endpoints", ()))
    given["listed"] = tuple(given.get("listed", ()))
    given["headers"] = texts(given.get("headers", {}))
    return ChatRequest(**given)


def build_requests(params: dict[str, Any]) -> list[ChatRequest]:
    """The requests of the task; raises ValueError, with the name of the request that is wrong."""
    task = {name: params[name] for name in REQUEST_SPEC}
    if not params["requests"]:
        return [build_request(task)]
    if task["messages"] or task["prompt"] or task["query"]:
        raise ValueError("messages, prompt and query belong into the entries of requests, or requests is left out.")
    requests = []
    for number, own in enumerate(params["requests"], 1):
        said = {name: value for name, value in own.items() if value is not None}
        inherited = {name: value for name, value in task.items() if name not in ONCE or number == 1}
        merged = {**inherited, "name": str(number), **said}
        try:
            requests.append(build_request(merged))
        except ValueError as error:
            raise ValueError(f"Request {merged['name']!r}: {error}") from None
    return requests


def wrong_request(request: Mapping[str, Any]) -> str:
    """Return what is wrong with a request as a preset or an inventory has it, without the defaults; empty: nothing."""
    known = {name: option["default"] for name, option in EXPECT["options"].items()}
    expect = {**known, **request.get("expect", {})}
    try:
        build_request({"url": DEFAULTS["url"], **request, "expect": expect})
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def least(api: str) -> dict[str, Any]:
    """Return the options of a short request that any model of this API answers."""
    question = "What is the capital of France?"
    if api in POOLED:
        return {"api": api, "query": question, **({"documents": ["Paris"]} if api == "rerank" else {})}
    return {"api": api, "prompt": question, "max_tokens": 16}


def secrets(params: Mapping[str, Any]) -> set[str]:
    """Return the secrets in headers of unchecked options: Ansible does not know them as such."""
    entries = params.get("requests")
    found: set[str] = set()
    for given in (params, *(entries if isinstance(entries, list) else ())):
        headers = given.get("headers") if isinstance(given, Mapping) else None
        found |= opening(texts(dict(headers))) if isinstance(headers, Mapping) else set()
    return found


def build_result(results: list[ChatResult], *, many: bool) -> dict[str, Any]:
    """What the module returns: the first answer on top, all checks, and every request by itself."""
    first = results[0].as_dict()
    top = {name: first[name] for name in ("content", "finish_reason", "model", "usage", "ttft", "tokens_per_second")}
    checks = [
        {**check.as_dict(), **({"request": result.name} if many else {})}
        for result in results
        for check in result.checks
    ]
    return {
        "changed": False,
        **top,
        "elapsed": sum(result.elapsed for result in results),
        "checks": checks,
        "results": [result.as_dict() for result in results],
    }


def build_lines(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the answers of a verification that went well, from `results` of the module: two lines each."""
    lines = []
    for result in results:
        first = "" if result["ttft"] is None else f" first after {round(result['ttft'], 2)} s,"
        if result["api"] in POOLED:
            lines.append(f"{result['api']} / {result['name']}: {result['content']}\n")
            lines.append(f"  ({result['usage']['prompt_tokens']} tokens, {result['elapsed']:.2f} s)\n")
            continue
        tokens = f"{result['usage']['completion_tokens']} tokens,"
        rate = f"{result['tokens_per_second'] or 0:.1f} tokens/s"
        lines.append(f"{result['api']} / {result['name']}: {result['content'].strip()}\n")
        lines.append(f"  ({result['finish_reason']}, {tokens}{first} {rate})\n")
    return "".join(lines)


def build_message(results: list[ChatResult], wanted: int) -> str:
    """The sentence about what failed first; empty when everything held."""
    failed = [result for result in results if not result.ok]
    if not failed:
        return ""
    message = failed[0].message
    if len(failed) > 1:
        message += f" {len(failed)} of {wanted} requests failed; checks has them all."
    if len(results) < wanted:
        left = wanted - len(results)
        message += " 1 further request was not sent." if left == 1 else f" {left} further requests were not sent."
    return message


SPEC: dict[str, Any] = {
    "argument_spec": argument_spec(),
    "mutually_exclusive": [ASKED_FOR],
    "required_one_of": [(*ASKED_FOR, "requests")],
}
