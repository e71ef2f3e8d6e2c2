# SPDX-License-Identifier: Apache-2.0
"""A model on machines before it is deployed: the rows of playbooks/plan.yml.

Where no argument fixes the tensor parallel size, every size that divides the heads gets a row, so that one can be
chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..host import gpu_memory, share
from ..vllm import cli, host_variables, ranks
from . import checkpoint, presets, sizing, sizing_table
from .sizing import Facts, Machine, Sizing

TENSOR = "tensor-parallel-size"


def named_kinds(given: str | Sequence[str]) -> list[str]:
    """Return GPU kinds as a list, without blanks around them and without empty ones; a text has commas between them."""
    words = given.split(",") if isinstance(given, str) else given
    return [word.strip() for word in words if word.strip()]


def machines(nodes: Mapping[str, Mapping[str, Any]], kinds: Sequence[str], gpus: int) -> list[tuple[str, str, Machine]]:
    """Return (name, accelerator, machine) of what to plan for.

    ``nodes`` are hosts with their variables: ``vllm_server_accelerator``, and in ``plan_node`` what rocm_info returned.
    ``kinds`` are GPU kinds by name, ``NAME=GiB`` for one whose memory is not known here, or cpu; without kinds, and
    without a node that has GPUs, all kinds that are known. Raises ValueError for what is none of these.
    """
    found: list[tuple[str, str, Machine]] = []
    for name, variables in nodes.items():
        if str(variables.get("vllm_server_accelerator") or presets.ROCM) == presets.CPU:
            found.append((name, presets.CPU, Machine("CPU")))
            continue
        gpus_there = (variables.get("plan_node") or {}).get("gpus") or []
        machine = sizing.of_gpus(gpus_there, variables.get("vllm_server_env"), variables.get("vllm_server_devices"))
        if machine.gpus:
            wanted = share.wish(variables.get("vllm_server_gpus"), share.GPU)
            mine = machine if wanted is None else replace(machine, gpus=min(wanted.count, machine.gpus))
            found.append((name, presets.ROCM, mine))
    with_gpus = any(machine.gpus for _, _, machine in found)
    for kind in kinds or ([] if with_gpus else sizing.VRAM):
        if kind.lower() == "cpu":
            found.append(("-", presets.CPU, Machine("CPU")))
        else:
            name, equals, gib = kind.partition("=")
            if equals and not gib.strip().isdigit():
                raise ValueError(f"plan_gpu has {kind!r}; the memory of a GPU is expected in GiB, such as MI210=64")
            vram = int(gib) * gpu_memory.GIB if equals else None
            found.append(("-", presets.ROCM, sizing.named(name.strip(), gpus, vram)))
    return found


def together(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Mapping[str, Any]], dict[str, int]]:
    """Return the hosts of each replica together: variables by name, `big (node1+node2)`, and of how many nodes it is.

    The first host stands for all: they are meant to be alike, and preflight checks each.
    """
    found = host_variables.replicas(nodes, nodes)
    named = {host_variables.label(name, hosts): hosts for name, hosts in found.items()}
    return {label: nodes[hosts[0]] for label, hosts in named.items()}, {label: len(h) for label, h in named.items()}


@dataclass(frozen=True)
class Server:
    """The server as it would be started: flags in one spelling, environment, the image's tag."""

    args: Mapping[str, Any]
    env: Mapping[str, Any]
    image_version: str = ""


@dataclass
class Plan:
    """Rows for the table, sentences that say why it cannot work, and others worth knowing."""

    rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, facts: Facts, machine: Machine, server: Server) -> None:
        """Size one machine; a row for each tensor parallel size where none is fixed. Raises ValueError for bad args."""
        where = f"{name}: " if name != "-" else ""
        nodes = int(str(server.args.get("nnodes") or 1))
        several = f"{nodes} x " if nodes > 1 else ""
        on = f"{several}{machine.gpus} x {machine.kind}" if machine.gpus else "a CPU"
        where += f"{facts.model} on {on}"
        if server.args.get(TENSOR) is not None or not machine.gpus:
            sized = self._row(name, facts, machine, server, {})
            for one in sized.findings:
                (self.refusals if one.level == "refused" else self.notes).append(f"{where}: {one.sentence}")
            return
        config, gpus = checkpoint.plain_config(facts.config), machine.gpus * nodes
        heads = checkpoint.whole(config.get("num_attention_heads"))
        sizes = gpu_memory.tensor_parallel_sizes(heads or gpus, gpus, checkpoint.kv_heads(config))
        # The ranks are dealt out evenly over the nodes of a replica.
        rest = ranks.world_size({key: value for key, value in server.args.items() if key != TENSOR})
        sizes = [size for size in sizes if size * rest % nodes == 0]
        tried = [self._row(name, facts, machine, server, {TENSOR: size}) for size in sizes]
        refused = [[one for one in sized.findings if one.level == "refused"] for sized in tried]
        if not tried:
            self.refusals.append(f"{where}: no {TENSOR} divides the heads and spreads over {nodes} nodes")
        elif all(refused):
            self.refusals.append(f"{where}: {refused[-1][0].sentence}")
        elif facts.weights_bytes is not None:
            first = sizes[[bool(found) for found in refused].index(False)]
            self.notes.append(f"{where}: nothing fixes {TENSOR}; {first} is the least that fits.")

    def _row(self, name: str, facts: Facts, machine: Machine, server: Server, more: Mapping[str, Any]) -> Sizing:
        sized = sizing.size(facts, machine, {**server.args, **more}, server.env, image_version=server.image_version)
        self.rows.append((name, sizing_table.as_row(sized)))
        return sized


def plan(
    facts: Facts,
    nodes: Mapping[str, Mapping[str, Any]],
    kinds: Sequence[str],
    gpus: int,
    *,
    preset_of: Callable[[str, str], Mapping[str, Any]],
    args: Any = None,
    env: Any = None,
    image_version: str = "",
) -> Plan:
    """Return the plan of a model on ``nodes``, as `machines` takes them, or on GPU ``kinds`` with ``gpus`` each.

    ``preset_of`` returns a model's preset for an accelerator and a GPU kind; ``args`` and ``env`` are laid over it.
    What cannot be planned, such as arguments that are no mapping, is a refusal.
    """
    result = Plan()
    try:
        _check_mapping("vllm_server_args", args)
        _check_mapping("vllm_server_env", env)
        hosts, sizes = together(nodes)
        for name, accelerator, machine in machines(hosts, kinds, gpus):
            preset = preset_of(accelerator, machine.kind)
            shared = {"nnodes": str(sizes[name])} if sizes.get(name, 1) > 1 else {}
            flags = {**dict(cli.normalise_args(preset["args"])), **dict(cli.normalise_args(args or {})), **shared}
            result.add(name, facts, machine, Server(flags, {**preset["env"], **(env or {})}, image_version))
        result.notes += unknown(facts) if result.rows else []
    except ValueError as error:
        result.refusals.append(str(error))
    return result


def unknown(facts: Facts) -> list[str]:
    """Return why a table has `?` where the model's own figures are not known, as a sentence; none where they are."""
    heads = checkpoint.whole(checkpoint.plain_config(facts.config).get("num_attention_heads"))
    if heads and facts.weights_bytes is not None:
        return []
    if facts.source and not facts.source.startswith("models/"):
        return [f"?: {facts.source} does not have all figures of {facts.model}."]
    preset = f"the preset ({facts.source})" if facts.source else "the preset"
    return [
        f"?: {preset} does not have all figures of {facts.model}, and the Hub did not answer or was not asked; give "
        "plan_path, a folder with the model's config.json and weight index."
    ]


def _check_mapping(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        example = f'-e \'{{"{name}": {{"NAME": "VALUE"}}}}\''
        raise ValueError(f"{name} is text; expected a mapping, which on the command line is {example}")
