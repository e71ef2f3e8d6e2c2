# SPDX-License-Identifier: Apache-2.0
"""Whether a node's probe has asked vllm_server just what a plan would ask again.

The options of a server may hold secrets, so a fact may not hold them: it has their digest under a key of this run. The
key is made when this file is loaded, which the callback vllm_fleet_report has done before the first worker is forked.
Without it each worker has a key of its own, and the plan asks the node.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

_KEY = secrets.token_bytes(32)
#: What makes no difference to what a plan finds.
_ASIDE = ("watch_slice", "verification", "use_cached_result")


def digest(args: Mapping[str, Any]) -> str:
    """Return a text that two calls have in common only when their options are the same."""
    given = {name: value for name, value in args.items() if value is not None and name not in _ASIDE}
    return hmac.new(_KEY, json.dumps(given, sort_keys=True, default=str).encode(), hashlib.sha256).hexdigest()
