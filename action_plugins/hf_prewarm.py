# SPDX-License-Identifier: Apache-2.0
"""Action plugin of hf_prewarm: follows what takes long in short calls, with progress on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plugin_utils.detached_call import DetachedCall


class ActionModule(DetachedCall):
    """Loops the module until the weights are read."""
