#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: one node's part in a swarm that spreads blobs of a Hugging Face cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hf_swarm
short_description: Take part in a BitTorrent swarm that spreads the blobs of one snapshot among nodes
description:
  - The role hf_cache calls it, one O(state) after the other, on the nodes that share a snapshot.
  - Tracker (opentracker) and peers (aria2) run in transient units of systemd, bound to one address, for one torrent
    only, and at most for O(max_runtime). They stop by themselves O(lease) after the last call, too.
  - If a node cannot join the swarm, the task does not fail and RV(reason) has the cause, so that another transport can be used.
options:
  state:
    description:
      - V(ready) returns RV(address) and the programs that are lacking.
      - V(shared) links the O(blobs) of a node that has them and returns RV(argv), the command that makes the torrent.
      - V(seeding) starts the tracker and the first seed and returns the RV(torrent).
      - V(joined) starts another peer; one that was V(shared) before seeds, any other receives into O(staging).
      - V(followed) waits until everything has arrived. The action plugin shows the progress.
      - V(stopped) ends all of it and removes its files, except what has arrived in O(staging).
    type: str
    choices: [ready, shared, seeding, joined, followed, stopped]
    required: true
  name:
    description: The commit of the snapshot; swarms of different commits do not touch each other.
    type: str
    required: true
  programs:
    description: Programs that the node needs, for V(ready), V(shared) and V(joined).
    type: list
    elements: str
    default: []
  lacking_because:
    description: What installing O(programs) failed with, for the reason of V(shared) and V(joined).
    type: str
    default: ""
  address:
    description: Address to bind to; by default found out, see the role.
    type: str
    default: ""
  hint:
    description: The name or address by which Ansible reaches the node.
    type: str
    default: ""
  seed:
    description: Address of the first seed, for V(joined).
    type: str
    default: ""
  port:
    description: TCP port of the peers.
    type: int
    default: 6881
  tracker_port:
    description: TCP port of the tracker.
    type: int
    default: 6969
  folder:
    description: The folder of blobs, for V(shared), V(seeding), and V(joined) without O(staging).
    type: path
  blobs:
    description: Names of the blobs to share, or to receive.
    type: list
    elements: str
    default: []
  torrent:
    description: The torrent in base64, for V(joined).
    type: str
  staging:
    description: Folder to receive into, called O(name).
    type: path
  upload_limit:
    description: Bytes per second that the node sends at most; 0 for no bound.
    type: int
    default: 0
  team:
    description: Addresses of the nodes that take part. The units send to no other, and take nothing from any other.
    type: list
    elements: str
    default: []
  max_runtime:
    description: Seconds after which systemd ends the units, whatever happens.
    type: int
    default: 21600
  lease:
    description: Seconds after the last call at which the units are stopped.
    type: int
    default: 120
  stall:
    description: Seconds without a byte after which V(followed) gives up.
    type: int
    default: 120
  wait:
    description: Seconds that one call of V(followed) waits. Set by the action plugin.
    type: float
    default: 5
  followers:
    description: The hosts that receive. A seed is V(followed) until the action plugin has seen each of them end.
    type: list
    elements: str
    default: []
  label:
    description: What progress lines call the snapshot. Used by the action plugin.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Nothing is started.
  diff_mode:
    support: none
author: The vllm-fleet authors
"""

EXAMPLES = r"""
- name: End what an interrupted run may have left
  hf_swarm:
    state: stopped
    name: faa8289707760e33e32f0488108bb088e4294bcc
"""

RETURN = r"""
ok:
  description: Whether the node is part of the swarm as asked.
  type: bool
  returned: always
reason:
  description: Why it is not, as the end of a sentence.
  type: str
  returned: always
address:
  description: The address that the node's part is bound to.
  type: str
  returned: for ready, shared, seeding and joined
lacking:
  description: Programs that the node does not have.
  type: list
  elements: str
  returned: for ready
argv:
  description: The command that makes the torrent.
  type: list
  elements: str
  returned: for shared
torrent:
  description: The torrent in base64.
  type: str
  returned: for seeding
finished:
  description: Whether everything has arrived.
  type: bool
  returned: for followed
done:
  description: Bytes that are there.
  type: int
  returned: for followed
total:
  description: Bytes wanted.
  type: int
  returned: for joined and followed
received:
  description: Bytes that came in this run.
  type: int
  returned: for followed
rate:
  description: Bytes per second.
  type: int
  returned: for followed
eta:
  description: Seconds left.
  type: int
  returned: for followed
failure_class:
  description: The project's failure class.
  type: str
  returned: for followed
"""

import base64
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.weights import swarm
from ansible.module_utils.vllm_fleet.weights import torrent as torrents
from ansible.module_utils.vllm_fleet.weights.files import FetchError
from ansible.module_utils.vllm_fleet.weights.layout import is_commit
from ansible.module_utils.vllm_fleet.weights.owner import owner_of

ARGUMENTS: dict[str, dict[str, Any]] = {
    "state": {
        "type": "str",
        "choices": ["ready", "shared", "seeding", "joined", "followed", "stopped"],
        "required": True,
    },
    "name": {"type": "str", "required": True},
    "programs": {"type": "list", "elements": "str", "default": []},
    "lacking_because": {"type": "str", "default": ""},
    "address": {"type": "str", "default": ""},
    "hint": {"type": "str", "default": ""},
    "seed": {"type": "str", "default": ""},
    "port": {"type": "int", "default": 6881},
    "tracker_port": {"type": "int", "default": 6969},
    "folder": {"type": "path"},
    "blobs": {"type": "list", "elements": "str", "default": []},
    "torrent": {"type": "str"},
    "staging": {"type": "path"},
    "upload_limit": {"type": "int", "default": 0},
    "team": {"type": "list", "elements": "str", "default": []},
    "max_runtime": {"type": "int", "default": 21600},
    "lease": {"type": "int", "default": 120},
    "stall": {"type": "int", "default": 120},
    "wait": {"type": "float", "default": 5},
    "followers": {"type": "list", "elements": "str", "default": []},
    "label": {"type": "str", "default": ""},
}


def act(options: dict[str, Any], settings: swarm.Settings) -> dict[str, Any]:
    """Do what `state` asks; raise SwarmError for what keeps the node out of the swarm."""
    state = options["state"]
    if state == "stopped":
        return {"changed": swarm.stop(settings)}
    if state == "followed":
        found = swarm.follow(settings, options["wait"], options["stall"])
        return {**found, "ok": not found["failure"], "reason": found["failure"]}
    address = swarm.own_address(options["address"], options["hint"], options["seed"])
    if state == "ready":
        lacking = swarm.lacking(options["programs"])
        return {"address": address, "addresses": swarm.own_addresses(), "lacking": lacking}
    swarm.insist_on(options["programs"], options["lacking_because"])
    if state == "shared":
        origins = swarm.origins(Path(options["folder"]), options["blobs"])
        owner = owner_of(Path(options["folder"]))
        total = sum(origin.stat().st_size for origin in origins.values())
        announce = f"http://{address}:{settings.tracker_port}/announce"
        folder = str(settings.share / settings.name)
        argv = torrents.mktorrent_argv(settings.name, announce, total, folder, str(settings.torrent))
        if not swarm.hashing(settings, argv, options["blobs"]):
            swarm.stop(settings)
            swarm.link_blobs(settings, origins, owner)
        return {"address": address, "argv": argv, "changed": True}
    if state == "seeding":
        swarm.start_seed(settings, address, owner_of(Path(options["folder"])))
        torrent = base64.b64encode(settings.torrent.read_bytes()).decode()
        return {"address": address, "torrent": torrent, "changed": True}
    staging = Path(options["staging"]) if options["staging"] else None
    if staging:
        swarm.stop(settings)
    content = base64.b64decode(options["torrent"])
    owner = owner_of(staging or Path(options["folder"]))
    wanted = options["blobs"]
    total = swarm.join(settings, content, address, owner, seed=options["seed"], staging=staging, wanted=wanted)
    return {"address": address, "total": total, "changed": True}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        ARGUMENTS,
        supports_check_mode=True,
        required_if=[("state", "shared", ["folder"]), ("state", "joined", ["torrent", "seed"])],
    )
    options = module.params
    result: dict[str, Any] = {"changed": False, "ok": True, "reason": ""}
    if not is_commit(options["name"]):
        module.fail_json(msg=f"name is {options['name']!r}, expected a commit of 40 hexadecimal digits.")
    if module.check_mode:
        module.exit_json(**result)
    settings = swarm.Settings(
        options["name"],
        options["port"],
        options["tracker_port"],
        max_runtime=options["max_runtime"],
        lease=options["lease"],
        upload_limit=options["upload_limit"],
        team=tuple(options["team"]),
    )
    try:
        result |= act(options, settings)
    except (torrents.SwarmError, FetchError, OSError) as error:
        if options["state"] not in ("ready", "followed", "stopped"):
            swarm.stop(settings)
        result |= {"ok": False, "reason": str(error)}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
