# SPDX-License-Identifier: Apache-2.0
"""Lines of the servers' logs with the names of their nodes, for playbooks/logs.yml. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.vllm_fleet.preflight import connection
from fleet_report.words import clip, count

#: Docker keeps no log of a container that is gone; vllm_server does, when a start fails.
FAILED_STARTS = "Logs of failed starts are files: /var/lib/vllm-fleet/<name>/logs on the node."
#: Characters of the reason why a node did not answer.
WIDTH = 300


def of_node(node: str, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of one node as they are shown, each with its class; ``found`` is a result of vllm_logs."""
    return [(f"[{node}] {_moment(stamp)} {text}", level) for stamp, level, text in found.get("lines") or []]


def lines(found: Mapping[str, Mapping[str, Any] | None], asked: str) -> list[str]:
    """Return the lines of all nodes in one order of time, the newest last; ``asked`` says what was looked for."""
    every = [
        (stamp, f"[{node}] {_moment(stamp)} {text}")
        for node, looked in found.items()
        for stamp, _, text in (looked or {}).get("lines") or []
    ]
    out = [text for _, text in sorted(every, key=lambda pair: pair[0])] or [f"No lines {asked}. {FAILED_STARTS}"]
    for node, looked in found.items():
        if "lines" not in (looked or {}):
            said = str((looked or {}).get("msg") or "it was not asked")
            told = connection.explain(said, name=node)
            why = clip(f"{told.cause}; {told.remedy}" if told else said, WIDTH)
            out.append(f"{node} did not answer, so its lines are missing: {why}")
        elif looked and looked.get("left_out"):
            out.append(f"{node}: {count(looked['left_out'], 'older line')} not shown; logs_lines shows more.")
    return out


def _moment(stamp: str) -> str:
    return stamp[:19].replace("T", " ")
