# SPDX-License-Identifier: Apache-2.0
"""AMD's driver package: the version that apt is asked for, what DKMS said of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .driver import INBOX, MODULE_RELEASES


def _numbers(version: object) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(version))]


#: Drivers before this module version had no releases of their own and are older than any that has one.
FIRST_NUMBERED = min(MODULE_RELEASES, key=_numbers)


def version_pattern(release: str) -> str:
    """Return the pattern by which apt finds the packages of AMD's release, as driver.driver_release reads them.

    The pattern must not end in ``*``: apt takes that for a prefix match and then reads the ``*`` at the start
    literally.
    """
    first, second, third = _numbers(f"{release}.0")[:3]
    return f"*.{first:02}{second:02}{third:02}00-*[0-9]"


def newer(driver: Mapping[str, Any], wanted: str) -> list[str]:
    """Return what an installation of AMD's release ``wanted`` would replace by something older, as part of a sentence.

    ``driver`` is as rocm_info returns it. It is the loaded driver, or a package whose module waits for its boot.
    """
    release, version = driver["release"], driver["version"]
    found = [
        f"release {one}"
        for one in (release, driver.get("package_release"))
        if one and one != INBOX and _numbers(one) > _numbers(wanted)
    ]
    if release is None and version is not None and _numbers(version) >= _numbers(FIRST_NUMBERED):
        found.append(f"version {version}, of no known release,")
    return found


def dkms_said(build: Mapping[str, Any]) -> str:
    """Return the line in which a build by DKMS (a result of long_command) says what is wrong; `nothing` without any.

    It is DKMS's own error, else the last line, else the reason why DKMS could not be run.
    """
    lines = [str(line) for line in build.get("tail") or []]
    errors = [line for line in lines if line.startswith("Error!")]
    return [*errors, *reversed(lines), str(build.get("msg") or "nothing")][0]
