# SPDX-License-Identifier: Apache-2.0
"""Filters about models: presets of models/*.yml, exact names, and the table of what fits. See module_utils' models/."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.models import (  # noqa: E402
    model_id,
    preset_files,
    presets,
    sizing,
    sizing_table,
    what_fits,
)
from ansible.module_utils.vllm_fleet.weights import layout  # noqa: E402

_SCHEMA = _ROOT / "models" / "schema.json"


def _all(path: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        # One spelling of the folder: it is read once before the workers are forked, and not by each of them.
        return preset_files.read((Path(path) if path else _ROOT / "models").resolve(), _SCHEMA)
    except preset_files.PresetError as error:
        raise AnsibleFilterError(str(error)) from error


def vllm_preset(model: str | None, accelerator: str = "rocm", gpu: str = "", path: str = "") -> dict[str, Any]:
    """Return a model's preset for an accelerator: `args`, `env`, `revision`, `verify`, figures.

    Every key is there, empty where the preset (or a model without one) says nothing. ``path`` is another folder of
    presets.
    """
    return presets.for_server(_all(path).get(str(model or ""), {}), str(accelerator), str(gpu or ""))


def vllm_model_fault(model: str | None, exact: bool = False, caches: Sequence[str] = (), path: str = "") -> str:
    """Return in one sentence why an id is refused, with the nearest known ones; empty when it is not.

    Known are the presets and what caches (HF_HOME) on this machine hold: the user's, the controller's, and `caches`.
    """
    text = str(model or "")
    return _verdict(text, exact, caches, path).sentence(text)


def vllm_model_findings(
    model: str | None, exact: bool = False, caches: Sequence[str] = (), path: str = ""
) -> list[dict[str, str]]:
    """Return the same as findings of preflight: one, or none where the id is good or empty."""
    text = str(model or "")
    found = _verdict(text, exact, caches, path).finding(text) if text else None
    return [dataclasses.asdict(found)] if found else []


def _verdict(model: str, exact: bool, caches: Sequence[str], path: str) -> model_id.Verdict:
    fleet = os.environ.get("VLLM_FLEET_CACHE") or "~/.cache/vllm-fleet"
    folders = [*map(str, caches), os.environ.get("HF_HOME") or "~/.cache/huggingface", f"{fleet}/seed"]
    cached = [one for folder in folders for one in layout.known_repos(Path(folder).expanduser())]
    return model_id.check(model, [*_all(path), *cached], exact=bool(exact))


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
    **server: Any,
) -> dict[str, Any]:
    """Size a model on nodes (their variables, with `plan_node` as rocm_info returned it) or on GPU `kinds` by name.

    `hosts` chooses among the nodes; `kinds` may be a text with commas.

    `facts` is what vllm_model_info returned, `args` and `env` are laid over the preset's, `image_version` is the
    image's tag. Without nodes that have GPUs and without kinds, all known kinds are taken. Returns `rows` for the
    table, `refusals` and `notes`.
    """
    model = sizing.Facts(**{key: facts[key] for key in ("model", "config", "weights_bytes", "source", "min_vllm")})

    def preset_of(accelerator: str, kind: str) -> dict[str, Any]:
        return vllm_preset(model.model, accelerator, kind, path)

    chosen = {host: (nodes or {})[host] for host in (nodes or {} if hosts is None else hosts)}
    plan = what_fits.plan(model, chosen, what_fits.named_kinds(kinds), int(gpus), preset_of=preset_of, **server)
    return {"rows": plan.rows, "refusals": plan.refusals, "notes": plan.notes}


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "vllm_preset": vllm_preset,
            "vllm_model_fault": vllm_model_fault,
            "vllm_model_findings": vllm_model_findings,
            "vllm_sizing_options": presets.sizing_options,
            "vllm_sizing_seen": vllm_sizing_seen,
            "vllm_sizing_table": vllm_sizing_table,
            "vllm_plan": vllm_plan,
            "vllm_given": vllm_given,
        }
