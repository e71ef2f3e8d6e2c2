# SPDX-License-Identifier: Apache-2.0
"""The table that sizing fills: equal nodes share a line."""

from __future__ import annotations

import re

from ansible.module_utils.vllm_fleet.models import sizing, sizing_table
from ansible.module_utils.vllm_fleet.models.sizing import Facts

MI300X = sizing.named("MI300X", 8)


V31 = {
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
}


LLAMA = {
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


DEEPSEEK = Facts("deepseek-ai/DeepSeek-V3.1", V31, 688586727753, "test", "0.12.0")


DENSE = Facts("meta-llama/Llama-3.3-70B-Instruct", LLAMA, 141107412992)


RECIPE = {"tensor-parallel-size": 8, "enable-expert-parallel": True}


def test_equal_nodes_share_a_line_and_the_arithmetic_comes_on_request():
    row = sizing_table.as_row(sizing.size(DEEPSEEK, MI300X, RECIPE))
    other = sizing_table.as_row(sizing.size(DEEPSEEK, sizing.named("MI355X", 8), RECIPE))
    text = sizing_table.table([("n1", row), ("n2", row), ("n3", row), ("n4", other)])
    assert [line.split("  ")[0] for line in text.splitlines()[1:]] == ["NODE", "n1 .. n3 (3)", "n4"]
    assert re.search(
        r"^n1 .. n3 \(3\) +8 x MI300X +8 +1,2,4,8 +80.2 GiB +<= 96.5 GiB +<= 163840 +<= 9.0 +641.3 GiB$", text, re.M
    )
    assert "bytes per GPU" not in text
    assert "61 layers x (512 + 64) x 2 bytes" in sizing_table.table([("n1", row)], arithmetic=True)
    nothing = sizing_table.as_row(sizing.size(Facts("acme/x", {}), MI300X, {}))
    assert sizing_table.table([("n1", nothing), ("n2", nothing)]) == ""
    assert sizing_table.table([("n1", nothing), ("n2", nothing)], arithmetic=True).splitlines() == [
        "acme/x: nothing is known before it is there; playbooks/plan.yml reads its figures from the Hub."
    ]
