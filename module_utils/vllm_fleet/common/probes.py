# SPDX-License-Identifier: Apache-2.0
"""Probes of several modules in one call to a node, and the cached results that later tasks take from them.

A module costs a node an SSH session, sudo and a start of Python before it does anything, 0.2 s of its processor, and
the controller a quarter of that. So what later tasks will want to know is probed in one call of the module node_probe,
which changes nothing. A task with ``use_cached_result`` takes the result where there is nothing to do, and calls its
module otherwise. A result that is missing, failed or belongs to other options counts as "visit the node".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .secrets import sealed

#: Name of the fact that holds the results of a host: a list of {module, args, result}.
FACT = "vllm_fleet_probe_results"
#: Modules whose options are not kept at all: their environment and flags may hold secrets.
SEALED = ("vllm_server",)
#: What of a module's result must be there and true besides that it neither failed nor would change anything.
GOOD = {"docker_engine": "right", "vllm_image": "present", "hf_snapshot": "complete", "vllm_chat": "results"}

#: Modules whose work has nothing to do with that of others: what comes after them is probed in any case.
ASIDE = ("vllm_watchdog",)

Result = dict[str, Any]


_RESULT = re.compile(r"<\w+ of (?P<module>\w+)>")


def result_of(module: str, key: str) -> str:
    """Return what stands in a request's arguments for a value that a request before it finds out on the node."""
    return f"<{key} of {module}>"


@dataclass(frozen=True)
class Probe:
    """How the result of one module is had without changing anything.

    ``spec`` are the module's options and their rules, as AnsibleModule takes them; ``run`` takes the checked options
    and returns the module's result. ``states`` are the values of its option ``state`` that a probe answers for; None
    where it has none, or answers for all of them. ``secrets`` finds secrets that the spec does not name.
    """

    spec: Mapping[str, Any]
    run: Callable[[dict[str, Any]], Result]
    states: tuple[str, ...] | None = None
    secrets: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: ()


def run_all(requests: Sequence[Mapping[str, Any]], run: Callable[[str, Mapping[str, Any]], Result]) -> list[Result]:
    """Probe for one of ``requests`` ({module, args}) after the other, up to the first that has something to do.

    What comes after that one may find another node: an engine whose data moves, an image that is pulled. An argument
    may be `result_of` a request before.
    """
    results: list[Result] = []
    known: dict[str, Any] = {}
    for request in requests:
        module = request["module"]
        results.append(run(module, _filled(request["args"], known)))
        if module not in ASIDE and not nothing_to_do(module, results[-1]):
            break
        if results[-1].get("maintenance"):  # of preflight: whatever the node has, nobody is going to change it
            break
        known |= _found(module, results[-1])
    return results


def _found(module: str, result: Mapping[str, Any]) -> dict[str, Any]:
    return {result_of(module, key): value for key, value in result.items()}


def _filled(args: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: known.get(value, value) if isinstance(value, str) else value for name, value in args.items()}


def answerable(requests: Iterable[Mapping[str, Any]], asked: Iterable[str]) -> list[Mapping[str, Any]]:
    """Return the requests up to the first one that leans on the result of a module which is not asked.

    ``asked`` are modules that are asked before them. What an image will be called, for example, may be known to a task
    alone, and then no server can be compared with it yet.
    """
    modules, found = set(asked), []
    for request in requests:
        leans = (_RESULT.fullmatch(value) for value in request["args"].values() if isinstance(value, str))
        if any(one and one["module"] not in modules for one in leans):
            break
        modules.add(request["module"])
        found.append(request)
    return found


def nothing_to_do(module: str, result: Mapping[str, Any]) -> bool:
    """Return whether a module's result says that there is nothing to do."""
    good = module not in GOOD or bool(result.get(GOOD[module]))
    return good and not result.get("failed") and not result.get("changed")


def together(
    first: Mapping[str, Any],
    more: Sequence[Mapping[str, Any]],
    call: Callable[[str, dict[str, Any]], Result],
    digest: Callable[[Mapping[str, Any]], str] = lambda _: "",
) -> Result:
    """Return the result of the request ``first``, with the results of ``more`` as a fact; one call to the node.

    ``call`` calls a module with options. A call without results is returned as it is. ``digest`` makes of options that
    are not kept what tells later whether they were the same.
    """
    # One text, so that what logs a module's options takes it for one secret.
    called = call("node_probe", {"requests": json.dumps([first, *more])})
    if not called.get("probed"):
        return called
    own, *others = called["probed"]
    rows, known = [], _found(first["module"], own)
    for one, result in zip(more, others, strict=False):
        module = one["module"]
        kept = (
            {"args": {}, "digest": digest(_filled(one["args"], known))}
            if module in SEALED
            else {"args": _shown(one["args"])}
        )
        rows.append({"module": module, **kept, "result": result})
        known |= _found(module, result)
    return {**own, "ansible_facts": {**(own.get("ansible_facts") or {}), FACT: rows}}


def probed(facts: Mapping[str, Any] | None, module: str) -> Mapping[str, Any]:
    """Return {module, args, result} of a host's probe for a module; empty where it was not probed for."""
    return next((row for row in (facts or {}).get(FACT) or [] if row["module"] == module), {})


def cached_result(facts: Mapping[str, Any] | None, module: str, args: Mapping[str, Any]) -> Result | None:
    """Return what the host's ``facts`` have as the result of just this call, if there is nothing to do."""
    for row in (facts or {}).get(FACT) or []:
        same = row["module"] == module and _plain(row["args"]) == _plain(_shown(args))
        if same and nothing_to_do(module, row["result"]):
            return dict(row["result"])
    return None


def planned(facts: Mapping[str, Any] | None, module: str, digest: str) -> Result | None:
    """Return what the host's ``facts`` have as the result of the call with this digest, if it would change something.

    A result that would change nothing says too little for a plan: the server has to be asked besides.
    """
    row = probed(facts, module)
    result = row.get("result") or {}
    if not digest or row.get("digest") != digest or result.get("failed") or not result.get("changed"):
        return None
    return dict(result)


# A fact is shown with -v. In one run a host has one key.
def _shown(args: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = sealed({name: value for name, value in args.items() if value is not None})
    return given


def _plain(args: Mapping[str, Any]) -> str:
    return json.dumps(args, sort_keys=True, default=str)
