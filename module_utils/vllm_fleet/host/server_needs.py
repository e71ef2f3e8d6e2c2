# SPDX-License-Identifier: Apache-2.0
"""What a server will need of a node besides GPUs, as the options of preflight_host say it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The file that the image comes from.

    ``location`` is node or controller. The controller reads its own file: ``held`` is what that holds (`Held.facts`),
    ``trouble`` why it cannot be read. ``here``: the controller has a file of that path.
    """

    path: str
    location: str
    expected_id: str
    cache: str
    held: Mapping[str, Any]
    trouble: str
    here: bool


@dataclass(frozen=True, kw_only=True)
class ServerNeeds:
    """Container, image, model and port of the server, and the node's settings. Sizes in bytes; 0 is not checked."""

    name: str
    image: str
    image_source: str
    archive: Archive | None
    disk_image: int
    cache: Path | None
    cache_create: bool
    model: str
    disk_weights: int
    port: int
    bind: str
    clock: bool
    sysctls: Mapping[str, str]
