#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module preflight_host: would this node be able to serve? Read-only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_host
short_description: Compare a node with what is expected of it, without changing anything
description:
  - One look for everything - the variables of the inventory (on the controller), who connects and whether root can be had, then GPUs, driver and
    kernel as M(rocm_info) reads them, image, cache, disk space, the port, the clock, kernel settings.
  - Never fails because of what it finds, not even when the node cannot be reached. RV(worst) and RV(refusals) say whether the node should be used;
    M(preflight_report) shows the findings of all nodes and ends the run.
  - A fact that cannot be read is a finding of level V(unknown), a node that cannot be looked at one of level V(unseen).
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
  gpus:
    description: Number of GPUs a node has, partitions of one GPU counted once. V(0) takes any number but none.
    type: int
    default: 8
  gpu_name:
    description: Part of the product's name, such as V(MI300X). Empty takes any, as long as all are the same.
    type: str
    default: ""
  idle_vram:
    description: Bytes of GPU memory that may be in use on a GPU that counts as free; a driver needs some for itself.
    type: int
    default: 5000000000
  foreign_level:
    description: What foreign use of a GPU is.
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
    description: Image of the server. Unless the engine has it, it has to fit onto Docker's disk.
    type: str
    default: ""
  image_source:
    description: How an image that is not there gets there. With V(pull) the registry is asked, through the engine, whether it has it.
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
    description: Repository id of the weights, or an absolute path. What the cache has of a repository is taken off O(disk_weights).
    type: str
    default: ""
  sizing:
    description:
      - What the server will be started with, for the arithmetic of memory. Its figures of the model are used for what the cache does not tell.
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
    description: Findings, by their C(what), that are to be warnings where they would be refusals.
    type: list
    elements: str
    default: []
  ask:
    description:
      - Names of variables that hold questions, C({module, args}), which later tasks will ask of this node. They are asked in the same process; the action
        keeps the answers as the fact C(vllm_fleet_answers). One that cannot be put yet is left to its task.
    type: list
    elements: str
    default: []
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
    description: Whether to look at what the node is made of, and not only at the inventory and the way to the node.
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
  - The vllm-fleet developers
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
    what: {description: What was looked at., type: str}
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

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import finding
from ansible.module_utils.vllm_fleet.container.api import DockerApi
from ansible.module_utils.vllm_fleet.host import gpu_memory, probe, rocm
from ansible.module_utils.vllm_fleet.models import model_files, sizing, sizing_table
from ansible.module_utils.vllm_fleet.preflight import judge
from ansible.module_utils.vllm_fleet.vllm.cli import CommandError

SIZING: dict[str, Any] = {
    "args": {"type": "dict", "default": {}},
    "env": {"type": "dict", "default": {}},
    "devices": {"type": "list", "elements": "str"},
    "revision": {"type": "str", "default": ""},
    "config": {"type": "dict", "default": {}},
    "weights_bytes": {"type": "int", "default": 0},
    "min_vllm": {"type": "str", "default": ""},
    "image_version": {"type": "str", "default": ""},
    "preset": {"type": "str", "default": ""},
    "exact": {"type": "bool", "default": False},
    "gated": {"type": "bool", "default": False},
}


ARCHIVE: dict[str, Any] = {
    "path": {"type": "str", "default": ""},
    "location": {"type": "str", "choices": ["node", "controller"], "default": "node"},
    "expected_id": {"type": "str", "default": ""},
    "cache": {"type": "str", "default": "~/.cache/vllm-fleet"},
    "held": {"type": "dict", "default": {}},
    "trouble": {"type": "str", "default": ""},
    "here": {"type": "bool", "default": False},
}


def main() -> None:
    """Read, judge, answer. The action of the same name has looked at the inventory and the way to the node."""
    module = AnsibleModule(
        argument_spec={
            "accelerator": {"type": "str", "choices": ["rocm", "cpu"], "default": "rocm"},
            "allowed_driver_versions": {"type": "list", "elements": "str", "default": []},
            "gpus": {"type": "int", "default": 8},
            "gpu_name": {"type": "str", "default": ""},
            "idle_vram": {"type": "int", "default": 5_000_000_000},
            "foreign_level": {"type": "str", "choices": ["warning", "refused"], "default": "refused"},
            "utilization": {"type": "float"},
            "name": {"type": "str", "default": "vllm"},
            "installs_driver": {"type": "bool", "default": True},
            "allows_reboot": {"type": "bool", "default": False},
            "sets_numa_balancing": {"type": "bool", "default": True},
            "min_ram": {"type": "int"},
            "image": {"type": "str", "default": ""},
            "image_source": {"type": "str", "choices": ["", "pull", "build", "archive"], "default": ""},
            "archive": {"type": "dict", "options": ARCHIVE},
            "disk_image": {"type": "int", "default": 0},
            "cache": {"type": "path"},
            "cache_create": {"type": "bool", "default": True},
            "model": {"type": "str", "default": ""},
            "sizing": {"type": "dict", "options": SIZING},
            "disk_weights": {"type": "int", "default": 0},
            "port": {"type": "int", "default": 0},
            "bind": {"type": "str", "default": "127.0.0.1"},
            "clock": {"type": "bool", "default": True},
            "sysctls": {"type": "dict", "default": {}},
            "accept": {"type": "list", "elements": "str", "default": []},
            "ask": {"type": "list", "elements": "str", "default": []},
            "findings": {"type": "list", "elements": "dict", "default": []},
            "inventory": {"type": "bool", "default": True},
            "late": {"type": "dict", "default": {}},
            "host": {"type": "bool", "default": True},
            "min_python": {"type": "str", "default": "3.10"},
            "sysfs_root": {"type": "path", "default": "/sys"},
            "proc_root": {"type": "path", "default": "/proc"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    found = [finding.Finding(**one) for one in module.params["findings"]]
    answer: dict[str, Any] = {}
    if module.params["host"]:
        try:
            answer, more = look(module.params)
        except ValueError as error:
            module.fail_json(msg=str(error))
        found = [*found, *more]
    found = finding.accept(found, module.params["accept"])
    module.exit_json(
        changed=False,
        ansible_facts={"ansible_distribution_release": rocm.operating_system(Path("/etc"))["version_codename"]},
        findings=[asdict(one) for one in found],
        worst=finding.worst(found),
        refusals=[one.sentence for one in found if one.level in finding.ENDING],
        **answer,
    )


def look(options: dict[str, Any]) -> tuple[dict[str, Any], list[finding.Finding]]:
    """Return what rocm_info says (node) and what the model takes (sizing), where there is such, and all findings."""
    engine = DockerApi(options["docker_socket"], timeout=20)
    own = probe.own_container(engine, options["name"])
    node = None
    if options["accelerator"] == "rocm":
        allowed = options["allowed_driver_versions"]
        node = rocm.look(
            rocm.Roots(
                options["sysfs_root"],
                options["proc_root"],
                docker_socket=options["docker_socket"],
                own_container=options["name"],
                allowed_driver_versions=allowed,
            )
        )
        if not allowed:
            node["driver"]["allowed"] = None
    share, used = wants(options, node)
    expected = judge.Expected(
        gpus=options["gpus"],
        gpu_name=options["gpu_name"],
        idle_vram=options["idle_vram"],
        own_container=options["name"],
        own_container_id=str(own.get("Id") or ""),
        foreign_level=options["foreign_level"],
        utilization=share,
        used=used,
        installs_driver=options["installs_driver"],
        allows_reboot=options["allows_reboot"],
        sets_numa_balancing=options["sets_numa_balancing"],
        min_ram=options["min_ram"],
        port=options["port"],
        clock=options["clock"],
        sysctls={name: str(value) for name, value in options["sysctls"].items()},
    )
    found = judge.judge(node, probe.look(options, engine, own), expected)
    answer: dict[str, Any] = {} if node is None else {"node": node}
    answer["place"] = {
        "machine": probe.machine(Path(options["proc_root"])),
        **{name: options[name] for name in ("name", "bind", "port")},
    }
    if options["sizing"] and options["model"]:
        cache = Path(options["cache"]) if options["cache"] else None
        sized, about_model = model_files.on_node(options["model"], options["sizing"], node, cache)
        found = [*about_model, *found]
        if sized:
            answer["sizing"] = sizing_table.as_row(sized)
    return answer, found


def wants(options: dict[str, Any], node: dict[str, Any] | None) -> tuple[float, list[int] | None]:
    """Tell the share of each GPU's memory that the server will ask for, and of which GPUs (None: of all)."""
    asked = options["sizing"] or {"args": {}, "env": {}, "devices": None}
    try:
        share, used = sizing.wants((node or {}).get("gpus") or [], asked["args"], asked["env"], asked["devices"])
    except (CommandError, ValueError):  # told by the arithmetic of what fits
        share, used = gpu_memory.DEFAULT_UTILIZATION, None
    given = options["utilization"]
    return (share if given is None else given), (used if options["sizing"] else None)


if __name__ == "__main__":
    main()
