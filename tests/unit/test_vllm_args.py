# SPDX-License-Identifier: Apache-2.0
"""The user's flags over a model's preset."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "filter_plugins"))
from vllm_args import vllm_args


@pytest.mark.parametrize(
    ("preset", "wanted", "merged"),
    [
        (
            {"max-model-len": 1024, "dtype": "float32"},
            {"max-model-len": 512},
            {"dtype": "float32", "max-model-len": 512},
        ),
        ({"max-model-len": 1024}, {"max_model_len": 512}, {"max-model-len": 512}),
        ({"tensor-parallel-size": 8}, {"-tp": 4}, {"tensor-parallel-size": 4}),
        ({"enforce-eager": True}, {"enforce-eager": None}, {"enforce-eager": None}),
        ({"a_b": 1}, {}, {"a-b": 1}),
        (None, {"x": 1}, {"x": 1}),
        # The name under which a server is asked is looked up in the result.
        ({"served-model-name": "m"}, {"served_model_name": ["a", "b"]}, {"served-model-name": ["a", "b"]}),
        ({}, {"--served-model-name": "a"}, {"served-model-name": "a"}),
        ({"a-b": 0}, {"a-b": 1, "a_b": 2, "c_d": 3}, {"a-b": 1, "a_b": 2, "c-d": 3}),
    ],
)
def test_each_flag_is_replaced_however_it_is_spelt(preset, wanted, merged):
    assert vllm_args(preset, wanted) == merged
