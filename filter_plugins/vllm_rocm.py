# SPDX-License-Identifier: Apache-2.0
"""Filters of the role rocm, see host/ of module_utils/vllm_fleet."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.host import driver_package, rocm_work


def rocm_access(node: Mapping[str, Any], users: Sequence[str], connecting: Mapping[str, Any]) -> dict[str, Any]:
    """Return rocm_work.access() as a mapping, with `needed`."""
    found = rocm_work.access(node, users, connecting)
    return {**dataclasses.asdict(found), "needed": found.needed}


def rocm_after_install(loaded: bool, may_reboot: bool) -> str:
    """Return rocm_work.after_install()."""
    return rocm_work.after_install(loaded=loaded, may_reboot=may_reboot)


def rocm_left_off(certificates: bool) -> str:
    """Return rocm_work.left_off()."""
    return rocm_work.left_off(certificates=certificates)


def rocm_not_back(said: str, host: str, reasons: Sequence[str], timeout: int) -> str:
    """Return rocm_work.not_back()."""
    return rocm_work.not_back(host, reasons, str(said), int(timeout))


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "rocm_access": rocm_access,
            "rocm_after_install": rocm_after_install,
            "rocm_busy_with": rocm_work.busy_with,
            "rocm_dkms_said": driver_package.dkms_said,
            "rocm_gpus_lost": rocm_work.gpus_lost,
            "rocm_in_the_way": rocm_work.in_the_way,
            "rocm_left_off": rocm_left_off,
            "rocm_lost_by_boot": rocm_work.lost_by_boot,
            "rocm_missing_words": rocm_work.missing_words,
            "rocm_newer_driver": driver_package.newer,
            "rocm_not_back": rocm_not_back,
            "rocm_package_version": driver_package.version_pattern,
            "rocm_reboot_reasons": rocm_work.reboot_reasons,
            "rocm_unwritten_words": rocm_work.unwritten_words,
        }
