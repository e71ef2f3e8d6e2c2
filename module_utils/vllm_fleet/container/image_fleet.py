# SPDX-License-Identifier: Apache-2.0
"""One image on many hosts: which hosts want the same one, which acts for all, which lack it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Probe = Mapping[str, Any]
"""What the module vllm_image returned on one host; empty where it did not run."""


@dataclass(frozen=True)
class Actors:
    """The hosts of the play that want one image, the one among them that acts for all, and the place that builds."""

    group: list[str]
    leader: str
    builder: str


def same_everywhere(probes: Iterable[Probe]) -> bool:
    """Return whether there are hosts, each has the image that it wants, and all have the same one."""
    found = list(probes)
    return all(probe.get("present") for probe in found) and len({probe.get("content", "") for probe in found}) == 1


def actors(wants: Mapping[str, str], me: str, *, fleet: Sequence[str] = (), build_host: str = "") -> Actors:
    """Return who acts for the image that the host ``me`` wants.

    ``wants`` is the image of each host that is still in the play, in the order of the play. The builder is the same
    place also when a run is limited to other nodes, because two builds of the same inputs are two images: the first
    host of the ``fleet`` (of the play, for a host outside of the fleet), without hosts of the play that want another
    image. ``build_host`` names another builder.
    """
    group = [host for host, image in wants.items() if image == wants[me]]
    candidates = fleet if me in fleet else list(wants)
    builder = build_host or next((host for host in candidates if host in group or host not in wants), me)
    return Actors(group, builder if builder in group else group[0], builder)


def receivers(probes: Mapping[str, Probe], builder: str, content: str) -> list[str]:
    """Return the hosts that need the image of the builder: those without it, or with another build of it."""
    return [
        host
        for host, probe in probes.items()
        if host != builder and not (probe["present"] and probe["content"] == content)
    ]


def told_apart(ids: Mapping[str, str]) -> str:
    """Return which host has which image, as part of a sentence."""
    return ", ".join(f"{host} has {image_id[7:19] or 'none'}" for host, image_id in ids.items())
