# SPDX-License-Identifier: Apache-2.0
"""What a node remembers of its releases, and what a rollback to one of them needs."""

from __future__ import annotations

from typing import Any

from ..common import maintenance, names
from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container import compare
from ..container.engine import Engine
from . import release
from .release import Record
from .release_store import Releases, commit_of, engine_caches, inside_url
from .state import NodeState


def gather(engine: Engine, name: str, state_dir: str, to: int | None) -> dict[str, Any]:
    """Return the result of vllm_release_info; ``to`` is the release that a rollback is to go to, if one is named."""
    if wrong := names.wrong_container(name):
        raise Refused(FailureClass.BAD_ARGUMENT, wrong, "correct vllm_server_name; nothing was touched")
    node = NodeState(state_dir, name)
    kept = Releases(node)
    records = kept.all()
    container = engine.container(name)
    found: dict[str, Any] = {"changed": False, "container": None, "spec": None, "target": None}
    current = None
    if container:
        redact = compare.fingerprint(node.fingerprint_key(create=False))
        found["spec"] = compare.as_spec(container, engine.image(str(container["Image"])), redact)
        status = container["State"].get("Status")
        found["container"] = {"id": container["Id"], "image_id": container.get("Image"), "status": status}
        found["url"] = inside_url(found["spec"])
        current = release.serving(records, str(container["Id"]), found["spec"])
    if to is None:
        target = release.target(records, current)
    else:
        target = next((record for record in records if record["release"] == to), None)
    found["in_doubt"] = release.in_doubt(kept.unreadable(), target, current) if to is None else []
    found["releases"] = [release.summary(record) for record in records]
    found["contents"] = {str(record["release"]): release.common(record) for record in records}
    found["current"] = release.summary(current)
    found["engine_caches"] = engine_caches(node, records)
    found["servers"] = engine.servers()
    found["maintenance"] = maintenance.look(state_dir, name)
    if target:
        found |= _of_target(engine, target)
    return found


def _of_target(engine: Engine, target: Record) -> dict[str, Any]:
    """Return what a rollback to ``target`` needs: its image as it can be named today, and its variables."""
    named = engine.image(str(target["image"]["reference"]))
    digests = {*target["image"]["digests"], target["image"]["id"]}
    same = named is not None and bool(digests & {*named.ids, named.id})
    present = same or engine.image(str(target["image"]["id"])) is not None
    use = str(target["image"]["reference" if same else "id"])
    return {
        "target": release.summary(target),
        "image": {**target["image"], "use": use, "present": present},
        "variables": release.role_variables(target, use, commit_of(target["spec"])),
        "secret_env": release.secret_env(target),
    }
