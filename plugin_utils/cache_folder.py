# SPDX-License-Identifier: Apache-2.0
"""Where the controller keeps what need not be made again."""

from __future__ import annotations

import os
from pathlib import Path


def path() -> Path:
    """Return the project's folder: ``VLLM_FLEET_CACHE``, by default ``~/.cache/vllm-fleet``. It may not exist."""
    return Path(os.environ.get("VLLM_FLEET_CACHE") or "~/.cache/vllm-fleet").expanduser()
