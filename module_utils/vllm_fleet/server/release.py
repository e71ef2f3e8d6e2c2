# SPDX-License-Identifier: Apache-2.0
"""Releases of one node as values: what a record holds, which one runs, which one a rollback goes to. Pure.

A release is a server that was verified, described by what its container is made of (``spec`` of the module
vllm_server) and by the commit of its model. A record holds no secret: ``spec`` has fingerprints in their place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..common.secrets import sealed
from ..container.fields import numbers_text
from ..container.spec import SECRET_ENV
from ..vllm import ranks

Record = dict[str, Any]

#: Of the file's layout; a reader that finds a higher one must not guess.
FORMAT = 1
#: Records that a node keeps. The running one and the one before it are kept besides, however old they are.
KEPT = 20
#: What things are called by says nothing of what they are; a model's revision only where its commit is not known.
_NAMES = frozenset({"image", "revision"})


def build(  # noqa: PLR0917  seven things make a record, each of another kind
    number: int,
    container: Mapping[str, Any],
    spec: Mapping[str, Any],
    image_digests: Sequence[str],
    commit: str | None,
    given: Mapping[str, Any],
    when: str,
) -> Record:
    """Return a record of an inspected ``container``, its ``spec``, its model's ``commit``, and what the run knows.

    ``given``: ``run``, ``configuration``, ``settings`` (options of the role that are not the container's own),
    ``verification`` (what was asked), ``answers`` (results of vllm_chat), ``start`` (result of vllm_server),
    ``figures`` (of vllm_measure).
    """
    start = given.get("start") or {}
    return {
        "format": FORMAT,
        "release": number,
        "when": when,
        "run": given.get("run"),
        "configuration": given.get("configuration"),
        "container": {"id": container["Id"], "name": str(container.get("Name", "")).lstrip("/")},
        "image": {"reference": spec.get("image"), "id": spec.get("image_id"), "digests": sorted(image_digests)},
        "model": {"id": spec.get("model"), "revision": spec.get("revision"), "commit": commit},
        "spec": dict(spec),
        "place": place_of(spec),
        "settings": dict(given.get("settings") or {}),
        "verification": _without_keys(given.get("verification") or {}),
        "answers": [answer(one) for one in given.get("answers") or []],
        "start": {
            "downtime": start.get("downtime"),
            "ready": ready_seconds(start.get("stages") or []),
            "stages": list(start.get("stages") or []),
            "drain": start.get("drain"),
        },
        "figures": dict(given.get("figures") or {}),
        "restores": None,
        "rolled_back_from": None,
    }


def past(records: Sequence[Record], model: str, image: Collection[str]) -> dict[str, Any] | None:
    """Return how long a change took this node before, in seconds: by the newest record of ``model`` that has a start.

    One of the same image (``image``: all ids and digests of it) is better than a newer one of another; ``same_image``
    says which it was. `load` is the time without a server, or to ready where there was none before. None where no
    record knows any.
    """
    known = [record for record in records if record["model"].get("id") == model and record["start"].get("ready")]
    same = [record for record in known if {record["image"].get("id"), *record["image"].get("digests", ())} & {*image}]
    if not known:
        return None
    record = (same or known)[-1]
    start = record["start"]
    took = [one["elapsed"] for one in record.get("answers") or () if one.get("elapsed") is not None]
    return {
        "release": record["release"],
        "same_image": bool(same),
        "drain": start.get("drain"),
        "load": start.get("downtime") if start.get("downtime") is not None else start["ready"],
        "verify": round(sum(took), 3) if took else None,
    }


def place_of(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the GPUs and CPUs that a server was given of a node that it shares; None for one that has it all."""
    gpus, cpus = spec.get("gpus"), spec.get("cpus")
    return {"gpus": gpus or None, "cpus": numbers_text(cpus) if cpus else None} if gpus or cpus else None


def _without_keys(asked: Mapping[str, Any]) -> dict[str, Any]:
    requests = asked.get("requests")
    if requests is None:
        return dict(asked)
    return {**asked, "requests": sealed([{k: v for k, v in one.items() if k != "api_key"} for one in requests])}


def answer(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record keeps of a result of vllm_chat."""
    kept = ("name", "api", "content", "finish_reason", "usage", "ttft", "tokens_per_second", "elapsed")
    return {name: result.get(name) for name in kept}


def ready_seconds(stages: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds from the container's start to ready, from the stages of a watch; None for a server that just ran on."""
    reached = [stage["at"] for stage in stages if stage.get("stage") == "ready"]
    return float(reached[-1]) if reached and len(stages) > 1 else None


def content(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two releases the same: everything the container is made of, and the model's commit."""
    spec = {name: value for name, value in record["spec"].items() if name not in _NAMES}
    spec["entrypoint"] = ranks.without_id(spec.get("entrypoint") or [])
    return spec, record["model"].get("commit") or record["spec"].get("revision")


def common(record: Mapping[str, Any]) -> str:
    """A digest of what releases of several nodes have in common: without secrets, groups, devices, paths."""
    spec = ranks.without_place(record["spec"])
    hidden = frozenset(spec.get("secrets") or ())
    made = [
        # By its name: the two kinds of image store know the same image by different digests.
        record["image"]["reference"],
        spec.get("model"),
        record["model"].get("commit") or spec.get("revision"),
        spec.get("args"),
        {name: value for name, value in spec["env"].items() if name not in hidden},
    ]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def serving(records: Sequence[Record], container: str, spec: Mapping[str, Any] | None) -> Record | None:
    """Find the record of a container as it is now; None for one that was never recorded, or changed since."""
    for record in reversed(records):
        if record["container"]["id"] == container:
            return record if spec is None or record["spec"] == dict(spec) else None
    return None


def place(records: Sequence[Record], made: Record) -> tuple[Record, bool]:
    """Return what is to be written for ``made``, and whether it is a release of its own.

    The newest release in a new container (the old one was removed by hand) stays what it is, with the new container.
    A release that was there before and returns gets a number of its own and says which one it ``restores``.
    """
    if not records:
        return made, True
    newest = records[-1]
    if content(newest) == content(made):
        return {**newest, "container": made["container"], "image": made["image"]}, False
    for record in reversed(records[:-1]):
        if content(record) == content(made):
            origin = record["restores"] or record["release"]
            figures = made["figures"] or record.get("figures") or {}
            return {**made, "figures": figures, "restores": origin, "rolled_back_from": newest["release"]}, True
    return made, True


def target(records: Sequence[Record], current: Record | None) -> Record | None:
    """Where a rollback from ``current`` goes: the newest release that came before it and differs from it.

    After a rollback to release 2 the next one goes to what came before 2, not back to where it came from. Without a
    known ``current`` (nothing runs, or something that was never recorded) it is the newest release there is.
    """
    if current is None:
        return records[-1] if records else None
    before = current["restores"] or current["release"]
    for record in reversed(records):
        if record["release"] < before and content(record) != content(current):
            return record
    return None


def in_doubt(unreadable: Sequence[int], goal: Record | None, current: Record | None) -> list[int]:
    """Return the numbers of the records that cannot be read and may be what a rollback from ``current`` goes to."""
    low = goal["release"] if goal else 0
    return [number for number in unreadable if number > low and (current is None or number < current["release"])]


def expendable(records: Sequence[Record], current: Record | None, kept: int = KEPT) -> list[int]:
    """Numbers of the records to drop: all but the newest ``kept``, the running one and the rollback's target."""
    back = target(records, current) if current else None
    needed = {record["release"] for record in (current, back) if record}
    return [record["release"] for record in records[:-kept] if record["release"] not in needed]


def summary(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What tables and reports show of a release; times of its first answer that was streamed."""
    if record is None:
        return None
    streamed: Mapping[str, Any] = next((one for one in record["answers"] if one.get("ttft") is not None), {})
    return {
        "release": record["release"],
        "when": record["when"],
        "run": record["run"],
        "image": record["image"]["reference"],
        "model": record["model"]["id"],
        "commit": record["model"]["commit"],
        "place": record.get("place"),
        "downtime": record["start"]["downtime"],
        "ready": record["start"]["ready"],
        "ttft": streamed.get("ttft"),
        "tokens_per_second": streamed.get("tokens_per_second"),
        "restores": record["restores"],
        "rolled_back_from": record["rolled_back_from"],
    }


def role_variables(
    record: Mapping[str, Any], image: str, commit_now: str | None, prefix: str = "vllm_server_"
) -> dict[str, Any]:
    """Return the variables of the role vllm_server that make this release again from ``image``.

    ``commit_now`` is what its revision stands for in the node's cache today; where that has moved on, the commit
    itself is asked for.
    Secrets are not among them, they come from the inventory of today: ``secret_env`` names those in the environment.
    The model's preset is switched off: what it gave then is in the arguments already. Of a server over several nodes
    rank and addresses are left out, for they follow from the inventory.
    """
    spec = ranks.without_place(record["spec"])
    hidden = frozenset(spec.get("secrets") or ())
    left_out = {"image", "image_id", "secrets", "engine_cache", "env"}
    values = {name: value for name, value in spec.items() if name not in left_out}
    values["env"] = {name: value for name, value in spec["env"].items() if name not in hidden}
    values["image"] = image
    # Its own place again, whatever the inventory asks for now; a server that had all of its node had none.
    values |= {name: spec.get(name) for name in ("gpus", "cpus")}
    commit = record["model"].get("commit")
    values["revision"] = commit if commit and commit != commit_now else values.get("revision") or ""
    asked = record.get("verification") or {}
    values |= {f"verify{suffix}": asked[name] for name, suffix in _ASKED.items() if name in asked}
    values |= record["settings"]
    return {prefix + name: value for name, value in values.items()}


_ASKED = {"requests": "", "endpoints": "_endpoints"}


def secret_env(record: Mapping[str, Any]) -> list[str]:
    """Names in the environment whose values have to come from the inventory; those with an option of their own do."""
    spec = record["spec"]
    return sorted(n for n in spec.get("secrets") or () if n in spec["env"] and n not in SECRET_ENV)
