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


def after_wrong_answers(restored: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return what serves after a server answered wrongly; ``restored`` is what vllm_server returned on the way back."""
    if restored.get("skipped"):
        if result.get("actions"):
            return "This run only started the server, which was good before; it was left as it is."
        return "The server itself was not touched by this run."
    if (restored.get("container") or {}).get("status") == "running" and "failure" not in restored:
        return "The previous server is back and ready."
    return f"It was left as it is: {restored.get('msg', 'there is no previous server to put back')}"
