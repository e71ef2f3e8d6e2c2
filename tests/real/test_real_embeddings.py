# SPDX-License-Identifier: Apache-2.0
"""The real vLLM with a model that gives vectors: asked as a deployment and the watchdog ask it, by one start."""

from __future__ import annotations

import pytest
from local_inventory import SERVER

from ansible.module_utils.vllm_fleet.vllm import chat
from ansible.module_utils.vllm_fleet.vllm.chat_request import ChatRequest, Expectation
from ansible.module_utils.vllm_fleet.vllm.endpoint import Endpoint
from ansible.module_utils.vllm_fleet.watchdog import ask

pytestmark = pytest.mark.engine
QUERY = "What is the capital of France?"
DOCUMENTS = (
    "Bread is baked from flour, water and salt.",
    "Paris is the capital of France.",
    "The engine of the car has four cylinders.",
)


def test_vectors_and_scores_of_a_model_that_does_not_write(real):
    """The model of the local inventory, whose hidden states are averaged; of vectors vLLM makes the scores, too."""
    pooled = {"runner": "pooling", "convert": "embed", "pooler-config": {"seq_pooling_type": "MEAN"}}
    real.ready(args={**SERVER["args"], **pooled})
    url = f"http://127.0.0.1:{real.port}"

    def asked(api, first):
        return ChatRequest(url, api=api, query=QUERY, documents=DOCUMENTS, expect=Expectation(first=first), name=api)

    good = chat.probe([asked("embeddings", 2), asked("rerank", 2)], many=True)
    assert "failed" not in good, good["msg"]
    vectors, scores = good["results"]
    assert vectors["content"].startswith("4 vectors of 576 numbers; the nearest first: 2 (")
    assert scores["content"].startswith("3 documents scored; the nearest first: 2 (")
    wrong = chat.probe([asked("embeddings", 1)], many=False)
    assert "failed in check 'first': expected document 1 first, got 2 (" in wrong["msg"]
    # It has no text to give, and the watchdog must not take that for an engine that hangs.
    where = Endpoint("127.0.0.1", real.port, ())
    answers = {api: ask.token(ask.Question(where, SERVER["model"], api), None, 30.0) for api in ask.LEAST}
    assert answers == {"completions": "refused", "embeddings": "token", "rerank": "token"}
