# SPDX-License-Identifier: Apache-2.0
"""Action plugin of hf_snapshot: follows what takes long in short calls, with progress on the terminal.

With `use_cached_result` it takes the result of the node's probe where there is nothing to do.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plugin_utils.cached_results import CachedResult
from plugin_utils.detached_call import DetachedCall


class ActionModule(CachedResult, DetachedCall):
    """Loops the module until the snapshot is as wanted."""
