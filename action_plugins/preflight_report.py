# SPDX-License-Identifier: Apache-2.0
"""Shows the findings of all nodes as one table, writes them as JSON, and ends the run for the nodes they refuse."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.common import finding, probes, secrets
from ansible.module_utils.vllm_fleet.common.failure import FailureClass
from ansible.module_utils.vllm_fleet.host.place import chosen_by_hand
from ansible.module_utils.vllm_fleet.preflight import machines
from ansible.module_utils.vllm_fleet.rollout import left_out, messages
from ansible.module_utils.vllm_fleet.server import options as server_options
from ansible.module_utils.vllm_fleet.vllm import host_variables

display = Display()

HEAD = ("NODE", "LEVEL", "WHAT", "EXPECTED", "FOUND", "WHAT TO DO")
FIELDS = ("level", "what", "expected", "got", "remedy")
COLOURS = {"refused": "red", "unseen": "red", "warning": "bright purple", "unknown": "cyan", "ok": "green"}
#: What a node is refused for, for the last lines of the run.
TOLD = ("sentences", "ending", "further", "address")
#: Columns wrap beyond this; the last one runs on.
WIDEST = 60


def rows(
    by_host: Mapping[str, list[Mapping[str, str]]],
    *,
    everything: bool,
    nodes: Mapping[str, str] | None = None,
    later: bool = False,
) -> list[tuple[str, ...]]:
    """Choose what is shown: what is fine only on request, what is merely unknown only beside what matters.

    ``nodes`` are the nodes of hosts that share one: what was found for all of them is shown once, for the node.
    ``later``: what ends the run is said at its end, and so not here. What is the same of several is one row.
    """
    told = [
        (host, *(str(one[field]) for field in FIELDS))
        for host, found in by_host.items()
        for one in found
        if everything or one["level"] != "ok"
    ]
    worth = everything or any(row[1] not in ("ok", "unknown") for row in told)
    chosen = [row for row in told if not (later and row[1] in finding.ENDING)]
    if nodes:
        size, alike = Counter(nodes.values()), Counter((nodes.get(row[0]), row[1:]) for row in chosen)
        of_all = [
            (nodes[row[0]], *row[1:]) if size[nodes.get(row[0], "")] == alike[nodes.get(row[0]), row[1:]] > 1 else row
            for row in chosen
        ]
        chosen = list(dict.fromkeys(of_all))
    hosts_of: dict[tuple[str, ...], list[str]] = {}
    for row in chosen:
        hosts_of.setdefault(row[1:], []).append(row[0])
    return [(messages.names(hosts), *row) for row, hosts in hosts_of.items()] if worth else []


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


def places(
    results: Mapping[str, Mapping[str, Any] | None], told: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Give where the servers are to be, of the nodes that answered; ``told`` is what the inventory says of each."""
    given = {node: (result or {}).get("place") for node, result in results.items()}
    return {node: {**place, **told[node]} for node, place in given.items() if place}


def said_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a host's variables say of its place: its replica, and what counts where a node has several servers."""
    node = str(variables.get("vllm_node") or "")
    said: dict[str, Any] = {"replica": str(variables.get("vllm_server_replica") or ""), "node": node, "address": ""}
    # With a port of its own a host may be behind the same address as another.
    with contextlib.suppress(AnsibleError, TypeError, ValueError):
        said["address"] = str(variables.get("ansible_host") or "")
        said["ssh_port"] = str(variables.get("ansible_port") or "")
    if node:
        said["rocm"] = (variables.get("vllm_server_accelerator") or "rocm") == "rocm"
        # A value that cannot be had is reported elsewhere.
        said |= {"gpus": "?", "agent": 0, "by_hand": "", "state_dir": ""}
        with contextlib.suppress(AnsibleError, TypeError, ValueError):
            said["gpus"] = variables.get("vllm_server_gpus")
        with contextlib.suppress(AnsibleError, TypeError, ValueError):
            said["agent"] = host_variables.agent_port(variables)
        with contextlib.suppress(AnsibleError, TypeError, ValueError, AttributeError):
            env = variables.get("vllm_server_env") or {}
            said["by_hand"] = chosen_by_hand(env, variables.get("vllm_server_devices"))
        with contextlib.suppress(AnsibleError, TypeError, ValueError):
            folder = variables.get("vllm_server_state_dir") or server_options.DEFAULT_STATE_DIR
            said["state_dir"] = os.path.normpath(str(folder))
    return said


def server_faults(facts: Mapping[str, Any] | None) -> list[finding.Finding]:
    """Judge what the probe of the server says, where it came to that: options that no run makes right by itself."""
    result = probes.probed(facts, "vllm_server").get("result") or {}
    failure = result.get("failure") or {}
    if not result.get("failed") or failure.get("class") != FailureClass.BAD_ARGUMENT:
        return []
    cause, remedy = str(failure.get("cause") or result.get("msg")), str(failure.get("remedy") or "")
    remedy = remedy.removesuffix("; nothing was touched")  # the end of all refusals says so
    return [finding.Finding("refused", "server", "options that it can be started with", cause, remedy)]


def worst(found: list[finding.Finding] | None) -> str:
    """Give a node's worst level."""
    return "unseen" if found is None else finding.worst(found)


def verdict(levels: list[str]) -> str:
    """Give one word for all nodes: refused if one is, else unseen if one could not be looked at, else fine."""
    return next((word for word in ("refused", "unseen") if word in levels), "fine")


def summary(levels: list[str], nodes: Mapping[str, str] | None = None) -> str:
    """Count the nodes by their worst finding; of ``nodes`` with several servers, the servers."""
    words = {"refused": "refused", "unseen": "not seen", "warning": "with warnings"}
    said = [words.get(level, "fine") for level in levels]
    counts = [f"{said.count(word)} {word}" for word in (*words.values(), "fine") if word in said]
    machines_ = len(said) - len(nodes or ()) + len(set((nodes or {}).values()))
    on = f"{len(said)} servers on " if machines_ < len(said) else ""
    return f"{on}{machines_} node{'' if machines_ == 1 else 's'}: {', '.join(counts)}"


def told_at_the_end() -> bool:
    """Return whether the refusals stand in the last lines of the run, so that they need not stand here as well."""
    return not display.verbosity and "vllm_fleet_report" in constants.CALLBACKS_ENABLED


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
                "server": {"type": "bool", "default": False},
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
            refusals, result["findings"], result["not_checked"] = self._refusals(nodes, variables, args, show=not alone)
        result.update(changed=False, refusals=refusals)
        mine = refusals.get(host) if args["refuse"] else None
        if mine:
            result |= {name: mine[name] for name in ("msg", *TOLD) if name in mine}
            # A node that could not be probed is out of reach, not refused: Ansible's exit code differs.
            result["unreachable" if mine["unseen"] else "failed"] = True
        return result

    def _refusals(
        self, nodes: list[str], variables: Mapping[str, Any], args: Mapping[str, Any], *, show: bool
    ) -> tuple[dict[str, dict[str, Any]], dict[str, int], list[str]]:
        """Judge all nodes, and show them.

        Returns {host: {msg, unseen}} of those that end the run, the numbers of findings, and what could not be checked.
        """
        results: dict[str, Mapping[str, Any] | None] = {}
        told: dict[str, dict[str, Any]] = {}
        for node in nodes:
            # A registered result holds no templates, and much: as it is, not as a variable that may hold some.
            results[node] = variables["hostvars"].raw_get(node).get(args["result"])
            told[node] = said_of(variables["hostvars"][node])
        crossed = self._sharing(variables, told) | machines.machines(places(results, told))
        looked: dict[str, list[finding.Finding] | None] = {}
        for node, seen in results.items():
            own = read(seen)
            if own and args["server"]:
                own += server_faults(variables["hostvars"].raw_get(node).get("ansible_facts"))
            looked[node] = finding.accept([*own, crossed[node]], args["accept"]) if own and node in crossed else own
        if show:
            levels = [worst(found) for found in looked.values()]
            by_node = {node: [asdict(one) for one in found or []] for node, found in looked.items()}
            by_node = secrets.unmistakable(by_node)
            sharing = {host: said["node"] for host, said in told.items() if said["node"]}
            shown = table(rows(by_node, everything=args["show_all"], nodes=sharing, later=told_at_the_end()))
            for line, level in [*shown, (summary(levels, sharing), "")] if shown else []:
                display.display(line, color=COLOURS.get(level))
            if os.environ.get("VLLM_FLEET_VERDICT"):  # scripts/preflight makes its exit code of it
                Path(os.environ["VLLM_FLEET_VERDICT"]).write_text(f"{verdict(levels)}\n", encoding="utf-8")
            if args["json"]:
                Path(args["json"]).expanduser().write_text(json.dumps(by_node, indent=2) + "\n", encoding="utf-8")
        refusals = {}
        lost = [node for node, found in looked.items() if worst(found) == "unseen"]
        for node, found in looked.items():
            sentences = [one.sentence for one in found or [] if one.level in finding.ENDING]
            if sentences:
                msg, further = f"{node}: {'. Also '.join(sentences)}. {args['ending']}", ""
                if node in lost and len(lost) < len(looked):
                    limit = ":".join(f"!{one}" for one in lost)
                    skips = left_out.may_skip(variables["hostvars"][node])  # and something else ends the run
                    more = "" if skips else ", or set rollout_unreachable: skip"
                    further = f"To go on without {'it' if len(lost) == 1 else 'them'}, add --limit '{limit}'{more}."
                    msg += f" {further}"
                refusals[node] = {
                    **{"msg": msg, "unseen": node in lost, "why": ". Also ".join(sentences)},
                    **{"sentences": sentences, "ending": args["ending"], "further": further},
                    "address": told[node]["address"],
                }
        levels_of_all = Counter(one.level for found in looked.values() for one in found or [])
        unknown = dict.fromkeys(one.what for found in looked.values() for one in found or [] if one.level == "unknown")
        return refusals, {**dict.fromkeys(finding.LEVELS, 0), **levels_of_all, "hosts": len(looked)}, list(unknown)

    @staticmethod
    def _sharing(variables: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]]) -> dict[str, finding.Finding]:
        """Judge the servers of nodes that have several, those outside of this run among them."""
        nodes = {said["node"] for said in told.values()} - {""}
        if not nodes:
            return {}
        hostvars, hosts = variables["hostvars"], dict(told)
        for host in (variables.get("groups") or {}).get("vllm") or ():
            if host not in hosts and str(hostvars[host].get("vllm_node") or "") in nodes:
                hosts[host] = said_of(hostvars[host])
        found = machines.sharing({host: said for host, said in hosts.items() if said["node"]})
        return {host: one for host, one in found.items() if host in told}
