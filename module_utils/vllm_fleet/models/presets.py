# SPDX-License-Identifier: Apache-2.0
"""Presets of models, as models/*.yml has them: do its figures agree, and what does it say for an accelerator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..vllm.cli import CommandError, flag_name
from . import sizing

#: Accelerators that are not laid over ``rocm``.
CPU = "cpu"
ROCM = "rocm"


_EMPTY: Mapping[str, Any] = {
    "revision": "",
    "gated": False,
    "min_vllm": "",
    "weights_bytes": 0,
    "config": {},
    "verify": [],
    "file": "",
}


def faults(preset: Mapping[str, Any]) -> list[str]:
    """Return the figures of a preset that do not agree with each other, a clause each; the schema holds already."""
    found = []
    for name, entry in preset["accelerators"].items():
        stated = entry.get("bytes_per_gpu")
        if stated is None:
            continue
        counted = _bytes_per_gpu(preset, name)
        if stated != counted:
            found.append(f"accelerators.{name}.bytes_per_gpu is {stated}; with these arguments it is {counted}")
    for number, request in enumerate(preset.get("verify", []), 1):
        if preset["api"] == "completions" and request["api"] == "chat":
            found.append(f"verify[{number}] asks the chat API of a model whose api is completions")
    return found


def _bytes_per_gpu(preset: Mapping[str, Any], name: str) -> int | str:
    try:
        args = for_accelerator(preset, CPU if name == CPU else ROCM, "" if name in (CPU, ROCM) else name)["args"]
        sized = sizing.size(facts(preset), sizing.Machine(name, 1), args)
    except (CommandError, ValueError) as error:
        return f"unknown ({error})"
    return "unknown" if sized.weights_per_gpu is None else sized.weights_per_gpu


def facts(preset: Mapping[str, Any], source: str = "") -> sizing.Facts:
    """Return a preset's figures for the arithmetic."""
    return sizing.Facts(
        model=str(preset.get("model") or ""),
        config=preset.get("config") or {},
        weights_bytes=preset.get("weights_bytes"),
        source=source,
        min_vllm=str(preset.get("min_vllm") or ""),
    )


def for_accelerator(preset: Mapping[str, Any], accelerator: str, gpu: str = "") -> dict[str, Any]:
    """Return a preset with ``args`` and ``env`` of one accelerator instead of all; {} stays a preset that says nothing.

    ``gpu`` is a GPU's kind or product name; its own entry is laid over ``rocm``, flag by flag. A served name of its
    own becomes the flag. ``gpus`` is how many its source gives one server, where it says so.
    """
    entries = preset.get("accelerators") or {}
    layers = [entries.get(accelerator) or {}]
    if accelerator == ROCM and gpu:
        layers.append(entries.get(sizing.gpu_kind(gpu)) or {})
    out = {key: value for key, value in preset.items() if key != "accelerators"}
    out["args"] = {key: value for layer in layers for key, value in (layer.get("args") or {}).items()}
    out["env"] = {key: value for layer in layers for key, value in (layer.get("env") or {}).items()}
    given = [layer["gpus"] for layer in layers if "gpus" in layer]
    if given:
        out["gpus"] = given[-1]
    if preset.get("served_name") not in (None, preset.get("model")):
        out["args"] = {"served-model-name": preset["served_name"], **out["args"]}
    return out


def for_server(preset: Mapping[str, Any], accelerator: str, gpu: str = "") -> dict[str, Any]:
    """Return the same with every key, empty where the preset, or a model without one, says nothing."""
    return {**_EMPTY, **for_accelerator(preset, accelerator, gpu)}


def lay_over(args: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags ``wanted`` laid over a preset's ``args``: `max_model_len` replaces `max-model-len`.

    A null takes a preset's flag away. The result has each flag under its long, hyphenated name. Two spellings of one
    flag inside ``wanted`` stay as they are: the module refuses them and names both.
    """
    merged = {flag_name(str(key)): value for key, value in args.items()}
    given = Counter(flag_name(str(key)) for key in wanted)
    for flag in given:
        merged.pop(flag, None)
    for key, value in wanted.items():
        flag = flag_name(str(key))
        merged[flag if given[flag] == 1 else str(key)] = value
    return merged


def sizing_options(
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
    """Return the option `sizing` of preflight_host: what the server will be started with, and what its preset knows.

    ``preset`` is as `for_server` returns it; ``args`` and ``env`` are laid over its own. ``replica`` is the number of
    hosts that share one server, ``devices`` those of the container where they are not all.
    """
    shared = {"nnodes": replica} if replica > 1 else {}
    mine = {flag_name(str(key)) for key in args}
    kept = {key: value for key, value in {**preset["args"], **shared}.items() if flag_name(str(key)) not in mine}
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
