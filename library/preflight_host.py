#!/usr/bin/python
"""Ansible module preflight_host: would this node be able to serve? Read-only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_host
short_description: Compare a node with what is expected of it, without changing anything
description:
  - Judges GPUs, driver and kernel as M(rocm_info) returned them (O(node)), and reads what else a server needs - disk space, the port, the clock,
    kernel settings.
  - Never fails because of what it finds. RV(worst) and RV(refusals) say whether the node should be used.
  - What cannot be read is a finding of level V(unknown).
options:
  node:
    description: What M(rocm_info) returned. Left out for a server without GPUs, which takes the checks of GPU, driver, kernel and RAM out.
    type: dict
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
  name:
    description: Container of the server, whose GPU memory and port are not foreign.
    type: str
    default: vllm
  installs_driver:
    description: Whether a missing or unwanted driver will be installed, so that it is no reason to refuse.
    type: bool
    default: true
  sets_numa_balancing:
    description: Whether C(kernel.numa_balancing) will be set.
    type: bool
    default: true
  min_ram:
    description: Bytes of RAM. Without it, what AMD asks for with these GPUs.
    type: int
  image:
    description: Image that has to fit onto Docker's disk unless the engine has it.
    type: str
    default: ""
  disk_image:
    description: Bytes that O(image) needs, with what is needed while it is unpacked. V(0) does not check.
    type: int
    default: 0
  cache:
    description: Hugging Face cache on the node.
    type: path
  model:
    description: Repository id of the weights; what the cache has of it is taken off O(disk_weights).
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
  proc_root:
    description: Directory that stands for C(/proc).
    type: path
    default: /proc
  docker_socket:
    description: Socket of the Docker engine; a node without one is fine.
    type: path
    default: /var/run/docker.sock
attributes:
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
- name: Read GPUs and driver
  rocm_info:
  register: node

- name: Judge the node
  preflight_host:
    node: "{{ node }}"
    gpus: 8
    gpu_name: MI300X
    port: 8000
  register: verdict

- name: Refuse it
  ansible.builtin.fail:
    msg: "{{ verdict.refusals | join('. ') }}"
  when: verdict.worst == 'refused'
"""

RETURN = r"""
findings:
  description: All checks, also those that found nothing.
  returned: always
  type: list
  elements: dict
  contains:
    level: {description: "V(ok), V(unknown), V(warning) or V(refused).", type: str}
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
  description: One sentence per finding of level V(refused).
  returned: always
  type: list
  elements: str
"""

import ctypes
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet import findings, model_files, preconditions, sizing_table, snapshot
from ansible.module_utils.vllm_fleet.docker_api import DockerApi, DockerRefused, DockerUnavailable

#: Microseconds. systemd's own criterion: the kernel lets the error grow until it is this large when nobody corrects it.
LARGEST_CLOCK_ERROR = 16_000_000

SIZING: dict[str, Any] = {
    "args": {"type": "dict", "default": {}},
    "env": {"type": "dict", "default": {}},
    "revision": {"type": "str", "default": ""},
    "config": {"type": "dict", "default": {}},
    "weights_bytes": {"type": "int", "default": 0},
    "min_vllm": {"type": "str", "default": ""},
    "image_version": {"type": "str", "default": ""},
    "preset": {"type": "str", "default": ""},
    "exact": {"type": "bool", "default": False},
    "gated": {"type": "bool", "default": False},
}


class Timex(ctypes.Structure):
    """The beginning of Linux's ``struct timex`` on 64-bit machines, and room for the rest of its 208 bytes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_char * 256),
    )


def main() -> None:
    """Read, judge, answer."""
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "dict"},
            "gpus": {"type": "int", "default": 8},
            "gpu_name": {"type": "str", "default": ""},
            "idle_vram": {"type": "int", "default": 5_000_000_000},
            "foreign_level": {"type": "str", "choices": ["warning", "refused"], "default": "refused"},
            "name": {"type": "str", "default": "vllm"},
            "installs_driver": {"type": "bool", "default": True},
            "sets_numa_balancing": {"type": "bool", "default": True},
            "min_ram": {"type": "int"},
            "image": {"type": "str", "default": ""},
            "disk_image": {"type": "int", "default": 0},
            "cache": {"type": "path"},
            "model": {"type": "str", "default": ""},
            "sizing": {"type": "dict", "options": SIZING},
            "disk_weights": {"type": "int", "default": 0},
            "port": {"type": "int", "default": 0},
            "bind": {"type": "str", "default": "127.0.0.1"},
            "clock": {"type": "bool", "default": True},
            "sysctls": {"type": "dict", "default": {}},
            "accept": {"type": "list", "elements": "str", "default": []},
            "proc_root": {"type": "path", "default": "/proc"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    options = module.params
    engine = DockerApi(options["docker_socket"], timeout=20)
    own = own_container(engine, options["name"])
    expected = findings.Expected(
        gpus=options["gpus"],
        gpu_name=options["gpu_name"],
        idle_vram=options["idle_vram"],
        own_container=options["name"],
        own_container_id=str(own.get("Id") or ""),
        foreign_level=options["foreign_level"],
        installs_driver=options["installs_driver"],
        sets_numa_balancing=options["sets_numa_balancing"],
        min_ram=options["min_ram"],
        port=options["port"],
        clock=options["clock"],
        sysctls={name: str(value) for name, value in options["sysctls"].items()},
    )
    holder, ours = port_holder(options, own)
    host = findings.Host(
        rooms=rooms(options, engine),
        port_holder=holder,
        port_is_ours=ours,
        clock_synchronised=clock_synchronised() if options["clock"] else None,
        sysctls={name: sysctl(Path(options["proc_root"]), name) for name in options["sysctls"]},
    )
    judged = findings.judge(options["node"], host, expected)
    sized, about_model = None, []
    if options["sizing"] and options["model"]:
        sized, about_model = model_files.on_node(
            options["model"], options["sizing"], options["node"], Path(options["cache"]) if options["cache"] else None
        )
    found = findings.accept([*about_model, *judged], options["accept"])
    module.exit_json(
        changed=False,
        **({"sizing": sizing_table.as_row(sized)} if sized else {}),
        findings=[asdict(one) for one in found],
        worst=findings.worst(found),
        refusals=[one.sentence for one in found if one.level == "refused"],
    )


def rooms(options: dict[str, Any], engine: DockerApi) -> list[findings.Room]:
    """Return what has to fit where; image and weights on one file system are one sum."""
    wanted: list[tuple[str, Path, int]] = []
    if options["disk_image"]:
        missing, root = True, "/var/lib/docker"
        try:
            missing = engine.image(options["image"]) is None if options["image"] else True
            root = str(engine.info().get("DockerRootDir") or root) if missing else root
        except (DockerUnavailable, DockerRefused):
            pass  # no engine yet: the image is not there, and will go where Docker keeps its files by default
        if missing:
            wanted.append(("image", Path(root), options["disk_image"]))
    if options["disk_weights"] and options["cache"]:
        cache = Path(options["cache"])
        wanted.append(("weights", cache, max(0, options["disk_weights"] - cached(cache, options["model"]))))
    by_device: dict[int | str, findings.Room] = {}
    for purpose, path, needed in wanted:
        try:
            place = next(one for one in (path, *path.parents) if one.exists())
            device: int | str = place.stat().st_dev
            state = os.statvfs(place)
            free: int | None = state.f_bavail * state.f_frsize
        except OSError:
            device, free = str(path), None
        other = by_device.get(device)
        purposes = [*other.purposes, purpose] if other else [purpose]
        known = other or findings.Room(str(path), [], 0, free)
        by_device[device] = findings.Room(known.path, purposes, known.needed + needed, free)
    return [room for room in by_device.values() if room.needed]


def cached(cache: Path, model: str) -> int:
    """Return the bytes that the cache already holds of a model."""
    try:
        blobs = snapshot.repo_folder(cache, model) / "blobs"
        return sum(entry.stat().st_size for entry in blobs.iterdir())
    except (OSError, ValueError, snapshot.SnapshotError):
        return 0


def own_container(engine: DockerApi, name: str) -> dict[str, Any]:
    """Return what Docker says of the server's container; nothing without one, or without an engine."""
    try:
        return (engine.container(name) if name else None) or {}
    except (DockerUnavailable, DockerRefused):
        return {}


def port_holder(options: dict[str, Any], own: dict[str, Any]) -> tuple[str | None, bool]:
    """Return who listens on the server's port ("" nobody, None not known) and whether that is our own server."""
    proc, port = Path(options["proc_root"]), options["port"]
    if not port:
        return "", False
    if not (proc / "net/tcp").is_file():
        return None, False
    holders = preconditions.listeners(options["bind"], port, proc)
    if not holders:
        return "", False
    pid, command = next(iter(holders.items()))
    running = bool((own.get("State") or {}).get("Running"))
    published = [
        str(entry.get("HostPort"))
        for entries in ((own.get("NetworkSettings") or {}).get("Ports") or {}).values()
        for entry in entries or []
    ]
    # Published, the port is held by Docker's proxy; on the host's network by the container's own process.
    ours = running and (str(port) in published or in_container(proc, pid, str(own.get("Id"))))
    return (f"our server {options['name']}" if ours else f"pid {pid} ({command})"), ours


def in_container(proc: Path, pid: int, container: str) -> bool:
    """Tell by its control group whether a process lives in a container."""
    try:
        return container in (proc / str(pid) / "cgroup").read_text(encoding="utf-8")
    except OSError:
        return False


def clock_synchronised() -> bool | None:
    """Ask the kernel, which is told by every time daemon. None where it does not answer."""
    state = Timex()
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else state.maxerror < LARGEST_CLOCK_ERROR


def sysctl(proc: Path, name: str) -> str | None:
    """Return a kernel setting as the kernel prints it, None without it."""
    try:
        return (proc / "sys" / name.replace(".", "/")).read_text(encoding="utf-8").strip()
    except OSError:
        return None


if __name__ == "__main__":
    main()
