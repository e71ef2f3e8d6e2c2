# SPDX-License-Identifier: Apache-2.0
"""When a server is verified, and what a run says that put the previous one back. Pure.

``result`` is what vllm_server returned in this run; empty where it was not asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def will_change(result: Mapping[str, Any], mode: str, tags: Collection[str], *, check_mode: bool) -> bool:
    """Return whether what runs now is left alone, because it is about to change.

    ``tags`` are those of the run: with `verify` also a server is asked that a deployment would change.
    """
    planned = mode == "plan" and "verify" not in tags
    if planned and (result.get("actions") or not result.get("confirmed", True)):
        return True
    return check_mode and bool(result.get("changed"))


def repair(
    chat: Mapping[str, Any],
    result: Mapping[str, Any],
    mode: str,
    tags: Collection[str],
    *,
    ranks: int,
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return how a wave mends a server that is as described, was good before, and gave no answer to a plan.

    ``chat`` is what vllm_chat returned, ``tags`` are those of the run, ``ranks`` counts the server's nodes. Returns
    `restart` (whether it is stopped first), `silent` (whether no request to it ever ends, so that none is waited for)
    and `because` (a sentence without its end); empty where the plan fails over it: a wrong answer has its reason in
    what is described, a busy server is late, and ranks are started together.

    ``asked`` is the restart that a user asked for (rollout/restart.py). It is done whatever the server answers; nobody
    waits for requests that never end.
    """
    found = _mended(chat, result, mode, tags, ranks=ranks)
    if mode != "plan" or not asked:
        return found
    return {**asked, "silent": bool(asked.get("silent") or found.get("silent"))}


def _mended(
    chat: Mapping[str, Any], result: Mapping[str, Any], mode: str, tags: Collection[str], *, ranks: int
) -> dict[str, Any]:
    waves = mode == "plan" and bool({"all", "rollout"}.intersection(tags))
    if not waves or ranks > 1 or not result.get("confirmed") or result.get("actions"):
        return {}
    errors = {one.get("error") for one in chat.get("results") or []}
    if errors & _NOBODY_LISTENS:
        return {"restart": False, "silent": True, "because": "it does not listen, although its container runs"}
    wrong = [one for one in chat.get("checks") or [] if not one.get("ok")]
    if wrong and all(one.get("name") == ADAPTERS for one in wrong):
        return {"restart": True, "silent": False, "because": "it has lost adapters that it loads at its start"}
    engine = str(chat.get("engine") or "")
    why = _BROKEN.get(engine)
    return {"restart": True, "silent": engine == "hung", "because": why} if why else {}


#: The check of vllm_chat that is wrong where somebody unloaded an adapter.
ADAPTERS = "adapters"
#: Errors of vllm_chat where a container runs and its server is not there: it loads, or dies again and again. Docker's
#: proxy of a published port closes or resets what nobody takes.
_NOBODY_LISTENS = frozenset({"refused", "reset", "closed"})
#: Why a server is restarted, by what vllm_chat found of its engine.
_BROKEN = {
    "hung": "it gave no answer within vllm_server_verify_timeout, nor to a second request, and its engine did no step",
    "failing": "its engine ended two requests with an error",
}


def after_wrong_answers(restored: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return what serves after a server answered wrongly; ``restored`` is what vllm_server returned on the way back."""
    if restored.get("skipped"):
        if result.get("actions"):
            return "This run only started the server, which was good before; it was left as it is."
        return "The server itself was not touched by this run."
    if (restored.get("container") or {}).get("status") == "running" and "failure" not in restored:
        return "The previous server is back and ready."
    return f"It was left as it is: {restored.get('msg', 'there is no previous server to put back')}"
