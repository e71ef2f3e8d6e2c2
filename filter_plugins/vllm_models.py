# SPDX-License-Identifier: Apache-2.0
"""Filters about models: presets of models/*.yml, exact names, and the table of what fits. See module_utils' models/."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.host import share
from ansible.module_utils.vllm_fleet.models import node_plan, presets, sizing, sizing_table, what_fits
from ansible.module_utils.vllm_fleet.vllm import host_variables
from plugin_utils import model_presets

_FACTS = ("model", "config", "weights_bytes", "source", "min_vllm")


def vllm_sizing_table(rows: Sequence[Sequence[Any]], arithmetic: bool = False) -> str:
    """Return [node, row] pairs as a table; a row may be what preflight_host returned as a whole."""
    return sizing_table.table(sizing_table.of_nodes(rows), arithmetic=arithmetic)


def vllm_sizing_seen(
    hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str], *, arithmetic: bool = False
) -> str:
    """Return what preflight found on ``hosts`` as the same table."""
    return sizing_table.table(sizing_table.of_hosts(hostvars, hosts), arithmetic=arithmetic)


def vllm_given(names: Sequence[str]) -> bool:
    """Return whether a variable is given on the command line (`-e`), where it hides the inventory's own."""
    given = load_extra_vars(DataLoader())
    return any(name in given for name in names)


def vllm_plan(
    facts: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
    kinds: str | Sequence[str] = (),
    gpus: int = 8,
    *,
    hosts: Sequence[str] | None = None,
    path: str = "",
    choice: Mapping[str, Any] | None = None,
    **server: Any,
) -> dict[str, Any]:
    """Size a model on nodes (their variables, with `plan_node` as rocm_info returned it) or on GPU `kinds` by name.

    `hosts` chooses among the nodes; `kinds` may be a text with commas.

    `choice` is the model as it is deployed, its variant and features; without it the model of `facts` with neither.

    `facts` is what vllm_model_info returned, `args` and `env` are laid over the preset's, `image_version` is the
    image's tag. Without nodes that have GPUs and without kinds, all known kinds are taken. Returns `rows` for the
    table, `refusals` and `notes`.
    """
    model = sizing.Facts(**{key: facts[key] for key in _FACTS})

    def preset_of(accelerator: str, kind: str) -> dict[str, Any]:
        return model_presets.preset(
            **{"model": model.model, **(choice or {})}, accelerator=accelerator, gpu=kind, path=path
        )

    chosen = {host: (nodes or {})[host] for host in (nodes or {} if hosts is None else hosts)}
    plan = what_fits.plan(model, chosen, what_fits.named_kinds(kinds), int(gpus), preset_of=preset_of, **server)
    return {"rows": plan.rows, "refusals": plan.refusals, "notes": plan.notes}


def vllm_node_plan(
    facts: Sequence[Mapping[str, Any]],
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
    kinds: str | Sequence[str] = (),
    gpus: int = 8,
    *,
    hosts: Sequence[str] = (),
    path: str = "",
    image_version: str = "",
    proposes: bool = False,
) -> dict[str, Any]:
    """Plan how several models share a node: `texts` for people, a text for each kind of node, and `refusals`.

    `facts` are results of vllm_model_info; the rest is as for vllm_plan. Of the servers of one node its first stands
    for the whole node. `proposes`: with `vllm_servers` that fill it.
    """
    models = [sizing.Facts(**{key: one[key] for key in _FACTS}) for one in facts]

    def preset_of(model: str, kind: str) -> dict[str, Any]:
        return model_presets.preset(model, presets.ROCM, kind, path)

    first: dict[str, Mapping[str, Any]] = {}
    for host in hosts:
        probed = (nodes or {})[host].get("plan_node") or {}
        first.setdefault(host_variables.node_of((nodes or {})[host], host), {"plan_node": probed})
    texts: list[str] = []
    refusals: list[str] = []
    try:
        found = what_fits.machines(first, what_fits.named_kinds(kinds), int(gpus))
    except ValueError as error:
        return {"texts": texts, "refusals": [str(error)]}
    for name, _, machine in found:
        there = (first.get(name) or {}).get("plan_node") or {}
        units = [share.Unit(int(one["index"]), device=str(one.get("pci") or "")) for one in there.get("gpus") or []]
        made = node_plan.plan(
            name, machine, models, preset_of, units=units, image_version=image_version, proposes=proposes
        )
        texts += [made.text] if made.text else []
        refusals += made.refusals
    return {"texts": texts, "refusals": refusals}


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "vllm_preset": model_presets.preset,
            "vllm_least_request": model_presets.least_request,
            "vllm_choice_fault": model_presets.choice_fault,
            "vllm_choices": model_presets.choices,
            "vllm_weights": model_presets.weights,
            "vllm_model_fault": model_presets.fault,
            "vllm_sizing_options": presets.sizing_options,
            "vllm_sizing_seen": vllm_sizing_seen,
            "vllm_sizing_table": vllm_sizing_table,
            "vllm_plan": vllm_plan,
            "vllm_node_plan": vllm_node_plan,
            "vllm_named": what_fits.named_kinds,
            "vllm_given": vllm_given,
        }
