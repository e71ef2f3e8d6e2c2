# SPDX-License-Identifier: Apache-2.0
"""The presets of models/*.yml and the ids that are known on this machine; what filters and actions share of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

import plugin_utils  # noqa: F401 - finds vllm_fleet
from ansible.module_utils.vllm_fleet.models import model_id, preset_files, presets
from ansible.module_utils.vllm_fleet.weights import layout

_ROOT = Path(__file__).resolve().parent.parent
_SCHEMA = _ROOT / "models" / "schema.json"


def _all(path: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        # One spelling of the folder: it is read once before the workers are forked, and not by each of them.
        return preset_files.read((Path(path) if path else _ROOT / "models").resolve(), _SCHEMA, _cache() / "presets")
    except preset_files.PresetError as error:
        raise AnsibleFilterError(str(error)) from error


def _cache() -> Path:
    """Return the project's folder on the controller for what need not be made again."""
    return Path(os.environ.get("VLLM_FLEET_CACHE") or "~/.cache/vllm-fleet").expanduser()


def preset(model: str | None, accelerator: str = "rocm", gpu: str = "", path: str = "") -> dict[str, Any]:
    """Return a model's preset for an accelerator: `args`, `env`, `revision`, `verify`, figures.

    Every key is there, empty where the preset (or a model without one) says nothing. ``path`` is another folder of
    presets.
    """
    return presets.for_server(_all(path).get(str(model or ""), {}), str(accelerator), str(gpu or ""))


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


def _verdict(model: str, exact: bool, caches: Sequence[str], path: str) -> model_id.Verdict:
    folders = [*map(str, caches), os.environ.get("HF_HOME") or "~/.cache/huggingface", str(_cache() / "seed")]
    cached = [one for folder in folders for one in layout.known_repos(Path(folder).expanduser())]
    return model_id.check(model, [*_all(path), *cached], exact=bool(exact))
