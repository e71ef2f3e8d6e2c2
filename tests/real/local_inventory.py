# SPDX-License-Identifier: Apache-2.0
"""What inventory/local deploys, and where its seed lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
LOCAL: dict[str, Any] = yaml.safe_load((ROOT / "inventory/local/group_vars/vllm.yml").read_text())
_MODEL: dict[str, Any] = yaml.safe_load((ROOT / "models/smollm2-135m-instruct.yml").read_text())
PRESET: dict[str, Any] = _MODEL["accelerators"]["cpu"]
#: As the watchdog's settings have it.
PRESET_VERIFY: dict[str, Any] = {"timeout": 120, "requests": _MODEL["verify"]}
CACHE = Path(os.environ.get("VLLM_FLEET_CACHE") or Path.home() / ".cache/vllm-fleet")
#: Its image, and the options of its server for a test's own.
IMAGE = f"{LOCAL['vllm_image_name']}:{LOCAL['vllm_image_tag']}"
SERVER: dict[str, Any] = {
    "model": LOCAL["vllm_server_model"],
    "revision": LOCAL["vllm_server_revision"],
    "hf_cache": str(CACHE / "seed"),
    "args": PRESET["args"],
    "env": {name: str(value) for name, value in PRESET["env"].items()},
    "ready_timeout": 600.0,
    "stall_timeout": 300.0,
    "stop_timeout": 30,
}
