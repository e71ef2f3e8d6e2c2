# SPDX-License-Identifier: Apache-2.0
"""Facts of a node that are not about GPUs, as the checks of preflight read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..common.finding import Finding


@dataclass(frozen=True)
class Room:
    """One file system: what has to fit, how much of it is there already, how much is free. Bytes."""

    path: str
    purposes: Sequence[str]
    needed: int
    free: int | None


@dataclass(frozen=True)
class Image:
    """The server's image. ``present`` is None without an engine to ask.

    ``source`` is how it gets to a node that lacks it (pull, build, archive; "" does not say). ``answer`` is the
    registry's when it was asked: the digest, or its refusal; ``missing`` is true when the registry does not have it.
    ``rocm`` is the ROCm release in an image that is present, empty where that is not known; ``ident`` is its id.
    ``named``: it has the wanted name there; one that was found by its id gets it.
    """

    name: str
    present: bool | None
    source: str = ""
    answer: str = ""
    missing: bool = False
    rocm: str = ""
    ident: str = ""
    named: bool = True


@dataclass(frozen=True)
class Folder:
    """The cache, or the folder of a model that is given by its path.

    ``kind`` is folder, file (whatever is no folder), none or unreadable; ``held`` the bytes of the model in it.
    """

    what: str
    path: str
    kind: str
    created: bool = False
    held: int = 0


@dataclass(frozen=True)
class Host:
    """Facts of a node that are not about GPUs.

    ``port_holder`` names who listens on the server's port, "" when no process does, None when that cannot be seen.
    ``clock_synchronised`` is None where the kernel does not report it. ``users_are_mapped``: Docker gives a
    container's users the rights of others of the node's (userns-remap).
    """

    rooms: Sequence[Room] = ()
    image: Image | None = None
    #: About the archive that the image comes from; None for a good one, and where the image comes another way.
    archive: Finding | None = None
    folder: Folder | None = None
    port_holder: str | None = ""
    port_is_ours: bool = False
    clock_synchronised: bool | None = None
    sysctls: Mapping[str, str | None] = field(default_factory=dict)
    users_are_mapped: bool = False
