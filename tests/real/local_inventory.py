"""What inventory/local deploys, and where its seed lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[2] / "inventory/local/group_vars/vllm.yml"
LOCAL: dict[str, Any] = yaml.safe_load(FILE.read_text())
CACHE = Path(os.environ.get("VLLM_FLEET_CACHE") or Path.home() / ".cache/vllm-fleet")
