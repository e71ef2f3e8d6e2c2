# SPDX-License-Identifier: Apache-2.0
"""Which ids are taken as they stand and which are slips of the pen, over what is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible.module_utils.vllm_fleet.common import alike
from ansible.module_utils.vllm_fleet.models import model_id

ROOT = Path(__file__).resolve().parents[3]
PRESETS = [yaml.safe_load(file.read_text())["model"] for file in sorted((ROOT / "models").glob("*.yml"))]
V31, LITE, LLAMA = "deepseek-ai/DeepSeek-V3.1", "deepseek-ai/DeepSeek-V2-Lite-Chat", "meta-llama/Llama-3.3-70B-Instruct"


@pytest.mark.parametrize("model", [*PRESETS, "/srv/models/any thing", "/DeepSeek V3.1"])
def test_what_is_known_and_paths_pass(model):
    assert model_id.check(model, PRESETS).ok


@pytest.mark.parametrize(
    "model",
    [
        # Other numbers, more or fewer words: other models, whether anybody here knows them or not.
        "deepseek-ai/DeepSeek-V3",
        "deepseek-ai/DeepSeek-V3.2",
        "deepseek-ai/DeepSeek-V3.1-Base",
        "deepseek-ai/DeepSeek-V3.1-Terminus",
        "deepseek-ai/DeepSeek-V2-Lite",
        "deepseek-ai/DeepSeek-V2-Chat",
        "deepseek-ai/DeepSeek-R1-0528",
        "deepseek-ai/DeepSeek-R2",
        "deepseek-ai/deepseek-coder-1.3b-instruct",
        "deepseek-ai/deepseek-coder-6.7b-base",
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Llama-3.3-70B",
        "Qwen/Qwen3-235B-A22B-FP8",
        "Qwen/Qwen3-235B-A22B-Instruct-2507",
        "Qwen/Qwen3-30B-A3B",
        "openai/gpt-oss-20b",
        "openai/opt-oss-120b",
        "openai-community/gpt2-xl",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "HuggingFaceTB/SmolLM2-135M",
        # Somebody else's version of a model may have its name.
        "unsloth/DeepSeek-V3.1",
        "unsloth/gpt-oss-120b",
        "org/DeepSeek-V3.1-FP8-fork",
        "acme/tiny",
        "bert-base-uncased",
    ],
)
def test_other_models_pass(model):
    verdict = model_id.check(model, PRESETS)
    assert verdict.ok, verdict.sentence(model)


@pytest.mark.parametrize(
    ("model", "meant", "why"),
    [
        ("DeepSeek V3.1", V31, "a space in it"),
        ("deepseek v3.1", V31, "a space in it"),
        ("deepseek-ai/DeepSeek V3.1", V31, "a space in it"),
        ("deepseek-ai/DeepSeek-V3.1 ", V31, "a space in it"),
        (f"https://huggingface.co/{V31}", V31, "more than one slash"),
        ("deepseek-ai/deepseek-v3.1", V31, "upper and lower case"),
        ("DeepSeek-AI/DeepSeek-V3.1", V31, "upper and lower case"),
        ("openai/gpt-oss-120B", "openai/gpt-oss-120b", "upper and lower case"),
        ("deepseek-ai/DeepSeek-V31", V31, "signs between"),
        ("deepseek-ai/DeepSeek_V3.1", V31, "signs between"),
        ("deepseekai/DeepSeek-V3.1", V31, "signs between"),
        ("DeepSeek-V3.1", V31, "organisation"),
        ("deepseek-v3.1", V31, "organisation"),
        ("DeepSek-V3.1", V31, "organisation"),
        ("gpt2", "openai-community/gpt2", "organisation"),
        ("deepseek-ai/DeepSek-V3.1", V31, "slip"),
        ("deepseek-ai/DeepSeekk-V3.1", V31, "slip"),
        ("deepseek-ai/DeepSeke-V3.1", V31, "slip"),
        ("deepsek-ai/DeepSeek-V3.1", V31, "slip"),
        ("deepsek-ai/deepsek-v3.1", V31, "slip"),
        ("meta-llama/Llama-3.3-70B-Instrcut", LLAMA, "slip"),
        ("meta-llama/Lama-3.3-70B-Instruct", LLAMA, "slip"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chta", LITE, "slip"),
    ],
)
def test_slips_are_refused_with_the_one_that_was_meant(model, meant, why):
    verdict = model_id.check(model, PRESETS)
    assert not verdict.ok
    assert verdict.nearest == (meant,)
    assert why in verdict.fault
    sentence = verdict.sentence(model)
    assert repr(model) in sentence
    assert "Expected the exact id" in sentence
    assert meant in sentence


def test_v2_lite_is_never_offered_for_v3_1():
    for model in ("DeepSeek V3.1", "DeepSeek-V3.1", "deepseek-ai/deepseek-V3.1", "deepseek ai/DeepSeek-V3.1-Lite Chat"):
        assert LITE not in model_id.check(model, PRESETS).nearest


def test_the_user_has_the_last_word_except_on_what_is_no_id():
    assert model_id.check("deepseek-ai/deepseek-v3.1", PRESETS, exact=True).ok
    assert "vllm_server_model_exact: true" in model_id.check("gpt2", PRESETS).sentence("gpt2")
    malformed = model_id.check("DeepSeek V3.1", PRESETS, exact=True)
    assert not malformed.ok
    assert "vllm_server_model_exact" not in malformed.sentence("DeepSeek V3.1")


def test_what_a_cache_holds_is_known_too():
    known = [*PRESETS, "acme/Assistant-7B", "acme/deepseek-v3.1"]
    assert model_id.check("acme/assistant-7b", known).nearest == ("acme/Assistant-7B",)
    assert model_id.check("acme/deepseek-v3.1", known).ok
    assert set(model_id.check("DeepSeek-V3.1", known).nearest) == {V31, "acme/deepseek-v3.1"}


def test_nothing_near_shows_what_an_id_looks_like():
    for model in ("", "a model", "x--y"):
        assert "such as deepseek-ai/DeepSeek-V3.1" in model_id.check(model, PRESETS).sentence(model)
        assert "nearest" not in model_id.check(model, PRESETS).sentence(model)
    assert model_id.check("DeepSeek V3.1", []).sentence("x").endswith("such as deepseek-ai/DeepSeek-V3.1.")


@pytest.mark.parametrize(
    ("one", "other", "letters"),
    [
        ("", "", 0),
        ("a", "", 1),
        ("deepseek", "deepsek", 1),
        ("abcd", "abdc", 1),
        ("kitten", "sitting", 3),
        ("ab", "ba", 1),
    ],
)
def test_edits(one, other, letters):
    assert alike.edits(one, other) == alike.edits(other, one) == letters
