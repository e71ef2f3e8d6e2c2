# SPDX-License-Identifier: Apache-2.0
"""Lines that show that an engine works, and those that only look like it."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.watchdog.signs import newest

AT = "2026-11-29T12:00:00.123456789Z"


@pytest.mark.parametrize(
    ("line", "engine"),
    [
        ("(EngineCore pid=99) INFO 11-29 12:00:00 [gpu_model_runner.py:3120] Loading weights took 31.20 seconds", None),
        ("(EngineCore_DP1 pid=99) INFO 11-29 12:00:00 [core.py:12] adapter loaded", "1"),
        ("(Worker_DP3_TP0_EP0 pid=99) DEBUG 11-29 12:00:00 [lora.py:12] x", "3"),
        ("(Worker_TP0 pid=131) [aiter] import [module_moe_asm] under /tmp", None),
        ("\x1b[0;36m(EngineCore pid=99)\x1b[0;0m Capturing CUDA graphs (decode, FULL):  43%|████", None),
        ("(VllmWorker rank=1 pid=7) INFO 11-29 12:00:00 [loader.py:447] Loading weights took 2 s", None),
    ],
)
def test_work(line, engine):
    assert newest(f"{AT} {line}") == {engine: AT}


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=7) INFO 11-29 12:00:00 [loggers.py:259] Engine 000: Avg prompt throughput: 0.0 tokens/s",
        '(APIServer pid=7) INFO:     127.0.0.1:5 - "GET /metrics HTTP/1.1" 200 OK',
        'INFO:     127.0.0.1:5 - "GET /health HTTP/1.1" 200 OK',
        "(EngineCore pid=9) INFO 11-29 12:00:00 [shm_broadcast.py:466] No available shared memory broadcast block found in"
        " 60 seconds. This typically happens when some processes are hanging or doing some time-consuming work",
        "(Worker_TP1 pid=9) WARNING 11-29 12:00:00 [x.py:1] slow",
        "(Worker_TP1 pid=9) ERROR 11-29 12:00:00 [x.py:1] broken",
        "[rank1]:[E1129 12:00:00.000 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation timeout",
        "(Worker_TP1 pid=9) words of a library",
        "",
    ],
)
def test_no_work(line):
    assert newest(f"{AT} {line}") == {}


def test_the_last_line_counts_and_a_cut_first_line_does_no_harm():
    later = AT.replace("12:00", "12:05")
    text = f"c.py:1] Loading\n{AT} (EngineCore pid=9) INFO 11-29 12:00:00 [a.py:1] x\n"
    assert newest(text + f"{later} (EngineCore pid=9) INFO 11-29 12:05:00 [a.py:1] y\n") == {None: later}
