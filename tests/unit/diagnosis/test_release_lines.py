# SPDX-License-Identifier: Apache-2.0
"""Real logs of every release line, recorded by tests/releases/record.py: each failure is named, no start is blamed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible.module_utils.vllm_fleet.diagnosis.case import Context, ExitFacts
from ansible.module_utils.vllm_fleet.diagnosis.diagnose import diagnose
from ansible.module_utils.vllm_fleet.diagnosis.standalone import read
from ansible.module_utils.vllm_fleet.vllm.log import parse, split
from ansible.module_utils.vllm_fleet.vllm.startup import Progress

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
#: Names of the first recordings of 0.32.0 beside those of the recorder.
CLASSES = {
    "no_such_path": "model_not_found",
    "offline_cache_miss": "cache_miss_offline",
    "max_model_len_exceeds_config": "context_too_long",
    "port_in_use": "port_taken",
    "unknown_flag": "bad_argument",
    "no_such_model": "model_not_found",
    "offline_miss": "cache_miss_offline",
    "context_too_long": "context_too_long",
    "port_taken": "port_taken",
    "worker_killed": "engine_died",
    "numa_not_permitted": "host_limits",
    "op_missing": "broken_image",
}
#: vLLM 0.8 and 0.9 have the same words for a model that is not in the cache and for one that does not exist.
SAME_WORDS = ("vllm-0.8.5.post2-cpu", "vllm-0.9.2.post2-cpu")
RECORDED: list[tuple[Path, dict[str, Any]]] = [
    (index.with_name(f"{name}.log"), ended)
    for index in sorted(FIXTURES.glob("vllm-*-cpu/cases.yml"))
    for name, ended in yaml.safe_load(index.read_text()).items()
]


def names(cases: list[tuple[Path, dict[str, Any]]]) -> list[str]:
    return [f"{log.parent.name} {log.stem}" for log, _ in cases]


def wanted(log: Path) -> str:
    if log.stem == "offline_miss" and log.parent.name in SAME_WORDS:
        return "model_not_found"
    # The one release of these that says the signal: SIGKILL is what the kernel sends when memory is short.
    if log.stem == "worker_killed" and log.parent.name.startswith("vllm-0.8."):
        return "host_memory"
    return CLASSES[log.stem]


FAILED = [(log, ended) for log, ended in RECORDED if log.stem not in ("ready", "compiled")]
READY = [(log, ended) for log, ended in RECORDED if log.stem in ("ready", "compiled")]


@pytest.mark.parametrize(("log", "ended"), FAILED, ids=names(FAILED))
def test_each_failure_of_each_release_has_its_name(log: Path, ended: dict[str, Any]) -> None:
    text = log.read_text()
    found = read(text, ended["exit_code"])
    assert found.failure is not None
    assert found.failure.class_ == wanted(log), found.as_text()
    known = diagnose(text, ExitFacts(ended["exit_code"]), Context(host="node1", port=8000, model="a/b"))
    assert known.class_ == wanted(log), known
    assert known.evidence


@pytest.mark.parametrize(("log", "ended"), READY, ids=names(READY))
def test_a_good_start_of_each_release_has_no_cause_and_all_its_stages(log: Path, ended: dict[str, Any]) -> None:
    text = log.read_text()
    assert read(text).failure is None
    progress, stages = Progress(offline=True), []
    for number, line in enumerate(split(text)):
        event = progress.feed_line(line, float(number))
        stages += [event.stage] if event is not None and event.stage not in stages else []
    # Some releases say on a CPU that they warm up for compiling, also where they do not compile.
    assert [stage for stage in stages if stage != "compiling"] == [
        "configuring",
        "loading weights",
        "allocating kv cache",
        "starting api",
        "ready",
    ]


#: Processes before the lines of a logger, by release: at first the workers alone, with a name that changed twice.
PROCESSES = {
    "vllm-0.10.2.post2-cpu": {"", "APIServer", "EngineCore_DP0", "Worker_TP0", "Worker_TP1"},
    "vllm-0.11.2.post2-cpu": {"", "APIServer", "EngineCore_DP0", "Worker_TP0", "Worker_TP1"},
    "vllm-0.14.1-cpu": {"", "APIServer", "EngineCore_DP0", "Worker_TP0", "Worker_TP1"},
    "vllm-0.19.1-cpu": {"", "APIServer", "EngineCore", "Worker", "Worker_TP0", "Worker_TP1"},
    "vllm-0.25.1-cpu": {"", "APIServer", "EngineCore", "Worker", "Worker_TP0", "Worker_TP1"},
    "vllm-0.32.0-cpu": {
        "APIServer",
        "EngineCore",
        "VllmWorker-0",
        "VllmWorker-1",
        "Worker",
        "Worker_TP0",
        "Worker_TP1",
    },
    "vllm-0.8.5.post2-cpu": {"", "VllmWorkerProcess"},
    "vllm-0.9.2.post2-cpu": {"", "VllmWorker"},
}


@pytest.mark.parametrize("release", sorted(PROCESSES))
def test_the_prefix_of_each_release_is_taken_off_every_line(release: str) -> None:
    seen = set()
    for log, _ in RECORDED:
        for line in split(log.read_text()) if log.parent.name == release else ():
            head = parse(line)
            assert not re.match(r"[(\[]\w[^()\[\]]* pid=|(?:INFO|WARNING|ERROR) \d", head.text), line
            seen |= {head.process} if head.level else set()
    assert seen == PROCESSES[release]


#: What 0.9.2 printed on a machine without Python's headers, with `--enforce-eager`; frames between are left out.
NO_HEADER = """\
(VllmWorker rank=1 pid=32) ERROR 11-29 13:00:26 [multiproc_executor.py:522] WorkerProc hit an exception.
(VllmWorker rank=1 pid=32) ERROR 11-29 13:00:26 [multiproc_executor.py:522] Traceback (most recent call last):
{0}   File "/opt/vllm/lib/python3.11/site-packages/vllm/v1/executor/multiproc_executor.py", line 517, in worker_busy_loop
{0}     output = func(*args, **kwargs)
{0}   File "/opt/vllm/lib/python3.11/site-packages/torch/_inductor/cpp_builder.py", line 343, in _run_compile_cmd
{0}     raise exc.CppCompileError(cmd, output) from e
{0} torch._dynamo.exc.BackendCompilerFailed: backend='inductor' raised:
{0} CppCompileError: C++ compile error
{0}
{0} Output:
{0} /tmp/torchinductor_root/ss/cssv.cpp:101:10: fatal error: Python.h: No such file or directory
{0}   101 | #include <Python.h>
{0} compilation terminated.
""".replace("{0}", "(VllmWorker rank=1 pid=32) ERROR 11-29 13:00:26 [multiproc_executor.py:522]")


def test_a_header_that_the_compiler_misses_is_named() -> None:
    found = read(NO_HEADER, 1).failure
    assert found is not None
    assert found.class_ == "broken_image"
    assert "Python.h" in found.cause
    assert "headers" in found.remedy
    assert "enforce-eager" not in found.remedy
