# SPDX-License-Identifier: Apache-2.0
"""AMD's drivers and ROCm releases on the controller: roles/rocm/files/drivers.yml, read once in each process."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import Any

import yaml

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.host import driver_table

FILE = Path(__file__).resolve().parents[1] / "roles/rocm/files/drivers.yml"


def numbered(data: Any) -> Any:
    """Return the file's data with days as numbers, as driver_table has them."""
    if isinstance(data, dict):
        return {name: numbered(value) for name, value in data.items()}
    if isinstance(data, list):
        return [numbered(value) for value in data]
    return data.toordinal() if isinstance(data, datetime.date) else data


@functools.cache
def option() -> dict[str, Any]:
    """Return what a node is given of the table (driver_table.as_option)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return driver_table.as_option(numbered(yaml.load(FILE.read_text(encoding="utf-8"), Loader=loader)))  # noqa: S506 - a safe one


@functools.cache
def table() -> driver_table.Table:
    """Return the table."""
    return driver_table.parse(option())
