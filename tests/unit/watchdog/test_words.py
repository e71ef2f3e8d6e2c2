# SPDX-License-Identifier: Apache-2.0
"""What a gateway and a person are told, and the verbs that only read."""

from __future__ import annotations

import json

import pytest

from ansible.module_utils.vllm_fleet.watchdog.main import main
from ansible.module_utils.vllm_fleet.watchdog.words import STATES, agent_line


@pytest.mark.parametrize("state", STATES)
def test_what_a_gateway_is_told(state):
    down = state in ("hung", "restarting", "out")
    for action in ("restart", "drain"):
        assert agent_line(state, action) == (f"down #{state}\n".encode() if down else b"up\n")
    assert agent_line(state, "observe") == b"up\n"
    assert agent_line(state, "drain", "GPU 0000:05:00.0 is gone") == b"down #quarantine\n"
    assert agent_line(state, "observe", "GPU 0000:05:00.0 is gone") == b"up\n"


def test_settings_are_checked(tmp_path, capsys):
    file = tmp_path / "vllm.json"
    file.write_text('{"name": "vllm", "state_dir": "/s", "silence": 20}')
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: right, for server vllm\n"
    file.write_text('{"name": "vllm", "state_dir": "/s"}')
    assert main(["check", str(file)]) == 1
    assert capsys.readouterr().err == f"{file}: silence should be a number of at least 1, found None\n"


def test_the_state_is_printed(tmp_path, capsys):
    assert main(["--run-dir", str(tmp_path), "state", "vllm"]) == 1
    assert "no state of vllm" in capsys.readouterr().err
    event = {"at": "2026-11-29T12:00:00Z", "kind": "limit", "why": "3 restarts in an hour"}
    (tmp_path / "vllm").mkdir()
    found = {"state": "out", "why": "3 restarts in an hour", "restarts": [1, 2, 3], "last_event": event}
    (tmp_path / "vllm" / "watchdog.json").write_text(json.dumps(found))
    assert main(["--run-dir", str(tmp_path), "state", "vllm"]) == 0
    assert capsys.readouterr().out == (
        "vllm: out: 3 restarts in an hour\nrestarts in the last hour: 3\n"
        "last event: 2026-11-29T12:00:00Z limit: 3 restarts in an hour\n"
    )
