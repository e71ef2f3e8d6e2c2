# SPDX-License-Identifier: Apache-2.0
"""One call of the module hf_snapshot: its options, what they ask for, and its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.meter import Meter
from . import fetch, hub, snapshot
from .files import FetchError, not_reached
from .layout import Repository, SnapshotError
from .owner import acting_as, owner_of

#: Further snapshots of a probe.
ALSO: dict[str, Any] = {
    "repo_id": {"type": "str", "required": True},
    "revision": {"type": "str", "default": "main"},
    "list_digest": {"type": "str", "default": ""},
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "repo_id": {"type": "str", "required": True},
    "revision": {"type": "str", "default": "main"},
    "cache": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["present", "absent", "verified", "pruned", "listed"], "default": "present"},
    "source": {"type": "str"},
    "manifest": {"type": "dict"},
    "with_manifest": {"type": "bool", "default": False},
    "move": {"type": "bool", "default": False},
    "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
    "create": {"type": "bool", "default": True},
    "keep": {"type": "list", "elements": "str", "default": []},
    "list_digest": {"type": "str", "default": ""},
    "also": {"type": "list", "elements": "dict", "options": ALSO},
    "margin": {"type": "int", "default": 1 << 30},
    "hf_token": {"type": "str", "no_log": True},
    "hub_python": {"type": "path"},
    "hub_endpoint": {"type": "str"},
    "hub_stall": {"type": "int", "default": 300},
    "wait": {"type": "float"},
    "follow": {"type": "str"},
    "use_cached_result": {"type": "bool", "default": False},
}
SPEC: dict[str, Any] = {"argument_spec": ARGUMENTS, "required_if": [("move", True, ["manifest", "source"])]}


def parse(options: Mapping[str, Any], meter: Meter, *, dry: bool) -> fetch.Request:
    """Return the request that checked ``options`` make; with ``dry`` nothing is written."""
    return fetch.Request(
        repository=Repository(Path(options["cache"]), options["repo_id"]),
        revision=options["revision"],
        source=options["source"],
        manifest=options["manifest"],
        move=options["move"],
        verify=options["verify"],
        create=options["create"],
        margin=options["margin"],
        keep=tuple(options["keep"]),
        digest=options["list_digest"],
        client=hub.Client(
            options["hub_python"], options["hf_token"], options["hub_endpoint"], float(options["hub_stall"])
        ),
        dry=dry,
        meter=meter,
    )


def work(request: fetch.Request, state: str, *, with_manifest: bool = False, diff: bool = False) -> dict[str, Any]:
    """Do what ``state`` asks, as the cache's owner; return the module's result, of a failure too."""
    owner = owner_of(request.repository.cache)
    with acting_as(owner):
        found = _work(request, state, with_manifest=with_manifest, diff=diff)
    if state == "verified" and (with_manifest or request.manifest is not None):
        found |= {"belongs_to": {"uid": owner.uid, "gid": owner.gid}, "as_owner": owner.command}
    return found


def _work(request: fetch.Request, state: str, *, with_manifest: bool, diff: bool) -> dict[str, Any]:
    result = fetch.Result(snapshot.Report(request.repository, request.revision), revision=request.revision)
    try:
        if state == "verified":
            fetch.verified(request, result)
        elif state == "present":
            fetch.present(request, result)
        elif state == "pruned":
            fetch.pruned(request, result)
        elif state == "listed":
            fetch.listed(request, result)
            return {**result.as_dict(with_manifest=False), "manifest": fetch.as_listed(result.report)}
        else:
            fetch.absent(request, result)
    except OSError as error:
        return _failed(result, not_reached(request.repository.cache, error))
    except (SnapshotError, FetchError) as error:
        return _failed(result, error)
    found = result.as_dict(with_manifest=with_manifest)
    if diff:
        found["diff"] = result.diff()
    return found


def _failed(result: fetch.Result, error: Exception) -> dict[str, Any]:
    failure = getattr(error, "failure", "bad_argument")
    evidence = getattr(error, "evidence", "").splitlines() or [str(item) for item in result.report.problems]
    return {
        **result.as_dict(with_manifest=False),
        "failed": True,
        "msg": str(error),
        "failure": {"class": failure, "evidence": evidence, "remedy": str(error)},
    }


def probe(request: fetch.Request, also: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return what hf_snapshot returns with ``state: verified``. Nothing changes.

    The first of the snapshots ``also`` that is not whole is told instead of one that is.
    """
    found = work(request, "verified")
    for one in also:
        if found.get("failed") or not found.get("complete"):
            break
        other = replace(
            request,
            repository=Repository(request.repository.cache, one["repo_id"]),
            revision=one["revision"],
            digest=one["list_digest"],
        )
        looked = work(other, "verified")
        if looked.get("failed") or not looked.get("complete"):
            return looked
    return found
