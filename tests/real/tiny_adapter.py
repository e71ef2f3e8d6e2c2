# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters for SmolLM2-135M, made here: the files that PEFT writes, without PEFT."""

from __future__ import annotations

import array
import json
import struct
from pathlib import Path

#: SmolLM2-135M: layers, and the size of a hidden state; q_proj is square.
LAYERS, HIDDEN = 30, 576


def write(folder: Path, model: str, *, rank: int = 8, strength: float = 0.0) -> None:
    """Write an adapter of all q_proj; without strength it changes nothing, with some nothing stays as it was."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": model,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    down = array.array("f", ((place % 13 - 6) / 60 for place in range(rank * HIDDEN))).tobytes()
    up = array.array("f", (strength * (place % 7 - 3) for place in range(rank * HIDDEN))).tobytes()
    header, body = {}, []
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for part, shape, data in (("lora_A", [rank, HIDDEN], down), ("lora_B", [HIDDEN, rank], up)):
            at = len(down) * len(body)
            header[f"{name}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(data)]}
            body.append(data)
    head = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"".join(body))
