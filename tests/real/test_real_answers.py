# SPDX-License-Identifier: Apache-2.0
"""The figures of a real server: the same when it is asked twice, and nonsense with HTTP 200 told by the answers alone."""

from __future__ import annotations

import pytest
import yaml
from local_inventory import ROOT

from ansible.module_utils.vllm_fleet.rollout import comparison
from ansible.module_utils.vllm_fleet.server import measured

pytestmark = pytest.mark.engine
QUESTIONS = [{"api": "chat", **one} for one in yaml.safe_load((ROOT / "models/questions/chat.yml").read_text())]
LOAD = {"seconds": 12.0, "concurrency": 2, "input_tokens": 64, "output_tokens": 16}
LIMITS = {"ttft": 1.5, "itl": 1.3, "tokens_per_second": 0.8, "answers": 0.9}


def figures_of(real, load=LOAD):
    return measured.gather(
        real.engine, real.name, str(real.state_dir), before=False, asked=QUESTIONS, load=load, timeout=120
    )


def test_nonsense_with_http_200_is_caught_by_the_answers_alone(real):
    """In bfloat16 some CPUs compute SmolLM2 into fluent nonsense, and some do not: a wrong constant does it on all."""
    real.ready()
    first, again = (figures_of(real)["figures"] for _ in range(2))
    assert first["answers"]["errors"] == 0
    assert first["answers"]["right"] >= 5, "a small model knows some"
    print(comparison.judge("cpu", again, first, {}, LIMITS, release=1)["says"])
    same = comparison.judge("cpu", again, first, {}, {"answers": 0.9}, release=1)
    assert not same["wrong"], same
    real.ready(state="confirmed", record={"figures": first})

    real.ready(args={**real.fixed["args"], "hf-overrides": '{"rms_norm_eps": 10.0}'})
    found = figures_of(real, {})
    assert found["before"] == first
    assert found["figures"]["answers"]["errors"] == 0, "HTTP 200 for every question"
    verdict = comparison.judge("cpu", found["figures"], found["before"], {}, {"answers": 0.9}, release=found["release"])
    print(verdict["says"], verdict["wrong"], sep="\n")
    assert "known answers are right" in verdict["wrong"], verdict
