# SPDX-License-Identifier: Apache-2.0
"""What was asked of a node before is the answer where a task allows it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import play
import pytest

ARGS = {"url": "http://127.0.0.1:9", "model": "m", "timeout": 1, "requests": [{"name": "one", "prompt": "x"}]}
KEPT = [{"module": "vllm_chat", "args": ARGS, "answer": {"changed": False, "results": ["of before"]}}]


@pytest.mark.parametrize("asked", [True, False])
def test_a_server_is_asked_itself_unless_a_plan_has_just_done_so(tmp_path: Path, asked: bool) -> None:
    """A template, as in the role: after a change or a boot the plan's answer would be one of the server before."""
    chat = {"name": "Ask", "vllm_chat": ARGS, "register": "told", "failed_when": False}
    tasks = [
        {"name": "Keep", "ansible.builtin.set_fact": {"vllm_fleet_answers": KEPT, "cacheable": True}},
        {**chat, "vars": {"__answered": "{{ asked }}"}},
    ]
    told = play.run(tmp_path, tasks, {"asked": asked}, facts=["told"]).ok().facts["told"]
    assert (told.get("results") == ["of before"]) is asked
    assert ("refused" in told.get("msg", "")) is not asked, told
