# SPDX-License-Identifier: Apache-2.0
"""A small model for two workers: 4 layers, and 8 heads, which 2 divides; those of the seed's model it does not.

Its weights are vLLM's own random ones (--load-format dummy).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

CACHE = Path(os.environ.get("VLLM_FLEET_CACHE") or Path.home() / ".cache/vllm-fleet")
SEED = CACHE / "seed/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 49152,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_model(folder: Path) -> None:
    """Write its configuration, and the tokenizer of the model that the project's seed has."""
    (snapshot,) = SEED.iterdir()
    folder.mkdir(parents=True, exist_ok=True)
    for path in snapshot.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and path.name != "config.json":
            shutil.copy(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(CONFIG))
