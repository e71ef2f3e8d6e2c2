# SPDX-License-Identifier: Apache-2.0
"""Shows the findings of all nodes as one table, writes them as JSON, and ends the run for the nodes they refuse."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import finding, secrets
from ansible.module_utils.vllm_fleet.preflight import inventory

display = Display()

HEAD = ("NODE", "LEVEL", "WHAT", "EXPECTED", "FOUND", "WHAT TO DO")
FIELDS = ("level", "what", "expected", "got", "remedy")
COLOURS = {"refused": "red", "unseen": "red", "warning": "bright purple", "unknown": "cyan", "ok": "green"}
#: Columns wrap beyond this; the last one runs on.
WIDEST = 60


def rows(by_node: Mapping[str, list[Mapping[str, str]]], *, everything: bool) -> list[tuple[str, ...]]:
    """Choose what is shown: what is fine only on request, what is merely unknown only beside what matters."""
    chosen = [
        (node, *(str(one[field]) for field in FIELDS))
        for node, found in by_node.items()
        for one in found
        if everything or one["level"] != "ok"
    ]
    worth = everything or any(row[1] not in ("ok", "unknown") for row in chosen)
    return chosen if worth else []


def table(chosen: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Lay rows out under the head: (line, level) pairs. An overlong cell pushes its own line only."""
    if not chosen:
        return []
    widths = [min(WIDEST, max(len(row[column]) for row in (HEAD, *chosen))) for column in range(len(HEAD) - 1)]
    return [
        ("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip(), row[1])
        for row in (HEAD, *chosen)
    ]


def read(result: Mapping[str, Any] | None) -> list[finding.Finding] | None:
    """Read the findings out of a registered result; None where there are none, because the node was not looked at."""
    given = (result or {}).get("findings")
    return None if given is None else [finding.Finding(**one) for one in given]


def places(results: Mapping[str, Mapping[str, Any] | None], replicas: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Give where the servers are to be, of the nodes that answered."""
    given = {node: (result or {}).get("place") for node, result in results.items()}
    return {node: {**place, "replica": replicas[node]} for node, place in given.items() if place}


def worst(found: list[finding.Finding] | None) -> str:
    """Give a node's worst level."""
    return "unseen" if found is None else finding.worst(found)


def verdict(levels: list[str]) -> str:
    """Give one word for all nodes: refused if one is, else unseen if one could not be looked at, else fine."""
    return next((word for word in ("refused", "unseen") if word in levels), "fine")


def summary(levels: list[str]) -> str:
    """Count the nodes by their worst finding."""
    words = {"refused": "refused", "unseen": "not seen", "warning": "with warnings"}
    said = [words.get(level, "fine") for level in levels]
    counts = [f"{said.count(word)} {word}" for word in (*words.values(), "fine") if word in said]
    return f"{len(said)} node{'' if len(said) == 1 else 's'}: {', '.join(counts)}"


class ActionModule(ActionBase):
    """Needs no connection: all of it was seen by preflight_host."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Show once for all nodes, then judge this one."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "result": {"type": "str", "default": "preflight_result"},
                "show_all": {"type": "bool", "default": False},
                "json": {"type": "str", "default": ""},
                "ending": {"type": "str", "default": "Nothing was touched."},
                "accept": {"type": "list", "elements": "str", "default": []},
                "refuse": {"type": "bool", "default": True},
                "refusals": {"type": "dict"},
            }
        )
        variables = task_vars or {}
        host = str(variables["inventory_hostname"])
        refusals = args["refusals"]
        if refusals is None:
            nodes = list(variables.get("ansible_play_batch") or [host])
            alone = args["refuse"] and host != nodes[0]
            refusals = self._refusals(nodes, variables, args, show=not alone)
        result.update(changed=False, refusals=refusals)
        mine = refusals.get(host) if args["refuse"] else None
        if mine:
            result["msg"] = mine["msg"]
            # A node that could not be probed is out of reach, not refused: Ansible's exit code differs.
            result["unreachable" if mine["unseen"] else "failed"] = True
        return result

    def _refusals(
        self, nodes: list[str], variables: Mapping[str, Any], args: Mapping[str, Any], *, show: bool
    ) -> dict[str, dict[str, Any]]:
        """Judge all nodes, and show them; returns {host: {msg, unseen}} of those that end the run."""
        results: dict[str, Mapping[str, Any] | None] = {}
        replicas: dict[str, str] = {}
        for node in nodes:
            # A registered result holds no templates, and much: as it is, not as a variable that may hold some.
            results[node] = variables["hostvars"].raw_get(node).get(args["result"])
            replicas[node] = str(variables["hostvars"][node].get("vllm_server_replica") or "")
        crossed = inventory.machines(places(results, replicas))
        looked: dict[str, list[finding.Finding] | None] = {}
        for node, seen in results.items():
            own = read(seen)
            looked[node] = finding.accept([*own, crossed[node]], args["accept"]) if own and node in crossed else own
        if show:
            levels = [worst(found) for found in looked.values()]
            by_node = {node: [asdict(one) for one in found or []] for node, found in looked.items()}
            by_node = secrets.unmistakable(by_node)
            shown = table(rows(by_node, everything=args["show_all"]))
            for line, level in [*shown, (summary(levels), "")] if shown else []:
                display.display(line, color=COLOURS.get(level))
            if os.environ.get("VLLM_FLEET_VERDICT"):  # scripts/preflight makes its exit code of it
                Path(os.environ["VLLM_FLEET_VERDICT"]).write_text(f"{verdict(levels)}\n", encoding="utf-8")
            if args["json"]:
                Path(args["json"]).expanduser().write_text(json.dumps(by_node, indent=2) + "\n", encoding="utf-8")
        refusals = {}
        for node, found in looked.items():
            sentences = [one.sentence for one in found or [] if one.level in finding.ENDING]
            if sentences:
                msg = f"{node}: {'. Also '.join(sentences)}. {args['ending']}"
                refusals[node] = {"msg": msg, "unseen": worst(found) == "unseen"}
        return refusals
