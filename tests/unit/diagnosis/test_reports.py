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

#: What starts print that get ready all the same.
WARNINGS = [
    "[W] hipIpcGetMemHandle failed : invalid argument\nWARNING 05-05 10:10:10 [custom_all_reduce.py:154] Custom allreduce is disabled because it is not supported.\n",
    "WARNING 05-05 10:10:10 [_custom_ops.py:20] Failed to import from vllm._C with ImportError('libcudart.so.12: no')\n",
    "WARNING 05-05 10:10:10 HTTP Error 429 thrown while requesting GET https://huggingface.co/a/b\nWARNING Retrying in 1s [Retry 1/5].\n",
    "[rank8]:[W ProcessGroupGloo.cpp:721] Warning: Unable to resolve hostname to a (local) address.\n",
    "Unrecognized keys in `rope_scaling` for 'rope_type'='linear': {'type'}\n",
    "MIOpen(HIP): Error [EvaluateInvokers] /MIOpen/src/hipoc.cpp:106: Failed to launch kernel: invalid configuration\n",
    "(raylet) [2026-05-05 10:10:10,000 E 1 1] file_system_monitor.cc:111: /tmp/ray is over 95% full\n",
    "libnuma: Warning: node argument 1 is out of range\n",
    "slurmstepd: error: *** JOB 5930 ON gpu11 CANCELLED AT 2026-05-05T10:10:10 DUE TO TIME LIMIT ***\n",
    "Traceback (most recent call last):\n  File \"/x/multiprocessing/resource_tracker.py\", line 9, in main\nKeyError: '/psm_1'\n",
    "[2026-05-05 10:10:10,001 E 12 30] core_worker_process.cc:825: Failed to establish connection to the exporter.\n",
]


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
        ("ROCm/aiter#4174", "Set `vllm_server_args: {disable-custom-all-reduce: true}`, or choose"),
        ("vllm-project/vllm#29036", "Change speculative-config in `vllm_server_args`"),
        ("composed: draft parallelism", "Correct speculative-config and"),
        ("composed: spec method", "Correct it in speculative-config in"),
        ("composed: eagle3 interface", "Remove speculative-config from"),
        ("composed: env choice", "Correct VLLM_ALL2ALL_BACKEND in `vllm_server_env`"),
        ("composed: DP rank", "Set data-parallel-size"),
        ("composed: sampler memory", "max-num-seqs: 128"),
        ("composed: memlock of RDMA", "memlock=-1"),
        ("composed: host address", "Correct host and master-addr"),
        ("composed: IO error", "dmesg -T"),
        ("composed: ray GCS", "ray status"),
        ("vllm-project/vllm#49064", "Change max-num-seqs and gpu-memory-utilization in"),
        ("vllm-project/vllm#12673", "SSL_CERT_FILE"),
        ("vllm-project/vllm#30690", "lora-modules"),
        ("gpustack/gpustack#5438", "max-lora-rank"),
        ("runpod-workers/worker-vllm#129", "chat-template"),
        ("ollama/ollama#6423", "/dev/kfd"),
        ("LMCache/LMCache#906", "vllm_server_entrypoint"),
        ("composed: head size", "attention-backend: FLEX_ATTENTION"),
        ("composed: kv connector name", "kv-transfer-config"),
        ("vllm-project/vllm#7074", "GLOO_SOCKET_IFNAME"),
        ("ROCm/rocm-systems#2209", "disable-custom-all-reduce"),
        ("composed: ca bundle", "Correct SSL_CERT_FILE and REQUESTS_CA_BUNDLE in `vllm_server_env`"),
        ("composed: SSL key of the server", "for TLS ends at the gateway"),
        ("composed: bad token", "valid into the vault as `hf_token`"),
        ("composed: kv dtype", "Correct kv-cache-dtype in"),
        ("huggingface/inference-benchmarker#30", "HOME: /tmp/vllm"),
        ("vllm-project/vllm#35547", "VLLM_ENGINE_READY_TIMEOUT_S"),
        ("composed: spec vocab", "Change speculative-config in"),
        ("vllm-project/vllm#28222", "VLLM_ROCM_USE_AITER_MLA: 0"),
        ("vllm-project/vllm#54180", "attention-backend: TRITON_ATTN"),
        ("gpustack/gpustack#4963", "mm-encoder-attn-backend"),
        ("bentoml/OpenLLM#968", "Stop what holds it"),
    ],
)
def test_the_remedy_is_the_one_that_helped(source: str, remedy: str) -> None:
    report = next(report for report in REPORTS if report["source"] == source)
    assert remedy in failure_of(report).remedy


@pytest.mark.parametrize("log", WARNINGS, ids=lambda log: log.split("\n")[0][:60])
def test_a_start_that_lives_on_after_its_warnings_shows_no_failure(log: str) -> None:
    assert read(f"{log}(APIServer pid=1) INFO:     Application startup complete.\n").failure is None


def test_an_error_of_one_request_is_no_failure_of_a_server_that_goes_on() -> None:
    log = """(APIServer pid=1) INFO:     Application startup complete.
(APIServer pid=1) ERROR:    Exception in ASGI application
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "/x/starlette/routing.py", line 7, in app
(APIServer pid=1) ValueError: this request is too long
"""
    assert read(log).failure is None
    dead = log.replace("ValueError: this request is too long", "vllm.v1.engine.exceptions.EngineDeadError: EngineCore")
    assert read(dead).failure is not None
    assert read(log, 1).failure is not None
