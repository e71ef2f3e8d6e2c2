#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: is the wanted image on this node, and do its tags point at it?"""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_image
short_description: Find the wanted vLLM image on a node and put its tags right
description:
  - Refuses a request that does not name one fixed image, before anything is asked of Docker.
  - Finds the image by its content (digest, hash of the build inputs, id in the archive), not by its tag. Missing tags are added, and a tag on another
    image is moved back.
  - Pulling, building and loading take long and are commands of their own. The result names the client for them.
  - Removes images of the same repository that are not needed any more, with O(state=pruned).
  - Talks to the engine's socket itself and needs nothing but Python on the node.
options:
  name:
    description: Repository, without tag or digest.
    type: str
    required: true
  source:
    description: Where the image comes from.
    type: str
    choices: [pull, build, archive]
    required: true
  tag:
    description: Main tag. V(latest) and none are refused.
    type: str
    default: ""
  tags:
    description: Further tags for the same image.
    type: list
    elements: str
    default: []
  digest:
    description: Digest in the registry, C(sha256:...), for O(source=pull).
    type: str
    default: ""
  build_inputs:
    description: Hash of all build inputs, kept in the image's label C(io.vllm-fleet.build-inputs).
    type: str
    default: ""
  archive:
    description: A C(docker save) file on the node, for O(source=archive).
    type: str
    default: ""
  expected_id:
    description: Image id that the archive must hold.
    type: str
    default: ""
  archived:
    description: What O(state=read) returned for the archive, for an archive that is not on this node.
    type: list
    elements: dict
    default: []
  content:
    description: RV(content) that the image must have, so that all nodes have the same one of a built image.
    type: str
    default: ""
  allow_latest:
    description: Accept the tag V(latest).
    type: bool
    default: false
  state_dir:
    description:
      - Folder with what the node remembers of its servers, O(vllm_server#module:state_dir). The images of recorded releases are never pruned. If a
        record cannot be read, no image is pruned.
    type: path
    default: /var/lib/vllm-fleet
  keep:
    description:
      - With V(pruned), names of images that are needed, too, such as those of other servers of the node.
    type: list
    elements: str
    default: []
  state:
    description:
      - V(found) returns whether the image is there and corrects its tags; it is no error when it is missing.
      - V(present) fails when it is missing.
      - V(resolved) asks the registry for the digest behind O(tag) and changes nothing.
      - V(read) returns which images O(archive) holds; it does not need Docker.
      - V(pruned) removes the images of the repository O(name), except the wanted one, the one before it, and those of
        containers (running or not) and of recorded releases.
      - V(validated) only checks the request; Docker need not be there.
    type: str
    choices: [found, present, resolved, read, pruned, validated]
    default: found
  socket:
    description: The engine's socket.
    type: path
    default: /var/run/docker.sock
  resolve:
    description:
      - With V(found) and an image that is pulled by its tag, whether the registry is asked what the tag stands for. It must answer then.
    type: bool
    default: false
  use_cached_result:
    description:
      - Whether to use the result of an earlier probe in the same run, if it had the same options and found nothing to do. For a first look only. Used
        by the action plugin.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Without an engine the image counts as missing, because the same run may install the engine.
  diff_mode:
    support: full
author: The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Is the pinned image there?
  vllm_image:
    name: vllm/vllm-openai-rocm
    source: pull
    digest: sha256:8f0c3a4cb0a1a9bd8f2b2b0a6b3f1d5f9f6e4d0c1b2a39485766758493021abc
    tag: v0.32.0
  register: image
"""

RETURN = r"""
resolved:
  description: That the registry was asked what the tag stands for.
  returned: with O(resolve), of an image that is pulled by its tag
  type: bool
present:
  description: Whether the wanted image is on the node.
  type: bool
  returned: for O(state=found) and O(state=present)
reason:
  description: Why not, when it is not.
  type: str
  returned: for O(state=found) and O(state=present)
image_id:
  description: Id of the image; empty when it is missing.
  type: str
  returned: for O(state=found) and O(state=present)
image_ref:
  description: The image with its digest where a registry gave it one, else with its tag.
  type: str
  returned: for O(state=found) and O(state=present)
rocm:
  description: ROCm release in the image, by its files, environment, labels or tag; empty where none says it.
  type: str
  returned: for O(state=found) and O(state=present)
digest:
  description: Digest in the registry, or empty.
  type: str
  returned: always
content:
  description: Hash of what the image is. Equal on all nodes that have the same image, whatever image store they use.
  type: str
  returned: when the image is there
archived:
  description: The images of the archive, each with C(ids), C(names) and C(content).
  type: list
  elements: dict
  returned: for O(state=read)
size:
  description: Bytes of the archive, for O(state=read); of the image on the node, when it is there.
  type: int
  returned: for O(state=read), and when the image is there
room:
  description: Bytes that Docker needs under its data root to load the archive; V(0) when it was not read.
  type: int
  returned: for O(state=read), O(state=found) and O(state=present)
pruned:
  description: Images that were (or, in check mode, would be) removed, each with C(id), C(names) and C(size) in bytes.
  type: list
  elements: dict
  returned: for O(state=pruned)
entrypoint:
  description: The image's own entrypoint. It differs between vLLM's images.
  type: list
  elements: str
  returned: when the image is there
tags_moved:
  description: Tags that were (or, in check mode, would be) pointed at the image.
  type: list
  elements: str
  returned: for O(state=found) and O(state=present)
replaces:
  description: Id of the image that the main tag points at now; empty for none.
  type: str
  returned: when the image is missing, and for O(source=build)
client:
  description: The C(docker) command to get the image with; empty when the node has none.
  type: str
  returned: when the image is missing
buildkit:
  description: Whether that command and this engine build with BuildKit.
  type: bool
  returned: when the image is missing
python:
  description: The Python that runs this module.
  type: str
  returned: for O(state=found) and O(state=present)
data_root:
  description: Folder where the engine keeps its images.
  type: str
  returned: when the image is missing, and for O(source=build)
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.container import find_image
from ansible.module_utils.vllm_fleet.container.api import DockerApi
from ansible.module_utils.vllm_fleet.container.image import Archived, Wanted, belongs, prunable
from ansible.module_utils.vllm_fleet.server import release_store


def main() -> None:
    """Refuse, find, tag."""
    module = AnsibleModule(**find_image.SPEC, supports_check_mode=True)
    state, api = module.params["state"], DockerApi(module.params["socket"])
    try:
        wanted, archived = find_image.parse(module.params)
    except find_image.ImageError as error:
        module.fail_json(msg=str(error))
    try:
        result = _result(module, state, api, wanted, archived)
    except find_image.ImageError as error:
        if module.check_mode and error.cause:
            module.exit_json(**find_image.missing(wanted, error.cause))
        module.fail_json(msg=str(error))
    if state == "present" and not result["present"]:
        module.fail_json(msg=f"image {wanted.ref}: {result['reason']}", **result)
    module.exit_json(**result)


def _result(
    module: AnsibleModule, state: str, api: DockerApi, wanted: Wanted, archived: list[Archived]
) -> dict[str, Any]:
    if state == "validated":
        return {"changed": False, "digest": wanted.digest}
    if state in ("found", "present"):
        return find_image.probe(api, wanted, archived, dry=module.check_mode, resolve=module.params["resolve"])
    with find_image.explained(wanted, reading=state == "read"):
        if state == "resolved":
            digest = wanted.digest or api.registry_digest(f"{wanted.name}:{wanted.tag}")
            return {"changed": False, "digest": digest}
        if state == "read":
            return {"changed": False, **find_image.read(wanted).facts()}
        return _prune(module, api, wanted, find_image.known(wanted, archived)[0])


def _prune(module: AnsibleModule, api: DockerApi, wanted: Wanted, archived: list[Archived]) -> dict[str, Any]:
    """Remove what nothing needs. What is not known is kept: without the wanted image nothing goes."""
    image, reason = find_image.search(api, wanted, archived)
    if image is None:
        module.fail_json(msg=f"nothing is pruned: image {wanted.ref}: {reason}")
    recorded, silent = release_store.images(Path(module.params["state_dir"]))
    if silent:
        # Housekeeping is no reason to end a deployment, and a record that cannot be read may name the last good image.
        module.warn(
            f"no image is removed: {silent[0]}{f' and {len(silent) - 1} more' if silent[1:] else ''} does not say which "
            "image its release needs; repair or remove that record"
        )
        return {"changed": False, "pruned": [], "image_id": str(image["Id"])}
    needed = (api.image(ref) for ref in module.params["keep"])
    held = api.images_in_use() | recorded | {str(one["Id"]) for one in needed if one}
    rows = api.images()
    ours = {str(row["Id"]): row for row in rows if belongs(row, wanted.name)}
    tagged = {ident: str(((api.image(ident) or {}).get("Metadata") or {}).get("LastTagTime", "")) for ident in ours}
    gone = []
    for ident, names in prunable(rows, wanted.name, str(image["Id"]), held, tagged):
        gone.append({"id": ident, "names": names, "size": int(ours[ident].get("Size") or 0)})
        if not module.check_mode:
            for name in names or [ident]:
                api.remove_image(name)
    return {
        "changed": bool(gone),
        "pruned": gone,
        "image_id": str(image["Id"]),
        "diff": {"before": {row["id"]: row["names"] for row in gone}, "after": {}},
    }


if __name__ == "__main__":
    main()
