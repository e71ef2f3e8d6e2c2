# SPDX-License-Identifier: Apache-2.0
"""Several models on one node: what fits how often, the picture, and the servers that fill it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from ansible.module_utils.vllm_fleet.host import share
from ansible.module_utils.vllm_fleet.models import node_plan, preset_files, presets, sizing
from ansible.module_utils.vllm_fleet.models.node_plan import Entry
from ansible.module_utils.vllm_fleet.models.sizing import Facts

GIB = 1 << 30
NODE = sizing.named("MI300X", 8)
#: 64 KiB of cache for a token on one GPU.
CONFIG = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 16,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
SMALL, LARGE = Facts("acme/Small-8B", CONFIG, 16 * GIB), Facts("acme/Large.Chat", CONFIG, 600 * GIB)
NONE = {"args": {}, "env": {}}


def of(*facts, given=None, machine=NODE, **more):
    """Plan on one node; ``given`` are presets by model."""
    return node_plan.plan("-", machine, facts, lambda model, _: (given or {}).get(model, NONE), **more)


def test_every_size_that_fits_and_how_often():
    found = node_plan.sizes(SMALL, NODE, NONE)
    assert [(one.gpus, one.servers, one.args) for one in found] == [
        (1, 8, {}),
        (2, 4, {"tensor-parallel-size": 2}),
        (4, 2, {"tensor-parallel-size": 4}),
        (8, 1, {"tensor-parallel-size": 8}),
    ]
    assert [one.gpus for one in node_plan.sizes(LARGE, NODE, NONE)] == [4, 8]
    # Data parallel ranks take GPUs, too.
    twice = {"args": {"data-parallel-size": 2}, "env": {}}
    assert [(one.gpus, one.row.tensor) for one in node_plan.sizes(SMALL, NODE, twice)] == [(2, 1), (4, 2), (8, 4)]


def test_a_context_that_does_not_fit_is_shortened_and_one_that_was_asked_for_is_not():
    # 150 of 176.6 GiB are weights: what is left holds less than the whole context of a model with a million tokens.
    long = Facts("acme/Long", {**CONFIG, "max_position_embeddings": 1 << 20}, 150 * GIB)
    first = node_plan.sizes(long, NODE, NONE)[0]
    assert (first.gpus, first.args["max-model-len"] % 1024) == (1, 0)
    assert 400_000 < first.args["max-model-len"] <= first.row.context
    asked = {"args": {"max-model-len": 1 << 20}, "env": {}}
    assert [one.gpus for one in node_plan.sizes(long, NODE, asked)] == [2, 4, 8]


def test_a_node_is_filled_evenly_and_the_picture_is_that_of_the_placing():
    told = of(SMALL, LARGE, proposes=True).text
    assert "acme/Small-8B    1     1   8        16.0 GiB" in told
    picture, block = told.split("\n\n")[1:]
    assert picture.splitlines() == [
        "GPU  0  1  2  3  4  5  6  7",
        "     b1 b1 b1 b1 a1 a2 a3 a4",
        "a    small-8b: 4 x 1 GPU (acme/Small-8B)",
        "b    large-chat: 1 x 4 GPUs (acme/Large.Chat)",
    ]
    assert yaml.safe_load(block) == {
        "vllm_servers": {
            "small-8b": {"replicas": 4, "gpus": 1, "vllm_server_model": "acme/Small-8B"},
            "large-chat": {
                "gpus": 4,
                "vllm_server_model": "acme/Large.Chat",
                "vllm_server_args": {"tensor-parallel-size": 4},
            },
        }
    }
    assert "vllm_servers" not in of(SMALL, LARGE).text


def test_a_preset_recommends_a_size_and_its_arguments_hold():
    given = {SMALL.model: {"args": {"tensor-parallel-size": 2}, "env": {}, "gpus": 2}}
    told = of(SMALL, given=given, proposes=True).text
    assert "2 (recommended)" in told
    assert yaml.safe_load(told.split("\n\n")[2])["vllm_servers"] == {
        "small-8b": {"replicas": 4, "gpus": 2, "vllm_server_model": "acme/Small-8B"}
    }
    # Where that leaves no room for another, the least of each is taken.
    both = of(SMALL, LARGE, given={SMALL.model: {"args": {}, "env": {}, "gpus": 8}}, proposes=True).text
    assert "small-8b: 4 x 1 GPU" in both


def test_what_cannot_share_a_node_is_refused():
    huge = replace(LARGE, model="acme/Huge", weights_bytes=4000 * GIB)
    assert of(SMALL, huge).refusals == ("8 x MI300X: acme/Huge fits at no size",)
    five = [replace(LARGE, model=f"acme/M{at}") for at in range(3)]
    (sentence,) = of(*five).refusals
    assert "one server of each takes more than 8 GPUs (acme/M0 4, acme/M1 4, acme/M2 4): leave one out" in sentence
    (sentence,) = of(SMALL, given={SMALL.model: {"args": {"tensor-parallel-size": "two"}, "env": {}}}).refusals
    assert "acme/Small-8B" in sentence


def test_what_is_left_over_is_shown():
    entries = [Entry("a", "acme/A", 2, 3, {})]
    assert node_plan.picture(entries, [share.Unit(at) for at in range(8)]).splitlines() == [
        "GPU  0  1  2  3  4  5  6  7",
        "     a1 a1 a1 a2 a2 a2 .  .",
        "a    a: 2 x 3 GPUs (acme/A)",
        ".    2 free",
    ]


def test_names_of_entries_are_those_of_hosts_and_containers():
    models = ["a/Qwen2.5-7B", "b/Qwen2.5-7B", "/models/_x_", "c/***", "d/" + "y" * 60]
    assert list(node_plan._names(models).values()) == ["qwen2-5-7b", "qwen2-5-7b-v2", "x", "model", "y" * 40]


@pytest.mark.parametrize("kind", sizing.VRAM)
def test_every_recommendation_of_a_preset_fits(kind):
    from pathlib import Path

    folder = Path(__file__).resolve().parents[3] / "models"
    recommended = 0
    for preset in preset_files.read(folder, folder / "schema.json").values():
        made = presets.for_accelerator(preset, presets.ROCM, kind)
        if "gpus" in made:
            found = node_plan.sizes(presets.facts(preset), sizing.named(kind, 8), made)
            assert [one.gpus for one in found if one.recommended] == [made["gpus"]], preset["model"]
            recommended += 1
    assert recommended >= 4
