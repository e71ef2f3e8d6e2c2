# SPDX-License-Identifier: Apache-2.0
"""The figures of a server's releases on its node: measured, and kept in their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..common import names
from ..common.failure import FailureClass
from ..common.refused import Refused
from ..container import compare
from ..container.engine import Engine
from ..container.inspected import Inspected, running
from ..vllm import host_variables, measure, questions
from . import endpoint, release
from .release_store import Releases
from .state import NodeState

Figures = dict[str, Any]


def gather(
    engine: Engine,
    name: str,
    state_dir: str,
    *,
    before: bool,
    asked: Sequence[Mapping[str, Any]],
    load: Mapping[str, Any],
    timeout: float,
    check_mode: bool = False,
) -> dict[str, Any]:
    """Return the result of vllm_measure: `figures` of the server that runs, and `before`, those of the release before.

    That is the newest record of another container. ``before``: the server that runs is about to be replaced; it is
    measured only where its record lacks figures of the same questions and load, and they are written there. Raises
    Refused.
    """
    if wrong := names.wrong_container(name):
        raise Refused(FailureClass.BAD_ARGUMENT, wrong, "correct vllm_server_name; nothing was measured")
    node = NodeState(state_dir, name)
    kept = Releases(node)
    container = engine.container(name)
    found: dict[str, Any] = {"changed": False, "figures": {}, "before": {}, "release": None, "measured": False}
    if before:
        record = _serving(engine, kept, container)
        if record is None:
            return {**found, "msg": "what runs has no record"}
        found |= {"release": record["release"], "figures": record.get("figures") or {}}
        if not lacks(found["figures"], asked, load):
            return found
        figures = _measure(container, asked, load, timeout)
        found |= {"figures": figures, "measured": True, "changed": True}
        if not check_mode:
            kept.note(record["release"], figures)
        return found
    found |= {"figures": _measure(container, asked, load, timeout), "measured": True}
    own = str(container["Id"]) if container else ""
    older = [record for record in kept.all() if record["container"]["id"] != own]
    if older:
        found |= {"before": older[-1].get("figures") or {}, "release": older[-1]["release"]}
    return found


def lacks(figures: Mapping[str, Any], asked: Sequence[Mapping[str, Any]], load: Mapping[str, Any]) -> bool:
    """Return whether figures are not of these questions and this load."""
    wanted = {"answers": [dict(one) for one in asked], "load": dict(load)}
    return any((figures.get(part) or {}).get("of") != questions.identity(what) for part, what in wanted.items() if what)


def _serving(engine: Engine, kept: Releases, container: Inspected | None) -> release.Record | None:
    if container is None or not running(container):
        return None
    redact = compare.fingerprint(kept.node.fingerprint_key(create=False))
    spec = compare.as_spec(container, engine.image(str(container["Image"])), redact)
    return kept.serving(str(container["Id"]), spec)


def _measure(
    container: Inspected | None, asked: Sequence[Mapping[str, Any]], load: Mapping[str, Any], timeout: float
) -> Figures:
    """Ask a running server, with the port and the key that its container has. The key stays on the node."""
    where = endpoint.of_container(container) if container and running(container) else None
    if where is None:
        raise Refused(
            FailureClass.UNKNOWN, "no server with a port runs that could be measured", "see playbooks/status.yml"
        )
    url = host_variables.url(where.host, where.port)
    server = {
        "url": url.replace("http://", "https://", 1) if where.tls else url,
        "model": where.names[0] if where.names else "",
        "api_key": where.api_key or "",
        "timeout": timeout,
    }
    figures: Figures = {}
    if asked:
        figures["answers"] = measure.ask(asked, server)
    if load:
        figures["load"] = measure.under_load(load, server)
    return figures
