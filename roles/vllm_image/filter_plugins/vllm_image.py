# SPDX-License-Identifier: Apache-2.0
"""Filters of the role vllm_image: its variables of all hosts, as container/ of module_utils/vllm_fleet takes them."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.container import image, image_build, image_fleet
from ansible.module_utils.vllm_fleet.vllm import host_variables
from ansible.module_utils.vllm_fleet.weights import said


def vllm_image_same_everywhere(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> bool:
    """Return whether all ``hosts`` that were probed have their image, and it is the same one."""
    probes = (hostvars[host].get("vllm_image_result") for host in hosts)
    return image_fleet.same_everywhere(probe for probe in probes if probe is not None)


def vllm_image_actors(
    hosts: Sequence[str], hostvars: Mapping[str, Any], me: str, fleet: Sequence[str] = (), build_host: str = ""
) -> dict[str, Any]:
    """Return image_fleet.actors() for the image that the host ``me`` wants, as a mapping.

    Of the servers of one node those in ``hosts`` act for it, and a node can be named as the host that builds.
    """
    wants, nodes = {}, set()
    for host in hosts:
        variables = hostvars[host]
        wants[host] = str(variables.get("__vllm_image_wanted", ""))
        nodes.add(host_variables.node_of(variables, host))
    if several := nodes - wants.keys():
        fleet = list(_candidates(fleet, hostvars, nodes, wants, me))
        if build_host in several:
            build_host = next(host for host in hosts if host_variables.node_of(hostvars[host], host) == build_host)
    return dataclasses.asdict(image_fleet.actors(wants, me, fleet=fleet, build_host=build_host))


def _candidates(
    fleet: Sequence[str], hostvars: Mapping[str, Any], nodes: Collection[str], wants: Mapping[str, str], me: str
) -> Iterator[str]:
    """Give the hosts that may build, up to the one that does: no server of a node for which another one acts."""
    for host in fleet:
        if host in wants or host_variables.node_of(hostvars[host], host) not in nodes:
            yield host
            if wants.get(host, wants[me]) == wants[me]:
                return


def vllm_image_of_neighbours(hostvars: Mapping[str, Any], fleet: Sequence[str], host: str, name: str) -> list[str]:
    """Return the images that other servers of a host's node want, which may not have a container yet.

    ``name`` is the repository of those that name none.
    """
    others = [hostvars[one] for one in host_variables.neighbours(hostvars, fleet, host) if one != host]
    made = []
    for one in others:
        repository, digest = one.get("vllm_image_name") or name, one.get("vllm_image_digest")
        made.append(f"{repository}@{digest}" if digest else f"{repository}:{one.get('vllm_image_tag') or 'latest'}")
    return list(dict.fromkeys(made))


def vllm_image_receivers(group: Sequence[str], hostvars: Mapping[str, Any], builder: str, content: str) -> list[str]:
    """Return the hosts of a group that need the image of the builder."""
    return image_fleet.receivers({host: hostvars[host]["vllm_image_result"] for host in group}, builder, content)


def vllm_image_peers(receivers: Sequence[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the hosts that get an image, from the inventory and as ``ip -o address`` shows them."""
    found: set[str] = set()
    for host in receivers:
        lines = (hostvars[host].get("__vllm_image_addresses") or {}).get("stdout_lines") or []
        own = [words[3].partition("/")[0] for line in lines if len(words := str(line).split()) > 3]
        with contextlib.suppress(said.NotOfItsForm):  # a name
            found.add(said.address(hostvars[host].get("ansible_host") or host, host))
        try:
            found |= {said.address(address, host) for address in own[: said.MAX_ADDRESSES]}
        except said.NotOfItsForm as error:
            raise AnsibleFilterError(str(error)) from None
    return sorted(found)


def vllm_image_told_apart(group: Sequence[str], hostvars: Mapping[str, Any]) -> str:
    """Return which host of a group has which image, as part of a sentence."""
    return image_fleet.told_apart({host: str(hostvars[host].get("vllm_image_id") or "") for host in group})


def vllm_image_build_command(
    recipe: Mapping[str, Any], client: str, *, name: str, tags: Sequence[str], inputs: str, commit: str
) -> list[str]:
    """Return the words of `docker build`; the ``recipe`` is as image_build.Recipe has it."""
    refs = [f"{name}:{tag}" for tag in tags]
    made = image_build.Recipe(**dict(recipe.items()))
    return image_build.command(client, made, image_build.labels(name, inputs, commit), refs)


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "vllm_image_actors": vllm_image_actors,
            "vllm_image_build_command": vllm_image_build_command,
            "vllm_image_of_neighbours": vllm_image_of_neighbours,
            "vllm_image_peers": vllm_image_peers,
            "vllm_image_receivers": vllm_image_receivers,
            "vllm_image_replacement": image.replacement,
            "vllm_image_same_everywhere": vllm_image_same_everywhere,
            "vllm_image_told_apart": vllm_image_told_apart,
        }
