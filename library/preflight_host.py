#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module preflight_host: would this node be able to serve? Read-only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_host
short_description: Compare a node with what is expected of it, without changing anything
description:
  - Checks in one call the variables of the inventory (on the controller), the connecting user and root's rights, GPUs, driver and kernel (as
    M(rocm_info) reads them), image, cache, disk space, the port, the clock and kernel settings.
  - Never fails because of a finding, even if the node cannot be reached. RV(worst) and RV(refusals) say whether to use the node.
    M(preflight_report) shows the findings of all nodes and ends the run.
  - A fact that cannot be read gives a finding of level V(unknown). A node that cannot be looked at gives one of level V(unseen).
options:
  accelerator:
    description: V(cpu) takes the checks of GPU, driver, kernel and RAM out.
    type: str
    choices: [rocm, cpu]
    default: rocm
  allowed_driver_versions:
    description: Drivers that are right, as for M(rocm_info). Without any, the driver is not judged by its version.
    type: list
    elements: str
    default: []
  wanted_driver:
    description: Release of the driver that a run installs where the one here is not right.
    type: str
    default: ""
  drivers:
    description: AMD's drivers and ROCm releases, as C(roles/rocm/files/drivers.yml) has them. Without it no driver is held against an image.
    type: dict
  gpus:
    description: Number of GPUs in a node. The partitions of a GPU count as one. V(0) accepts any number except none.
    type: int
    default: 8
  gpu_name:
    description: Part of the product name, such as V(MI300X). An empty text accepts any name if all are the same.
    type: str
    default: ""
  idle_vram:
    description: Bytes of GPU memory that may be in use on a GPU that counts as free; a driver needs some for itself.
    type: int
    default: 5000000000
  foreign_level:
    description: Level of the finding if another program uses a GPU.
    type: str
    choices: [warning, refused]
    default: refused
  utilization:
    description:
      - Share of each GPU's memory that the server will ask for; less free memory is as O(foreign_level) says. V(0) does not compare.
      - By default what the arguments in O(sizing) say, without any there vLLM's own; of the GPUs that these arguments use.
    type: float
  name:
    description: Container of the server, whose GPU memory and port are not foreign.
    type: str
    default: vllm
  wanted_gpus:
    description: GPUs that the server asks for of a node that it shares, as O(ignore:gpus) of M(vllm_server).
    type: raw
  wanted_cpus:
    description: CPUs that it asks for, likewise.
    type: raw
  neighbours:
    description: All servers that the inventory has on this node, as M(vllm_server) has them.
    type: list
    elements: dict
    default: []
  state_dir:
    description: Folder in which the servers' places are written down, and that a server is in maintenance.
    type: path
    default: /var/lib/vllm-fleet
  leaves_out:
    description: Whether a server in maintenance (M(vllm_maintenance)) is left alone. That is a warning then, and nothing else is looked at.
    type: bool
    default: true
  installs_driver:
    description: Whether a missing or unwanted driver will be installed, so that it is no reason to refuse.
    type: bool
    default: true
  allows_reboot:
    description: Whether a deployment may reboot the node for a driver that waits for it.
    type: bool
    default: false
  sets_numa_balancing:
    description: Whether C(kernel.numa_balancing) will be set.
    type: bool
    default: true
  min_ram:
    description: Bytes of RAM. Without it, what AMD asks for with these GPUs.
    type: int
  image:
    description: Image of the server. If the engine does not have it, Docker's disk must have room for it.
    type: str
    default: ""
  image_source:
    description: How a missing image gets onto the node. With V(pull) the engine asks the registry whether it has the image.
    type: str
    choices: ["", pull, build, archive]
    default: ""
  archive:
    description:
      - For O(image_source=archive). Unless the node has the image, the archive has to be readable and to hold one of that tag, and what loading it takes
        has to fit onto Docker's disk.
      - The action reads one of the controller and fills in C(held), C(trouble) and C(here).
    type: dict
    suboptions:
      path: {description: The file., type: str, default: ""}
      location: {description: Where it is., type: str, choices: [node, controller], default: node}
      expected_id: {description: Id of the image that is meant., type: str, default: ""}
      cache: {description: Folder on the node that gets a file of the controller., type: str, default: ~/.cache/vllm-fleet}
      held: {description: What a file of the controller holds., type: dict, default: {}}
      trouble: {description: Why a file of the controller cannot be read., type: str, default: ""}
      here: {description: Whether the controller has a file of that path., type: bool, default: false}
  disk_image:
    description: Bytes that O(image) needs, with what is needed while it is unpacked. V(0) does not check, but for O(archive) takes what that needs.
    type: int
    default: 0
  cache:
    description: Hugging Face cache on the node.
    type: path
  cache_create:
    description: Whether a cache that is not there will be made.
    type: bool
    default: true
  model:
    description: Repository id of the weights, or an absolute path. The part of a repository that is in the cache is subtracted from O(disk_weights).
    type: str
    default: ""
  sizing:
    description:
      - Start options of the server, for the calculation of memory. Its figures of the model are used if the cache does not have them.
      - Without it nothing is computed.
    type: dict
    suboptions:
      args: {description: Flags of C(vllm serve)., type: dict, default: {}}
      env: {description: The server's environment., type: dict, default: {}}
      devices: {description: Devices of the container; all GPUs without them., type: list, elements: str}
      revision: {description: "Commit, branch or tag of the model.", type: str, default: ""}
      config: {description: "Fields of the model's config.json.", type: dict, default: {}}
      weights_bytes: {description: "Bytes of all weights; V(0) when not known.", type: int, default: 0}
      min_vllm: {description: Oldest vLLM that serves the model., type: str, default: ""}
      image_version: {description: "The image's tag, which is compared where it is a version.", type: str, default: ""}
      preset: {description: "Name of the preset's file; a model with one is known and its id not compared with others.", type: str, default: ""}
      gated: {description: Whether the weights come from the Hub that wants a token and there is none., type: bool, default: false}
      exact: {description: Whether the id is meant even where it resembles one in the cache., type: bool, default: false}
  adapters:
    description: LoRA adapters of the server, judged by the inventory and by their own files. Nothing is said without it.
    type: dict
    suboptions:
      adapters:
        description: The variable C(vllm_server_adapters), as it is.
        type: raw
      args:
        description: Flags of the server.
        type: dict
        default: {}
      served:
        description: Names of the model itself.
        type: list
        elements: str
        default: []
      cached:
        description: Whether the server has a cache that adapters are brought to.
        type: bool
        default: true
      hub:
        description: Whether the Hub is asked for the file of an adapter that the cache lacks.
        type: bool
        default: false
      endpoint:
        description: Address of the Hub; an empty text is its own.
        type: str
        default: ""
      token:
        description: Token for the Hub.
        type: str
        default: ""
  disk_weights:
    description: Bytes of all weights. V(0) does not check.
    type: int
    default: 0
  port:
    description: Port of the server. V(0) does not check.
    type: int
    default: 0
  bind:
    description: Address of the server.
    type: str
    default: 127.0.0.1
  clock:
    description: Whether the clock has to be synchronised.
    type: bool
    default: true
  sysctls:
    description: Kernel settings by name with the values they should have.
    type: dict
    default: {}
  accept:
    description: Findings that become warnings instead of refusals, named by their C(what).
    type: list
    elements: str
    default: []
  ask:
    description:
      - Modules that later tasks will call on this node, such as C(vllm_image). They are asked in the same process, with the options of their roles, and
        the action keeps the results as the fact C(vllm_fleet_probe_results). A question that cannot be built yet is left to its task.
    type: list
    elements: str
    default: []
  conclude:
    description:
      - Names of variables by role, that say after the probe whether the role has work to do on this node. The action keeps that beside the results of
        O(ask). In these variables C(preflight_result) is what this module returns.
    type: dict
    default: {}
  of_role:
    description: Whether the action takes all options that are not given from the variables of the role preflight.
    type: bool
    default: false
  findings:
    description: Findings of other checks, of the same form as RV(findings), to be judged together with these.
    type: list
    elements: dict
    default: []
  inventory:
    description: Whether the action looks at the variables of the inventory, too.
    type: bool
    default: true
  late:
    description:
      - Options that are taken from a variable each, by its name, after the node has been asked for its kind of GPU. In them C(preflight_gpu_found)
        is the product's name, empty without an AMD Instinct GPU.
    type: dict
    default: {}
  host:
    description: Whether to check the node itself, and not only the inventory and the connection.
    type: bool
    default: true
  min_python:
    description: Oldest Python that the node must have.
    type: str
    default: "3.10"
  sysfs_root:
    description: Directory that stands for C(/sys).
    type: path
    default: /sys
  proc_root:
    description: Directory that stands for C(/proc), where GPUs, driver and kernel are concerned.
    type: path
    default: /proc
  docker_socket:
    description: Socket of the Docker engine; a node without one is fine.
    type: path
    default: /var/run/docker.sock
attributes:
  action:
    support: full
    description: The inventory is looked at on the controller, and a failing connection becomes a finding there.
  check_mode:
    support: full
    description: This module does not change anything.
  diff_mode:
    support: none
    description: This module does not change anything.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Look at the node
  preflight_host:
    gpus: 8
    gpu_name: MI300X
    port: 8000
  register: verdict

- name: Refuse it
  ansible.builtin.fail:
    msg: "{{ verdict.refusals | join('. ') }}"
  when: verdict.refusals | length > 0
"""

RETURN = r"""
findings:
  description: All checks, also those that found nothing.
  returned: always
  type: list
  elements: dict
  contains:
    level: {description: "V(ok), V(unknown), V(warning), V(unseen) or V(refused).", type: str}
    what: {description: Name of the check., type: str}
    expected: {description: What it should be., type: str}
    got: {description: What it is., type: str}
    remedy: {description: What to do about it; empty when all is well., type: str}
worst:
  description: The highest level of all findings.
  returned: always
  type: str
sizing:
  description:
    - What the model takes on this node and what fits - C(weights_per_gpu), C(kv_per_gpu) and C(disk) in bytes, C(context) in tokens, C(sizes) that
      C(tensor-parallel-size) may have, C(lines) of arithmetic. What is not known is null.
  returned: with O(sizing) that can be computed
  type: dict
refusals:
  description: One sentence per finding of level V(refused) or V(unseen).
  returned: always
  type: list
  elements: str
place:
  description: >-
    Where the server is to be - C(machine), the same word by every address of a machine, and O(name), O(bind), O(port). M(preflight_report)
    compares those of all nodes.
  returned: when the node was looked at
  type: dict
node:
  description: What M(rocm_info) returned.
  returned: when the node was looked at and O(accelerator) is V(rocm)
  type: dict
ansible_facts:
  description: C(user_id), C(user_dir), C(user_uid) of the connecting user, C(distribution_release), as M(ansible.builtin.setup) names them.
  returned: when the node was reached
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.preflight import node
from ansible.module_utils.vllm_fleet.preflight.options import SPEC, PreflightOptions


def main() -> None:
    """Look and judge. The action of the same name has looked at the inventory and the way to the node."""
    module = AnsibleModule(**SPEC, supports_check_mode=True)
    result = node.result(PreflightOptions.from_params(module.params))
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
