# SPDX-License-Identifier: Apache-2.0
"""A model's figures out of its own files, config.json and the weight index, in a folder or a cache. Reads files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common import received
from ..common.finding import Finding
from ..vllm.cli import CommandError
from ..weights import layout, snapshot
from . import model_id, sizing
from .sizing import Facts, Sizing

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"

#: Findings of a sizing for which the machine does not matter.
_OF_THE_MODEL = ("tensor-parallel-size", "context")


class ModelFilesError(Exception):
    """A file is there and cannot be used; the text is one sentence that names it."""


def of_folder(model: str, folder: Path, source: str = "") -> Facts | None:
    """Return the figures of a folder that has a model's config.json; None without one.

    The weights' bytes are the index's ``total_size``, else the sum of the safetensors files that are there; None where
    there is neither. A sum is taken only of files that are no part of an index, so a half copied model has no size.
    """
    config = _json(folder / CONFIG)
    if config is None:
        return None
    total: Any = None
    index = _json(folder / INDEX)
    if index is not None:
        metadata = index.get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
    else:
        sizes = [path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file()]
        total = sum(sizes)
    known = isinstance(total, (int, float)) and math.isfinite(total) and total > 0
    return Facts(model, config, int(total) if known else None, source or str(folder / CONFIG))


def of_cache(model: str, caches: Iterable[Path], revision: str) -> Facts | None:
    """Return the figures of the first of ``caches`` (HF_HOME) with the model's config.json at ``revision``, or None."""
    for cache in caches:
        repository = layout.Repository(cache, model)
        try:
            commit, _ = snapshot.resolve(repository, revision or "main")
        except OSError:
            continue
        if commit is None:
            continue
        found = of_folder(model, repository.snapshot(commit), f"config.json in the cache, {commit[:12]}")
        if found is not None:
            return found
    return None


def find(model: str, caches: Iterable[Path], revision: str) -> Facts | None:
    """Return the figures of a model given as a path or as an id; None when there is none."""
    return of_folder(model, Path(model)) if model.startswith("/") else of_cache(model, caches, revision)


def complete(own: Facts | None, preset: Facts) -> Facts:
    """Return the model's own figures where it has them, and the preset's for what is not known yet."""
    if own is None:
        return preset
    weights = own.weights_bytes if own.weights_bytes is not None else preset.weights_bytes
    return replace(own, weights_bytes=weights, min_vllm=preset.min_vllm)


def on_node(
    model: str, asked: Mapping[str, Any], node: Mapping[str, Any] | None, cache: Path | None
) -> tuple[Sizing | None, list[Finding]]:
    """Return the sizing of a model on this node, and findings about it and its id from the node's cache.

    ``asked`` is the option sizing of preflight_host, ``node`` what rocm_info returned (None: a server without GPUs).
    The model's own files come before its preset's figures. Where GPUs are expected and none was found, which is another
    finding, only what the model itself refuses is said.
    """
    found: list[Finding] = []
    if not asked["preset"] and cache is not None:
        verdict = model_id.check(model, layout.known_repos(cache), exact=bool(asked["exact"]))
        # Of a name that is no id at all, the controller has said so, with what it knows.
        if verdict.nearest:
            remedy = "write the id exactly, or set vllm_server_model_exact: true if it is another model"
            found.append(
                Finding("refused", "model's id", f"{' or '.join(verdict.nearest)} (in the cache)", model, remedy)
            )
    preset = Facts(
        model,
        asked["config"],
        asked["weights_bytes"] or None,
        f"models/{asked['preset']}" if asked["preset"] else "",
        asked["min_vllm"],
    )
    try:
        own = find(model, [cache] if cache else [], asked["revision"])
        if own is None and asked["gated"]:
            remedy = "accept it on the model's page, and give the token of that account (hf_token, from vault)"
            found.append(Finding("warning", "licence", "a token for a gated model", "none", remedy))
        facts = complete(own, preset)
        machine = sizing.Machine("CPU")
        if node is not None:
            machine = sizing.of_gpus(node.get("gpus") or [], asked["env"], asked.get("devices"))
        sized = sizing.size(facts, machine, asked["args"], asked["env"], image_version=asked["image_version"])
        if node is not None and not machine.gpus:
            return None, [
                *found,
                *(one for one in sized.findings if one.level == "refused" and one.what in _OF_THE_MODEL),
            ]
    except (ModelFilesError, CommandError, ValueError) as error:
        args = isinstance(error, CommandError)
        remedy = "correct vllm_server_args" if args else "correct vllm_server_args, or bring the model in again"
        return None, [
            *found,
            Finding("refused", "what fits", "figures and arguments to compute with", str(error), remedy),
        ]
    return sized, [*found, *sized.findings]


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = received.parsed(received.content(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{path} cannot be read ({error}); bring it in again.") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{path} holds no JSON object; bring it in again.")
    return content
