# SPDX-License-Identifier: Apache-2.0
"""The presets of models/*.yml and the ids that are known on this machine; what filters and actions share of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.models import model_id, preset_files, preset_table, presets
from ansible.module_utils.vllm_fleet.vllm import chat_options
from ansible.module_utils.vllm_fleet.weights import layout
from plugin_utils import cache_folder

_ROOT = Path(__file__).resolve().parent.parent
_SCHEMA = _ROOT / "models" / "schema.json"


def _all(path: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        # One spelling of the folder: it is read once before the workers are forked, and not by each of them.
        folder = (Path(path) if path else _ROOT / "models").resolve()
        return preset_files.read(folder, _SCHEMA, cache_folder.path() / "presets")
    except preset_files.PresetError as error:
        raise AnsibleFilterError(str(error)) from error


def preset(
    model: str | None,
    accelerator: str = "rocm",
    gpu: str = "",
    path: str = "",
    *,
    variant: str | None = "",
    features: Sequence[str] | None = (),
) -> dict[str, Any]:
    """Return a model's preset for an accelerator: `args`, `env`, `revision`, `verify`, figures.

    Every key is there, empty where the preset (or a model without one) says nothing. ``model`` in it is whose weights
    are loaded: a variant may have its own. ``path`` is another folder of presets.
    """
    own = _all(path).get(str(model or ""), {})
    try:
        return presets.for_server(
            own, str(accelerator), str(gpu or ""), variant=str(variant or ""), features=_names(features)
        )
    except presets.ChoiceError as error:
        raise AnsibleFilterError(f"{error}.") from None


def weights(model: str | None, variant: str | None = "", path: str = "") -> str:
    """Return whose weights a server loads: the model itself, or the repository of its variant."""
    return str(preset(model, path=path, variant=variant)["model"] or model or "") if variant else str(model or "")


def choice_fault(choice: Mapping[str, Any], path: str = "") -> str:
    """Return in one sentence which variant or feature a model does not have; empty where it has what is chosen."""
    features = _names(choice.get("features"))
    own = _all(path).get(str(choice.get("model") or ""), {})
    wrong = presets.wrong_choice(own, str(choice.get("variant") or ""), features)
    return f"{wrong}." if wrong else ""


def least_request(
    model: str | None, verify: Sequence[Mapping[str, Any]] | None = None, path: str = ""
) -> dict[str, Any]:
    """Return options of vllm_chat for the shortest request that a server of the model answers.

    Its API is that of the first request of ``verify`` (the inventory's vllm_server_verify), else of the preset's own.
    """
    asked = verify or _all(path).get(str(model or ""), {}).get("verify") or [{}]
    return chat_options.least(str(asked[0].get("api") or "chat"))


def questions(
    model: str | None, verify: Sequence[Mapping[str, Any]] | None = None, path: str = ""
) -> list[dict[str, Any]]:
    """Return the questions of models/questions for a model's kind, by the API of least_request()."""
    api = least_request(model, verify, path)["api"]
    kind = api if api in ("chat", "completions") else "pooled"
    asked: list[dict[str, Any]] = yaml.safe_load((_ROOT / "models" / "questions" / f"{kind}.yml").read_text("utf-8"))
    return [{"api": api, **one} for one in asked]


def choices(model: str | None, path: str = "") -> str:
    """Return which variants and features a model has, for people; empty where there is nothing to choose."""
    return preset_table.text(_all(path).get(str(model or ""), {}))


def _names(features: Any) -> list[str]:
    if isinstance(features, str):
        raise AnsibleFilterError(f"vllm_server_features is {features!r}; expected a list, such as [tools, reasoning].")
    return [str(name) for name in features or ()]


def fault(model: str | None, exact: bool = False, caches: Sequence[str] = (), path: str = "") -> str:
    """Return in one sentence why an id is refused, with the nearest known ones; empty when it is not.

    Known are the presets and what caches (HF_HOME) on this machine hold: the user's, the controller's, and `caches`.
    """
    text = str(model or "")
    return _verdict(text, exact, caches, path).sentence(text)


def findings(
    model: str | None, exact: bool = False, caches: Sequence[str] = (), path: str = ""
) -> list[dict[str, str]]:
    """Return the same as findings of preflight: one, or none where the id is good or empty."""
    text = str(model or "")
    found = _verdict(text, exact, caches, path).finding(text) if text else None
    return [dataclasses.asdict(found)] if found else []


def choice(model: str | None, path: str, variant: str | None, features: Any) -> list[dict[str, str]]:
    """Return the finding on a variant or feature that the model's preset does not have; none where it has them."""
    names = [str(name) for name in features] if isinstance(features, (list, tuple)) else [str(features or "")]
    names = [name for name in names if name]
    wrong = presets.wrong_choice(_all(path).get(str(model or ""), {}), str(variant or ""), names)
    if not wrong:
        return []
    what = "vllm_server_variant" if wrong.startswith("vllm_server_variant") else "vllm_server_features"
    remedy = "write one of these, or take the variable out (docs/models.md)"
    wanted = "what the model's preset has"
    return [{"level": "refused", "what": what, "expected": wanted, "got": wrong.partition(" is ")[2], "remedy": remedy}]


def _verdict(model: str, exact: bool, caches: Sequence[str], path: str) -> model_id.Verdict:
    own = str(cache_folder.path() / "seed")
    folders = [*map(str, caches), os.environ.get("HF_HOME") or "~/.cache/huggingface", own]
    cached = [one for folder in folders for one in layout.known_repos(Path(folder).expanduser())]
    return model_id.check(model, [*_all(path), *cached], exact=bool(exact))
