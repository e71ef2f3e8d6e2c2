# SPDX-License-Identifier: Apache-2.0
"""What keeps an engine from being right, and a user from being root."""

from __future__ import annotations

from typing import Any

import pytest

from ansible.module_utils.vllm_fleet.container.engine_lack import lack, why_not_root

RIGHT = {"denied": False, "running": True, "sdk": True, "client": "/usr/bin/docker"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"denied": True, "running": False, "sdk": False}, "its Docker engine is closed to this user"),
        ({"running": False, "sdk": False, "client": ""}, "no Docker engine runs there"),
        ({"sdk": False, "client": ""}, "python3-docker is missing"),
        ({"client": ""}, "the docker command is missing"),
        ({}, "daemon.json has to change"),
    ],
)
def test_the_first_lack_is_named(found: dict[str, Any], said: str) -> None:
    assert lack({**RIGHT, **found}) == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"uid": 1000, "msg": "x"}, "become gives uid 1000"),
        ({"module_stderr": "sudo: a\nsudo: a password is required \n", "msg": "x"}, "sudo: a password is required"),
        ({"module_stderr": "", "msg": "Missing sudo password"}, "Missing sudo password"),
        ({"msg": "Task failed:\nno sudo here"}, "no sudo here"),
        ({"msg": ""}, "no reason given"),
        ({}, "no reason given"),
    ],
)
def test_why_a_user_is_not_root(answer: dict[str, Any], said: str) -> None:
    assert why_not_root(answer) == said
