# SPDX-License-Identifier: Apache-2.0
"""What a model's config.json means for its checkpoint: one set of names, its context, its bytes once loaded. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Names of the same fields in older configurations (transformers' attribute_map of GPT-2 and its like).
_OLD_NAMES = {
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_ctx": "max_position_embeddings",
}
#: What the text model takes from the whole configuration where it has none of its own.
_INHERITED = ("torch_dtype", "dtype", "quantization_config", "max_position_embeddings")
#: Fields that limit the context; vLLM takes the least of those that are there.
_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
#: Kinds of RoPE scaling whose max_position_embeddings is the scaled one already.
_SCALED = ("su", "longrope", "llama3")
#: Flags that leave a part of the weights in the node's own memory.
_OFFLOADS = ("cpu-offload-gb", "offload-group-size")
_SIXTEEN_BIT = ("bfloat16", "float16", "half")


@dataclass(frozen=True)
class Loaded:
    """Bytes of the weights in memory, on all GPUs together; ``certain`` is what they take at the very least."""

    bytes: int
    certain: int
    note: str


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text model's part of a config.json under today's names, with the type and quantisation it inherits."""
    nested = config.get("text_config")
    text = {**nested} if isinstance(nested, Mapping) else {**config}
    for key in _INHERITED:
        if key not in text and key in config:
            text[key] = config[key]
    for old, new in _OLD_NAMES.items():
        if new not in text and isinstance(text.get(old), int):
            text[new] = text[old]
    return text


def loaded(on_disk: int, config: Mapping[str, Any], flags: Mapping[str, Any]) -> Loaded | None:
    """Return what ``on_disk`` bytes of weights take in memory; None where vLLM quantises or offloads them.

    ``config`` as :func:`plain_config` returns it, ``flags`` in one spelling.
    """
    quantised = bool(config.get("quantization_config"))
    if lessened(config, flags):
        return None
    stored, wanted = element_type(config), str(flags.get("dtype") or "auto")
    size, note = on_disk, ""
    if not quantised and stored == "float32" and wanted in ("auto", *_SIXTEEN_BIT):
        size, note = -(-on_disk // 2), ", in float32; 16 bits in memory"
    elif not quantised and stored in _SIXTEEN_BIT and wanted in ("float32", "float"):
        size, note = on_disk * 2, f", in {stored}; float32 in memory"
    certain = size
    layers, ahead = whole(config.get("num_hidden_layers")), whole(config.get("num_nextn_predict_layers"))
    if layers and ahead and not flags.get("speculative-config"):
        # The checkpoint's layers for multi-token prediction stay on disk; twice their share is certainly enough off.
        certain = size * max(0, layers - ahead) // (layers + ahead)
    if not quantised and not stored and wanted == "auto":
        certain //= 2  # the files may be float32, which vLLM serves in 16 bits
    return Loaded(size, certain, note)


def lessened(config: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    """Return why the GPUs get less than is on disk by an unknown amount; empty where they get all."""
    if flags.get("quantization") and not config.get("quantization_config"):
        return f"quantization {flags['quantization']} while loading"
    offloads = [f"{name} {flags[name]}" for name in _OFFLOADS if str(flags.get(name) or 0) not in ("0", "0.0")]
    return ", ".join(offloads)


def kv_heads(config: Mapping[str, Any]) -> int | None:
    """Return the KV heads that the tensor parallel ranks share; None where they share none, or it is not known."""
    return None if whole(config.get("kv_lora_rank")) else whole(config.get("num_key_value_heads"))


def contexts(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the context that vLLM serves when none is asked for, and the longest that may be asked for.

    As vLLM derives it, config/model.py _get_and_verify_max_len: most kinds of RoPE scaling make it longer than
    max_position_embeddings. ``config`` as :func:`plain_config` returns it; None where it is not known.
    """
    given = [length for name in _LENGTHS if (length := whole(config.get(name))) is not None]
    longest = whole(config.get("model_max_length")) or min(given, default=None)
    if longest is None:
        return None, None
    ropes = _ropes(config)
    factor = 1.0
    for kind, rope in ropes if "gemma3" not in str(config.get("model_type")) else []:  # Gemma 3's is scaled already
        if kind not in _SCALED:
            asked = rope.get("factor")
            factor = asked if isinstance(asked, (int, float)) and 0 < asked < 1 << 20 else factor
            if kind == "yarn":
                longest = whole(rope.get("original_max_position_embeddings")) or longest
    longest = int(longest * factor)
    if any(kind == "longrope" for kind, _ in ropes):
        # Unless more is asked for, short texts are not made worse for the sake of long ones.
        return whole(config.get("original_max_position_embeddings")) or longest, longest
    return longest, longest


def _ropes(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (kind, fields) of each RoPE scaling: one, or one for each kind of layer."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, Mapping):
        return []
    inner = [one for one in found.values() if isinstance(one, Mapping)]
    sets = inner if len(inner) == len(found) else [found]
    return [(str(one.get("rope_type") or one.get("type") or "default"), one) for one in sets]


def overridden(config: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with the flag ``hf-overrides`` laid over it, as far as that is one JSON object."""
    try:
        more = json.loads(str(flags.get("hf-overrides") or "{}"))
    except ValueError:
        more = {}
    return {**config, **more} if isinstance(more, dict) else dict(config)


def element_type(config: Mapping[str, Any]) -> str:
    """Return the type in which the weights are stored; empty where it is not known."""
    return str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")


def whole(value: object) -> int | None:
    """Return a whole number above 0, None for anything else, such as one that no model has."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53 else None
