# SPDX-License-Identifier: Apache-2.0
"""Presets of models, as models/*.yml has them: do its figures agree, and what does it say for a server.

A variant is laid over the file's own settings by ``resolved``, which gives a preset without variants: that is what all
else here takes. A variant with weights of its own keeps nothing of what was counted or verified for others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..common.finding import Finding
from ..vllm import chat_options, releases
from ..vllm.cli import CommandError, flag_name
from . import sizing

#: Accelerators that are not laid over ``rocm``.
CPU = "cpu"
ROCM = "rocm"


#: What belongs to one repository's weights, or to one way to serve them.
_OF_THE_WEIGHTS = ("revision", "list_digest", "weights_bytes", "vram_gb", "image")
_OF_THE_ENTRY = ("verified_by", "gpus", "bytes_per_gpu", "unsupported")

#: The APIs through which a model of one kind can be asked.
ASKED: Mapping[str, tuple[str, ...]] = {
    "chat": ("chat", "completions"),
    "completions": ("completions",),
    "embeddings": ("embeddings",),
    "rerank": ("rerank",),
}

_EMPTY: Mapping[str, Any] = {
    "model": "",
    "variant": "",
    "variants": [],
    "features": [],
    "image": "",
    "unsupported": "",
    "verified": {},
    "revision": "",
    "gated": False,
    "min_vllm": "",
    "weights_bytes": 0,
    "config": {},
    "verify": [],
    "file": "",
}


class ChoiceError(ValueError):
    """A variant or feature that the model's preset does not have; the text is one sentence."""


def own_models(preset: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the variants of a preset that are repositories of their own: name and id."""
    for name, variant in (preset.get("variants") or {}).items():
        if variant.get("model", preset["model"]) != preset["model"]:
            yield name, variant["model"]


def resolved(preset: Mapping[str, Any], variant: str = "") -> dict[str, Any]:
    """Return a preset with one of its variants laid over it, and without the others; "" is the file's own."""
    out = {key: value for key, value in preset.items() if key not in ("variants", "recipe")}
    if not variant:
        return out
    more = preset["variants"][variant]
    other = more.get("model", preset["model"]) != preset["model"]
    if other:
        out = {key: value for key, value in out.items() if key not in _OF_THE_WEIGHTS}
    out |= {key: more[key] for key in ("model", "min_vllm", *_OF_THE_WEIGHTS) if key in more}
    out["variant"] = variant
    for key in ("config", "features"):
        if key in more or key in out:
            out[key] = _laid({**(out.get(key) or {})}, more.get(key) or {})
    own, new = preset["accelerators"], more.get("accelerators") or {}
    shared = new.get(ROCM) or {}
    out["accelerators"] = {
        name: _entry(own.get(name) or {}, new.get(name) or {}, {} if name in (ROCM, CPU) else shared, other=other)
        for name in dict.fromkeys((*own, *new))
    }
    return out


def _entry(
    own: Mapping[str, Any], new: Mapping[str, Any], between: Mapping[str, Any], *, other: bool
) -> dict[str, Any]:
    """Return an accelerator's entry with the variant's over it; ``between`` is laid over the file's own, too."""
    out = {key: value for key, value in own.items() if not other or key not in _OF_THE_ENTRY}
    for key in ("args", "env"):
        kept = {name: value for name, value in (own.get(key) or {}).items() if name not in (between.get(key) or {})}
        if kept or new.get(key):
            out[key] = {**kept, **(new.get(key) or {})}
        else:
            out.pop(key, None)
    return {**out, **{key: value for key, value in new.items() if key not in ("args", "env")}}


def _laid(own: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**own, **more}.items() if value is not None}


def all_resolved(preset: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the preset's own settings under "", and each variant's under its name."""
    for name in ("", *(preset.get("variants") or {})):
        yield name, resolved(preset, name)


def faults(preset: Mapping[str, Any]) -> list[str]:
    """Return the figures of a preset that do not agree with each other, a clause each; the schema holds already."""
    found = []
    for name, one in all_resolved(preset):
        where = f"variants.{name}: " if name else ""
        found += [f"{where}{fault}" for fault in _faults(one)]
    ids = [preset["model"], *(model for _, model in own_models(preset))]
    return found + [f"{one} is the model of two variants" for one, count in Counter(ids).items() if count > 1]


def _faults(preset: Mapping[str, Any]) -> list[str]:
    found = []
    for name, entry in preset["accelerators"].items():
        if name in sizing.VRAM and (entry.get("args") or entry.get("env")) and not entry.get("reason"):
            found.append(f"accelerators.{name} changes arguments or environment without a reason")
        stated = entry.get("bytes_per_gpu")
        if stated is None:
            continue
        counted = _bytes_per_gpu(preset, name)
        if stated != counted:
            found.append(f"accelerators.{name}.bytes_per_gpu is {stated}; with these arguments it is {counted}")
    for number, request in enumerate(preset.get("verify", []), 1):
        if request["api"] not in ASKED[preset["api"]]:
            found.append(f"verify[{number}] asks the {request['api']} API of a model whose api is {preset['api']}")
        elif wrong := chat_options.wrong_request(request):
            found.append(f"verify[{number}]: {wrong}")
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


def for_accelerator(
    preset: Mapping[str, Any], accelerator: str, gpu: str = "", features: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a preset with ``args`` and ``env`` of one accelerator instead of all; {} stays a preset that says nothing.

    ``gpu`` is a GPU's kind or product name; its own entry is laid over ``rocm``, flag by flag. A served name of its
    own becomes the flag. ``gpus`` is how many its source gives one server, where it says so.
    """
    entries = preset.get("accelerators") or {}
    layers = [entries.get(accelerator) or {}]
    if accelerator == ROCM and gpu:
        layers.append(entries.get(sizing.gpu_kind(gpu)) or {})
    out = {key: value for key, value in preset.items() if key not in ("accelerators", "variants", "recipe")}
    out |= _layered([*layers, *(preset["features"][name] for name in features)])
    for key in ("gpus", "unsupported"):
        given = [layer[key] for layer in layers if key in layer]
        if given:
            out[key] = given[-1]
    if preset.get("served_name") not in (None, preset.get("model")):
        out["args"] = {"served-model-name": preset["served_name"], **out["args"]}
    return out


def _layered(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``args`` and ``env`` of layers, each over those before it; a null takes one away."""
    return {
        key: _laid({}, {name: value for layer in layers for name, value in (layer.get(key) or {}).items()})
        for key in ("args", "env")
    }


def for_server(
    preset: Mapping[str, Any],
    accelerator: str,
    gpu: str = "",
    *,
    variant: str = "",
    features: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the same with every key, empty where the preset, or a model without one, says nothing.

    ``model`` is whose weights are loaded. A variant with weights of its own goes on answering to the file's own id.
    ``variants`` and ``features`` are the names that there are. Raises ChoiceError for one that there is not.
    """
    if wrong := wrong_choice(preset, variant, features):
        raise ChoiceError(wrong)
    chosen = variant if variant != preset.get("variant") else ""
    own = resolved(preset, chosen) if preset else {}
    out = {**_EMPTY, **for_accelerator(own, accelerator, gpu, features)}
    out["variants"], out["features"] = list(preset.get("variants") or ()), list(own.get("features") or ())
    entries = own.get("accelerators") or {}
    out["verified"] = {
        kind: entries[kind]["verified_by"] for kind in sizing.VRAM if "verified_by" in (entries.get(kind) or {})
    }
    for feature in features:
        least = own["features"][feature].get("min_vllm", "")
        out["min_vllm"] = least if not out["min_vllm"] or releases.older(out["min_vllm"], least) else out["min_vllm"]
    if chosen and own["model"] != preset["model"]:
        out["args"] = {"served-model-name": preset.get("served_name") or preset["model"], **out["args"]}
    return out


def wrong_choice(preset: Mapping[str, Any], variant: str, features: Sequence[str]) -> str:
    """Return in one sentence what of a choice the preset does not have; empty where it has all of it."""
    where = f"models/{preset['file']}" if preset.get("file") else "its preset" if preset else ""
    known = [*(preset.get("variants") or ()), *([preset["variant"]] if preset.get("variant") else ())]
    if variant and variant not in known:
        return _not_there("vllm_server_variant", variant, where, "variants", known)
    chosen = resolved(preset, variant if variant != preset.get("variant") else "") if preset else {}
    own = chosen.get("features") or {}
    missing = [name for name in features if name not in own]
    return _not_there("vllm_server_features", ", ".join(missing), where, "features", list(own)) if missing else ""


def _not_there(name: str, given: str, where: str, what: str, known: Sequence[str]) -> str:
    if not where:
        return f"{name} is {given!r}, and the model has no preset: give vllm_server_args in its place"
    have = f"these {what}: {', '.join(known)}" if known else f"no {what}"
    return f"{name} is {given!r}, and {where} has {have}"


def of_gpu(preset: Mapping[str, Any], gpu: str) -> Finding | None:
    """Return what the preset's sources say against a kind of GPU; ``preset`` as `for_server` returns it for it."""
    kind = sizing.gpu_kind(gpu)
    what = "model on this GPU"
    verified = preset["verified"]
    wanted = ", ".join(f"{one} ({by})" for one, by in verified.items()) or "a GPU that its source supports"
    if preset["unsupported"]:
        remedy = "choose another model, variant or machine; preflight_accept takes it all the same"
        return Finding("refused", what, wanted, f"{kind}: {preset['unsupported']}", remedy)
    if verified and kind in sizing.VRAM and kind not in verified:
        remedy = "let the canary run under load before others; what fits is computed all the same"
        return Finding("warning", what, wanted, f"{kind}, on which no source has served it", remedy)
    return None


def remote_code(model: str, args: Mapping[str, Any], revision: str) -> Finding | None:
    """Return the warning on a repository's own Python that is run as it happens to be; ``args`` are all flags."""
    flags = {flag_name(str(key)): value for key, value in args.items()}
    if flags.get("trust-remote-code") is not True or re.fullmatch("[0-9a-f]{40}", revision) or model.startswith("/"):
        return None
    remedy = "read that code, and pin the commit that was read (vllm_server_revision)"
    return Finding(
        "warning", "remote code", "a commit", f"{revision or 'main'} of {model}, whose Python vLLM runs", remedy
    )


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
