#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: is the wanted image on this node, and do its tags point at it?"""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_image
short_description: Find the wanted vLLM image on a node and put its tags right
description:
  - Refuses a request that does not name one fixed image, before anything is asked of Docker.
  - Looks for the image by what it is (digest, hash of the build inputs, id in the archive) and not by its tag. Found
    under other tags, it gets the wanted ones; a tag that was moved to another image is moved back.
  - Pulling, building and loading take long and are commands of their own; the result says with which client.
  - Takes away images of the same repository that nothing needs any more, when asked to.
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
      - Folder with what the node remembers of its servers, O(vllm_server#module:state_dir). The images of recorded
        releases are never pruned. While a record is there that cannot be read, nothing is.
    type: path
    default: /var/lib/vllm-fleet
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
attributes:
  check_mode:
    support: full
    description: Without an engine the image counts as missing; the engine may be what the same run would install.
  diff_mode:
    support: full
author: the vllm-fleet authors
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

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.container import archive
from ansible.module_utils.vllm_fleet.container.api import DockerApi, DockerRefused, DockerUnavailable
from ansible.module_utils.vllm_fleet.container.archive import Held
from ansible.module_utils.vllm_fleet.container.image import (
    LABEL_BUILD_INPUTS,
    Archived,
    Client,
    Wanted,
    belongs,
    choose_client,
    chosen,
    content_id,
    is_wanted,
    misnamed,
    problems,
    prunable,
    repo_digests,
)
from ansible.module_utils.vllm_fleet.server import release_store


def main() -> None:
    """Refuse, find, tag, tell."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "source": {"type": "str", "choices": ["pull", "build", "archive"], "required": True},
            "tag": {"type": "str", "default": ""},
            "tags": {"type": "list", "elements": "str", "default": []},
            "digest": {"type": "str", "default": ""},
            "build_inputs": {"type": "str", "default": ""},
            "archive": {"type": "str", "default": ""},
            "expected_id": {"type": "str", "default": ""},
            "archived": {"type": "list", "elements": "dict", "default": []},
            "content": {"type": "str", "default": ""},
            "allow_latest": {"type": "bool", "default": False},
            "state_dir": {"type": "path", "default": "/var/lib/vllm-fleet"},
            "state": {
                "type": "str",
                "choices": ["found", "present", "resolved", "read", "pruned", "validated"],
                "default": "found",
            },
            "socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    p = dict(module.params)
    state, api = p.pop("state"), DockerApi(p.pop("socket"))
    del p["state_dir"]
    told, room = archive.told(p.pop("archived")), 0
    file = str(Path(p["archive"]).expanduser()) if p["archive"] else ""
    wanted = Wanted(**{**p, "tags": tuple(p["tags"]), "archive": file})
    refused = problems(wanted)
    if refused:
        module.fail_json(msg=" ".join(refused))
    if state == "validated":
        module.exit_json(changed=False, digest=wanted.digest)
    try:
        if state == "resolved":
            module.exit_json(changed=False, digest=wanted.digest or api.registry_digest(f"{wanted.name}:{wanted.tag}"))
        if state == "read":
            module.exit_json(changed=False, **_held(module, wanted).facts())
        if wanted.source == "archive" and not wanted.expected_id and not told:
            held = _held(module, wanted)
            told, room = list(held.images), held.room
        if state == "pruned":
            module.exit_json(**_prune(module, api, wanted, told))
        result = _find(module, api, wanted, told)
        result["room"] = room or _room(wanted, result)
    except DockerUnavailable as exc:
        if module.check_mode and not exc.denied:
            module.exit_json(**_missing(wanted, str(exc)))
        hint = "run as root or with sudo" if exc.denied else "the role docker_engine installs and starts it"
        module.fail_json(msg=f"image {wanted.ref}: {exc}; {hint}")
    except DockerRefused as exc:
        module.fail_json(msg=f"image {wanted.ref}: Docker says: {exc}")
    except archive.NOT_READABLE as exc:
        hint = "; if it is on the controller, set vllm_image_archive_location: controller" if state != "read" else ""
        hint = hint if isinstance(exc, FileNotFoundError) else ""
        module.fail_json(
            msg=f"archive {wanted.archive} cannot be read as an uncompressed `docker save` file: {exc}{hint}"
        )
    if state == "present" and not result["present"]:
        module.fail_json(msg=f"image {wanted.ref}: {result['reason']}", **result)
    module.exit_json(**result)


def _room(wanted: Wanted, found: dict[str, Any]) -> int:
    """Bytes that loading takes, of an archive whose image is known by its id."""
    if wanted.source == "archive" and not found["present"]:
        with contextlib.suppress(*archive.NOT_READABLE):  # a file of the controller; what is wrong, the load says
            return archive.read(Path(wanted.archive)).room
    return 0


def _find(module: AnsibleModule, api: DockerApi, wanted: Wanted, archived: list[Archived]) -> dict[str, Any]:
    image, reason = _search(api, wanted, archived)
    if image is None:
        client, buildkit = choose_client(_clients(module), api.ping())
        root = api.info()["DockerRootDir"]
        stands = (api.image(f"{wanted.name}:{wanted.tag}") or {}).get("Id", "") if wanted.tag else ""
        found = {"client": client, "buildkit": buildkit, "data_root": root, "replaces": stands}
        return {**_missing(wanted, reason), **found}
    image_id = str(image["Id"])
    before = {tag: (api.image(f"{wanted.name}:{tag}") or {}).get("Id", "") for tag in wanted.all_tags}
    moved = [tag for tag, found in before.items() if found != image_id]
    if not module.check_mode:
        for tag in moved:
            api.tag(image_id, wanted.name, tag)
    digests = repo_digests(wanted.name, image)
    # A built image may have to give way to another build of the same inputs, as the other nodes have it.
    root = {"data_root": api.info()["DockerRootDir"], "replaces": image_id} if wanted.source == "build" else {}
    digest = wanted.digest or (digests[0] if digests else "")
    return {
        "changed": bool(moved),
        "present": True,
        **root,
        "python": sys.executable,
        "reason": "",
        "image_id": image_id,
        "content": content_id(image),
        "digest": digest,
        "image_ref": f"{wanted.name}@{digest}" if digest and digest in digests else wanted.ref,
        "entrypoint": (image.get("Config") or {}).get("Entrypoint") or [],
        "size": int(image["Size"]),
        "tags_moved": moved,
        "diff": {
            "before": {f"{wanted.name}:{tag}": before[tag] for tag in moved},
            "after": {f"{wanted.name}:{tag}": image_id for tag in moved},
        },
    }


def _missing(wanted: Wanted, reason: str) -> dict[str, Any]:
    found = {"changed": False, "present": False, "reason": reason, "image_id": "", "tags_moved": []}
    return {
        **found,
        "image_ref": wanted.ref,
        "digest": wanted.digest,
        "client": "docker",
        "buildkit": False,
        "data_root": "/",
        "replaces": "",
        "python": sys.executable,
        "content": "",
    }


def _search(api: DockerApi, wanted: Wanted, archived: list[Archived]) -> tuple[dict[str, Any] | None, str]:
    """Give the wanted image, or None and why what stands under its name is not it."""
    reason = "it is not on this node"
    meant = chosen(archived, f"{wanted.name}:{wanted.tag}")
    for ref in [wanted.ref, *_other_refs(api, wanted, meant)]:
        image = api.image(ref)
        if image is None:
            continue
        why = is_wanted(wanted, image, meant)
        if why is None:
            return image, ""
        reason = why
    return None, reason


def _other_refs(api: DockerApi, wanted: Wanted, archived: list[Archived]) -> list[str]:
    if wanted.source == "build" and wanted.build_inputs:
        return api.images_with_label(f"{LABEL_BUILD_INPUTS}={wanted.build_inputs}")
    if wanted.source == "archive":
        if wanted.expected_id:
            return [wanted.expected_id]
        return [ref for entry in archived for ref in (*entry.ids, *entry.names)]
    if wanted.digest and wanted.tag:
        return [f"{wanted.name}:{wanted.tag}"]
    return []


def _held(module: AnsibleModule, wanted: Wanted) -> Held:
    """Read what the archive holds; refuse another tag, which would be loaded and taken for a version that it is not."""
    held = archive.read(Path(wanted.archive))
    if held.compressed and not wanted.expected_id:
        # It would have to be unpacked whole to be looked into.
        raise OSError(
            "it is compressed; unpack it, or set vllm_image_expected_id to the image id that "
            "`docker image inspect --format '{{.Id}}'` gave where it was saved"
        )
    other = misnamed(wanted, held.images)
    if other:
        module.fail_json(
            msg=f"archive {wanted.archive}: expected {wanted.name}:{wanted.tag}, it holds {other[0]}; {other[1]}"
        )
    return held


def _prune(module: AnsibleModule, api: DockerApi, wanted: Wanted, archived: list[Archived]) -> dict[str, Any]:
    """Remove what nothing needs. What is not known is kept: without the wanted image nothing goes."""
    image, reason = _search(api, wanted, archived)
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
    held = api.images_in_use() | recorded
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


def _clients(module: AnsibleModule) -> list[Client]:
    found: dict[str, Client] = {}
    for folder in [*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/local/bin"]:
        path = Path(folder) / "docker"
        real = str(path.resolve())
        if not os.access(path, os.X_OK) or real in found:
            continue
        _, told, _ = module.run_command([str(path), "--version"])
        version = re.search(r"\d+\.\d+\.\d+", told)
        rc, _, _ = module.run_command([str(path), "buildx", "version"])
        found[real] = Client(str(path), version.group() if version else "", rc == 0)
    return list(found.values())


if __name__ == "__main__":
    main()
