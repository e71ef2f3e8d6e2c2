#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: one pinned snapshot in a Hugging Face cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hf_snapshot
short_description: Keep one pinned snapshot of a model in a Hugging Face cache
description:
  - Checks offline whether a snapshot is complete in a cache, gets missing or wrong files, or removes the snapshot.
  - The list of files comes from the repository (C(trees/<commit>.json)). If an older client left no list, it comes from the weight index and the
    headers of the safetensors files.
  - Each file is written under a temporary name, hashed and renamed. Blobs come first and refs last. So the next run can resume an interrupted one,
    and an incomplete copy never resolves.
  - An existing cache is used as it is, also with the shared store of huggingface_hub 2. Files of a user are never linked to, and only wrong files are
    changed.
attributes:
  check_mode:
    support: full
    details: The file list is read from the source; with O(source=hub) that asks the Hub.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  repo_id:
    description: The model as the Hub names it.
    type: str
    required: true
  revision:
    description:
      - The commit (40 hexadecimal digits), or the name of a branch or tag.
      - A name is looked up first in the cache, then in the source. To change to another commit, give the commit.
    type: str
    default: main
  cache:
    description: The folder that HF_HOME names; the hub is in C(hub) below it. Must be absolute.
    type: path
    required: true
  state:
    description:
      - V(present) brings in what is missing or wrong.
      - V(verified) only looks, and fails when the snapshot is not complete.
      - V(absent) removes the snapshot and those blobs that no other one uses.
      - V(pruned) removes the model's other snapshots and incomplete transfers from other nodes. It keeps the snapshots in O(keep) and the newest of
        the rest.
      - V(listed) asks the Hub which files O(revision) has, and returns RV(manifest). It touches no cache, and fails where the answer takes more than 20 seconds.
    type: str
    choices: [present, absent, verified, pruned, listed]
    default: present
  source:
    description:
      - Where missing contents come from when O(state=present).
      - An absolute path to another cache on the same machine, V(hub) for a download, or, together with O(manifest),
        an absolute path to a folder that holds blobs under their hashes.
      - With O(state=verified) and O(manifest), that folder may be incomplete. Its files are subtracted from the needed space.
      - Without it only links and refs are repaired. Other faults fail the task.
    type: str
  manifest:
    description:
      - The file list, when it comes from another machine, as RV(manifest) gives it.
      - With O(state=verified), RV(wanted) lists what would have to be brought here.
    type: dict
  with_manifest:
    description: Return RV(manifest).
    type: bool
    default: false
  move:
    description: The blobs of a O(source) given with O(manifest) are a staging area, so rename them instead of copying.
    type: bool
    default: false
  verify:
    description:
      - V(quick) compares names, links and sizes, and hashes what changed since it was last hashed.
      - V(full) hashes everything.
    type: str
    choices: [quick, full]
    default: quick
  create:
    description: Create O(cache) when it does not exist. Turn it off where the path is a mount that may be missing.
    type: bool
    default: true
  keep:
    description: Commits that O(state=pruned) leaves alone besides O(revision).
    type: list
    elements: str
    default: []
  list_digest:
    description:
      - The RV(list_digest) that the snapshot must have, from a source that is trusted. A cache, source or manifest with another one is refused.
    type: str
    default: ""
  also:
    description:
      - Further snapshots in the same cache, for a probe. One of them that is not whole is told instead of a snapshot that is.
      - With O(state=verified) only.
    type: list
    elements: dict
    suboptions:
      repo_id:
        description: See O(repo_id).
        type: str
        required: true
      revision:
        description: See O(revision).
        type: str
        default: main
      list_digest:
        description: See O(list_digest).
        type: str
        default: ""
  margin:
    description: Bytes that must stay free on the disk after the snapshot is there.
    type: int
    default: 1073741824
  hf_token:
    description: Token for gated and private models, used with O(source=hub) only.
    type: str
  hub_python:
    description: The Python that has huggingface_hub, for O(source=hub); by default the one that runs the module.
    type: path
  hub_endpoint:
    description: Another address of the Hub, such as a mirror (HF_ENDPOINT).
    type: str
  hub_stall:
    description:
      - Seconds without a byte after which a download is ended and taken up again, without Xet from then on.
    type: int
    default: 300
  wait:
    description:
      - Seconds that one call waits for the end; the work goes on without the connection. Set by the action plugin.
      - Without it, the call takes as long as the work does.
    type: float
  follow:
    description: Run to follow, as returned in RV(run_id). Set by the action plugin.
    type: str
  use_cached_result:
    description:
      - Whether to use the result of an earlier probe in the same run, if it had the same options and found nothing to do. For a first look only. Used
        by the action plugin.
    type: bool
    default: false
notes:
  - Run as root, the work is done with the rights of the user whom O(cache), or the first folder on the way to it that is
    not root's, belongs to. So a link there leads root nowhere that this user could not go. New files belong to that
    user. Their mode is 0644, of folders 0755, so that containers of any user can read them.
  - If another run writes into the same cache, this run waits for it.
  - In a play, the action plugin of the same name shows how far a download, a copy or the hashing is. If the controller dies or the connection drops,
    the work continues on the node. The next run with the same request joins it.
author: The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Have the model from a cache on this machine
  hf_snapshot:
    repo_id: HuggingFaceTB/SmolLM2-135M-Instruct
    revision: main
    cache: /root/.cache/huggingface
    source: /srv/seed

- name: Download a pinned commit
  hf_snapshot:
    repo_id: deepseek-ai/DeepSeek-V3.1
    revision: "{{ vllm_server_revision }}"
    cache: /mnt/nvme/huggingface
    create: false
    source: hub
    hf_token: "{{ hf_token }}"

- name: Hash every shard on a shared mount
  hf_snapshot:
    repo_id: deepseek-ai/DeepSeek-V3.1
    revision: "{{ vllm_server_revision }}"
    cache: /mnt/models
    state: verified
    verify: full
"""

RETURN = r"""
repo_id:
  description: The model that was asked for.
  type: str
  returned: always
revision:
  description: The revision that was asked for.
  type: str
  returned: always
commit:
  description: The commit that O(revision) stands for; none when it is not known.
  type: str
  returned: always
path:
  description: The snapshot's folder.
  type: str
  returned: always
bytes:
  description: Size of the whole snapshot.
  type: int
  returned: always
files:
  description: Number of files of the whole snapshot.
  type: int
  returned: always
complete:
  description: Whether everything is there and right. In check mode, as it would be after the run.
  type: bool
  returned: always
missing:
  description: Files of the snapshot that are absent. In check mode and on failure, as found.
  type: list
  elements: str
  returned: always
corrupt:
  description: Files (and refs) that are there and wrong. In check mode and on failure, as found.
  type: list
  elements: str
  returned: always
problems:
  description: What is wrong with each of them.
  type: list
  elements: dict
  returned: always
  contains:
    file:
      description: The path inside the snapshot, or the ref.
      type: str
    kind:
      description: One word, such as truncated, wrong_hash, dangling, dangling_shared, no_link, ref_newline.
      type: str
    detail:
      description: What was found and what was expected.
      type: str
litter:
  description: Leftovers of interrupted downloads, as paths in the cache.
  type: list
  elements: str
  returned: always
notes:
  description: Remarks that are no faults.
  type: list
  elements: str
  returned: always
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: always
hashed:
  description: Whether the hashes of the contents are right. They were checked in this run, or earlier and the files did not change since.
  type: bool
  returned: always
hashed_now:
  description: Whether O(state=present) hashed all contents in this run, not only what it brought in.
  type: bool
  returned: always
list_digest:
  description:
    - SHA-256 over the names and contents of all files that a server reads. Empty where the cache does not have the repository's own file list.
  type: str
  returned: always
wanted:
  description: With O(manifest), the blobs whose contents are not in the cache.
  type: list
  elements: str
  returned: when O(state=verified) and O(manifest) is given
belongs_to:
  description: User and group id that new files in the cache get.
  type: dict
  returned: when O(state=verified) and O(manifest) or O(with_manifest) is given
as_owner:
  description: The words before a command, such as setpriv and ids, so that it runs as that user; none where the task does.
  type: list
  elements: str
  returned: when O(state=verified) and O(manifest) or O(with_manifest) is given
manifest:
  description: The file list, for O(manifest) on another machine.
  type: dict
  returned: when O(with_manifest) is set and the snapshot is complete, and for O(state=listed)
  contains:
    commit:
      description: The commit.
      type: str
    origin:
      description: Where the list came from (tree, marker, links).
      type: str
    refs:
      description: Names that stand for this commit.
      type: list
      elements: str
    files:
      description: Path to size in bytes and blob name.
      type: dict
run_id:
  description: Identity of the run, for O(follow).
  type: str
  returned: while it runs
step:
  description: What is being done. RV(done) and RV(total) are its progress.
  type: str
  returned: while it runs
done:
  description: Bytes done of this step.
  type: int
  returned: while it runs
total:
  description: Bytes of this step, 0 where nothing is counted.
  type: int
  returned: while it runs
failure:
  description: Class, evidence and remedy.
  type: dict
  returned: on failure
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import detached
from ansible.module_utils.vllm_fleet.common.meter import Meter
from ansible.module_utils.vllm_fleet.weights import snapshot_call


def main() -> None:
    """Do the work here or in a detached run, and leave through the module's exit."""
    module = AnsibleModule(**snapshot_call.SPEC, supports_check_mode=True)
    dry, diff, params = module.check_mode, module._diff, module.params
    options = {**params, "wait": None} if dry else params

    def work(meter: Meter) -> dict[str, object]:
        request = snapshot_call.parse(options, meter, dry=dry)
        if params["also"]:
            return snapshot_call.probe(request, params["also"])
        return snapshot_call.work(request, params["state"], with_manifest=params["with_manifest"], diff=diff)

    result = detached.perform("hf_snapshot", options, work, secrets=("hf_token",))
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
