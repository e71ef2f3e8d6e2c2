# SPDX-License-Identifier: Apache-2.0
"""`vllm bench serve`: words, figures, failures."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.vllm import bench


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, []),
        ({"model": "org/m", "num-prompts": 200}, ["--model", "org/m", "--num-prompts", "200"]),
        ({"ignore-eos": True, "burstiness": 0.5}, ["--ignore-eos", "--burstiness", "0.5"]),
        ({"ignore-eos": False, "seed": None, "request-rate": 0}, ["--request-rate", "0"]),
    ],
)
def test_flags_as_words(flags, words):
    assert bench.words(flags) == words


@pytest.mark.parametrize(
    ("args", "context"),
    [
        ({}, 0),
        ({"max-model-len": "4096"}, 4096),
        ({"max-model-len": 4096}, 4096),
        ({"max-model-len": "8k"}, 0),
        ({"max-model-len": "auto"}, 0),
        ({"max-model-len": "-1"}, 0),
        ({"max-model-len": True}, 0),
    ],
)
def test_a_context_that_is_no_plain_number_is_not_known(args, context):
    assert bench.context(args) == context


def test_figures_say_by_which_command_they_were_measured():
    assert bench.figures('{"completed": 3}', ["--model", "a b", "--ignore-eos"]) == {
        "completed": 3,
        "command": "vllm bench serve --model 'a b' --ignore-eos",
    }


NEWER = " The image's vLLM has no `vllm bench serve`; use a newer image."


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"rc": 1, "stderr": "no route"}, "no route"),
        ({"rc": 2, "stderr": "vllm: invalid choice: 'bench'"}, "vllm: invalid choice: 'bench'" + NEWER),
        ({"rc": 127, "stderr": "sh: vllm: not found"}, "sh: vllm: not found" + NEWER),
        ({"msg": "the container is gone", "stderr": ""}, "the container is gone"),
        ({"msg": "not found"}, "not found"),
        ({}, "no output"),
    ],
)
def test_why_a_benchmark_failed(run, says):
    assert bench.failure(run) == f"The benchmark failed: {says}"
