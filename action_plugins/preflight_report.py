"""Shows the findings of all nodes as one table, writes them as JSON, and ends the run for the nodes they refuse."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

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


def verdict(looked: Mapping[str, Mapping[str, Any]]) -> str:
    """Give one word for all nodes: refused if one is, else unseen if one could not be looked at, else fine."""
    worst = {one.get("worst", "unseen") for one in looked.values()}
    return next((word for word in ("refused", "unseen") if word in worst), "fine")


def summary(looked: Mapping[str, Mapping[str, Any]]) -> str:
    """Count the nodes by their worst finding."""
    words = {"refused": "refused", "unseen": "not seen", "warning": "with warnings"}
    worst = [words.get(str(one.get("worst", "ok")), "fine") for one in looked.values()]
    counts = [f"{worst.count(word)} {word}" for word in (*words.values(), "fine") if word in worst]
    return f"{len(worst)} node{'' if len(worst) == 1 else 's'}: {', '.join(counts)}"


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
            }
        )
        variables = task_vars or {}
        host = str(variables["inventory_hostname"])
        nodes = list(variables.get("ansible_play_batch") or [host])
        if host == nodes[0]:
            hostvars = variables["hostvars"]
            looked = {node: hostvars[node].get(args["result"]) or {} for node in nodes}
            by_node = {node: list(one.get("findings") or []) for node, one in looked.items()}
            shown = table(rows(by_node, everything=args["show_all"]))
            for line, level in [*shown, (summary(looked), "")] if shown else []:
                display.display(line, color=COLOURS.get(level))
            if os.environ.get("VLLM_FLEET_VERDICT"):  # scripts/preflight makes its exit code of it
                Path(os.environ["VLLM_FLEET_VERDICT"]).write_text(f"{verdict(looked)}\n", encoding="utf-8")
            if args["json"]:
                Path(args["json"]).expanduser().write_text(json.dumps(by_node, indent=2) + "\n", encoding="utf-8")
        mine = variables.get(args["result"]) or {}
        result["changed"] = False
        if mine.get("refusals"):
            result["msg"] = f"{host}: {'. Also '.join(mine['refusals'])}. Nothing was touched."
            # A node that nobody could look at is out of reach, not refused: Ansible's exit code tells them apart.
            result["unreachable" if mine["worst"] == "unseen" else "failed"] = True
        return result
