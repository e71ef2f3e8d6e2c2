# SPDX-License-Identifier: Apache-2.0
"""Reports of others: each has the class that a person gave it before, and no sentence that would mislead."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from test_diagnose import FIXTURES

from ansible.module_utils.vllm_fleet.diagnosis.diagnose import Failure
from ansible.module_utils.vllm_fleet.diagnosis.standalone import read

REPORTS: list[dict[str, Any]] = yaml.safe_load((FIXTURES / "failures" / "reports.yml").read_text())


def failure_of(report: dict[str, Any]) -> Failure:
    found = read(report["log"], report["exit_code"]).failure
    assert found is not None
    return found


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report["source"])
def test_a_report_is_named_as_a_person_named_it(report: dict[str, Any]) -> None:
    assert failure_of(report).class_ in {report["class"], *report.get("also", [])}


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("vllm-project/vllm#35641", "VLLM_ROCM_USE_AITER_MLA: 0"),
        ("vllm-project/vllm#55344", "VLLM_ROCM_USE_AITER_RMSNORM: 0"),
        ("ROCm/aiter#1367", "VLLM_ROCM_USE_AITER: 0"),
        ("Said-Akbar/triton-gcn5#4", "attention-backend: ROCM_ATTN"),
        ("vllm-project/vllm#21858", "~/.cache/vllm/torch_compile_cache"),
        ("lemonade-sdk/vllm-rocm#5", "max-model-len: 127776"),
        ("vllm-project/vllm#18538", "gone since v0.10"),
        ("gpustack/gpustack#3991", "runner: pooling"),
        ("vllm-project/vllm#46325", "two dashes"),
        ("vllm-project/vllm-omni#1592", "remove `stage-configs-path` and `omni`"),
        ("containers/ramalama#758", "remove `temperature`"),
        ("ROCm/aiter#3360", "docker rm vllm"),
        ("vllm-project/recipes#620", "VLLM_ROCM_USE_AITER_MOE: 0"),
        ("composed: readonly", "--tags stage"),
        ("composed: max-batched", "max-num-batched-tokens: 131072}` or more"),
        ("composed: ep-eplb", "Correct enable-expert-parallel in"),
        ("composed: mm-limit", "Change max-model-len and max-num-batched-tokens"),
        ("composed: reasoning-parser", "`deepseek_r1`"),
        ("composed: bfloat16", "Change dtype in"),
    ],
)
def test_the_remedy_is_the_one_that_helped(source: str, remedy: str) -> None:
    report = next(report for report in REPORTS if report["source"] == source)
    assert remedy in failure_of(report).remedy
