# SPDX-License-Identifier: Apache-2.0
"""A model on machines before it is deployed."""

from __future__ import annotations

import pytest
from model_configs import V31

from ansible.module_utils.vllm_fleet.models import sizing, what_fits
from ansible.module_utils.vllm_fleet.models.sizing import Facts, Machine

MI300X = sizing.named("MI300X", 8)


DEEPSEEK = Facts("deepseek-ai/DeepSeek-V3.1", V31, 688586727753, "test", "0.12.0")


def test_a_plan_shows_every_size_where_none_is_fixed_and_names_the_least():
    plan = what_fits.Plan()
    plan.add("-", DEEPSEEK, MI300X, what_fits.Server({}, {}))
    assert [row["tensor"] for _, row in plan.rows] == [1, 2, 4, 8]
    assert plan.refusals == []
    assert plan.notes == [
        "deepseek-ai/DeepSeek-V3.1 on 8 x MI300X: nothing fixes tensor-parallel-size; 4 is the least that fits."
    ]
    small = what_fits.Plan()
    small.add("n1", DEEPSEEK, sizing.named("MI300X", 2), what_fits.Server({}, {}))
    assert len(small.refusals) == 1
    assert small.refusals[0].startswith("n1: deepseek-ai/DeepSeek-V3.1 on 2 x MI300X: size of the model")


def test_machines_of_a_plan():
    node = {"plan_node": {"gpus": [{"name": "AMD Instinct MI325X", "vram_total": 9}]}}
    cpu = {"vllm_server_accelerator": "cpu"}
    assert [one[2].kind for one in what_fits.machines({"n1": node, "n2": {}, "n3": cpu}, [], 8)] == ["MI325X", "CPU"]
    eight = {"plan_node": {"gpus": [{"name": "AMD Instinct MI325X", "vram_total": 9}] * 8}}
    shared = {"a": {**eight, "vllm_server_gpus": 2}, "b": {**eight, "vllm_server_gpus": [3]}, "c": eight}
    assert [one[2].gpus for one in what_fits.machines(shared, [], 8)] == [2, 1, 8]
    assert [one[2].kind for one in what_fits.machines({"n3": cpu}, [], 8)] == ["CPU", "MI300X", "MI325X", "MI355X"]
    assert what_fits.machines({}, ["MI210=64", "cpu"], 4) == [
        ("-", "rocm", Machine("MI210", 4, 64 << 30)),
        ("-", "cpu", Machine("CPU")),
    ]
    for wrong in ("H100", "MI210=lots"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            what_fits.machines({}, [wrong], 8)


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ("", []),
        ("MI300X", ["MI300X"]),
        (" MI300X, MI210=64,, cpu ", ["MI300X", "MI210=64", "cpu"]),
        (["MI300X", "cpu"], ["MI300X", "cpu"]),
        ((), []),
    ],
)
def test_gpu_kinds_may_be_a_text_with_commas(given, kinds):
    assert what_fits.named_kinds(given) == kinds


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (DEEPSEEK, ""),
        (
            Facts("acme/x", {}, None, "models/x.yml"),
            "?: the preset (models/x.yml) does not have all figures of acme/x, and",
        ),
        (
            Facts("acme/x", {"num_attention_heads": 8}, None, "/m/config.json"),
            "?: /m/config.json does not have all figures of",
        ),
    ],
)
def test_a_plan_says_why_figures_are_missing(facts, said):
    preset = {"args": {"tensor-parallel-size": 8}, "env": {}}
    plan = what_fits.plan(facts, {}, ["MI300X"], 8, preset_of=lambda *_: preset)
    assert len(plan.rows) == 1
    assert [note for note in plan.notes if note.startswith("?")] == [
        note for note in plan.notes if said and said in note
    ]
    assert any(said in note for note in plan.notes) if said else not plan.notes
