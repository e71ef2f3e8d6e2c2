"""Presets of models, as models/*.yml has them: is one right, and what does it say for an accelerator. Pure.

The schema is models/schema.json; what no schema can say (figures that must agree with each other) is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..vllm.cli import CommandError
from . import json_schema, sizing

#: Accelerators that are not laid over ``rocm``.
CPU = "cpu"
ROCM = "rocm"


def faults(preset: Any, rules: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one file's content, a clause each; ``rules`` is the parsed schema."""
    found = json_schema.faults(preset, rules)
    if found:
        return found
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
    own becomes the flag.
    """
    entries = preset.get("accelerators") or {}
    layers = [entries.get(accelerator) or {}]
    if accelerator == ROCM and gpu:
        layers.append(entries.get(sizing.gpu_kind(gpu)) or {})
    out = {key: value for key, value in preset.items() if key != "accelerators"}
    out["args"] = {key: value for layer in layers for key, value in (layer.get("args") or {}).items()}
    out["env"] = {key: value for layer in layers for key, value in (layer.get("env") or {}).items()}
    if preset.get("served_name") not in (None, preset.get("model")):
        out["args"] = {"served-model-name": preset["served_name"], **out["args"]}
    return out
