# SPDX-License-Identifier: Apache-2.0
"""What stands before a line, for each release line: one sample of a log of that release each."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.vllm.log import split
from ansible.module_utils.vllm_fleet.vllm.prefix import Line, parse, unwrapped

SAMPLES = [
    # 0.5 to 0.7: no process, the source without its opening bracket
    ("ERROR 09-03 21:20:47 async_llm_engine.py:63] gone", Line("", "", "ERROR", "async_llm_engine.py:63", "gone")),
    ("(VllmWorkerProcess pid=31) INFO 09-03 21:20:47 m.py:1] hi", Line("VllmWorkerProcess", "31", "INFO", "m.py:1", "hi")),
    ("(RayWorkerWrapper pid=9, ip=10.0.0.8) ERROR 08-02 08:50:03 worker_base.py:382] x", Line("RayWorkerWrapper", "9", "ERROR", "worker_base.py:382", "x")),
    # 0.8 to 0.10.1: the engine and the API server without a process, workers with their rank
    ("INFO 03-02 10:11:12 [api_server.py:1034] x", Line("", "", "INFO", "api_server.py:1034", "x")),
    ("(VllmWorker rank=1 pid=839) ERROR 05-26 10:00:31 [multiproc_executor.py:487] x", Line("VllmWorker", "839", "ERROR", "multiproc_executor.py:487", "x")),
    ("(VllmWorker TP1 pid=839) ERROR 08-26 10:00:31 [multiproc_executor.py:559] x", Line("VllmWorker", "839", "ERROR", "multiproc_executor.py:559", "x")),
    # 0.10.2 to 0.15
    ("(EngineCore_DP0 pid=210) ERROR 10-31 02:34:59 [core.py:708] x", Line("EngineCore_DP0", "210", "ERROR", "core.py:708", "x")),
    ("(Worker_TP0 pid=78022) INFO 10-22 09:33:48 [monitor.py:34] x", Line("Worker_TP0", "78022", "INFO", "monitor.py:34", "x")),
    ("(APIServer pid=1) INFO 07-14 09:08:05 utils.py:223] x", Line("APIServer", "1", "INFO", "utils.py:223", "x")),
    ("[EngineCore_DP0 pid=130] DEBUG 02-20 05:08:43 [v1/engine/core.py:862] x", Line("EngineCore_DP0", "130", "DEBUG", "v1/engine/core.py:862", "x")),
    # Ray since 0.11: the engine's prefix, then the worker's own
    ("(EngineCore_DP0 pid=1121) (RayWorkerWrapper pid=282, ip=192.168.200.2) ERROR 01-22 12:06:59 [worker_base.py:318] x", Line("RayWorkerWrapper", "282", "ERROR", "worker_base.py:318", "x")),
    ("(EngineCore pid=1121) (RayWorkerWrapper pid=282) x", Line("RayWorkerWrapper", "282", "", "", "x")),
    # 0.16 to 0.32
    ("(Worker_TP0_EP0 pid=300) ERROR 07-25 05:00:10 [multiproc_executor.py:1018] x", Line("Worker_TP0_EP0", "300", "ERROR", "multiproc_executor.py:1018", "x")),
    ("(EngineCore pid=210) DEBUG 02-24 02:39:34 [v1/worker/gpu_model_runner.py:4758] x", Line("EngineCore", "210", "DEBUG", "v1/worker/gpu_model_runner.py:4758", "x")),
    ("(EngineCore pid=210) Process EngineCore:", Line("EngineCore", "210", "", "", "Process EngineCore:")),
    # PyTorch's own
    ("[rank0]: Traceback (most recent call last):", Line("rank0", "", "", "", "Traceback (most recent call last):")),
    ("[rank3]:   File \"a.py\", line 1", Line("rank3", "", "", "", "  File \"a.py\", line 1")),
    ("(Worker_TP1 pid=7) [rank1]:[W508 11:47:03.157 f.cpp:1] x", Line("Worker_TP1", "7", "", "", "[W508 11:47:03.157 f.cpp:1] x")),
    # none
    ("Loading (part 1 pid) x", Line("", "", "", "", "Loading (part 1 pid) x")),
    ("INFO:     Application startup complete.", Line("", "", "", "", "INFO:     Application startup complete.")),
]  # fmt: skip


@pytest.mark.parametrize(("line", "parts"), SAMPLES, ids=[line[:60] for line, _ in SAMPLES])
def test_each_release_has_its_prefix(line: str, parts: Line) -> None:
    assert parse(line) == parts


def test_a_line_that_follows_a_bar_without_a_line_end_is_one_of_its_own() -> None:
    bar = "Capturing CUDA graphs (decode, FULL):  88%|████▊ | 45/51 [00:05<00:00,  9.32it/s]"
    error = "(EngineCore pid=7) ERROR 02-24 02:39:34 [core.py:1] x"
    assert split(bar + error) == [bar, error]


@pytest.mark.parametrize(
    "prefix",
    ["vllm-1  | ", "[pod/vllm-0/vllm] ", "[vllm] | ", "2026-11-28T10:00:00.123456789Z ", "Nov 28 10:00:00 node3 docker[712]: ", "vllm | 2026-11-28T10:00:00Z ", "2026-11-28T10:00:00.123456789+00:00 stderr F ", "2026-11-28 10:00:00.123\t"],
)  # fmt: skip
def test_what_other_programs_put_before_a_line_goes(prefix: str) -> None:
    lines = ["(EngineCore pid=7) x", '  File "a.py", line 1', "", "ValueError: y"]
    assert unwrapped([prefix + line for line in lines]) == lines
    assert unwrapped(lines) == lines
