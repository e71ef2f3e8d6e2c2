# SPDX-License-Identifier: Apache-2.0
"""Failures by table: what a log and an end must be called, and what the message must say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible.module_utils.vllm_fleet.diagnosis.diagnose import (
    CLASSES,
    Context,
    ExitFacts,
    Failure,
    Gpu,
    Holder,
    diagnose,
    gpus_from_info,
    message,
)

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RECORDED = FIXTURES / "vllm-0.32.0-cpu"
CASES: list[dict[str, Any]] = yaml.safe_load((FIXTURES / "failures" / "cases.yml").read_text())

#: The public names: users write rules on them.
CONTRACT = [
    "gpu_memory_taken",
    "model_too_large",
    "kv_cache_too_small",
    "context_too_long",
    "model_not_found",
    "gated_model",
    "cache_miss_offline",
    "cache_incomplete",
    "weights_corrupt",
    "remote_code_refused",
    "unsupported_architecture",
    "bad_parallelism",
    "not_enough_gpus",
    "no_gpu",
    "gpu_permission",
    "driver_missing",
    "bad_argument",
    "port_taken",
    "image_missing",
    "shared_memory",
    "collective_init",
    "host_memory",
    "disk_full",
    "engine_died",
    "stalled",
    "ready_timeout",
    "wrong_model_served",
    "stopped_by_signal",
    "kernel_unsupported",
    "broken_image",
    "weights_mismatch",
    "compile_cache",
    "file_permission",
    "download_failed",
    "host_limits",
    "unknown",
]

#: Starts that went well, for as long as the log goes on.
HEALTHY = {"healthy_eight_gpus.log", "healthy_survived.log"}

WRAPPERS = re.compile(
    "Engine core initialization failed|WorkerProc initialization failed|EngineCore failed to start"
    "|WorkerProc failed to start|EngineDeadError"
)


def read(name: str) -> str:
    if not name:
        return ""
    folder, _, file = name.rpartition("/")
    return (RECORDED / file if folder == "recorded" else FIXTURES / "failures" / file).read_bytes().decode()


def context(case: dict[str, Any]) -> Context:
    given = dict(case.get("context", {}))
    if "gpus" in given:
        given["gpus"] = [gpu(*row) for row in given["gpus"]]
    return Context(**{"host": "node3", "port": 8000, "model": "deepseek-ai/DeepSeek-V3.1", **given})


def gpu(number: int, total: int, free: int, holders: list[Any] | None = None) -> Gpu:
    held = [Holder(pid, command, container, size << 20) for pid, command, container, size in holders or []]
    return Gpu(number, total << 20, free << 20, held)


def diagnosed(case: dict[str, Any]) -> tuple[Failure, Context]:
    known = context(case)
    return diagnose(read(case["log"]), ExitFacts(**case["exit"]), known), known


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['class']}: {case['name']}")
def test_a_failure_is_named_explained_and_proved(case: dict[str, Any]) -> None:
    failure, _ = diagnosed(case)

    assert failure.class_ == case["class"], failure
    for part in case.get("cause", []):
        assert part in failure.cause
    for part in case.get("remedy", []):
        assert part in failure.remedy
    for part in case.get("evidence", []):
        assert any(part in line for line in failure.evidence), failure.evidence
    assert failure.exit_code == case["exit"].get("exit_code")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['class']}: {case['name']}")
def test_a_message_is_one_sentence_that_names_everything(case: dict[str, Any]) -> None:
    failure, known = diagnosed(case)
    text = message(failure, known)

    assert text.startswith(f"Container vllm on node3 failed with {case['class']}: ")
    assert text.endswith(".")
    assert not re.search(r"[.!?] [A-Z]", text), "more than one sentence"
    assert not re.search(r"[{(\[] |None|\(\)|''|  |\.\.$", text), "a value was missing"
    assert 60 < len(text) < 700
    assert "\n" not in text


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['class']}: {case['name']}")
def test_evidence_is_short_and_never_a_wrapper(case: dict[str, Any]) -> None:
    failure, _ = diagnosed(case)

    assert len(failure.evidence) <= 4
    for line in (*failure.evidence, failure.cause):
        assert len(line) <= 600
        # A wrapper may stand only for the signal that it alone tells of.
        assert not WRAPPERS.search(line) or "': -" in line


def test_every_class_of_the_contract_has_a_row_and_a_case() -> None:
    assert sorted(CLASSES) == sorted(CONTRACT)
    assert {case["class"] for case in CASES} == set(CONTRACT)
    assert sorted(case["class"] for case in CASES if case.get("example")) == sorted(CONTRACT)


def test_every_recorded_and_composed_log_is_in_the_table() -> None:
    named = {case["log"] for case in CASES}
    logs = {f"recorded/{path.name}" for path in RECORDED.iterdir() if path.suffix in (".log", ".txt")}
    logs |= {path.name for path in (FIXTURES / "failures").glob("*.log")}
    # stderr alone goes with the stdout of the same run, and a healthy start is no failure: they are tested below.
    assert logs - named == {"recorded/engine_killed.stderr.log", "recorded/compiled.log", *HEALTHY}


@pytest.mark.parametrize("log", ["recorded/ready.log", "recorded/terminated_by_sigterm.log", "healthy_eight_gpus.log"])
@pytest.mark.parametrize(
    ("exit", "expected"),
    [
        (ExitFacts(143), "stopped_by_signal"),
        (ExitFacts(137), "stopped_by_signal"),
        (ExitFacts(0), "engine_died"),
        (ExitFacts(1), "engine_died"),
        (ExitFacts(137, oom_killed=True), "host_memory"),
        (ExitFacts(verdict="ready_timeout", seconds=60), "ready_timeout"),
    ],
    ids=str,
)
def test_a_healthy_log_never_gives_a_false_class(log: str, exit: ExitFacts, expected: str) -> None:
    """A server that was ready and has printed warnings, a client's error and nothing about its end."""
    lines = [
        line for line in read(log).splitlines(keepends=True) if "[shutdown]" not in line and "EngineDead" not in line
    ]
    assert diagnose("".join(lines), exit, Context()).class_ == expected


def test_every_prefix_of_a_healthy_log_gives_no_class_of_the_table() -> None:
    """Whatever a start had printed when it was cut off, its warnings are not taken for errors."""
    lines = read("recorded/ready.log").splitlines(keepends=True)
    ready = next(index for index, line in enumerate(lines) if "Application startup complete" in line)
    found = {diagnose("".join(lines[:end]), ExitFacts(1), Context()).class_ for end in range(0, ready)}
    assert found == {"unknown"}


@pytest.mark.parametrize("exit_code", [0, 1])
def test_errors_that_the_start_survived_are_no_cause(exit_code: int) -> None:
    """A complaint that the process lived on after, a retry, an exception in a destructor, advice of RCCL."""
    failure = diagnose(read("healthy_survived.log"), ExitFacts(exit_code), Context())
    assert failure.class_ == "unknown"
    assert failure.cause.endswith("the start went on after the errors in its log, and ended without another")
    for verdict in ("stalled", "ready_timeout"):
        assert diagnose(read("healthy_survived.log"), ExitFacts(verdict=verdict), Context()).class_ == verdict


def test_no_logged_line_outranks_how_it_ended() -> None:
    """The line alone would be a full disk; a stall, a signal and a traceback are stronger."""
    line = "(EngineCore pid=7) ERROR 11-22 09:14:06 [store.py:65] No space left on device\n"
    assert diagnose(line, ExitFacts(1), Context()).class_ == "disk_full"
    assert diagnose(line, ExitFacts(verdict="stalled"), Context()).class_ == "stalled"
    assert diagnose(line, ExitFacts(143), Context()).class_ == "stopped_by_signal"
    assert diagnose(line + read("unknown.log"), ExitFacts(1), Context()).class_ == "unknown"


def test_both_streams_of_a_killed_engine() -> None:
    both = read("recorded/engine_killed.stderr.log") + read("recorded/engine_killed.stdout.log")
    assert diagnose(both, ExitFacts(0), Context()).class_ == "engine_died"


def test_carriage_returns_and_colours_do_not_hide_the_cause() -> None:
    plain = read("gpu_memory_taken.log")
    dressed = "".join(f"\x1b[0;36m{line}\x1b[0;0m\r\n" for line in plain.splitlines())
    assert diagnose(dressed, ExitFacts(1), Context()) == diagnose(plain, ExitFacts(1), Context())


def test_lines_of_several_ranks_may_be_mixed() -> None:
    lines = [
        line for line in read("model_too_large.log").splitlines() if line.startswith(("(Worker_TP0", "(Worker_TP1"))
    ]
    first = [line for line in lines if line.startswith("(Worker_TP0")]
    second = [line for line in lines if line.startswith("(Worker_TP1")]
    mixed = [line for pair in zip(first[-len(second) :], second, strict=True) for line in pair]
    failure = diagnose("\n".join(mixed), ExitFacts(1), Context(args={"tensor-parallel-size": 4}))
    assert failure.class_ == "model_too_large"


def test_a_rank_that_lost_its_group_does_not_hide_the_rank_that_failed() -> None:
    """Rank 1 reports first that the group is gone, rank 0 then why."""
    lost, cause = read("collective_init.log"), read("gpu_memory_taken.log")
    assert diagnose(lost + cause.split("core.py:133", 1)[1], ExitFacts(1), Context()).class_ == "gpu_memory_taken"


def test_a_logged_complaint_does_not_hide_the_traceback() -> None:
    prefix = "(APIServer pid=1) ERROR 11-22 09:14:06 [repo_utils.py:65]"
    complaint = f"{prefix} Error retrieving file list: offline mode is enabled\n"
    assert diagnose(complaint + read("gpu_memory_taken.log"), ExitFacts(1), Context()).class_ == "gpu_memory_taken"


def test_only_the_last_start_of_a_restarting_container_counts() -> None:
    log = read("gpu_memory_taken.log") + read("weights_corrupt.log")
    assert diagnose(log, ExitFacts(1, verdict="restarting"), Context()).class_ == "weights_corrupt"


def test_an_error_that_was_survived_is_not_the_cause_of_a_later_end() -> None:
    log = read("cache_miss_no_network.log") + read("engine_died_gpu_fault.log")
    assert diagnose(log, ExitFacts(0), Context()).class_ == "engine_died"


def test_the_end_of_a_log_is_enough() -> None:
    """The traceback's head was cut off, its last line is there."""
    log = read("gpu_memory_taken.log")
    assert diagnose(log[log.index("ValueError: Free memory") :], ExitFacts(1), Context()).class_ == "gpu_memory_taken"


def test_a_word_of_docker_does_not_hide_the_log() -> None:
    exit = ExitFacts(1, error="task did not end in time")
    assert diagnose(read("gpu_memory_taken.log"), exit, Context()).class_ == "gpu_memory_taken"


def test_gpus_of_rocm_info_are_understood() -> None:
    found = gpus_from_info(
        [
            {
                "index": 2,
                "vram_total": 100,
                "vram_free": 40,
                "holders": [
                    {"pid": 7, "command": "ollama", "container": "0" * 64, "container_name": "llm", "bytes": 60},
                    {"pid": 8, "command": None, "container": None, "bytes": None},
                ],
            },
            {"index": 3, "vram_total": None, "vram_free": None, "holders": []},
        ]
    )
    assert found == [Gpu(2, 100, 40, [Holder(7, "ollama", "llm", 60), Holder(8, None, None, None)])]


def test_holders_whose_size_is_unknown_are_named_all_the_same() -> None:
    held = Gpu(0, 196588 << 20, 168714 << 20, [Holder(8, None, None, None)])
    failure = diagnose(read("recorded/rocm-free-memory.txt"), ExitFacts(1), Context(gpus=[held]))
    assert "(pid 8)" in failure.cause
    assert failure.remedy.startswith("Stop pid 8,")


@pytest.mark.parametrize("want", [f"{share / 100:.2f}" for share in range(2, 100, 7)])
def test_the_proposed_utilization_always_fits(want: str) -> None:
    """Two digits, never rounded up: what is proposed would have passed the check that failed."""
    free, total = float(want) * 191.98 - 0.4, 191.98
    log = (
        f"ValueError: Free memory on device ({free:.2f}/{total} GiB) on startup is less than desired GPU memory "
        f"utilization ({want}, {float(want) * total:.2f} GiB)."
    )
    remedy = diagnose(log, ExitFacts(1), Context()).remedy
    proposed = float(re.findall(r"gpu-memory-utilization:? ([\d.]+\d)", remedy)[0])
    assert proposed * total <= free < (proposed + 0.01) * total + 0.01


def test_no_secret_comes_out_of_a_diagnosis() -> None:
    log = read("unknown.log").replace("lazy tensor", "lazy tensor of hf_CanaryCanary01234567 for plaincanary")
    known = Context(host="node3", secrets=["plaincanary"])
    failure = diagnose(log, ExitFacts(1), known)
    assert "canary" not in f"{failure} {message(failure, known)} {failure.as_result()}".lower().replace("***", "")
    assert "plaincanary" not in repr(known)

    docker = diagnose("", ExitFacts(error="bad env VLLM_API_KEY=plaincanary", verdict="not_started"), known)
    assert "plaincanary" not in message(docker, known)


BIG = 5_000_000


@pytest.mark.parametrize(
    ("name", "block"),
    [
        (
            "progress bars",
            "\rLoading safetensors checkpoint shards:  25% Completed | 41/163 [03:25<10:10,  5.02s/it]\n",
        ),
        ("requests", 'INFO:     172.17.0.1:45356 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request\n'),
        ("crash loop", "crash_loop.log"),
        ("errors of every kind", "weights_corrupt.log"),
        ("unknown errors of every kind", "unknown.log"),
        ("one endless line", "x" * 1000),
        ("short lines", "ERROR\n"),
    ],
)
@pytest.mark.parametrize("verdict", ["exited", "stalled"])
def test_a_log_of_five_megabytes_is_read(name: str, block: str, verdict: str) -> None:
    """A pattern that takes time with the square of its text would take hours here; `make bench` has the seconds."""
    text = read(block) if block.endswith(".log") else block
    if name.endswith("errors of every kind"):
        # Each differs, so that none can be left out as already seen.
        text = "".join(re.sub("covered|lazy", str(number), text) for number in range(BIG // len(text) + 1))
    log = text * (BIG // len(text) + 1)
    assert diagnose(log[-BIG:], ExitFacts(1, verdict=verdict), Context()).class_ in CONTRACT
