# SPDX-License-Identifier: Apache-2.0
"""Which nodes need which step before the waves, from what preflight's probe of each node found. Pure.

A node whose probe is missing, ended early, failed, or was for something else needs the step: no answer is never "fine".

Of the servers of one node (``vllm_node``) one does what belongs to the node: the first of them that uses GPUs, or
else the first, for engine and driver, the first for each image and for each snapshot. The others take over what it
found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..common.probes import nothing_to_do, probed
from ..vllm.host_variables import neighbours, node_of, replica_name, truth

#: The steps in their order, and the plays of deploy.yml that are named after them.
STEPS = ("engine", "image", "weights")
#: What the roles of each step note on a host, and later ones read.
FACTS = {
    "engine": ("docker_engine_become", "docker_engine_result", "rocm_reboot_required"),
    "image": ("vllm_image_id", "vllm_image_ref", "vllm_image_result"),
    "weights": ("hf_cache_folder", "hf_cache_commit", "hf_cache_pending", "hf_cache_result"),
}
#: The variables that say which image and which snapshot a host wants.
_WANTED = {
    "engine": (),
    "image": tuple(
        f"vllm_image_{name}"
        for name in (
            *("source", "name", "tag", "tags", "digest", "archive", "archive_location", "expected_id", "build_kind"),
            *("build_version", "build_host", "build_context", "build_target", "build_args", "build_revision"),
        )
    ),
    "weights": (
        *("hf_cache_path", "hf_cache_repo_id", "hf_cache_revision", "hf_cache_source", "hf_cache_list_digest"),
        *("vllm_server_model", "vllm_server_variant", "vllm_server_revision", "vllm_server_adapters"),
    ),
}


def plan(
    hostvars: Mapping[str, Any],
    hosts: Iterable[str],
    *,
    refused: Iterable[str] = (),
    verify: bool = False,
    gateways: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the hosts that need each step, and under `answered` those whose server needs no visit at all.

    With them go `hosts`, all of the run, `refused`, those of them that end it, `watchdog`, those whose watchdog is not
    as described, which concerns no server, and `lock`, those for which the fleet has to be held: all, or none where
    nothing is to change. What ``gateways`` need is found later. Image and weights concern all hosts as soon as one
    lacks them: they go from node to node. A server counts as answered only where no node needs any step, and not where
    the user asks for a verification (``verify``).

    Where nodes have several servers, `batches` are the sizes of the batches of a step that has more than one, and
    `takes` says for a host that a step leaves out whose findings it takes over, {host: {step: host}}.
    """
    variables = {host: hostvars[host] for host in hosts}
    facts = {host: found.get("ansible_facts") or {} for host, found in variables.items()}
    steps = {
        # Of a node's servers the first that uses GPUs, where there is one: for no other the role rocm runs.
        "engine": sorted(
            (host for host in variables if _engine(variables[host], facts[host])),
            key=lambda host: not _rocm(variables[host]),
        ),
        "image": _all_or_none(variables, facts, "vllm_image", "content"),
        "weights": _all_or_none(variables, facts, "hf_snapshot", "commit"),
    }
    quiet = not verify and not any(steps.values())
    once = {step: _once(variables, needing, _WANTED[step]) for step, needing in steps.items()}
    watchdog = [host for host in variables if not _right(facts[host], "vllm_watchdog")]
    answered = [host for host in variables if quiet and _answered(variables[host], facts[host])]
    changes = len(answered) < len(variables) or watchdog or list(gateways)
    return {
        "hosts": list(variables),
        "refused": list(refused),
        "lock": list(variables) if changes else [],
        **{step: [host for batch in batches for host in batch] for step, (batches, _) in once.items()},
        "batches": {step: [len(one) for one in batches] for step, (batches, _) in once.items() if len(batches) > 1},
        "takes": _takes({step: takes for step, (_, takes) in once.items()}),
        "watchdog": watchdog,
        "answered": answered,
    }


def _once(
    variables: Mapping[str, Mapping[str, Any]], needing: list[str], names: Iterable[str]
) -> tuple[list[list[str]], dict[str, str]]:
    """Return the hosts that do a step for their nodes, in batches, and for each other host the one that does it.

    Hosts want the same thing where they have the same values of the variables ``names``. All that want the same are in
    one batch, because things go from node to node; a node is in a batch once, because two loads at once take longer
    than one after the other, and want the same ports.
    """
    nodes = {host: node_of(found, host) for host, found in variables.items()} if needing else {}
    if len(set(nodes.values())) == len(nodes):
        return [needing] if needing else [], {}
    wants = {host: json.dumps([variables[host].get(name) for name in names], default=str) for host in variables}
    actors: dict[tuple[str, str], str] = {}
    for host in needing:
        actors.setdefault((nodes[host], wants[host]), host)
    batches: list[list[str]] = []
    for want in dict.fromkeys(wants[host] for host in actors.values()):
        team = [host for host in actors.values() if wants[host] == want]
        busy = {nodes[host] for host in team}
        batch = next((one for one in batches if busy.isdisjoint(nodes[host] for host in one)), None)
        if batch is None:
            batches.append(batch := [])
        batch += team
    known = {host: actors.get((nodes[host], wants[host]), host) for host in variables}
    return batches, {host: actor for host, actor in known.items() if actor != host}


def _takes(by_step: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for step, takes in by_step.items():
        for host, actor in takes.items():
            found.setdefault(host, {})[step] = actor
    return found


def _right(facts: Mapping[str, Any], module: str) -> bool:
    row = probed(facts, module)
    return bool(row) and nothing_to_do(module, row["result"])


def _rocm(variables: Mapping[str, Any]) -> bool:
    return str(variables.get("vllm_server_accelerator") or "rocm") == "rocm"


def _engine(variables: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return not _right(facts, "docker_engine") or (_rocm(variables) and not _right(facts, "rocm"))


#: The variable that asks for more than what is there, by the module of a step.
_PRUNES = {"vllm_image": "vllm_image_prune", "hf_snapshot": "hf_cache_prune"}


def _all_or_none(
    variables: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Mapping[str, Any]], module: str, identity: str
) -> list[str]:
    """Return all hosts unless each has what it wants, and all that want the same have the same.

    Of an image that is pulled by its tag, one of them must have asked the registry what the tag stands for.
    """
    found: dict[str, set[Any]] = {}
    unresolved: dict[str, bool] = {}
    for host, own in facts.items():
        if not _right(own, module) or truth(variables[host].get(_PRUNES[module])):
            return list(facts)
        args, result = probed(own, module)["args"], probed(own, module)["result"]
        # Where it is on the node may differ from host to host, and one of them asks the registry.
        wanted = {name: value for name, value in args.items() if name not in ("cache", "resolve")}
        key = json.dumps(wanted, sort_keys=True, default=str)
        found.setdefault(key, set()).add(result.get(identity))
        by_tag = wanted.get("source") == "pull" and not wanted.get("digest")
        unresolved[key] = unresolved.get(key, True) and by_tag and not result.get("resolved")
    several = any(len(values) > 1 for values in found.values())
    return list(facts) if several or any(unresolved.values()) else []


def _answered(variables: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Return whether a server is as described, was confirmed before, has its record, and has just answered right."""
    server = probed(facts, "vllm_server").get("result") or {}
    return (
        not replica_name(variables)
        and _right(facts, "vllm_server")
        and server.get("actions") == []
        and bool(server.get("confirmed"))
        and server.get("release") is not None
        and _right(facts, "vllm_chat")
    )


def nothing_done(hostvars: Mapping[str, Any]) -> bool:
    """Return whether every node was probed in this run and no step has had anything to do since, on any of them."""
    try:
        made = hostvars["localhost"].get("deploy_steps") or {}
    except KeyError:
        return False
    return bool(made.get("hosts")) and not any(made.get(step) for step in STEPS)


def warms(hostvars: Mapping[str, Any], batch: Iterable[str], host: str) -> bool:
    """Return whether a host of a wave reads its weights into memory: the first of those of its node that have them."""

    def weights(one: str) -> list[Any]:
        # Adapters are small.
        return [hostvars[one].get(name) for name in _WANTED["weights"] if name != "vllm_server_adapters"]

    here = neighbours(hostvars, batch, host)
    return len(here) == 1 or next((one for one in here if weights(one) == weights(host)), host) == host
