# SPDX-License-Identifier: Apache-2.0
"""Inventory plugin: nodes with several servers as one host for each server."""

from __future__ import annotations

DOCUMENTATION = r"""
name: vllm_servers
plugin_type: inventory
short_description: Make a host for each server of a node
version_added: "0.1.0"
description:
  - Turns each host of group V(vllm) that has the variable C(vllm_servers) into one host for each of its servers, in all
    groups of the node and with all its variables. The node's name becomes the group of its servers.
  - Without C(vllm_servers) nothing changes.
  - The hosts have to be known before. Files of one folder are read in the order of their names, C(hosts.yml) before
    C(vllm_servers.yml); of several C(-i) the one with this file comes last.
  - C(docs/servers-per-node.md) says what an entry may have.
options:
  plugin:
    description: Says that a file is a source of this plugin.
    type: str
    required: true
    choices: [vllm_servers]
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
# inventory/mine/vllm_servers.yml, beside hosts.yml
plugin: vllm_servers

# inventory/mine/group_vars/vllm/main.yml, or a host's variables
# vllm_servers:
#   chat:
#     replicas: 6
#     gpus: 1
#     vllm_server_model: meta-llama/Llama-3.3-70B-Instruct
#   coder:
#     gpus: 2
#     vllm_server_model: Qwen/Qwen3-Coder-30B-A3B-Instruct
#     vllm_server_args: {tensor-parallel-size: 2}
"""

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.group import Group
from ansible.inventory.helpers import sort_groups
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.template import trust_as_template
from ansible.utils.display import Display
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.preflight import servers

#: Where Ansible notes which file a host stands in.
_OF_ANSIBLE = ("inventory_file", "inventory_dir")
#: Variables with names that are made here.
_NAMES = ("vllm_node", "vllm_server_name", "ansible_host")
#: Ansible's own code for an inventory or a playbook that cannot be read.
_CODE = 4


class InventoryModule(BaseInventoryPlugin):
    """Replaces hosts by those of their servers."""

    NAME = "vllm_servers"

    def verify_file(self, path: str) -> bool:
        """Return whether a file may be a source: `auto` has seen that it names this plugin."""
        return bool(super().verify_file(path)) and path.endswith((".yml", ".yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Read the variables of the nodes that are known by now, and put their servers in their place."""
        super().parse(inventory, loader, path, cache)
        odd = set(self._read_config_data(path)) - {"plugin"}
        if odd:
            raise AnsibleParserError(f"{path}: {', '.join(sorted(odd))} is no option of vllm_servers: leave it out.")
        try:
            nodes = _nodes(inventory, loader, path)
        except AnsibleError as exc:
            # Of an ordinary error Ansible makes a warning for each of its own plugins, and goes on.
            from fleet_report import telling  # noqa: PLC0415  much, and only for this

            Display().error(telling.unread(str(exc), telling.source_of(exc)), wrap_text=False)
            raise SystemExit(_CODE) from exc
        if not nodes:
            return
        groups = {host: {group.name for group in inventory.hosts[host].get_groups()} for host in nodes}
        plan = servers.plan(
            {host: {name: seen[name] for name in servers.READ if name in seen} for host, (seen, _) in nodes.items()},
            list(inventory.hosts),
            groups | {"": set(inventory.groups)},
        )
        if plan.problems:
            # With an ordinary error Ansible goes on without this source. Each node would be one server then, and
            # a gateway would forget all others.
            Display().error(f"{path}: nothing was run.\n" + "\n".join(plan.problems), wrap_text=False)
            raise SystemExit(_CODE)
        _replace(inventory, {host: own for host, (_, own) in nodes.items()}, plan.servers)


def _nodes(inventory: Any, loader: Any, path: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return the hosts to expand, with all variables that they have now and those of their own.

    ``path`` is the file of this source.
    """
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    group = inventory.groups.get("vllm")
    # A source counts as processed once it was read; group_vars beside this one are known now.
    sources = [*inventory.processed_sources, path]
    of_groups: dict[Any, dict[str, Any]] = {}
    for host in group.get_hosts() if group else []:
        groups = sort_groups({*host.get_groups(), inventory.groups["all"]})
        key = tuple(one.name for one in groups)
        if key not in of_groups:
            inline: dict[str, Any] = {}
            for one in groups:
                inline = combine_vars(inline, one.get_vars())
            files = [get_vars_from_inventory_sources(loader, sources, [one], "all") for one in groups]
            for one in files:
                inline = combine_vars(inline, one)
            of_groups[key] = inline
        own = combine_vars(host.vars, get_vars_from_inventory_sources(loader, sources, [host], "all"))
        seen = combine_vars(of_groups[key], own)
        if seen.get("vllm_servers") and not _made(inventory, host, seen):
            found[host.name] = (seen, {name: value for name, value in own.items() if name not in _OF_ANSIBLE})
    return found


def _made(inventory: Any, host: Any, seen: dict[str, Any]) -> bool:
    """Return whether a host is one that an earlier source of this plugin has made."""
    node = inventory.groups.get(str(seen.get("vllm_node")))
    return node is not None and host in node.hosts


def _replace(inventory: Any, nodes: dict[str, dict[str, Any]], made: list[servers.Server]) -> None:
    """Put the servers in the place of their nodes."""
    for name, own in nodes.items():
        node = inventory.hosts[name]
        # By its name Ansible would warn of each hyphen, which names of machines have.
        group = Group("")
        group.name = name
        group.vars = {key: value for key, value in own.items() if key != "vllm_servers"}
        inventory.groups[name] = group
        for parent in sort_groups(set(node.groups)):
            if parent.name not in ("all", "ungrouped") and node in parent.hosts:
                parent.add_child_group(group)
        inventory.remove_host(node)
    for server in made:
        own = {key: value for key, value in nodes[server.node].items() if key != "vllm_servers"}
        inventory.add_host(server.host, server.node)
        # Names that were made here are the inventory's own words: others are shown by Ansible as somebody else's.
        named = {key: trust_as_template(str(server.variables[key])) for key in _NAMES if key in server.variables}
        for key, value in {**own, **server.variables, **named}.items():
            # As they are: what is encrypted stays so, and templates stay templates.
            inventory.hosts[server.host].set_variable(key, value)
    for server in made:
        for number, name in enumerate(server.groups):
            inventory.add_group(name)
            # Deeper than the group that all nodes have in common, so that its variables are above that one's.
            inventory.add_child("vllm", name)
            inventory.groups[name].set_priority(len(server.groups) - number)
            inventory.add_child(name, server.host)
