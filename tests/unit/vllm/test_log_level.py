# SPDX-License-Identifier: Apache-2.0
"""The class of each line of a server's output."""

from __future__ import annotations

import pytest

from ansible.module_utils.vllm_fleet.vllm import log_level

LOG = """\
(APIServer pid=1) INFO 11-30 06:00:01 [api_server.py:1] vLLM API server version 0.32.0
(EngineCore_DP0 pid=7) WARNING 11-30 06:00:02 [x.py:2] slow
(EngineCore_DP0 pid=7) ERROR 11-30 06:00:03 [core.py:3] EngineCore failed to start.
(EngineCore_DP0 pid=7) Traceback (most recent call last):
(EngineCore_DP0 pid=7)   File "core.py", line 1, in run
(EngineCore_DP0 pid=7) ValueError: no memory
Loading safetensors checkpoint shards:  50% |#####     |
INFO:     127.0.0.1:1 - "GET /health HTTP/1.1" 200 OK
ERROR:    Exception in ASGI application
/usr/lib/python3/x.py:5: UserWarning: old
(APIServer pid=1) DEBUG 11-30 06:00:01 [api_server.py:1] much"""
CLASSES = ["info", "warning", "error", "error", "error", "error", "info", "info", "error", "warning", "debug"]


def test_every_line_has_its_class_also_those_of_a_traceback():
    levels = log_level.Levels()
    assert [levels.of(line) for line in LOG.splitlines()] == CLASSES


@pytest.mark.parametrize(("level", "least", "shown"), [("error", "warning", True), ("info", "warning", False)])
def test_a_class_has_itself_and_those_above_it(level, least, shown):
    assert log_level.wanted(level, least) is shown
