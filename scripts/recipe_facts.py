# SPDX-License-Identifier: Apache-2.0
"""What vllm-project/recipes says about AMD GPUs, as facts without their texts, and where a preset says otherwise.

A recipe's layers, each over the one before (CONTRIBUTING.md there): base_args and base_env, the variant's extra_args
and extra_env, hardware_overrides.amd, the variant's hardware_overrides of a GPU. Commands inside a recipe's guide are
prose: a person reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_fleet.models import presets
from vllm_fleet.vllm import cli, releases

KINDS = ("MI300X", "MI325X", "MI355X")
#: Our names of features, by theirs.
FEATURES = {
    "tool_calling": "tools",
    "reasoning": "reasoning",
    "spec_decoding": "speculative",
    "text_only": "text_only",
    "encoder_parallel": "encoder_parallel",
}
_SHORT = {"-cc": "compilation-config", "-tp": "tensor-parallel-size", "-dp": "data-parallel-size"}


def flags(words: Sequence[Any] | None) -> dict[str, Any]:
    """Return a command's words as flags: true where a flag has no value, JSON as what it holds, the rest as text."""
    found: dict[str, Any] = {}
    name = ""
    for word in map(str, words or ()):
        if word.startswith("-") and not word.lstrip("-").isdigit():
            head, equals, value = word.partition("=")
            stem, dot, path = head.partition(".")
            stem = _SHORT.get(stem, stem.lstrip("-").replace("_", "-"))
            name = f"{stem}{dot}{path}"
            found[name] = _value(value) if equals else True
        else:
            found[name] = _value(word)
    return {
        (key.removeprefix("no-") if value is True else key): (value if not key.startswith("no-") else False)
        for key, value in found.items()
    }


def _value(word: str) -> Any:
    if word[:1] in "{[":
        return json.loads(word)
    return word


def facts(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a recipe that matter on AMD GPUs, in JSON's types."""
    model, meta = recipe["model"], recipe["meta"]
    amd = (recipe.get("hardware_overrides") or {}).get("amd") or {}
    tensor = ((recipe.get("strategy_overrides") or {}).get("single_node_tp") or {}).get("tp")
    found: dict[str, Any] = {
        "model": model["model_id"],
        "updated": str(meta.get("date_updated", "")),
        "min_vllm": str(model.get("min_vllm_version", "")),
        "image": _image(model.get("docker_image")),
        "context": model.get("context_length"),
        "gpus": {kind: state for kind, state in _of_kinds(meta.get("hardware")) if state},
        "tensor_parallel": tensor if isinstance(tensor, int) else None,
        "args": flags(model.get("base_args")),
        "env": _texts(model.get("base_env")),
        "amd": {"args": flags(amd.get("extra_args")), "env": _texts(amd.get("extra_env"))},
        "features": {name: _feature(one) for name, one in (recipe.get("features") or {}).items()},
        "variants": {
            name: _variant(one, model["model_id"])
            for name, one in (recipe.get("variants") or {}).items()
            if one.get("precision") != "nvfp4"  # of NVIDIA alone
        },
    }
    return _filled(found)


def _of_kinds(given: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    for kind in KINDS:
        yield kind, (given or {}).get(kind.lower())


def _image(given: Any) -> str:
    return str(given.get("amd") or "") if isinstance(given, Mapping) else ""


def _texts(given: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(name): str(value) for name, value in (given or {}).items()}


def _feature(given: Mapping[str, Any]) -> dict[str, Any]:
    modes = given.get("modes") or {}
    chosen = modes.get(given.get("default_mode"), given)
    amd = (given.get("hardware_overrides") or {}).get("amd") or {}
    return flags(amd.get("args") or chosen.get("args"))


def _variant(given: Mapping[str, Any], model: str) -> dict[str, Any]:
    own = {kind: over for kind, over in _of_kinds(given.get("hardware_overrides")) if over}
    return {
        "model": given.get("model_id", model),
        "precision": given.get("precision", ""),
        "vram_gb": given.get("vram_minimum_gb"),
        "min_vllm": str(given.get("min_vllm_version", "")),
        "tensor_parallel": given.get("tp"),
        "only": [kind for kind in KINDS if kind.lower() in (given.get("supported_hardware") or ())],
        "args": flags(given.get("extra_args")),
        "env": _texts(given.get("extra_env")),
        "gpus": {
            kind: {"args": flags(over.get("extra_args")), "env": _texts(over.get("extra_env"))}
            for kind, over in own.items()
        },
    }


def _filled(given: Any) -> Any:
    """Return the same without what is empty, so that a diff of two recordings shows facts alone."""
    if isinstance(given, Mapping):
        whole = {key: _filled(value) for key, value in given.items()}
        return {key: value for key, value in whole.items() if value not in (None, "", {}, [])}
    return given


def wanted(recipe: Mapping[str, Any], variant: str, kind: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return flags and environment that a recipe's facts give one variant on a kind of GPU."""
    chosen = recipe["variants"][variant]
    layers = [recipe, chosen, recipe.get("amd") or {}, (chosen.get("gpus") or {}).get(kind) or {}]
    return (
        {name: value for layer in layers for name, value in (layer.get("args") or {}).items()},
        {name: value for layer in layers for name, value in (layer.get("env") or {}).items()},
    )


def differences(preset: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return where a preset and its recipe's facts differ: what, and what each of them has."""
    own = preset["recipe"]
    pairs = {"": own.get("variant", "default"), **(own.get("variants") or {})}
    found: dict[str, str] = {}
    for ours, theirs in pairs.items():
        one = presets.resolved(preset, ours)
        chosen = recipe["variants"].get(theirs)
        if chosen is None:
            found[f"variants.{ours}" if ours else "variant"] = f"the recipe has no variant {theirs}"
            continue
        least = max(
            (chosen.get("min_vllm"), recipe.get("min_vllm")), key=lambda one: releases.version_of(one or "") or (0,)
        )
        _compare(found, "model", one["model"], chosen.get("model", recipe["model"]))
        _compare(found, "min_vllm", one.get("min_vllm"), least)
        _compare(found, "vram_gb", one.get("vram_gb"), chosen.get("vram_gb"))
        _compare_gpus(found, one, recipe, theirs, checked=not ours)
        _compare_features(found, one, recipe)
    return found


def _compare(found: dict[str, str], what: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        found[what] = (
            f"preset {ours if ours is not None else 'nothing'}, recipe {theirs if theirs is not None else 'nothing'}"
        )


def _compare_gpus(
    found: dict[str, str], one: Mapping[str, Any], recipe: Mapping[str, Any], variant: str, *, checked: bool
) -> None:
    entries, states = one["accelerators"], recipe.get("gpus") or {}
    only = recipe["variants"][variant].get("only")
    for kind in KINDS:
        entry = entries.get(kind) or {}
        state = "unsupported" if entry.get("unsupported") else "verified" if entry.get("verified_by") else None
        if checked:
            _compare(found, kind, state, states.get(kind))
        if state != "verified" and (only is None or kind not in only):
            continue
        args, env = wanted(recipe, variant, kind)
        made = presets.for_accelerator(one, presets.ROCM, kind)
        ours = dict(cli.normalise_args(made["args"]))
        theirs = dict(cli.normalise_args(_joined(args)))
        for name in sorted(ours.keys() | theirs.keys()):
            if name == "tensor-parallel-size" and name not in theirs:
                continue  # the guides' commands have it, which are read by a person
            _compare(found, f"--{name}", _text(ours.get(name)), _text(theirs.get(name)))
        mine = {name: str(value) for name, value in made["env"].items()}
        for name in sorted(mine.keys() | env.keys()):
            _compare(found, name, mine.get(name), env.get(name))


def _joined(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags with the parts of one (`a.b.c`) put together as JSON."""
    whole: dict[str, Any] = {}
    for name, value in args.items():
        stem, *path = name.split(".")
        if not path:
            whole[name] = value
            continue
        place = whole.setdefault(stem, {})
        for step in path[:-1]:
            place = place.setdefault(step, {})
        place[path[-1]] = {"True": True, "False": False}.get(value, int(value) if str(value).isdigit() else value)
    return whole


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if text[:1] == "{":
        text = json.dumps(json.loads(text), sort_keys=True)
    return text.rpartition("/")[2] if text.endswith(".jinja") else text


def _compare_features(found: dict[str, str], one: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    theirs = {FEATURES[name]: args for name, args in (recipe.get("features") or {}).items() if name in FEATURES}
    ours = one.get("features") or {}
    for name in sorted(ours.keys() | (theirs.keys() & {"tools", "reasoning"})):
        mine = dict(cli.normalise_args((ours.get(name) or {}).get("args") or {}))
        other = dict(cli.normalise_args(_joined(theirs.get(name) or {})))
        here = {flag: _text(value) for flag, value in mine.items()}
        there = {flag: _text(value) for flag, value in other.items()}
        _compare(found, f"features.{name}", here or None, there or None)


def disagreements(preset: Mapping[str, Any], recipes: Mapping[str, Any]) -> list[str]:
    """Return what of a preset needs a reason and has none, and reasons without a difference, a sentence each."""
    own = preset.get("recipe")
    if not own:
        return []
    recipe = recipes.get(own["file"])
    if recipe is None:
        return [
            f"{own['file']} is not among the recipes: gone, or not recorded yet (scripts/sync_recipes CHECKOUT --write)"
        ]
    found, reasons = differences(preset, recipe), own.get("differs") or {}
    open_ones = [f"{what}: {told}" for what, told in found.items() if what not in reasons]
    return open_ones + [
        f"{what}: recipe.differs has a reason, and nothing differs" for what in reasons if what not in found
    ]


def draft(recipe: Mapping[str, Any], file: str, variant: str = "default") -> dict[str, Any]:
    """Return a preset as a recipe has it, for a person to read, correct and complete."""
    chosen = recipe["variants"][variant]
    kinds = [kind for kind, state in (recipe.get("gpus") or {}).items() if state == "verified"]
    args, env = wanted(recipe, variant, kinds[0] if kinds else "")
    tensor = chosen.get("tensor_parallel") or recipe.get("tensor_parallel") or 8
    features = {
        FEATURES[name]: {"args": _joined(one)}
        for name, one in (recipe.get("features") or {}).items()
        if name in FEATURES
    }
    shared = {"args": {"tensor-parallel-size": tensor, **_joined(args)}, **({"env": env} if env else {})}
    return _filled(
        {
            "model": chosen.get("model", recipe["model"]),
            "min_vllm": chosen.get("min_vllm") or recipe.get("min_vllm"),
            "image": recipe.get("image"),
            "api": "chat",
            "vram_gb": chosen.get("vram_gb"),
            "accelerators": {
                "rocm": shared,
                **{kind: {"verified_by": "vllm-project/recipes", "gpus": tensor} for kind in kinds},
            },
            "features": features,
            "recipe": {"file": file, **({"variant": variant} if variant != "default" else {})},
        }
    )
