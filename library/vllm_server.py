#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: one vLLM server in a Docker container, watched until it is ready."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_server
short_description: Run vLLM in a Docker container, watched, diagnosed and restored
description:
  - Compares the wanted container with the one that Docker has, field by field, and changes it only where they differ.
  - Checks the image, the flags, the model's files, the port, the GPU memory and more while the old server still answers. Only then it stops the old
    server.
  - Replaces in place, because a GPU node has no memory for two servers. The old container is stopped and kept as C(<name>.previous). If the new one
    does not become ready, the old one is put back and watched until it is ready.
  - Watches the container, its log and its HTTP port until the server is ready or has failed. A failure has a class, the evidence from the log, and
    what to do.
  - The action plugin of the same name watches in short calls and shows progress on the terminal. Without it one call watches to the end.
version_added: "0.1.0"
options:
  name:
    description: Name of the container.
    type: str
    default: vllm
  state:
    description:
      - V(started) makes the container as described, running and ready.
      - V(stopped) stops it and keeps it.
      - V(absent) removes it and its predecessor. Caches and logs stay.
      - V(restored) puts the predecessor back, if the started server is wrong.
      - V(restarted) stops the container of that name and starts it again, as it is, with at most O(stop_timeout) to end,
        and watches it until it is ready.
      - V(confirmed) notes that the running server was verified from outside. Until then its predecessor counts as the
        better one.
    type: str
    choices: [started, stopped, absent, restored, restarted, confirmed]
    default: started
  because:
    description: Why the server is restarted, for O(state=restarted). It is among RV(notes), and so in the report.
    type: str
  started_at:
    description:
      - The start that is to be ended, for O(state=restarted), as C(container.started_at) of an earlier result. A server
        that was started since is watched and left as it is.
    type: str
  mode:
    description:
      - V(deploy) does what O(state) says.
      - V(plan) changes nothing and returns what V(deploy) would do, as check mode does. A node that cannot be reached or
        would refuse fails.
      - V(status) is V(plan) for a table of the fleet. Under the action plugin each node of a replica answers for itself,
        and a node that cannot be reached returns RV(not_reached) instead of leaving the play.
    type: str
    choices: [deploy, plan, status]
    default: deploy
  verification:
    description:
      - Options of M(vllm_chat), for O(mode=plan). The action plugin sends this request in the same call to the node where
        the server would not change, and keeps the answer for the task that verifies it.
    type: dict
  use_cached_result:
    description:
      - Takes what M(node_probe) found earlier in the same run with the same options, where it would change something.
      - Read by the action plugin alone.
    type: bool
    default: false
  image:
    description:
      - Image, as C(repository:tag), C(repository@sha256:...) or an image id. It must be on the node already.
      - Required for O(state=started).
    type: str
  allow_latest:
    description: Accept an image tagged C(latest), or without a tag.
    type: bool
    default: false
  model:
    description:
      - Exact id on the Hugging Face Hub, or an absolute path on the node, which is then mounted read-only.
      - Required for O(state=started).
    type: str
  revision:
    description: Commit (40 hexadecimal digits), branch or tag of the model's repository.
    type: str
  args:
    description:
      - Flags of C(vllm serve), without the dashes. Hyphens and underscores are the same.
      - True gives C(--flag), false C(--no-flag), null leaves it out, a list gives several values, a dict JSON.
      - Checked against the flags that the image itself lists, where it can be asked.
      - Flags with an option of their own are refused, and those that leave the port without plain HTTP (C(uds), C(grpc),
        C(ssl-certfile) and its like).
    type: dict
    default: {}
  env:
    description:
      - Environment of the server. Values whose names end like a secret's (C(_KEY), C(_TOKEN), C(_SECRET),
        C(_PASSWORD)) are only shown as fingerprints, and are kept out of the node's log.
      - Null removes one of the module's own defaults.
    type: dict
    default: {}
  entrypoint:
    description:
      - Entrypoint of the container. By default C(vllm serve), unless the image's own entrypoint is just that.
      - With C([python3, -m, vllm.entrypoints.openai.api_server]), deprecated by vLLM, the model is given as C(--model).
    type: list
    elements: str
  port:
    description: Port on the node.
    type: int
    default: 8000
  bind:
    description: >-
      Address on the node, or V(localhost); an IPv6 address in any form. Beyond loopback it needs O(api_key), its variable C(VLLM_API_KEY) in O(env), or
      O(allow_unauthenticated).
    type: str
    default: 127.0.0.1
  allow_unauthenticated:
    description: Serve beyond loopback without a key.
    type: bool
    default: false
  hf_cache:
    description:
      - Hugging Face home on the node (the folder that holds C(hub)), an absolute path, or one that begins with C(~/), the
        connecting user's home. Mounted at C(/root/.cache/huggingface), read-only while the server runs offline, which is the default
        (C(HF_HUB_OFFLINE=1)).
    type: str
  engine_cache:
    description: >-
      Keep the engine's compile caches (torch.compile, Triton, Inductor) in a folder below O(state_dir), one for each
      image and model, mounted at C(/root/.cache/vllm), so that a restart does not compile again. AITER's modules stay
      where the image has them, since AITER does not find its prebuilt ones with C(AITER_JIT_DIR) set.
    type: bool
    default: true
  engine_cache_reset:
    description: Empty that folder before a new container is made. One that was filled on other hardware (kinds of GPUs, CPU) is emptied anyway.
    type: bool
    default: false
  accelerator:
    description: V(rocm) adds the devices and rights that AMD and vLLM document; V(cpu) leaves them out.
    type: str
    choices: [rocm, cpu]
    default: rocm
  gpus:
    description:
      - GPUs of a node that several servers share - how many, a list of indices as M(rocm_info) returns them, or text such as V(0-3). By default all.
      - The server gets these alone - C(/dev/kfd) and their render nodes as O(devices), and C(HIP_VISIBLE_DEVICES). What it got stays until something else is
        asked for, and is written to C(place.json) in its folder below O(state_dir). A list that somebody else has is refused, and a count for which there
        are too few.
      - Not together with O(devices) or with such a variable in O(env).
    type: raw
  cpus:
    description:
      - CPUs of a node that several servers share, as Linux counts them - how many, a list of their numbers, or text such as V(0-3,8). By default the server
        may run on all. They are the container's C(cpuset), and without GPUs they are bound by C(VLLM_CPU_OMP_THREADS_BIND), unless that is V(auto) or
        V(nobind) in O(env).
    type: raw
  neighbours:
    description:
      - All servers that the inventory has on this node, this one among them, in the inventory's order; empty for a server alone.
      - Each with its container's C(name), C(gpus), C(cpus) and C(accelerator), as the options here.
    type: list
    elements: dict
    default: []
  devices:
    description: >-
      Devices, as C(path[:path in the container][:permissions]), permissions of C(rwm); by default C(/dev/kfd) and C(/dev/dri)
      for V(rocm).
    type: list
    elements: str
  groups:
    description: >-
      Additional groups of the node, by number or by name, which becomes its number; by default video and render for V(rocm).
    type: list
    elements: str
  ipc_mode:
    description: IPC namespace, V(host), V(private), V(shareable), V(none) or C(container:<name>); by default V(host) for V(rocm).
    type: str
  shm_size:
    description: Size of C(/dev/shm), such as V(16g), where the IPC namespace is the container's own; by default 4g.
    type: str
  capabilities:
    description: Added capabilities, in any case, with or without C(CAP_), or V(ALL); by default C(SYS_PTRACE) for V(rocm).
    type: list
    elements: str
  security_opts:
    description: >-
      Security options, as C(name=value); by default C(seccomp=unconfined) for V(rocm). A seccomp profile is given as its JSON, not as a path.
    type: list
    elements: str
  ulimits:
    description: Limits as C(name=soft[:hard]), -1 for none; by default memlock without limit and nofile 65535 for V(rocm).
    type: list
    elements: str
  volumes:
    description: More mounts, as C(source:target[:ro]). One that lies in a read-only mount needs its folder there. Those that
      hide what the image needs to start are refused.
    type: list
    elements: str
    default: []
  labels:
    description: Labels of the container.
    type: dict
    default: {}
  network_mode:
    description: V(bridge) publishes O(port) on O(bind); V(host) lets the server itself listen there; or a network's name.
    type: str
    default: bridge
  restart_policy:
    description: >-
      Docker's restart policy, V(no), V(unless-stopped), V(always), V(on-failure) or V(on-failure:3) with a number of attempts.
      If the engine dies while serving, the exit code is 0, and C(on-failure) would not restart the container.
    type: str
    default: unless-stopped
  stop_timeout:
    description: >-
      Seconds that the server has to end before Docker kills it. Where the image's vLLM knows C(--shutdown-timeout), it
      gets five sixths of this to finish running requests.
    type: int
    default: 60
  api_key:
    description: Key that clients must send. Reaches the server by environment, never by command line.
    type: str
  hf_token:
    description: Token for the Hugging Face Hub; given to the server only when C(HF_HUB_OFFLINE) is not 1.
    type: str
  ready_timeout:
    description: >-
      Seconds from the container's start to ready; for one that an earlier run started, from the beginning of this run. This is the last limit, see
      also O(stall_timeout).
    type: float
    default: 3600
  stall_timeout:
    description: >-
      Seconds without a new log line, without growth of the cache, without I/O and without CPU use, after which a start
      counts as stalled.
    type: float
    default: 900
  gpu_memory_policy:
    description:
      - V(strict) refuses a start if the wanted share of GPU memory is not free, and names the holders.
      - V(fit) lowers C(gpu-memory-utilization) to what fits, and never raises it.
      - V(off) does not check.
    type: str
    choices: [strict, fit, "off"]
    default: strict
  sysfs_root:
    description: Where sysfs is mounted.
    type: path
    default: /sys
  state_dir:
    description: Folder on the node for what must outlive a container, such as logs of failed starts and compile caches.
    type: path
    default: /var/lib/vllm-fleet
  record:
    description:
      - For O(state=confirmed). Writes a record of the release into C(<state_dir>/<name>/releases), unless what runs is
        recorded already. The container's own make is read from Docker; this adds what the caller knows.
      - Keys are C(settings) (dict, options of the role), C(verification) (dict, C(requests) and C(endpoints)),
        C(answers) (list, RV(ignore:results) of vllm_chat), C(start) (dict, this module's own result of the start),
        C(run) (str) and C(configuration) (dict). The action plugin gives the last two.
    type: dict
  docker_host:
    description: URL of the Docker engine; by default C(DOCKER_HOST) or the local socket.
    type: str
  reported_host:
    description: Name of the node in messages; the action plugin gives the inventory's.
    type: str
  watch_slice:
    description: Seconds one call may watch before it returns with RV(pending). Set by the action plugin.
    type: float
  watch_token:
    description: What the last call returned as RV(token). Set by the action plugin.
    type: dict
  replica:
    description: >-
      What this node is in a server over several nodes, as the filter C(vllm_replica) works it out from the inventory.
      The action plugin then brings all nodes of the replica through the run together.
    type: dict
  place:
    description:
      - Several of these options at once, as the filter C(vllm_replica) works them out from the inventory - O(args), O(env), O(entrypoint), O(devices),
        O(capabilities), O(volumes), O(network_mode), O(bind), O(replica). What is null counts as not given. The action plugin takes it apart.
    type: dict
  replica_step:
    description: Where a node of a replica stands in that run. Set by the action plugin.
    type: dict
attributes:
  check_mode:
    support: full
    description: >-
      Predicts the actions exactly, up to a container that Docker then does not create. Images that were never asked for their flags are asked in a throw-away container,
      in check mode too.
  diff_mode:
    support: full
    description: Shows only what differs; secrets as keyed fingerprints.
  idempotent:
    support: full
    description: O(state=restored) and O(state=restarted) are not, each call goes back or restarts once.
requirements:
  - Docker engine 20.10 or newer
  - python3-docker 5.0 or newer
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Serve DeepSeek-V3.1 on eight MI300X
  vllm_server:
    image: vllm/vllm-openai-rocm:v0.32.0
    model: deepseek-ai/DeepSeek-V3.1
    revision: "{{ vllm_server_revision }}"
    hf_cache: /root/.cache/huggingface
    args:
      tensor-parallel-size: 8
      enable-expert-parallel: true
    env:
      VLLM_ROCM_USE_AITER: 1
      VLLM_ROCM_USE_AITER_MOE: 1

- name: Serve a small model without a GPU
  vllm_server:
    image: vllm-cpu:0.32.0
    accelerator: cpu
    model: HuggingFaceTB/SmolLM2-135M-Instruct
    hf_cache: /root/.cache/huggingface
    args: {dtype: float32, max-model-len: 1024, enforce-eager: true}

- name: Go back to what was served before
  vllm_server:
    state: restored
"""

RETURN = r"""
actions:
  description: >-
    What was done (or would be, in check mode), in order. Of V(restart_engine) (only with live-restore, for a port that a
    killed engine lost track of), V(remove_next) (what a killed run left), V(create) (as C(<name>.next) while another
    container has the name), V(stop_previous), V(stop), V(remove_previous), V(keep) (rename to C(<name>.previous)),
    V(remove), V(rename) (give the new container the name), V(unkeep) (rename back), V(update), V(start).
  type: list
  elements: str
  returned: always
differences:
  description: Fields of the container that were not as wanted.
  type: list
  elements: dict
  returned: always
  contains:
    name: {type: str, description: "Field, such as C(args.max-model-len), C(env.X), C(ports), C(image), C(state)."}
    current: {type: raw, description: What the container had.}
    desired: {type: raw, description: What it should have.}
container:
  description: The container that has the name at the end.
  type: dict
  returned: always
  contains:
    id: {type: str, description: Docker's id.}
    name: {type: str, description: Its name.}
    image: {type: str, description: Image as it was named.}
    image_id: {type: str, description: Image as Docker identifies it.}
    started_at: {type: str, description: When it was started.}
    status: {type: str, description: Docker's word for its state.}
spec:
  description:
    - What that container is made of, by the options of this module, even if it was created by hand. Given back as options it makes the
      same container. Null where there is no container.
    - Secrets are fingerprints with a key of the node's own, so they compare over time, not between nodes.
  type: dict
  returned: always
  contains:
    image: {type: str, description: Image as it was named.}
    image_id: {type: str, description: Image as Docker identifies it.}
    model: {type: str, description: Model id or path.}
    revision: {type: str, description: "Commit, branch or tag; null when none was given."}
    args: {type: dict, description: "Flags of C(vllm serve) as they are on its command line."}
    env: {type: dict, description: Environment beyond the image's own; secrets as fingerprints.}
    secrets: {type: list, elements: str, description: Names in C(env) whose values are fingerprints.}
    labels: {type: dict, description: Labels beyond the image's own.}
    entrypoint: {type: list, elements: str, description: First words of the command line.}
    bind: {type: str, description: Address on the node.}
    port: {type: int, description: Port on the node.}
    hf_cache: {type: str, description: Hugging Face home on the node; null when none is mounted.}
    engine_cache: {type: bool, description: Whether the engine's compile caches outlive the container.}
    volumes: {type: list, elements: str, description: Other mounts.}
    devices: {type: list, elements: str, description: Devices.}
    groups: {type: list, elements: str, description: Additional groups.}
    capabilities: {type: list, elements: str, description: Added capabilities.}
    security_opts: {type: list, elements: str, description: Security options.}
    ulimits: {type: list, elements: str, description: Limits.}
    ipc_mode: {type: str, description: IPC namespace.}
    shm_size: {type: int, description: "Size of C(/dev/shm) in bytes; null with the host's IPC namespace."}
    network_mode: {type: str, description: Network mode.}
    restart_policy: {type: str, description: Restart policy.}
    stop_timeout: {type: int, description: Seconds between SIGTERM and SIGKILL.}
    gpus: {type: list, elements: int, description: "GPUs that it was given; absent where it has all. Then C(devices) is null."}
    cpus: {type: list, elements: int, description: CPUs that it was given; absent where it may run on all.}
place:
  description: >-
    What the server has, or in check mode would get, of a node that several servers share; null for one that has the whole node.
  type: dict
  returned: always
  contains:
    gpus: {type: list, elements: int, description: Indices of its GPUs; null where it asks for none.}
    cpus: {type: str, description: "Its CPUs, such as V(0-3,8); null where it may run on all."}
    numa: {type: list, elements: int, description: "NUMA nodes of these, as far as the node says."}
mode:
  description: O(mode), where it was not V(deploy).
  type: str
  returned: with O(mode), from the action plugin
elapsed:
  description: Seconds from the beginning of the run to its verdict.
  type: float
  returned: always
downtime:
  description: Seconds from the old server's stop to the new one's readiness; null when none was stopped.
  type: float
  returned: always
stages:
  description: The stages of the start, each with its time in seconds after the container's start.
  type: list
  elements: dict
  returned: always
log_file:
  description: Full log of a failed start, on the node.
  type: str
  returned: always
rolled_back:
  description: Whether the previous server was put back and is ready.
  type: bool
  returned: always
confirmed:
  description: Whether the container was verified from outside (O(state=confirmed)).
  type: bool
  returned: always
release:
  description: >-
    The record of the running container as it is now, in short; null when it was never verified or has been changed
    since.
  type: dict
  returned: always
  contains:
    release: {type: int, description: Its number on this node.}
    when: {type: str, description: When it was recorded (UTC).}
    run: {type: str, description: The run that recorded it.}
    image: {type: str, description: Image as it was named.}
    model: {type: str, description: Model id or path.}
    commit: {type: str, description: "Commit of the model, where it is known."}
    place: {type: dict, description: "Its C(gpus) and C(cpus) of a node that it shared; null where it had all."}
    downtime: {type: float, description: Seconds without a server when it was brought.}
    ready: {type: float, description: Seconds from its container's start to ready.}
    ttft: {type: float, description: Seconds to the first token when it was verified.}
    tokens_per_second: {type: float, description: Rate of generation when it was verified.}
    restores: {type: int, description: The release that this one is again.}
    rolled_back_from: {type: int, description: The release that ran before a rollback.}
previous_release:
  description: The release before it, in the same shape.
  type: dict
  returned: with O(record)
serving:
  description: How the running server is; null when none runs.
  type: dict
  returned: in check mode
  contains:
    health: {type: str, description: "V(ready), V(not ready), or V(wrong) when it serves something else."}
    detail: {type: str, description: Why it is not ready.}
    running: {type: int, description: Requests that are being computed.}
    waiting: {type: int, description: Requests that wait for a place.}
servers:
  description: Containers of all servers that this module has made on the node, by name, and Docker's state of each.
  type: dict
  returned: in check mode
  sample: {vllm-chat: running, vllm-coder: exited}
maintenance:
  description: Since when and why the server is in maintenance (M(vllm_maintenance)), as the end of a sentence. Empty where it is not.
  type: str
  returned: in check mode
engine_cache:
  description: The folder of the engine's compile caches. None where the server has none, or is a part of one over several nodes.
  type: dict
  returned: with O(state=started)
  contains:
    key: {type: str, description: "What compiled code depends on: image, model, arguments, environment, kinds of GPUs, CPU."}
    folder: {type: str, description: The folder on the node.}
    warm: {type: bool, description: Whether a verified server has filled it for this key.}
    reset: {type: bool, description: Whether O(engine_cache_reset) empties it.}
spent:
  description: >-
    Seconds of each action since the old server got its signal, up to the start of the new one; C(memory) are those until its GPU memory was free.
    What is left of RV(downtime) is the engine's own start.
  type: dict
  returned: always
past:
  description: How long such a change took this node before, by its records; none where nothing would be done, or no record knows.
  type: dict
  returned: in check mode
  contains:
    release: {type: int, description: Number of the release whose record it is.}
    same_image: {type: bool, description: Whether that was the image that is wanted now.}
    drain: {type: float, description: Seconds that its requests were waited for.}
    load: {type: float, description: Seconds without a server.}
    verify: {type: float, description: Seconds of its verification.}
watchdog:
  description: What the server's watchdog thinks of it.
  type: dict
  returned: in check mode
  contains:
    state:
      type: str
      description: >-
        V(none), V(no systemd), V(stopped), or its own word, V(starting), V(serving), V(hung), V(restarting), V(out), V(left_alone), V(absent).
    seconds: {type: float, description: Since when.}
    why: {type: str, description: Why.}
    restarts: {type: int, description: Restarts within the last hour.}
    last_event: {type: dict, description: "The last event, C(at), C(kind) and C(why)."}
not_reached:
  description: Whether the node could not be reached.
  type: bool
  returned: with O(mode=status), from the action plugin
notes:
  description: Further remarks, such as a lowered memory utilization.
  type: list
  elements: str
  returned: always
failure:
  description: Why it failed.
  type: dict
  returned: on failure
  contains:
    class: {type: str, description: One of the failure classes of docs/troubleshooting.md.}
    cause: {type: str, description: What happened.}
    evidence: {type: list, elements: str, description: Lines of the log that show it.}
    remedy: {type: str, description: What to do.}
    exit_code: {type: int, description: Exit code of the server, or null.}
progress:
  description: Where the start stands.
  type: dict
  returned: when a start was watched
log_lines:
  description: Log lines that were seen in this call.
  type: list
  elements: str
  returned: with verbosity, when a start was watched
pending:
  description: The slice is over and there is no verdict yet.
  type: bool
  returned: with O(watch_slice)
token:
  description: To be given as O(watch_token) of the next call.
  type: dict
  returned: with RV(pending)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.validation import check_type_dict

from ansible.module_utils.vllm_fleet.common.secrets import forms
from ansible.module_utils.vllm_fleet.server.lifecycle import Lifecycle, perform
from ansible.module_utils.vllm_fleet.server.options import SPEC, secrets


class Module(AnsibleModule):
    """AnsibleModule that keeps the secrets in `env` and `args` out of its output and the node's log.

    By their option Ansible does not know them as such, and it logs the options, or answers that one is wrong, before
    its constructor ends.
    """

    def hidden(self) -> set[str]:
        """Return those secrets."""
        return secrets(self.params, check_type_dict)

    def _load_params(self) -> None:
        super()._load_params()
        # In every form: what Ansible logs is Python's way to write a dictionary.
        self.no_log_values.update(forms(tuple(sorted(self.hidden()))))


def _rank(step: dict[str, Any]) -> Callable[..., Lifecycle]:
    # Most servers are no part of a replica, and do not read its files.
    from ansible.module_utils.vllm_fleet.replica.rank_lifecycle import RankLifecycle, Step  # noqa: PLC0415

    return partial(RankLifecycle, step=Step.from_params(step))


def main() -> None:
    """Run the module."""
    module = Module(**SPEC, supports_check_mode=True)
    params = module.params
    result = perform(
        params,
        check_mode=module.check_mode,
        secrets=module.hidden(),
        kind=_rank(params["replica_step"]) if params["replica_step"] else Lifecycle,
    )
    if module._verbosity < 1:  # the lines are for -v; without it they would only make the answer longer
        result.pop("log_lines", None)
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
