# SPDX-License-Identifier: Apache-2.0
"""Action plugin of docker_engine: `use_cached_result` takes the result of the node's probe."""

from __future__ import annotations

import sys
from pathlib import Path

from ansible.plugins.action import normal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plugin_utils.cached_results import CachedResult


class ActionModule(CachedResult, normal.ActionModule):
    """Calls the module unless its result is there."""
