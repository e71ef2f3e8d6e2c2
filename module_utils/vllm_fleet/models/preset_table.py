# SPDX-License-Identifier: Apache-2.0
"""The variants of a model as a small table: what each takes, on how many GPUs. Pure: a preset in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..vllm import cli
from . import placement, presets, sizing

_COLUMNS = ("VARIANT", "MODEL", "WEIGHTS", *sizing.VRAM, "VLLM FROM")


def weights(one: Mapping[str, Any]) -> str:
    """Return the weights' bytes of a resolved preset, or the memory that its source names; empty without both."""
    size, least = one.get("weights_bytes"), one.get("vram_gb")
    return f"{size / 10**9:.1f} GB" if size else f"{least} GB of VRAM" if least else ""


def gpus(one: Mapping[str, Any], kind: str, mark: str) -> str:
    """Return how many GPUs of a kind one server has, with ``mark`` around it where a source served it there.

    A dash where a source says that it cannot, or where so many have less memory than it needs.
    """
    entries = one["accelerators"]
    if presets.ROCM not in entries:
        return ""
    made = presets.for_accelerator(one, presets.ROCM, kind)
    number = made.get("gpus") or placement.ranks(cli.normalise_args(made["args"])).local
    if made.get("unsupported") or number * sizing.VRAM[kind] < one.get("vram_gb", 0) * 10**9:
        return "-"
    return f"{mark}{number}{mark}" if (entries.get(kind) or {}).get("verified_by") else str(number)


def text(preset: Mapping[str, Any]) -> str:
    """Return what may be chosen of a preset: its variants and features; empty where there is nothing to choose."""
    parts = []
    if preset.get("variants"):
        body = [_COLUMNS]
        for name, one in presets.all_resolved(preset):
            counts = (gpus(one, kind, "*").removeprefix("*") for kind in sizing.VRAM)
            body.append((name or "(none)", one["model"], weights(one), *counts, one.get("min_vllm", "")))
        widths = [max(len(line[column]) for line in body) for column in range(len(_COLUMNS))]
        parts.append("Variants (vllm_server_variant), and the GPUs of one server; * where a source has served it:")
        parts += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in body]
    if preset.get("features"):
        parts.append(f"Features (vllm_server_features): {', '.join(preset['features'])}")
    return "\n".join(parts)
