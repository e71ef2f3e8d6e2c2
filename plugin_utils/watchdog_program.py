# SPDX-License-Identifier: Apache-2.0
"""The watchdog's program of this project, made once in a process."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.watchdog import pack


@functools.cache
def data() -> bytes:
    """Return the program. The callback vllm_fleet_report asks for it before the workers are forked."""
    return pack.pack(Path(pack.__file__).resolve().parents[1])


@functools.cache
def digest() -> str:
    """Return the SHA-256 of the program, 64 hexadecimal digits."""
    return hashlib.sha256(data()).hexdigest()
