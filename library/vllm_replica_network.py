#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: whether the nodes of one server have, and reach each other over, the network that it needs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_replica_network
short_description: Check the network between the nodes of one vLLM server
description:
  - Checks that the interface exists, is up and has the node's address, that the RDMA adapters have an active port, and
    that the nodes reach each other, by real TCP connections on the ports that the server will use.
  - Has two steps. All nodes must finish the first before the second begins, as tasks of a play do. Changes nothing.
version_added: "0.1.0"
options:
  step:
    description:
      - V(listen) checks the node and listens for half a minute, in a process of its own that ends by itself.
      - V(connect) connects to the partners.
    type: str
    choices: [listen, connect]
    required: true
  address:
    description: Address of this node that its partners get.
    type: str
    required: true
  ports:
    description: Ports to listen on, besides one that the kernel picks.
    type: list
    elements: int
    default: []
  ports_address:
    description: Address to listen on with O(ports), where the ranks meet at another one of this node. Empty is O(address).
    type: str
    default: ""
  interface:
    description: Interface that the server's traffic goes through.
    type: str
    default: ""
  rdma_devices:
    description: RDMA adapters, such as C(mlx5_0).
    type: list
    elements: str
    default: []
  rdma_gid_index:
    description: Index in the adapters' GID tables.
    type: int
  partners:
    description: For V(connect), what the other nodes' V(listen) gave.
    type: list
    elements: dict
    default: []
  container:
    description: Container whose ports are about to be free.
    type: str
    default: vllm
  sysfs_root:
    description: Where sysfs is mounted.
    type: path
    default: /sys
  docker_host:
    description: URL of the Docker engine.
    type: str
  reported_host:
    description: Name of the node in messages.
    type: str
attributes:
  check_mode:
    support: full
    description: Changes nothing in any mode.
  diff_mode:
    support: none
    description: Changes nothing.
requirements:
  - iproute2
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Listen where partners will connect
  vllm_replica_network:
    step: listen
    address: 10.0.0.11
    ports: [29500, 29501]
    interface: ens1
"""

RETURN = r"""
offered:
  description: Addresses and ports that the partners connect to.
  type: list
  elements: dict
  returned: with O(step=listen)
word:
  description: What they will hear.
  type: str
  returned: with O(step=listen)
reached:
  description: The partners that were reached.
  type: list
  elements: dict
  returned: with O(step=connect)
failure:
  description: Why the network does not work, as in M(vllm_server).
  type: dict
  returned: on failure
"""

import socket
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common.refused import Refused
from ansible.module_utils.vllm_fleet.container.engine import Engine, EngineError, EngineUnavailable
from ansible.module_utils.vllm_fleet.replica import network

ARGUMENTS: dict[str, dict[str, Any]] = {
    "step": {"type": "str", "choices": ["listen", "connect"], "required": True},
    "address": {"type": "str", "required": True},
    "ports": {"type": "list", "elements": "int", "default": []},
    "ports_address": {"type": "str", "default": ""},
    "interface": {"type": "str", "default": ""},
    "rdma_devices": {"type": "list", "elements": "str", "default": []},
    "rdma_gid_index": {"type": "int"},
    "partners": {"type": "list", "elements": "dict", "default": []},
    "container": {"type": "str", "default": "vllm"},
    "sysfs_root": {"type": "path", "default": "/sys"},
    "docker_host": {"type": "str"},
    "reported_host": {"type": "str"},
}


def offer(params: dict[str, Any]) -> dict[str, Any]:
    """Check this node and listen."""
    place = network.Place(
        params["address"],
        tuple(params["ports"]),
        params["ports_address"],
        params["interface"],
        tuple(params["rdma_devices"]),
        params["rdma_gid_index"],
    )

    def own_pids() -> frozenset[int]:
        engine = Engine(params["docker_host"])
        info = engine.container(params["container"])
        return engine.pids(str(info["Id"])) if info else frozenset()

    return network.offer(place, len(params["partners"]), own_pids, Path(params["sysfs_root"]))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    host = params["reported_host"] or socket.gethostname()
    try:
        result = offer(params) if params["step"] == "listen" else network.reach(params["partners"], params["interface"])
    except Refused as exc:
        where = f"{host}, container {params['container']}"
        text = f"{exc.failure.sentence(where)} Nothing was touched."
        module.fail_json(msg=text, failure=exc.failure.as_result())
    except (EngineError, EngineUnavailable) as exc:
        module.fail_json(msg=f"{host}: {exc}")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
