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
from ansible.module_utils.vllm_fleet.common import finding
from ansible.module_utils.vllm_fleet.host import driver_package, driver_table, rocm_work
from plugin_utils import driver_releases


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


def rocm_allowed_drivers(entries: Sequence[object]) -> list[str]:
    """Return driver_table.allowed() by roles/rocm/files/drivers.yml."""
    return driver_table.allowed(entries, driver_releases.table())


def rocm_lacks_packages(release: str, distribution: str) -> str:
    """Return driver_table.lacks_packages() by roles/rocm/files/drivers.yml."""
    return driver_table.lacks_packages(driver_releases.table(), str(release), distribution)


def rocm_image_fault(
    driver: Mapping[str, Any],
    rocm: str,
    wanted: str,
    *,
    installs: bool,
    reboots: bool,
    judged: Sequence[Mapping[str, Any]] = (),
    accepted: Sequence[str] = (),
) -> str:
    """Return why the driver that a server will start on does not take the image's ROCm; empty where it may.

    ``judged`` are preflight's findings, which saw an image that was there; ``accepted`` is preflight_accept.
    """
    release = driver_table.coming(driver, str(wanted), installs=installs, reboots=reboots)
    found = driver_table.finding(driver_releases.table(), release, str(rocm or ""))
    seen = {(one.get("what"), one.get("got")) for one in judged}
    if found is None or found.level not in finding.ENDING or (found.what, found.got) in seen or found.what in accepted:
        return ""
    return found.sentence


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "rocm_access": rocm_access,
            "rocm_after_install": rocm_after_install,
            "rocm_allowed_drivers": rocm_allowed_drivers,
            "rocm_busy_with": rocm_work.busy_with,
            "rocm_dkms_said": driver_package.dkms_said,
            "rocm_gpus_lost": rocm_work.gpus_lost,
            "rocm_image_fault": rocm_image_fault,
            "rocm_in_the_way": rocm_work.in_the_way,
            "rocm_lacks_packages": rocm_lacks_packages,
            "rocm_left_off": rocm_left_off,
            "rocm_lost_by_boot": rocm_work.lost_by_boot,
            "rocm_missing_words": rocm_work.missing_words,
            "rocm_newer_driver": driver_package.newer,
            "rocm_not_back": rocm_not_back,
            "rocm_package_version": driver_package.version_pattern,
            "rocm_reboot_reasons": rocm_work.reboot_reasons,
            "rocm_unwritten_words": rocm_work.unwritten_words,
        }
