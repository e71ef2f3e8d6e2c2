"""Filters about models: presets of models/*.yml, exact names, and the table of what fits."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.utils.vars import load_extra_vars

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plugin_utils  # noqa: E402, F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.models import model_id, presets, sizing, sizing_table, what_fits  # noqa: E402
from ansible.module_utils.vllm_fleet.vllm import cli  # noqa: E402
from ansible.module_utils.vllm_fleet.weights import layout  # noqa: E402

#: Every worker of a run reads the files once; libyaml does it ten times faster where PyYAML has it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _all(path: str) -> Mapping[str, Mapping[str, Any]]:
    folder = Path(path) if path else _ROOT / "models"
    # Read once a run and again when a file has changed: every host of a play asks several times.
    files = tuple((str(file), file.stat().st_mtime_ns) for file in sorted(folder.glob("*.yml")))
    return _read(files)


@functools.lru_cache(maxsize=8)
def _read(files: tuple[tuple[str, int], ...]) -> Mapping[str, Mapping[str, Any]]:
    rules = json.loads((_ROOT / "models" / "schema.json").read_text(encoding="utf-8"))
    found: dict[str, Mapping[str, Any]] = {}
    for file, _ in files:
        try:
            content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe one
        except (OSError, yaml.YAMLError) as error:
            raise AnsibleFilterError(f"{file} is no YAML: {error}") from error
        wrong = presets.faults(content, rules)
        if wrong:
            raise AnsibleFilterError(f"{file}: {'; '.join(wrong)}. docs/models.md says what a preset looks like.")
        if content["model"] in found:
            raise AnsibleFilterError(f"{file}: {content['model']} has a preset already; keep one of the two files.")
        found[content["model"]] = {**content, "file": Path(file).name}
    return found


def vllm_preset(model: str | None, accelerator: str = "rocm", gpu: str = "", path: str = "") -> dict[str, Any]:
    """Give a model's preset for an accelerator: `args`, `env`, `revision`, `verify`, figures.

    Every key is there, empty where the preset (or a model without one) says nothing.
    """
    content = _all(path).get(str(model or ""), {})
    out = {"revision": "", "gated": False, "min_vllm": "", "weights_bytes": 0, "config": {}, "verify": [], "file": ""}
    return {**out, **presets.for_accelerator(content, str(accelerator), str(gpu or ""))}


def vllm_model_fault(model: str | None, exact: bool = False, caches: Sequence[str] = (), path: str = "") -> str:
    """Say in one sentence why an id is refused, with the nearest known ones; empty when it is not.

    Known are the presets and what caches (HF_HOME) on this machine hold: the user's, the controller's, and `caches`.
    """
    text = str(model or "")
    return _judged(text, exact, caches, path).sentence(text)


def vllm_model_findings(
    model: str | None, exact: bool = False, caches: Sequence[str] = (), path: str = ""
) -> list[dict[str, str]]:
    """Give the same as a finding of preflight; none where the id is good, or where there is none at all."""
    text = str(model or "")
    verdict = _judged(text, exact, caches, path)
    if verdict.ok or not text:
        return []
    expected = " or ".join(verdict.nearest) or f"an exact id such as {model_id.EXAMPLE}"
    remedy = "nothing is guessed: write the exact id, as in the model's address on the Hub"
    if "/" in text and verdict.nearest:
        remedy += ", or set vllm_server_model_exact: true if it is another model"
    got = f"'{text}' ({verdict.fault})"
    return [{"level": "refused", "what": "model's id", "expected": expected, "got": got, "remedy": remedy}]


def _judged(model: str, exact: bool, caches: Sequence[str], path: str) -> model_id.Verdict:
    folders = [*map(str, caches), *_own_caches()]
    cached = [one for folder in folders for one in layout.known_repos(Path(folder).expanduser())]
    return model_id.check(model, [*_all(path), *cached], exact=bool(exact))


def _own_caches() -> list[str]:
    fleet = os.environ.get("VLLM_FLEET_CACHE") or "~/.cache/vllm-fleet"
    return [os.environ.get("HF_HOME") or "~/.cache/huggingface", f"{fleet}/seed"]


def vllm_sizing_table(rows: Sequence[Sequence[Any]], arithmetic: bool = False) -> str:
    """Write [node, row] pairs as a table.

    A row may be what preflight_host returned as a whole; a node that was not asked, or knows nothing, is left out.
    """
    found = [(str(node), row if "machine" in row else row.get("sizing")) for node, row in rows if row]
    return sizing_table.table([(node, row) for node, row in found if row], arithmetic=arithmetic)


def vllm_sizing_options(
    preset: Mapping[str, Any],
    args: Mapping[str, Any],
    env: Mapping[str, Any],
    *,
    replica: int = 1,
    revision: str = "",
    image_version: str = "",
    exact: bool = False,
    token_missing: bool = False,
    devices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Give the option `sizing` of preflight_host: what the server will be started with, and what its preset knows.

    `args` and `env` are laid over the preset's; `replica` is the number of hosts that share one server, `devices` those
    of the container where they are not all.
    """
    shared = {"nnodes": replica} if replica > 1 else {}
    mine = {cli.flag_name(str(key)) for key in args}
    kept = {key: value for key, value in {**preset["args"], **shared}.items() if cli.flag_name(str(key)) not in mine}
    return {
        "args": {**kept, **args},
        "env": {**preset["env"], **env},
        "devices": devices,
        "revision": revision or preset["revision"],
        **{key: preset[key] for key in ("config", "weights_bytes", "min_vllm")},
        "image_version": image_version,
        "preset": preset["file"],
        "gated": bool(preset["gated"]) and token_missing,
        "exact": exact,
    }


def vllm_given(names: Sequence[str]) -> bool:
    """Tell whether one of these variables is given on the command line (`-e`), where it hides the inventory's own."""
    given = load_extra_vars(DataLoader())
    return any(name in given for name in names)


def vllm_plan(
    facts: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
    kinds: Sequence[str] = (),
    gpus: int = 8,
    *,
    args: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    path: str = "",
    image_version: str = "",
) -> dict[str, Any]:
    """Size a model on nodes (their variables, with `plan_node` as rocm_info returned it) or on GPU `kinds` by name.

    `facts` is what vllm_model_info returned, `args` and `env` are laid over the preset's. Without either nodes with
    GPUs or kinds, all kinds that are known are taken. Gives `rows` for the table, `refusals` and `notes`.
    """
    model = sizing.Facts(**{key: facts[key] for key in ("model", "config", "weights_bytes", "source", "min_vllm")})
    result = what_fits.Plan()
    for name, value in (("vllm_server_args", args), ("vllm_server_env", env)):
        if value is not None and not isinstance(value, Mapping):
            example = f'-e \'{{"{name}": {{"NAME": "VALUE"}}}}\''
            result.refusals.append(f"{name} is text; expected a mapping, which on the command line is {example}")
            return {"rows": [], "refusals": result.refusals, "notes": []}
    try:
        together, sizes = what_fits.together(nodes or {})
        machines = what_fits.machines(together, kinds, int(gpus))
        for name, accelerator, machine in machines:
            preset = vllm_preset(model.model, accelerator, machine.kind, path)
            shared = {"nnodes": str(sizes[name])} if sizes.get(name, 1) > 1 else {}
            given = {**_normal(preset["args"]), **_normal(args or {}), **shared}
            result.add(name, model, machine, what_fits.Asked(given, {**preset["env"], **(env or {})}, image_version))
    except ValueError as error:
        result.refusals.append(str(error))
    return {"rows": result.rows, "refusals": result.refusals, "notes": result.notes}


def _normal(args: Mapping[str, Any]) -> dict[str, Any]:
    return dict(cli.normalise_args(args))


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {
            "vllm_preset": vllm_preset,
            "vllm_model_fault": vllm_model_fault,
            "vllm_model_findings": vllm_model_findings,
            "vllm_sizing_options": vllm_sizing_options,
            "vllm_sizing_table": vllm_sizing_table,
            "vllm_plan": vllm_plan,
            "vllm_given": vllm_given,
        }
