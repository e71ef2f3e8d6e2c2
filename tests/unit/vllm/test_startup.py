# SPDX-License-Identifier: Apache-2.0
"""What a starting server prints, and what is made of it: by recorded logs, cut into pieces of every size."""

import random
from itertools import groupby
from pathlib import Path

import pytest

from ansible.module_utils.vllm_fleet.vllm.log import MAX_LINE, LogReader
from ansible.module_utils.vllm_fleet.vllm.startup import STAGES, Event, Facts, Progress

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RECORDED = FIXTURES / "vllm-0.32.0-cpu"
LOGS = sorted([*RECORDED.glob("*.log"), *(FIXTURES / "failures").glob("*.log")])

#: Stages of the recorded logs with the details that each went through.
EXPECTED = {
    "ready": "configuring, loading weights 0/1 1/1, allocating kv cache, starting api, ready",
    "terminated_by_sigterm": "configuring, loading weights 0/1 1/1, allocating kv cache, starting api, ready",
    "engine_killed.stdout": "configuring, loading weights, allocating kv cache, starting api",
    "worker_killed": "configuring, loading weights, allocating kv cache, starting api, ready",
    "engine_killed.stderr": "loading weights 0/1 1/1, starting api, ready",
    "max_model_len_exceeds_config": "configuring",
    "memory_utilization": "configuring",
    "no_accelerator": "",
    "no_such_path": "configuring",
    "offline_cache_miss": "configuring",
    "port_in_use": "configuring",
    "unknown_flag": "",
    "shared_memory_too_small": "configuring",
    "compiled": "configuring, loading weights 0/1 1/1, compiling, allocating kv cache, starting api, ready",
    # The middle of this recording is another server's output, which carries no stage.
    "two_nodes_rank0": "configuring, starting api, ready",
    # A rank without an API server: nothing that it prints says that it is ready.
    "two_nodes_rank1_headless": "configuring, loading weights, allocating kv cache",
    "stalled": "configuring, downloading weights, loading weights " + " ".join(f"{n}/163" for n in range(42)),
    "older_release": "configuring, downloading weights, loading weights 0/4 4/4, compiling",
    "healthy_eight_gpus": "configuring, downloading weights, loading weights 0/163 prefetching 3/21 prefetching 5/21 "
    + " ".join(f"{n}/163" for n in range(1, 164))
    + ", compiling, allocating kv cache, capturing graphs "
    + " ".join(f"{n}/51" for n in range(0, 52, 3))
    + " "
    + " ".join(f"{n}/35" for n in range(0, 36, 5))
    + ", starting api, ready",
}


def run(data: bytes, sizes: list[int] | None = None) -> tuple[Progress, list[Event]]:
    """Feed a log, whole or in pieces of the given sizes; a line's number is its time."""
    reader, progress, events = LogReader(), Progress(), []
    pieces, at = [], 0
    for size in sizes or [len(data)]:
        pieces.append(data[at : at + size])
        at += size
    lines = [line for piece in pieces for line in reader.feed(piece)] + reader.close()
    for number, line in enumerate(lines):
        event = progress.feed_line(line, float(number))
        if event is not None:
            events.append(event)
    return progress, events


def story(events: list[Event]) -> str:
    return ", ".join(
        " ".join([stage, *(event.detail for event in group if event.detail)])
        for stage, group in groupby(events, lambda event: event.stage)
    )


def bar(done: int, total: int = 163, left: str = "10:12", what: str = "Loading safetensors checkpoint shards") -> str:
    return f"{what}: {100 * done // total:3d}% Completed | {done}/{total} [03:25<{left},  5.02s/it]"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_log_goes_through_its_stages(name: str) -> None:
    path = next(path for path in LOGS if path.name == f"{name}.log")
    _, events = run(path.read_bytes())
    assert story(events) == EXPECTED[name]


def test_every_recorded_log_is_in_the_table() -> None:
    assert {path.stem for path in RECORDED.glob("*.log")} <= EXPECTED.keys()


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_pieces_of_any_size_give_the_same_events(path: Path) -> None:
    data = path.read_bytes()
    whole, events = run(data)
    for seed in range(3):
        source = random.Random(seed)  # noqa: S311 - no secret
        sizes, left = [], len(data)
        while left > 0:
            sizes.append(source.choice([1, 2, 3, 7, 50, 400, 3000]) if seed else 1)
            left -= sizes[-1]
        progress, again = run(data, sizes)
        assert again == events
        assert progress.last_line == whole.last_line
        assert progress.facts == whole.facts
        assert progress.describe() == whole.describe()


#: This log holds three starts: see test_a_second_banner_starts_anew.
ONE_START = [path for path in LOGS if path.stem != "crash_loop"]


@pytest.mark.parametrize("path", ONE_START, ids=lambda path: path.stem)
def test_stages_only_go_forward_within_a_start(path: Path) -> None:
    _, events = run(path.read_bytes())
    ranks = [STAGES.index(event.stage) for event in events]
    assert ranks == sorted(ranks)


def test_a_second_banner_starts_anew() -> None:
    _, events = run((RECORDED / "ready.log").read_bytes() * 2)
    half = len(events) // 2
    assert story(events[:half]) == story(events[half:]) == EXPECTED["ready"]


@pytest.mark.parametrize(
    ("log", "weights", "kv_cache"),
    [
        (RECORDED / "ready.log", None, 1.0),
        (FIXTURES / "failures" / "healthy_eight_gpus.log", 79.8, 79.71),  # the smallest of the ranks
        (FIXTURES / "failures" / "older_release.log", 14.9889, None),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else None,
)
def test_sizes_of_a_recorded_start(log: Path, weights: float | None, kv_cache: float | None) -> None:
    progress, _ = run(log.read_bytes())
    assert progress.facts == Facts(weights, kv_cache)


LINES = [
    ("INFO 08-10 12:00:00 [kv_cache_utils.py:634] GPU KV cache size: 46,592 tokens", "allocating kv cache"),
    (
        "INFO 08-10 12:00:00 [kv_cache_utils.py:637] Maximum concurrency for 8,192 tokens per request: 5.69x",
        "allocating kv cache",
    ),
    (
        "INFO 08-10 12:00:00 core.py:171] init engine (profile, create kv cache, warmup model) took 20.1 seconds",
        "allocating kv cache",
    ),
    (
        "(EngineCore_DP1 pid=8) INFO 08-10 12:00:00 [core.py:58] Initializing a V1 LLM engine (v0.11.0) with config",
        "configuring",
    ),
    (
        "(ApiServer_0 pid=8) INFO 08-10 12:00:00 [api.py:18] Starting vLLM API server 0 on http://0.0.0.0:8000",
        "starting api",
    ),
    ("INFO:     Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)", "ready"),
    (
        "(Worker_TP0_EP0 pid=9) INFO 08-10 12:00:00 [backends.py:295] Directly load the compiled graph(s) for compile",
        "compiling",
    ),
    (
        "(Worker_TP0 pid=9) INFO 08-10 12:00:00 [decorators.py:320] Directly load AOT compilation from path /x",
        "compiling",
    ),
    ("(APIServer pid=1) INFO 08-10 12:00:00 [a.py:1] vLLM server version 0.32.0, serving model m/x", "configuring"),
    (
        "(RayWorkerWrapper pid=71, ip=10.0.0.2) INFO 08-10 12:00:00 [a.py:1] Starting to load model /m...",
        "loading weights",
    ),
    ("[aiter] start build [module_moe_sorting] under /root/.cache", "compiling"),
    (bar(3, 10, what="Multi-thread loading shards"), "loading weights 3/10"),
    (bar(3, 10, what="Loading pt checkpoint shards"), "loading weights 3/10"),
    (bar(3, 10, what="Loading safetensors checkpoint shards (eager)"), "loading weights 3/10"),
    (bar(300, 1000, what="Loading safetensors using Runai Model Streamer"), "loading weights 300/1000"),
    (
        "Loading safetensors using InstantTensor loader:  25% Completed | 12.0G/48.0G [00:05<00:15, 2.4GB/s]",
        "loading weights 12.0G/48.0G",
    ),
    ("(Worker_TP0 pid=9) " + bar(3, 10), "loading weights 3/10"),
    ("Capturing CUDA graph shapes:  50%|█████     | 34/67 [00:10<00:10,  3.1it/s]", "capturing graphs 34/67"),
    ("Capturing prefill CUDA graphs (FULL):   6%|▌         | 2/35 [00:01<00:19,  1.7it/s]", "capturing graphs 2/35"),
    ("Processed prompts:  50%|█████     | 1/2 [00:10<00:10,  3.1it/s]", "starting"),
    ("(APIServer pid=1) WARNING 08-10 12:00:00 [a.py:1] Found ulimit of 20000", "starting"),
    ("nothing in particular at 50%", "starting"),
]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=[line[:60] for line, _ in LINES])
def test_lines_of_every_release_and_loader(line: str, expected: str) -> None:
    progress = Progress()
    event = progress.feed_line(line, 1.0)
    assert progress.describe() == expected
    assert (event is None) == (expected == "starting")


def test_only_a_change_is_an_event() -> None:
    progress = Progress()
    assert progress.feed_line(bar(1), 5.0) == Event("loading weights", "1/163", 5.0, bar(1))
    assert progress.feed_line(bar(1), 6.0) is None
    assert progress.feed_line(bar(2), 7.0) is not None
    assert progress.feed_line("(EngineCore pid=1) INFO 08-10 12:00:00 [a.py:1] Using max model len 5", 8.0) is None


def test_a_late_line_of_another_rank_does_not_go_back() -> None:
    progress = Progress()
    progress.feed_line("(Worker_TP0 pid=1) INFO 08-10 12:00:00 [monitor.py:40] Starting torch.compile", 1.0)
    assert (
        progress.feed_line("(Worker_TP7 pid=8) INFO 08-10 12:00:00 [a.py:1] Starting to load model m/x...", 2.0) is None
    )
    assert progress.feed_line(bar(1), 3.0) is None
    assert progress.describe() == "compiling"
    assert progress.estimate() is None


def test_the_bar_s_own_estimate_is_taken_and_runs_down() -> None:
    progress = Progress()
    progress.feed_line(bar(41, left="1:02:03"), 100.0)
    assert progress.estimate() == 3723.0
    assert progress.estimate(at=123.0) == 3700.0
    assert progress.estimate(at=100000.0) == 0.0


def test_without_it_the_pace_since_the_first_count_is() -> None:
    progress = Progress()
    progress.feed_line(bar(3, left="?"), 10.0)
    assert progress.estimate() is None
    progress.feed_line(bar(13, left="?"), 30.0)
    assert progress.estimate() == pytest.approx(150 * 2.0)


def test_nothing_is_estimated_where_nothing_is_counted() -> None:
    progress, _ = run((RECORDED / "ready.log").read_bytes())
    assert progress.estimate() is None
    assert Progress().estimate() is None


def test_a_second_bar_counts_anew() -> None:
    """A draft model is loaded after the model itself."""
    progress = Progress()
    progress.feed_line(bar(163, left="00:00"), 10.0)
    progress.feed_line("(Worker pid=1) INFO 08-10 12:00:00 [a.py:1] Loading weights took 10.0 seconds", 10.5)
    assert progress.feed_line(bar(0, 2, left="?"), 11.0) is not None
    assert (progress.describe(), progress.estimate()) == ("loading weights 0/2", None)


def test_a_download_is_told_by_the_watcher() -> None:
    """vLLM prints nothing while it downloads."""
    progress = Progress()
    progress.feed_line("(Worker pid=1) INFO 08-10 12:00:00 [a.py:1] Starting to load model m/x...", 1.0)
    assert progress.stage == "downloading weights"
    event = progress.feed_download(3 << 30, 12 << 30, 10.0)
    assert event is not None
    assert (event.stage, event.detail) == ("downloading weights", "3.0/12.0 GiB")
    assert progress.feed_download(3 << 30, 12 << 30, 11.0) is None
    progress.feed_download(6 << 30, 12 << 30, 20.0)
    assert progress.estimate() == pytest.approx(20.0)
    progress.feed_line(bar(0, left="?"), 21.0)
    assert progress.feed_download(7 << 30, 12 << 30, 22.0) is None
    assert progress.describe() == "loading weights 0/163"


@pytest.mark.parametrize(("offline", "model"), [(True, "m/x"), (False, "/models/x"), (False, "./x")])
def test_nothing_is_called_a_download_that_cannot_be_one(offline: bool, model: str) -> None:
    progress = Progress(offline=offline)
    progress.feed_line(f"(Worker pid=1) INFO 08-10 12:00:00 [a.py:1] Starting to load model {model}...", 1.0)
    assert progress.stage == "loading weights"


@pytest.mark.parametrize(
    "noise",
    [
        "(APIServer pid=1) INFO 11-22 10:36:20 [api_utils.py:347]   █▄█▀ █     █     █     █  model   /models/x",
        "(APIServer pid=1) WARNING 11-22 10:36:20 [cpu.py:224] Triton is not installed.",
        "/opt/venv/lib/x.py:138: FutureWarning: `torch.distributed.reduce_op` is deprecated",
        '  if hasattr(value, "__dict__"):',
        "W1122 10:36:34.844000 17364 torch/_library/triton.py:53] Triton not available",
        "[W1122 10:36:56.608122262 utils.cpp:68] Warning: NUMA binding",
        "(APIServer pid=1) INFO 11-22 10:37:00 [launcher.py:195] Route: /docs, Methods: GET, HEAD",
        'INFO:     172.17.0.1:45356 - "GET /health HTTP/1.1" 200 OK',
        "(Worker pid=1) ERROR 11-22 10:48:16 [multiproc_executor.py:953] Traceback (most recent call last):",
        '(Worker pid=1) ERROR 11-22 10:48:16 [multiproc_executor.py:953]   File "/opt/x.py", line 920, in worker_main',
    ],
)
def test_noise_is_not_the_last_line(noise: str) -> None:
    progress = Progress()
    progress.feed_line("(Worker pid=1) INFO 11-22 10:36:56 [a.py:1] Starting to load model /models/x...", 1.0)
    progress.feed_line(noise, 2.0)
    assert progress.last_line == "Starting to load model /models/x..."


def test_the_one_telling_warning_is_shown() -> None:
    progress = Progress()
    text = "No available shared memory broadcast block found in 60 seconds."
    progress.feed_line(f"(EngineCore pid=1) WARNING 11-22 10:36:56 [shm_broadcast.py:1] {text}", 1.0)
    assert progress.last_line == text


def test_secrets_are_in_no_event_and_no_last_line() -> None:
    progress = Progress()
    args = "{'model': 'm/x', 'api_key': ['canary'], 'hf_token': 'hf_Canary012345'}"
    line = f"INFO 08-10 12:00:00 [a.py:1] non-default args: {args}"
    event = progress.feed_line(line, 1.0)
    assert event is not None
    assert "anary" not in event.line + progress.last_line


def test_a_reader_takes_bytes_as_they_come() -> None:
    reader = LogReader()
    assert reader.feed("█".encode()[:2]) == []
    assert reader.feed("█".encode()[2:] + b"a\r\nb\rc\n\n   \n\x1b[1;36md\x1b[0;0m\xff\n\x1b[A") == [
        "█a",
        "b",
        "c",
        "d\ufffd",
    ]
    assert reader.feed(b"half") == []
    assert reader.close() == ["half"]
    assert reader.close() == []


@pytest.mark.parametrize("size", [1000, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE])
def test_a_line_without_an_end_does_not_grow_without_bound(size: int) -> None:
    reader = LogReader()
    data = b"x" * (2 * MAX_LINE + 5) + b"\ny\n"
    lines = [line for at in range(0, len(data), size) for line in reader.feed(data[at : at + size])] + reader.close()
    assert [len(line) for line in lines] == [MAX_LINE, MAX_LINE, 5, 1]
