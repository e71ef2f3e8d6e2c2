# SPDX-License-Identifier: Apache-2.0
"""Which addresses a fleet may take on this machine, and how large its packets may be."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from node_image import docker, run

# A /24 of this block per fleet; skipped where the machine or another Docker network uses it.
ADDRESS_BLOCK = ipaddress.IPv4Network("10.213.0.0/16")


def used_networks() -> list[ipaddress.IPv4Network]:
    """Networks that this machine routes to or that Docker has given away."""
    used = []
    for route in json.loads(run(["ip", "-j", "-4", "route", "show", "table", "all"]).stdout or "[]"):
        with contextlib.suppress(ValueError):  # "default" and route types are no networks
            used.append(ipaddress.IPv4Network(route["dst"], strict=False))
    ids = docker("network", "ls", "-q").split()
    # Another fleet may remove its own meanwhile: the answer has those that are left.
    for network in json.loads(run(["docker", "network", "inspect", *ids], check=False).stdout or "[]") if ids else []:
        for pool in network["IPAM"]["Config"] or []:
            with contextlib.suppress(ValueError):  # IPv6
                used.append(ipaddress.IPv4Network(pool["Subnet"]))
    return used


def uplink_mtu() -> int:
    """MTU of the machine's default route, in bytes: a bridge with a larger one loses packets behind a tunnel."""
    for route in json.loads(run(["ip", "-j", "-4", "route", "show", "default"]).stdout or "[]"):
        with contextlib.suppress(OSError):
            return int(Path(f"/sys/class/net/{route['dev']}/mtu").read_text(encoding="ascii"))
    return 1500


def free_blocks(name: str) -> Iterator[ipaddress.IPv4Network]:
    """Every free /24 of the block, from one on that depends on the name: two fleets rarely ask for the same."""
    used = used_networks()
    blocks = list(ADDRESS_BLOCK.subnets(new_prefix=24))
    offset = zlib.crc32(name.encode()) % len(blocks)
    for block in blocks[offset:] + blocks[:offset]:
        if not any(block.overlaps(network) for network in used):
            yield block


def beside(block: ipaddress.IPv4Network) -> ipaddress.IPv6Network:
    """Return the private IPv6 network that goes with a /24 of the block: as free as that is."""
    return ipaddress.IPv6Network(f"fd10:213:{block.network_address.packed[2]:x}::/64")
