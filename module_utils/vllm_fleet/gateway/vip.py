# SPDX-License-Identifier: Apache-2.0
"""The address that gateways share: what keepalived is to do on each, from the inventory. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..vllm.host_variables import WILDCARDS, truth

FIELDS = ("address", "interface", "id")
# Of those that keepalived itself takes where nothing is said.
ID = 51
EXAMPLE = "{address: 10.0.0.9/24, interface: eth0}"
# What Linux takes as a name (dev_valid_name), without what would end a word of keepalived.
INTERFACE = re.compile(r"[A-Za-z0-9_.:-]{1,15}")


def standing(hostvars: Mapping[str, Any], gateways: Iterable[str]) -> list[str]:
    """Return the gateways that are not to be removed (gateway_absent)."""
    return [name for name in gateways if name not in hostvars or not truth(hostvars[name].get("gateway_absent"))]


def described(
    hostvars: Mapping[str, Any], gateways: Iterable[str], gateway: str, vip: Mapping[str, Any], bind: str
) -> dict[str, Any]:
    """Return what keepalived on `gateway` is to do, and, as sentences, what is wrong with gateway_vip (`problems`).

    `address` (with its prefix), `interface`, `id`, `source` (the gateway's own address) and `peers` (those of the
    others) are empty where they are not known. ``vip`` is gateway_vip of this gateway, ``bind`` its gateway_bind.
    """
    if not vip:
        return {"address": "", "interface": "", "id": 0, "source": "", "peers": [], "problems": []}
    problems: list[str] = _odd(vip)
    if bind not in ("*", *WILDCARDS):
        problems.append(
            f"gateway_vip moves from one gateway to another, but {gateway} listens on {bind}: set gateway_bind: '*'."
        )
    address, number = str(vip.get("address") or ""), str(vip.get("id", ID))
    places = {name: _own(hostvars, name) for name in gateways}
    for name, place in places.items():
        if not _is_address(place):
            problems.append(
                f"{name} announces gateway_vip from its own IPv4 address, and {place or 'nothing'!r} is none: set "
                f"gateway_address of {name} to its address in the network of {address}."
            )
        elif place == address.partition("/")[0]:
            problems.append(
                f"gateway_vip {address} is the own address of {name}: take one that no machine of the network has."
            )
        other = hostvars[name].get("gateway_vip") or {}
        if name != gateway and isinstance(other, Mapping):
            same = (str(other.get("address") or ""), str(other.get("id", ID))) == (address, number)
            if not same:
                problems.append(
                    f"{gateway} and {name} would share no address: gateway_vip of the one is {address} (id {number}), "
                    f"of the other {other.get('address') or 'not set'}: set it for group gateway."
                )
    twice = {place for place in places.values() if list(places.values()).count(place) > 1}
    for place in sorted(filter(_is_address, twice)):
        names = ", ".join(name for name in places if places[name] == place)
        problems.append(f"{names} would all announce from {place}: set gateway_address of each.")
    return {
        "address": address,
        "interface": str(vip.get("interface") or ""),
        "id": int(number) if number.isdigit() else 0,
        "source": places.get(gateway, ""),
        "peers": [place for name, place in places.items() if name != gateway],
        "problems": problems,
    }


def _odd(vip: Mapping[str, Any]) -> list[str]:
    """What is wrong with the value itself."""
    if not isinstance(vip, Mapping):
        return [f"gateway_vip is {vip!r}: give an address with its prefix and an interface, such as {EXAMPLE}."]
    found = [f"gateway_vip has {field}, which means nothing here: known are {', '.join(FIELDS)}."
             for field in vip if field not in FIELDS]  # fmt: skip
    address, _, prefix = str(vip.get("address") or "").partition("/")
    if not _is_address(address) or not prefix.isdigit() or not 1 <= int(prefix) <= 32:
        found.append(
            f"gateway_vip has the address {vip.get('address')!r}: give an IPv4 address with the prefix of its network, "
            f"such as {EXAMPLE}."
        )
    if not INTERFACE.fullmatch(str(vip.get("interface") or "")):
        found.append(
            f"gateway_vip has the interface {vip.get('interface')!r}: name the one that is in the network of the "
            f"address, as `ip -br address` shows it, such as {EXAMPLE}."
        )
    number = str(vip.get("id", ID))
    if not number.isdigit() or not 1 <= int(number) <= 255:
        found.append(
            f"gateway_vip has the id {number}: give a number from 1 to 255 that no other VRRP of this network has."
        )
    return found


def _own(hostvars: Mapping[str, Any], name: str) -> str:
    variables = hostvars[name]
    return str(variables.get("gateway_address") or variables.get("ansible_host") or name)


def _is_address(text: str) -> bool:
    try:
        return ipaddress.IPv4Address(text) is not None
    except ValueError:
        return False


def not_on_host(gateway: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return what a gateway lacks for what is described, as sentences; ``found`` is what vip_state.look() saw."""
    if not wanted["address"]:
        return []
    problems = []
    interface, source = wanted["interface"], wanted["source"]
    if interface not in found["addresses"]:
        problems.append(
            f"{gateway} has no interface {interface} for gateway_vip; it has {', '.join(found['addresses']) or 'none'}."
        )
    elif source not in found["addresses"][interface]:
        problems.append(
            f"{gateway} does not have its own address {source} on {interface}, which has "
            f"{', '.join(found['addresses'][interface]) or 'no address'}: set gateway_address of {gateway} to one of "
            "them, or another interface in gateway_vip."
        )
    if found["foreign"]:
        problems.append(
            f"keepalived on {gateway} has a configuration of its own ({found['foreign']}), which gateway_vip would put "
            "out of use: remove that file if nobody needs it, or let that keepalived hold the address and leave "
            "gateway_vip out."
        )
    return problems
