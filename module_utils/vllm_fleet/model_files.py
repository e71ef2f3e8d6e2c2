"""A model's figures out of its own files: config.json and the weight index, in a folder or a cache. Reads files only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.vllm_fleet import snapshot
from ansible.module_utils.vllm_fleet.sizing import Facts

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


class ModelFilesError(Exception):
    """A file is there and cannot be used; the text is one sentence that names it."""


def of_folder(model: str, folder: Path, source: str = "") -> Facts | None:
    """Read a folder that has a model's config.json; None without one.

    The weights' bytes are the index's ``total_size``, else the sum of the safetensors files that are there; None where
    there is neither. A sum is taken only of files that are no part of an index, so a half copied model tells no size.
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
    known = isinstance(total, (int, float)) and total > 0
    return Facts(model, config, int(total) if known else None, source or str(folder / CONFIG))


def of_cache(model: str, caches: Iterable[Path], revision: str) -> Facts | None:
    """Read the first of ``caches`` (HF_HOME) that has the model's config.json at ``revision``; None when none has."""
    for cache in caches:
        try:
            commit, _ = snapshot.resolve(cache, model, revision or "main")
        except (OSError, snapshot.SnapshotError):
            continue
        if commit is None:
            continue
        folder = snapshot.repo_folder(cache, model) / "snapshots" / commit
        found = of_folder(model, folder, f"config.json in the cache, {commit[:12]}")
        if found is not None:
            return found
    return None


def find(model: str, caches: Iterable[Path], revision: str) -> Facts | None:
    """Read a model given as a path or as an id."""
    return of_folder(model, Path(model)) if model.startswith("/") else of_cache(model, caches, revision)


def complete(own: Facts | None, preset: Facts) -> Facts:
    """Return the model's own figures where it has them, and the preset's for what is not known yet."""
    if own is None:
        return preset
    weights = own.weights_bytes if own.weights_bytes is not None else preset.weights_bytes
    return replace(own, weights_bytes=weights, min_vllm=preset.min_vllm)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{path} cannot be read ({error}); bring it in anew.") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{path} holds no JSON object; bring it in anew.")
    return content
