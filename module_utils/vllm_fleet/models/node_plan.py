# SPDX-License-Identifier: Apache-2.0
"""Several models on one node: how often each fits, at which size, and the servers that fill the node. Pure.

Each size of a model is sized alone (sizing.py) on so many GPUs of the node. The figures are upper bounds as there: what
does not fit here is certain, what fits is not promised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..host import gpu_memory, share
from ..vllm import cli
from . import checkpoint, placement, sizing
from .sizing import Facts, Machine

TENSOR, CONTEXT = "tensor-parallel-size", "max-model-len"
_COLUMNS = ("MODEL", "GPUS", "TP", "SERVERS", "WEIGHTS/GPU", "KV CACHE/GPU", "CONTEXT", "FULL REQUESTS")
#: Lengths of context are proposed in steps of so many tokens.
STEP = 1024


@dataclass(frozen=True)
class Size:
    """One model on ``gpus`` GPUs of the node: how many ``servers`` of it fit, and what sizing says of one.

    ``args`` are those that differ from its preset's. ``recommended``: its preset names this number of GPUs.
    """

    model: str
    gpus: int
    servers: int
    row: sizing.Sizing
    args: Mapping[str, Any]
    recommended: bool = False


@dataclass(frozen=True)
class Entry:
    """One entry of `vllm_servers`: so many servers of a model, with so many GPUs each."""

    name: str
    model: str
    replicas: int
    gpus: int
    args: Mapping[str, Any]


Preset = Mapping[str, Any]


def sizes(facts: Facts, machine: Machine, preset: Preset, image_version: str = "") -> list[Size]:
    """Return the sizes of a model that fit on a node, the smallest first. Raises ValueError for bad arguments.

    ``preset`` is the model's for this kind of GPU; its arguments hold but for the tensor parallel size, and for a
    context that does not fit.
    """
    flags = dict(cli.normalise_args(preset.get("args") or {}))
    config = checkpoint.plain_config(facts.config)
    heads = checkpoint.whole(config.get("num_attention_heads"))
    fixed = int(str(flags.get(TENSOR) or 0))
    known = gpu_memory.tensor_parallel_sizes(heads, machine.gpus, checkpoint.kv_heads(config)) if heads else []
    found = []
    # Of a model whose heads are not known, only what its preset says is sure to work.
    for tensor in known or [fixed or 1]:
        changed: dict[str, Any] = {} if tensor == (fixed or 1) else {TENSOR: tensor}
        size = _size(facts, machine, {**flags, **changed}, preset.get("env") or {}, image_version)
        if size is None:
            continue
        row, gpus = size
        if row.context_asked is None and row.context and row.context_limit and row.context < row.context_limit:
            changed[CONTEXT] = max(STEP, row.context // STEP * STEP)
        elif row.context_asked and row.context is not None and row.context_asked > row.context:
            continue
        found.append(Size(facts.model, gpus, machine.gpus // gpus, row, changed, preset.get("gpus") == gpus))
    return found


def _size(
    facts: Facts, machine: Machine, flags: Mapping[str, Any], env: Mapping[str, Any], image_version: str
) -> tuple[sizing.Sizing, int] | None:
    """Return the verdict on one size and its GPUs; None where it cannot work on this node."""
    gpus = placement.ranks(cli.normalise_args(flags)).local
    if not 0 < gpus <= machine.gpus:
        return None
    row = sizing.size(facts, replace(machine, gpus=gpus), flags, env, image_version=image_version)
    return None if any(one.level == "refused" for one in row.findings) else (row, gpus)


def table(found: Sequence[Size]) -> str:
    """Return the sizes as a table, a line each."""
    body = [_COLUMNS, *(_cells(one) for one in found)]
    widths = [max(len(line[column]) for line in body) for column in range(len(_COLUMNS))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in body)


def _cells(one: Size) -> tuple[str, ...]:
    row = one.row
    most = "<= " if row.at_most else ""
    context = "?" if row.context is None else f"{most}{row.context}"
    return (
        one.model,
        f"{one.gpus} (recommended)" if one.recommended else str(one.gpus),
        str(row.tensor),
        str(one.servers),
        _gib(row.weights_per_gpu, ""),
        _gib(row.kv_per_gpu, most),
        f"{row.context_asked} of {context}" if row.context_asked else context,
        "?" if row.requests is None else f"{most}{row.requests:.1f}",
    )


def _gib(size: int | None, most: str) -> str:
    return "?" if size is None else f"{most}{size / gpu_memory.GIB:.1f} GiB"


def fill(by_model: Mapping[str, Sequence[Size]], gpus: int) -> list[Entry]:
    """Return the servers that fill ``gpus`` GPUs: one of each model, then more of those of which there are fewest.

    Each has the size that its preset recommends, else the least that holds one request of the whole context, else the
    least. Raises ValueError where not even one of each fits.
    """
    chosen = {model: _chosen(found) for model, found in by_model.items()}
    needed = sum(one.gpus for one in chosen.values())
    if needed > gpus:
        least = {model: min(found, key=lambda one: one.gpus) for model, found in by_model.items()}
        if sum(one.gpus for one in least.values()) > gpus:
            each = ", ".join(f"{model} {one.gpus}" for model, one in least.items())
            raise ValueError(f"one server of each takes more than {gpus} GPUs ({each}): leave one out")
        chosen, needed = least, sum(one.gpus for one in least.values())
    counts, left = dict.fromkeys(chosen, 1), gpus - needed
    while fitting := [model for model, one in chosen.items() if one.gpus <= left]:
        model = min(fitting, key=lambda name: counts[name])
        counts[model] += 1
        left -= chosen[model].gpus
    names = _names(list(chosen))
    return [Entry(names[model], model, counts[model], one.gpus, one.args) for model, one in chosen.items()]


def _chosen(found: Sequence[Size]) -> Size:
    whole = [one for one in found if one.row.requests is None or one.row.requests >= 1]
    return next((one for one in found if one.recommended), (whole or list(found))[0])


def _names(models: Sequence[str]) -> dict[str, str]:
    """Return names for entries: the model's own, in small letters, as containers and hosts take them."""
    made: dict[str, str] = {}
    for model in models:
        name = re.sub(r"[^a-z0-9]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-")[:40].rstrip("-")
        name = name or "model"
        taken = set(made.values())
        made[model] = next(
            one for one in (name, *(f"{name}-v{at}" for at in range(2, len(models) + 2))) if one not in taken
        )
    return made


def picture(entries: Sequence[Entry], units: Sequence[share.Unit]) -> str:
    """Return which server gets which GPUs, as the placing on the node does it: two lines and their legend."""
    wanted = [(entry, replica) for entry in entries for replica in range(1, entry.replicas + 1)]
    letters = {entry.name: chr(ord("a") + at % 26) for at, entry in enumerate(entries)}
    named = {f"{letters[entry.name]}{replica}": entry for entry, replica in wanted}
    servers = [share.Server(name, share.Wish(entry.gpus)) for name, entry in named.items()]
    cells = dict.fromkeys(sorted(unit.index for unit in units), ".")
    for server in servers:
        for index in share.place(share.GPU, units, servers, server.name):
            cells[index] = server.name
    width = max(len(text) for text in (*map(str, cells), *cells.values()))
    lines = ["GPU  " + " ".join(str(index).ljust(width) for index in cells).rstrip()]
    lines.append("     " + " ".join(text.ljust(width) for text in cells.values()).rstrip())
    for entry in entries:
        each = f"{entry.replicas} x {entry.gpus} GPU{'' if entry.gpus == 1 else 's'}"
        lines.append(f"{letters[entry.name]}    {entry.name}: {each} ({entry.model})")
    free = list(cells.values()).count(".")
    return "\n".join([*lines, *([f".    {free} free"] if free else [])])


def block(entries: Sequence[Entry]) -> str:
    """Return `vllm_servers` for the inventory, as YAML."""
    lines = ["vllm_servers:"]
    for entry in entries:
        lines.append(f"  {entry.name}:")
        if entry.replicas > 1:
            lines.append(f"    replicas: {entry.replicas}")
        lines += [f"    gpus: {entry.gpus}", f"    vllm_server_model: {entry.model}"]
        if entry.args:
            inside = ", ".join(f"{name}: {value}" for name, value in entry.args.items())
            lines.append(f"    vllm_server_args: {{{inside}}}")
    return "\n".join(lines)


@dataclass(frozen=True)
class NodePlan:
    """What is shown of one node, and sentences on what cannot work."""

    text: str
    refusals: tuple[str, ...] = ()


def plan(
    name: str,
    machine: Machine,
    facts: Sequence[Facts],
    preset_of: Callable[[str, str], Preset],
    *,
    units: Sequence[share.Unit] = (),
    image_version: str = "",
    proposes: bool = False,
) -> NodePlan:
    """Return the table and picture of several models on a node, and (``proposes``) the block that fills it.

    ``preset_of`` returns the preset of a model for a kind of GPU; ``units`` are the node's GPUs where they are known.
    """
    where = f"{machine.gpus} x {machine.kind}" if name == "-" else f"{name} ({machine.gpus} x {machine.kind})"
    found: dict[str, list[Size]] = {}
    refusals = []
    for one in facts:
        try:
            found[one.model] = sizes(one, machine, preset_of(one.model, machine.kind), image_version)
        except ValueError as error:
            found[one.model] = []
            refusals.append(f"{where}: {one.model}: {error}")
            continue
        if not found[one.model]:
            refusals.append(f"{where}: {one.model} fits at no size")
    known = {model: those for model, those in found.items() if those}
    text = [f"{where}:", table([one for those in known.values() for one in those])] if known else []
    if known and not refusals:
        try:
            entries = fill(known, machine.gpus)
        except ValueError as error:
            return NodePlan("\n".join(text), (f"{where}: {error}",))
        there = units or [share.Unit(index) for index in range(machine.gpus)]
        text += ["", picture(entries, there), *(["", block(entries)] if proposes else [])]
    return NodePlan("\n".join(text), tuple(refusals))
