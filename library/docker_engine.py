#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a Docker engine that runs, with the wanted keys in its daemon.json."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_engine
short_description: Probe, configure and start a Docker engine
description:
  - With O(state=probed), returns all facts about the engine in one call, without the Docker SDK.
  - With O(state=started), merges O(config) into daemon.json, validates the result before it replaces the old file, and
    starts, reloads or restarts the engine as the change needs. It restarts an engine with running containers only if they keep running, or with
    O(allow_restart).
  - Starts the engine through systemd if the machine runs it, and otherwise as a detached C(dockerd) with a log file. The engine outlives the run.
options:
  state:
    description: V(probed) only looks, V(started) configures and starts the engine.
    type: str
    choices: [probed, started]
    default: started
  config:
    description: Keys that daemon.json must have. Other keys in the file stay; lists get what they lack.
    type: dict
    default: {}
  manage_config:
    description: With V(false) daemon.json is left as it is.
    type: bool
    default: true
  config_path:
    description: The engine's configuration file.
    type: path
    default: /etc/docker/daemon.json
  allow_restart:
    description: Restart the engine for a change that needs it even when that stops running containers.
    type: bool
    default: false
  service_manager:
    description: How the engine is started. V(auto) takes systemd where it is PID 1.
    type: str
    choices: [auto, systemd, none]
    default: auto
  socket:
    description: Where the engine is expected to listen.
    type: path
    default: /var/run/docker.sock
  pid_file:
    description: Where the engine writes its process id.
    type: path
    default: /var/run/docker.pid
  log_path:
    description: Output of a detached dockerd.
    type: path
    default: /var/log/dockerd.log
  daemon_args:
    description: Further flags for a detached dockerd.
    type: list
    elements: str
    default: []
  start_timeout:
    description: Seconds to wait until the engine answers.
    type: float
    default: 60
  use_cached_result:
    description:
      - Whether to use the result of an earlier probe in the same run, if it had the same options and found nothing to do. For a first look only. Used
        by the action plugin.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author: The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Rotate logs and keep containers alive across engine restarts
  docker_engine:
    config:
      log-opts: {max-size: 50m, max-file: "5"}
      live-restore: true
"""

RETURN = r"""
right:
  description: Whether nothing is left to do on this node.
  type: bool
  returned: always
running:
  description: Whether an engine answers this user.
  type: bool
  returned: always
denied:
  description: Whether the engine's socket is there, but not for this user.
  type: bool
  returned: always
version:
  description: Version of the engine; empty when none answers.
  type: str
  returned: always
sdk:
  description: Whether the node's Python can import the Docker SDK.
  type: bool
  returned: always
client:
  description: Path of the C(docker) command, or empty.
  type: str
  returned: always
daemon:
  description: Path of C(dockerd), or empty.
  type: str
  returned: always
service_manager:
  description: V(systemd) or V(none).
  type: str
  returned: always
os:
  description: ID, VERSION_ID and VERSION_CODENAME of the distribution, and the package architecture.
  type: dict
  returned: always
uid:
  description: Effective user id that the module ran as.
  type: int
  returned: always
sudo:
  description: Whether it ran through sudo.
  type: bool
  returned: always
live_containers:
  description: Running containers.
  type: int
  returned: always
differences:
  description: Keys of daemon.json that are (or were) not as wanted, each with current and desired value.
  type: list
  elements: dict
  returned: always
pending:
  description: Keys that are in daemon.json but wait for a restart of the engine.
  type: list
  elements: str
  returned: always
action:
  description: What was, or in check mode would be, done to the engine.
  type: str
  returned: always
  sample: reload
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.container import dockerd
from ansible.module_utils.vllm_fleet.container.api import DockerRefused, DockerUnavailable


def main() -> None:
    """Look, compare, act, look again."""
    module = AnsibleModule(**dockerd.SPEC, supports_check_mode=True)
    settings = dockerd.Settings.from_params(module.params)
    try:
        if module.params["state"] == "probed":
            module.exit_json(**dockerd.probe(settings))
        engine = dockerd.Dockerd(settings)
        found = engine.look()
        done = found["action"] not in ("none", "pending") or bool(found["differences"])
        if done and not module.check_mode:
            engine.act(found)
            after = engine.look()
            found = {**after, "action": found["action"], "differences": found["differences"]}
        if found["action"] == "pending":
            module.warn(
                f"daemon.json: {', '.join(found['pending'])} take effect when dockerd restarts, which would stop "
                f"{found['live_containers']} running container(s) now; it follows at the next run that finds none "
                "running, or with docker_engine_allow_restart: true after draining the node"
            )
        module.exit_json(changed=done, diff=_diff(found["differences"]), **found)
    except (dockerd.DockerdFailure, DockerUnavailable, DockerRefused) as exc:
        module.fail_json(msg=str(exc))


def _diff(differences: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "before": {d["name"]: d["current"] for d in differences if d["current"] is not None},
        "after": {d["name"]: d["desired"] for d in differences if d["desired"] is not None},
    }


if __name__ == "__main__":
    main()
